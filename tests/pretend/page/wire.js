// The wire as a sequence diagram that grows: a row for each exchange, in it an arrow between two
// lifelines. Rows stand in the order in which they began, under the name of what they belong to;
// what says nothing new is folded.
import { find, make, say } from './texts.js';
import { LANES, Row } from './row.js';

const MOST = 400; // rows in the page; older ones leave it
const rows = []; // Row objects, in the order in which the exchanges began
let filter = ''; // the script whose requests are shown, all if none
let total = 0;
let textOf = () => '';

export function openWire(textOfMessage) {
  textOf = textOfMessage;
}

// ---- what comes -----------------------------------------------------------------------------
export function addExchanges(exchanges) {
  if (!exchanges.length) return;
  const scroll = find('wire-scroll');
  const atEnd = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 60;
  exchanges.forEach(place);
  rows.splice(0, Math.max(0, rows.length - MOST)).forEach((old) => old.item.remove());
  total = Math.max(total, ...exchanges.map((one) => one.n));
  arrange();
  // whoever reads an opened row is not carried away
  if (atEnd && !document.querySelector('#wire [aria-expanded="true"].line')) {
    scroll.scrollTop = scroll.scrollHeight;
  }
}

// A request that waited has its answer now; or a new one: what began earlier stands higher.
function place(one) {
  const known = rows.find((row) => row.one.n === one.n);
  if (known) return known.update(one);
  let at = rows.length;
  while (at > 0 && rows[at - 1].one.time > one.time) at -= 1;
  if (at === 0 && rows.length >= MOST) return;
  const row = new Row(one, arrange);
  find('wire').insertBefore(row.item, at < rows.length ? rows[at].item : null);
  rows.splice(at, 0, row);
}

// ---- groups, folds, the filter --------------------------------------------------------------
export function arrange() {
  const seen = { group: null, fold: null, pass: false };
  rows.forEach(function (row) {
    const fits = !filter || row.one.script === filter;
    if (!fits) return row.show({ hidden: true });
    if (row.one.quiet && !row.isOpen()) return fold(row, seen);
    seen.fold = null;
    const starts = row.one.group !== seen.group;
    seen.group = row.one.group;
    row.show({ head: starts ? headOf(row.one.group, seen) : null });
  });
  rows.forEach((row) => row.showFold());
  showFilters();
  count();
}

// Quiet rows that follow each other are one line, on the first of them.
function fold(row, seen) {
  seen.fold = seen.fold || row;
  const first = seen.fold === row;
  if (first) row.folded = [];
  seen.fold.folded.push(row);
  row.show({ fold: first, hidden: !first && !seen.fold.unfolded, shut: !seen.fold.unfolded });
}

function headOf(group, seen) {
  const [kind, ...rest] = String(group || 'other').split(':');
  const name = rest.join(':');
  const words = say('group-' + kind, { name: kind === 'message' ? shorten(textOf(name)) : name });
  const explained = kind === 'pass' && !seen.pass;
  if (explained) seen.pass = true;
  return { words, explained: explained ? say('pass-why') : '' };
}

const shorten = (text) => (text.length > 44 ? text.slice(0, 43) + '…' : text);

function showFilters() {
  const scripts = [...new Set(rows.map((row) => row.one.script).filter(Boolean))].sort();
  const place = find('filters');
  const wanted = ['', ...scripts].join();
  if (place.dataset.shown !== wanted) {
    place.dataset.shown = wanted;
    place.replaceChildren(...['', ...scripts].map(filterButton));
  }
  place.querySelectorAll('button').forEach((one) => {
    one.setAttribute('aria-pressed', one.dataset.script === filter);
  });
}

function filterButton(script) {
  const button = make('button', 'small', script ? script + '.php' : say('all'));
  button.type = 'button';
  button.dataset.script = script;
  button.addEventListener('click', function () {
    filter = script;
    arrange();
  });
  return button;
}

function count() {
  const key = total > rows.length ? 'wire-shown' : 'wire-all';
  find('wire-count').textContent = total ? say(key, { total, shown: rows.length }) : '';
}

// ---- for the card ---------------------------------------------------------------------------
export function startOf(id) {
  const first = rows.find((row) => row.isAbout(id));
  return first && first.one.time;
}

// To the first request about this message, whatever the filter hides.
export function toRowsOf(id) {
  const first = rows.find((row) => row.isAbout(id));
  if (!first) return;
  filter = '';
  arrange();
  first.item.scrollIntoView({ block: 'start' });
}

export function translateWire() {
  find('lanes').replaceChildren(...LANES.map((lane) => make('span', '', say(lane))));
  delete find('filters').dataset.shown;
  rows.forEach((row) => row.translate());
  arrange();
}
