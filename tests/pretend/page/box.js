// The portal's page: who I am, the language, the card with its messages, the switches, the news.
const Box = (function () {
  const TOGGLES = ['operator-down', 'no-money', 'portal-503'];
  const ACTIONS = ['token-expired', 'renamed', 'robot', 'twice', 'forged', 'burst', 'update',
    'uninstall'];
  const MOST = 300; // messages in the page
  const find = (id) => document.getElementById(id);
  const asked = new URLSearchParams(location.search); // what a moved page brings along
  const choice = { lang: chosenLanguage(), user: asked.get('user') || '1' };
  const rows = new Map(); // message id → its row
  let texts = { en: {}, ru: {} };
  let state = { on: {} };
  let note = ['note-ready', {}];
  let moving = false;

  function chosenLanguage() {
    const wanted = asked.get('lang') || localStorage.getItem('lang') || navigator.language;
    return wanted.slice(0, 2) === 'ru' ? 'ru' : 'en';
  }

  function say(key, values = {}) {
    const words = texts[choice.lang][key] || key;
    return words.replace(/\{(\w+)\}/g, (all, name) => (name in values ? values[name] : all));
  }

  async function ask(what, fields = {}) {
    const answer = await fetch('/box/' + what, {
      method: 'POST', headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify(fields) });
    return answer.json();
  }

  function tell(key, values = {}) {
    note = [key, values];
    const words = { ...values };
    if ('status' in values) words.status = answered(values.status);
    if ('user' in values) words.user = say(values.user);
    find('note').textContent = say(key, words);
  }

  const answered = (status) => {
    const word = texts[choice.lang]['status-' + status];
    return word || (status === 0 || status === null ? say('no-answer') : status);
  };

  // ---- language and user ------------------------------------------------------------------
  function translate() {
    document.documentElement.lang = choice.lang;
    document.title = say('title');
    document.querySelectorAll('[data-text]').forEach((one) => {
      one.textContent = say(one.dataset.text);
    });
    document.querySelectorAll('[data-label]').forEach((one) => {
      one.setAttribute('aria-label', say(one.dataset.label));
    });
    ['ru', 'en'].forEach((lang) => press('lang-' + lang, lang === choice.lang));
    press('user-admin', choice.user === '1');
    press('user-employee', choice.user === '2');
    const examples = ['', texts.en.example, texts.ru.example];
    if (examples.includes(find('text').value)) find('text').value = say('example');
    rows.forEach((row) => label(row));
    WireView.translate(say);
    show(state);
    tell(...note);
  }

  const press = (id, now) => find(id).setAttribute('aria-pressed', now);

  function choose(name, value) {
    if (choice[name] === value) return;
    choice[name] = value;
    if (name === 'lang') localStorage.setItem('lang', value);
    if (name === 'user') note = ['note-user', { user: value === '1' ? 'admin' : 'employee' }];
    translate();
    if (Frame.isOpen()) open(false);
  }

  // ---- the application --------------------------------------------------------------------
  async function open(aloud = true) {
    const page = await Frame.open(choice);
    find('app-empty').hidden = true;
    if (aloud) tell('note-opened-' + page);
  }

  function closed() {
    Frame.close();
    find('app-empty').hidden = false;
  }

  Frame.on({
    async setInstallFinish(params, done) {
      tell(done ? 'note-finished' : 'note-refused');
      if (done) await open(false);
    },
    resizeWindow(params, answer, frame) {
      if (Number(params.height) > 0) frame.style.height = Math.ceil(params.height) + 'px';
    },
    setTitle(params) {
      find('application-title').textContent = String(params.title);
    },
    reloadWindow: () => open(false),
    closeApplication() {
      closed();
      tell('note-closed');
    },
  });

  // ---- messages ---------------------------------------------------------------------------
  function label(row) {
    row.querySelector('.status').textContent = say('status-' + row.dataset.status);
  }

  function show(newState) {
    state = newState;
    const installed = Boolean(state.installed);
    find('open-app').textContent = say(installed ? 'open' : 'install');
    find('key').textContent = state.key || '';
    find('sender').textContent = state.sender || say('no-sender');
    find('sender').classList.toggle('on', Boolean(state.sender));
    find('send').disabled = !state.sender;
    find('send-hint').hidden = Boolean(state.sender);
    find('queue').textContent = state.queue ? say('queue', { folders: state.queue }) : '';
    TOGGLES.forEach((name) => {
      const button = find('switch-' + name);
      if (button) button.setAttribute('aria-checked', Boolean(state.on[name]));
    });
  }

  function showMessages(messages) {
    const list = find('messages');
    messages.forEach(function (one) {
      const row = rows.get(one.id) || newRow(one, list);
      if (row.dataset.status === one.status) return;
      row.dataset.status = one.status;
      label(row);
    });
    [...rows.keys()].slice(0, Math.max(0, rows.size - MOST)).forEach((id) => {
      rows.get(id).remove();
      rows.delete(id);
    });
    const counts = {};
    messages.forEach((one) => { counts[one.status] = (counts[one.status] || 0) + 1; });
    find('counts').textContent = Object.entries(counts)
      .map(([status, count]) => say('status-' + status) + ' ' + count).join(', ');
  }

  // Newest first, as in a CRM card.
  function newRow(one, list) {
    const row = document.createElement('li');
    row.dataset.id = one.id;
    ['to', 'status', 'body'].forEach(function (name) {
      const part = document.createElement('span');
      part.className = name;
      part.textContent = one[name];
      row.append(part);
    });
    rows.set(one.id, row);
    list.prepend(row);
    return row;
  }

  const written = () => ({ to: find('phone').value, text: find('text').value, ...choice });

  async function send(event) {
    event.preventDefault();
    const answer = await ask('send', written());
    tell('note-' + answer.note, answer);
  }

  // ---- switches ---------------------------------------------------------------------------
  function makeSwitch(name) {
    const item = document.createElement('li');
    const button = document.createElement('button');
    const why = document.createElement('p');
    Object.assign(button, { type: 'button', id: 'switch-' + name });
    Object.assign(why, { id: 'why-' + name, className: 'hint' });
    button.dataset.text = name;
    why.dataset.text = name + '-why';
    button.setAttribute('aria-describedby', why.id);
    if (TOGGLES.includes(name)) button.setAttribute('role', 'switch');
    button.addEventListener('click', () => flip(name, button));
    item.append(button, why);
    if (name === 'uninstall') item.append(cleanBox());
    return item;
  }

  function cleanBox() {
    const box = document.createElement('label');
    const input = document.createElement('input');
    const words = document.createElement('span');
    Object.assign(input, { type: 'checkbox', id: 'clean', checked: true });
    words.dataset.text = 'clean';
    box.append(input, ' ', words);
    return box;
  }

  async function flip(name, button) {
    if (button.getAttribute('aria-busy') === 'true') return;
    button.setAttribute('aria-busy', 'true');
    tell('working');
    const on = button.getAttribute('aria-checked') === 'true' ? 0 : 1;
    const clean = find('clean').checked ? 1 : 0;
    try {
      const answer = await ask('switch', { name, on, clean, ...written() });
      tell('note-' + answer.note, answer);
      if (answer.state) show(answer.state);
      if (name === 'uninstall' && answer.state) closed();
      if (answer.state) follow(answer.state.address);
    } finally {
      button.removeAttribute('aria-busy');
    }
  }

  // ---- news -------------------------------------------------------------------------------
  // A renamed portal: the page moves along, so that the frame's DOMAIN is the page's own.
  function follow(address) {
    if (address === location.origin || moving) return;
    moving = true;
    const query = new URLSearchParams({ ...choice, moved: 1 });
    if (Frame.isOpen()) query.set('open', 1);
    location.replace(address + '/?' + query);
  }

  async function listen() {
    let last = -1;
    while (!moving) {
      try {
        const seen = new URLSearchParams({ after: last, queue: state.queue || '' });
        const answer = await fetch('/box/news?' + seen, { redirect: 'manual' });
        if (answer.type === 'opaqueredirect') return location.reload();
        const news = await answer.json();
        last = news.last;
        WireView.add(news.exchanges);
        showMessages(news.messages);
        show(news.state);
        follow(news.state.address);
        await pause(60);
      } catch (error) {
        if (!moving) tell('note-error');
        await pause(1000);
      }
    }
  }

  const pause = (time) => new Promise((then) => setTimeout(then, time));

  async function copyKey() {
    getSelection().selectAllChildren(find('key'));
    await navigator.clipboard.writeText(state.key).catch(() => document.execCommand('copy'));
    tell('copied');
  }

  async function start() {
    texts = await (await fetch('/box/texts.json')).json();
    find('switches').append(...[...TOGGLES, ...ACTIONS].map(makeSwitch));
    if (asked.has('moved')) note = ['note-renamed', { address: location.origin }];
    translate();
    find('open-app').addEventListener('click', () => open());
    find('user-admin').addEventListener('click', () => choose('user', '1'));
    find('user-employee').addEventListener('click', () => choose('user', '2'));
    ['ru', 'en'].forEach((lang) => {
      find('lang-' + lang).addEventListener('click', () => choose('lang', lang));
    });
    find('message-form').addEventListener('submit', send);
    find('copy-key').addEventListener('click', copyKey);
    localStorage.setItem('lang', choice.lang);
    history.replaceState(null, '', '/');
    if (asked.has('open')) open(false);
    listen();
  }

  start();
  return { ask };
})();
