// One exchange: the line that everybody sees, and what it unfolds to.
import { clock, copyText, find, inBoth, make, say } from './texts.js';
import { codeOf } from './code.js';
import { tell } from './step.js';

export const LANES = ['browser', 'portal', 'app', 'operator', 'oauth'];

// A batch is named by its first command; REST and the rest by method and path.
function title(one) {
  const commands = Object.entries(one.fields).filter(([name]) => name.startsWith('cmd['));
  const path = one.path.split('?')[0].replace(/^\/rest\/(.*?)(\.json)?$/, '$1');
  if (!commands.length) return one.method + ' ' + path;
  const name = String(commands[0][1]).split('?')[0].replace('messageservice.', '');
  return one.method + ' ' + path + ': ' + commands.length + ' × ' + name;
}

// Field names may break before a bracket, and nowhere else.
function breakable(name) {
  const term = make('dt');
  name.split(/(?=\[)/).forEach((part) => term.append(part, document.createElement('wbr')));
  return term;
}

const lasted = (seconds) => (seconds < 1 ? say('ms', { time: Math.round(seconds * 1000) || '<1' })
  : say('s', { time: seconds.toFixed(1) }));

export class Row {
  constructor(one, changed) {
    this.item = make('li', 'exchange');
    this.head = make('p', 'group-head');
    this.foldButton = make('button', 'fold');
    this.line = make('button', 'line');
    this.foldButton.type = this.line.type = 'button';
    this.line.setAttribute('aria-expanded', 'false');
    this.line.addEventListener('click', () => this.toggle());
    this.foldButton.addEventListener('click', () => {
      this.unfolded = !this.unfolded;
      changed();
    });
    this.item.append(this.head, this.foldButton, this.line);
    this.update(one);
  }

  update(one) {
    this.one = one;
    Object.assign(this.item.dataset, { n: one.n, script: one.script, who: one.who, to: one.to,
      outcome: one.outcome, about: one.messages.join(' ') });
    this.item.classList.toggle('pending', Boolean(one.pending));
    this.translate();
  }

  // The screen reader hears who speaks to whom; the eye sees the arrow.
  translate() {
    const { one } = this;
    const stranger = LANES.includes(one.who) ? '' : say(one.who) + ': ';
    const ways = make('span', 'hidden', say(one.who) + ' → ' + say(one.to) + ': ');
    const time = clock(one.time) + (one.pending ? '' : ' · ' + lasted(one.seconds));
    this.line.replaceChildren(ways, make('span', 'what', stranger + title(one)),
      make('span', 'code', this.status()),
      make('span', 'script', one.script ? one.script + '.php' : ''),
      make('span', 'short', inBoth(one.short)), make('span', 'time', time), this.arrow());
    if (this.isOpen()) this.unfold();
  }

  // A postMessage has no status, and what waits for its answer has none yet.
  status() {
    const { pending, status } = this.one;
    if (pending) return say('pending');
    return status === null ? '' : status || say('no-answer');
  }

  arrow() {
    const from = LANES.indexOf(this.one.who); // a stranger, -1, comes from outside
    const to = LANES.indexOf(this.one.to);
    const start = from < 0 ? 0 : (from + 0.5) / LANES.length;
    const end = (to + 0.5) / LANES.length;
    const line = make('span', 'arrow' + (end < start ? ' back' : ''));
    line.style.marginLeft = Math.min(start, end) * 100 + '%';
    line.style.width = Math.abs(end - start) * 100 + '%';
    const track = make('span', 'track');
    track.append(line);
    return track;
  }

  isAbout(id) {
    return this.one.messages.includes(id);
  }

  // ---- among the others: a head above it, folded, hidden --------------------------------------
  show({ head = null, fold = false, hidden = false, shut = false }) {
    this.folds = fold;
    this.item.hidden = hidden;
    this.line.hidden = shut;
    this.head.hidden = !head;
    if (head) {
      this.head.replaceChildren(make('b', '', head.words), ' ', head.explained);
    }
  }

  showFold() {
    this.foldButton.hidden = !this.folds;
    if (!this.folds) return;
    const names = new Set(this.folded.map((row) => row.one.kind));
    this.foldButton.setAttribute('aria-expanded', Boolean(this.unfolded));
    this.foldButton.textContent = say('folded', {
      count: this.folded.length, names: [...names].join(', ') });
  }

  // ---- unfolded -------------------------------------------------------------------------------
  isOpen() {
    return this.line.getAttribute('aria-expanded') === 'true';
  }

  toggle() {
    const open = !this.isOpen();
    this.line.setAttribute('aria-expanded', open);
    if (open) this.unfold().then(() => this.intoView());
    else this.detail.remove();
  }

  // All of it, or its beginning if it is higher than there is room.
  intoView() {
    const room = Math.min(innerHeight, find('wire-scroll').clientHeight);
    this.item.scrollIntoView({ block: this.item.offsetHeight > room ? 'start' : 'nearest' });
  }

  // The code comes a moment later, into its place.
  async unfold() {
    const { one } = this;
    const code = make('div', 'place');
    const box = make('div', 'detail');
    const copy = make('button', 'small curl', say('curl'));
    copy.type = 'button';
    copy.addEventListener('click', () => this.copyCurl());
    copy.hidden = !one.curl;
    const request = make('p', 'request', one.method + ' ' + one.path + ' ');
    request.append(copy);
    const fields = Object.entries(one.fields);
    const table = make('dl');
    fields.forEach(([key, value]) => table.append(breakable(key), make('dd', '', value)));
    const { answer } = one;
    const shown = typeof answer === 'string' ? answer : JSON.stringify(answer, null, 1);
    box.append(make('p', 'why', inBoth(one.why)));
    const head = make('h4', '', say(fields.length ? 'fields' : 'no-fields'));
    box.append(code, request, head, table);
    if (!one.pending) {
      box.append(make('h4', '', say('answer') + ' ' + this.status()), make('pre', '', shown));
    }
    if (this.detail) this.detail.remove();
    this.detail = box;
    this.item.append(box);
    if (one.function) code.replaceChildren(await codeOf(one.function));
  }

  async copyCurl() {
    await copyText(this.one.curl);
    tell('curl-copied');
  }
}
