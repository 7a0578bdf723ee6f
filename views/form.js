// The tutorial's script, and what can go wrong. Values come from inputs and data- attributes.
(function () {
  const form = document.getElementById('sms-settings');
  const button = form.querySelector('button');
  const inputs = form.querySelectorAll('.operator');
  const texts = JSON.parse(form.dataset.texts);
  const label = button.textContent;
  const [trouble, done] = ['trouble', 'done'].map((id) => document.getElementById(id));
  const fail = (code, words = '') => { throw Object.assign(new Error(words), { code }); };
  let ready = false;

  form.addEventListener('submit', async function (e) {
    e.preventDefault();
    const focused = document.activeElement;
    say(done, texts.saving);
    busy(true);
    try {
      // 1. save the authorization and the operator's key on the application's side,
      // to use them later for sending messages
      await renewTokens();
      const params = await save();
      // 2. register the handler of the provider
      const result = await new Promise(function (then) {
        BX24.callMethod('messageservice.sender.add', params, then);
      });
      const code = errorCode(result);
      // the application has updated a provider that is there already
      if (code && code !== 'ERROR_SENDER_ALREADY_INSTALLED') fail(code, result.error_description());
      showSaved();
      // 3. finish the installation on Bitrix24's side
      if (form.dataset.page === 'install') BX24.installFinish();
    } catch (error) {
      complain(String(error.code || 'OTHER'), error.message);
    }
    busy(false);
    if (document.activeElement === document.body) focused.focus();
  });

  // The page may have been open for longer than the hour that the frame's token lives.
  async function renewTokens() {
    if (!BX24.getAuth()) await new Promise((then) => BX24.refreshAuth(then));
    const auth = BX24.getAuth() || {};
    for (const [name, key] of [['AUTH_ID', 'access_token'], ['REFRESH_ID', 'refresh_token']]) {
      const input = form.querySelector('input[name="' + name + '"]');
      if (input && auth[key]) input.value = auth[key];
    }
  }

  async function save() {
    const body = new URLSearchParams(new FormData(form));
    const request = fetch(form.getAttribute('action'), { method: 'POST', body });
    const answer = await request.catch(() => fail('NO_ANSWER'));
    const found = await answer.json().catch(() => fail('HTTP_' + answer.status));
    return found.sender || fail(found.error, found.error_description);
  }

  // error() is an object in BX24.js: its code is inside, or at the start of its text.
  function errorCode(result) {
    const error = result.error();
    return error && ((error.ex && error.ex.error) || String(error).split(/[:\s]/)[0] || 'OTHER');
  }

  function complain(code, description) {
    const known = Object.keys(texts).includes(code);
    say(trouble, (known ? texts[code] : texts.OTHER + ' ' + description) + ' (' + code + ')');
  }

  // One message at a time, in one of the places that are kept free for it.
  function say(place, words) {
    document.querySelectorAll('.error, .done').forEach((one) => { one.textContent = ''; });
    place.textContent = words;
    if (ready) BX24.fitWindow();
  }

  function busy(now) {
    form.setAttribute('aria-busy', now);
    button.disabled = now;
    inputs.forEach((input) => { input.readOnly = now; });
    button.textContent = now ? texts.busy : label;
  }

  function showSaved() {
    inputs.forEach((input) => {
      const value = input.value.trim();
      const shown = document.querySelector('[data-key="' + input.name + '"]');
      if (value) input.placeholder = input.type === 'password' ? '••••' : value;
      if (value && shown) shown.textContent = input.placeholder;
      input.value = '';
    });
    document.querySelectorAll('[data-saved]').forEach((one) => {
      one.style.minHeight = one.offsetHeight + 'px'; // so that the form below stays in place
      one.textContent = one.dataset.saved;
      one.classList.remove('warning');
    });
    say(done, texts.saved);
  }

  document.querySelectorAll('time').forEach((time) => {
    time.textContent = new Date(time.dateTime).toLocaleString(document.documentElement.lang);
  });
  const patience = setTimeout(() => say(trouble, texts.outside), 5000); // BX24.js comes later, or never
  window.addEventListener('load', function () {
    if (!window.BX24) return say(trouble, texts.outside);
    BX24.init(function () {
      clearTimeout(patience);
      ready = true;
      say(done, '');
      busy(false);
    });
  });
})();
