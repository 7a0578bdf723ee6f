// What can go wrong: what is on or off, and what is done once.
import { ask, find, make } from './texts.js';
import { tell } from './step.js';

const TOGGLES = ['operator-down', 'no-money', 'portal-503'];
const ACTIONS = ['token-expired', 'renamed', 'robot', 'twice', 'burst', 'forged', 'update',
  'uninstall'];
const WITH_MESSAGE = ['robot', 'twice', 'burst']; // these send what is written in the card
const OPERATORS = ['operator-down', 'no-money']; // these need the pretend SMS.ru

export function makeSwitches(written, then) {
  find('toggles').append(...TOGGLES.map((name) => makeSwitch(name, written, then)));
  find('actions').append(...ACTIONS.map((name) => makeSwitch(name, written, then)));
}

function makeSwitch(name, written, then) {
  const item = make('li');
  const button = make('button');
  const why = make('p', 'why');
  Object.assign(button, { type: 'button', id: 'switch-' + name });
  why.id = 'why-' + name;
  button.dataset.text = name;
  why.dataset.text = name + '-why';
  button.setAttribute('aria-describedby', why.id);
  if (TOGGLES.includes(name)) button.setAttribute('role', 'switch');
  button.addEventListener('click', () => flip(name, button, written, then));
  item.append(button, why);
  if (name === 'uninstall') item.append(cleanBox());
  return item;
}

function cleanBox() {
  const box = make('label');
  const input = make('input');
  const words = make('span');
  Object.assign(input, { type: 'checkbox', id: 'clean', checked: true });
  words.dataset.text = 'clean';
  box.append(input, ' ', words);
  return box;
}

async function flip(name, button, written, then) {
  if (button.getAttribute('aria-busy') === 'true') return;
  const message = WITH_MESSAGE.includes(name) ? written() : {};
  if (!message) return; // the card says what is missing
  button.setAttribute('aria-busy', 'true');
  tell('working');
  const on = button.getAttribute('aria-checked') === 'true' ? 0 : 1;
  const clean = find('clean').checked ? 1 : 0;
  try {
    const answer = await ask('switch', { name, on, clean, ...message });
    tell('note-' + answer.note, answer);
    if (answer.state) then(name, answer.state);
  } finally {
    button.removeAttribute('aria-busy');
  }
}

export function showSwitches(state) {
  TOGGLES.forEach((name) => {
    find('switch-' + name).setAttribute('aria-checked', Boolean(state.on[name]));
  });
  OPERATORS.forEach((name) => {
    find('switch-' + name).parentElement.hidden = state.operator !== 'smsru';
  });
}
