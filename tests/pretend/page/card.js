// The contact's card: a message is written here, and its timeline shows what became of each.
import { ask, choice, clock, find, inAll, make, say } from './texts.js';
import { keep } from './light.js';
import { startOf, toRowsOf } from './wire.js';
import { tell } from './step.js';

const rows = new Map(); // message id → its entry
let state = {};
let offered = false;

// What is written, or null after saying what is missing.
export function written() {
  const [phone, text] = [find('phone'), find('text')];
  const missing = !/\d/.test(phone.value) ? phone : !text.value.trim() ? text : null;
  [phone, text].forEach((one) => one.setAttribute('aria-invalid', one === missing));
  find('form-error').textContent = missing ? say('missing-' + missing.id) : '';
  if (missing) {
    tell('missing-' + missing.id);
    missing.focus();
    return null;
  }
  return { to: phone.value, text: text.value, ...choice };
}

async function send(event) {
  event.preventDefault();
  const message = written();
  if (!message) return;
  const answer = await ask('send', message);
  tell('note-' + answer.note, answer);
}

export function openCard(brought) {
  find('phone').value = brought.get('to') || '';
  find('text').value = brought.get('text') || '';
  find('message-form').addEventListener('submit', send);
}

// ---- what the portal knows ----------------------------------------------------------------
export function showCard(newState) {
  state = newState;
  find('sender').textContent = state.sender || say('no-sender');
  find('sender').classList.toggle('on', Boolean(state.sender));
  find('send').disabled = !state.sender;
  find('send-hint').hidden = Boolean(state.sender);
  const ends = (state.endings || []).map(({ end, means }) => say('ending-' + means, { end }));
  find('phone-hint').textContent = ends.length ? say('endings') + ' ' + ends.join(', ') + '.' : '';
  if (!offered && state.phone) offer();
}

// A number that gets through, unless a moved page has brought what was written.
function offer() {
  offered = true;
  find('phone').value = find('phone').value || state.phone;
}

export function translateCard() {
  if (['', ...inAll('example')].includes(find('text').value)) find('text').value = say('example');
  find('form-error').textContent = '';
  rows.forEach(label);
  showCard(state);
}

// ---- the timeline ---------------------------------------------------------------------------
export const textOf = (id) => (rows.has(id) ? rows.get(id).dataset.body : '');

export function showMessages(messages) {
  const before = rows.size;
  messages.forEach(function (one) {
    const row = rows.get(one.id) || newRow(one);
    if (row.dataset.status === one.status) return;
    const changed = row.dataset.status && before;
    row.dataset.status = one.status;
    label(row);
    if (changed) tell('note-became-' + one.status, one);
  });
  const known = new Set(messages.map((one) => one.id));
  [...rows.keys()].filter((id) => !known.has(id)).forEach((id) => {
    rows.get(id).remove();
    rows.delete(id);
  });
  const counts = {};
  messages.forEach((one) => { counts[one.status] = (counts[one.status] || 0) + 1; });
  find('counts').textContent = Object.entries(counts)
    .map(([status, count]) => say('status-' + status) + '\u00a0' + count).join(', ');
}

// Newest first, as in a CRM card.
function newRow(one) {
  const row = make('li');
  Object.assign(row.dataset, { id: one.id, about: one.id, body: one.body,
    began: startOf(one.id) || '' });
  const trace = make('button', 'small trace');
  trace.type = 'button';
  trace.setAttribute('aria-pressed', false);
  trace.addEventListener('click', () => follow(one.id));
  row.append(make('span', 'when'), make('span', 'to', one.to),
    make('span', 'status'), make('span', 'body', one.body), trace);
  rows.set(one.id, row);
  find('messages').prepend(row);
  return row;
}

function label(row) {
  const { began } = row.dataset;
  row.querySelector('.when').textContent = began && clock(Number(began));
  row.querySelector('.status').textContent = say('status-' + row.dataset.status);
  row.querySelector('.trace').textContent = say('trace');
}

// Its requests light up and stay so; pressed again, no more.
function follow(id) {
  const on = keep(id);
  rows.forEach((row, other) => {
    row.querySelector('.trace').setAttribute('aria-pressed', on && other === id);
  });
  if (on) toRowsOf(id);
}
