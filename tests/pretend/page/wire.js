// The wire as a sequence diagram that grows: a row for each exchange, in it an arrow
// between two lifelines.
const WireView = (function () {
  const LANES = ['browser', 'portal', 'app', 'operator', 'oauth'];
  const MOST = 400; // rows in the page; older ones leave it
  const list = document.getElementById('wire');
  const scroll = document.getElementById('wire-scroll');
  const rows = []; // {time, n, item}, in the order in which the exchanges began
  let say = (key) => key;
  let total = 0;

  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  // A batch is named by its first command; REST and the rest by method and path.
  function title(one) {
    const commands = Object.entries(one.fields).filter(([name]) => name.startsWith('cmd['));
    const path = one.path.split('?')[0].replace(/^\/rest\/(.*?)(\.json)?$/, '$1');
    if (!commands.length) return one.method + ' ' + path;
    const name = String(commands[0][1]).split('?')[0].replace('messageservice.', '');
    return one.method + ' ' + path + ': ' + commands.length + ' × ' + name;
  }

  function row(one) {
    const item = make('li', 'exchange');
    Object.assign(item.dataset, { n: one.n, script: one.script, who: one.who, to: one.to });
    item.dataset.status = one.status;
    const button = make('button', 'line');
    button.type = 'button';
    button.setAttribute('aria-expanded', 'false');
    const ways = make('span', 'ways hidden');
    ways.dataset.ways = '';
    const code = make('span', 'code', one.status || say('no-answer'));
    if (!one.status || one.status >= 400) code.classList.add('bad');
    else if (one.status >= 300) code.classList.add('moved');
    const stranger = LANES.includes(one.who) ? '' : say(one.who) + ': ';
    button.append(ways, make('span', 'what', stranger + title(one)), code,
      make('span', 'script', one.script ? one.script + '.php' : ''), arrow(one));
    button.addEventListener('click', () => toggle(item, button, one));
    item.append(button);
    name(item);
    return item;
  }

  // The screen reader hears who speaks to whom; the eye sees the arrow.
  function name(item) {
    const { who, to } = item.dataset;
    item.querySelector('[data-ways]').textContent = say(who) + ' → ' + say(to) + ': ';
  }

  function arrow(one) {
    const from = LANES.indexOf(one.who); // a stranger, -1, comes from outside
    const to = LANES.indexOf(one.to);
    const start = from < 0 ? 0 : (from + 0.5) / LANES.length;
    const end = (to + 0.5) / LANES.length;
    const line = make('span', 'arrow' + (end < start ? ' back' : ''));
    line.style.marginLeft = Math.min(start, end) * 100 + '%';
    line.style.width = Math.abs(end - start) * 100 + '%';
    const track = make('span', 'track');
    track.append(line);
    return track;
  }

  function toggle(item, button, one) {
    const open = button.getAttribute('aria-expanded') !== 'true';
    button.setAttribute('aria-expanded', open);
    const old = item.querySelector('.detail');
    if (old) old.remove();
    if (open) item.append(detail(one));
  }

  function detail(one) {
    const box = make('div', 'detail');
    const when = new Date(one.time * 1000).toLocaleTimeString(document.documentElement.lang);
    box.append(make('p', 'request', one.method + ' ' + one.path + '  ' + when));
    const fields = Object.entries(one.fields);
    box.append(make('h4', '', fields.length ? say('fields') : say('no-fields')));
    const table = make('dl');
    fields.forEach(([key, value]) => table.append(make('dt', '', key), make('dd', '', value)));
    const { answer } = one;
    const shown = typeof answer === 'string' ? answer : JSON.stringify(answer, null, 1);
    const head = say('answer') + ': ' + (one.status || say('no-answer'));
    box.append(table, make('h4', '', head), make('pre', '', shown));
    return box;
  }

  // What began earlier stands higher, even when it was answered later.
  function place(one) {
    let at = rows.length;
    while (at > 0 && rows[at - 1].time > one.time) at -= 1;
    if (at === 0 && rows.length >= MOST) return;
    const item = row(one);
    list.insertBefore(item, at < rows.length ? rows[at].item : null);
    rows.splice(at, 0, { time: one.time, item });
  }

  function add(exchanges) {
    if (!exchanges.length) return;
    const atEnd = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 60;
    exchanges.forEach(place);
    rows.splice(0, Math.max(0, rows.length - MOST)).forEach((old) => old.item.remove());
    total = Math.max(total, ...exchanges.map((one) => one.n));
    count();
    if (atEnd) scroll.scrollTop = scroll.scrollHeight;
  }

  function count() {
    const key = total > rows.length ? 'wire-shown' : 'wire-all';
    const words = total ? say(key, { total, shown: rows.length }) : '';
    document.getElementById('wire-count').textContent = words;
  }

  function translate(words) {
    say = words;
    const lanes = document.getElementById('lanes');
    lanes.replaceChildren(...LANES.map((lane) => make('span', '', say(lane))));
    rows.forEach(({ item }) => name(item));
    count();
  }

  return { add, translate };
})();
