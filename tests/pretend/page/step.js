// The line at the top: what just happened, and the next step, with a countdown while one waits.
import { choice, find, knows, say } from './texts.js';

let note = null; // [key, values] of what just happened; null: nothing since the page was opened
let next = null; // what the server says: for an administrator, for an employee
let framed = false; // is the application's form in the frame?
let trouble = ''; // the switch that is on
let until = 0; // milliseconds since 1970: when the next try comes

export function tell(key, values = {}) {
  note = [key, values];
  show();
}

export function showNext(state, inFrame) {
  next = state.next;
  trouble = Object.keys(state.on).find((name) => state.on[name]) || '';
  framed = inFrame;
  show();
}

// The step for who looks at it: with the form in the frame already, the one after "open"; while
// trouble is on that was switched on here, what waits for its end.
function step() {
  const mine = next[choice.user === '2' ? 'employee' : 'administrator'];
  if (framed && mine.framed) return { step: mine.framed };
  return trouble && mine.step === 'watch' ? { ...mine, step: 'trouble' } : mine;
}

const answered = (status) => {
  if (knows('status-' + status)) return say('status-' + status);
  return status === 0 || status === null ? say('no-answer') : status;
};

export function show() {
  if (!next) return;
  const now = step();
  const [key, values] = note || ['now-' + now.step, {}];
  const words = { ...values };
  if ('status' in values) words.status = answered(values.status);
  if ('user' in values) words.user = say(values.user);
  write('note', say(key, words));
  write('next-step', say('next-' + now.step, { name: trouble && say(trouble) }));
  until = (now.until || 0) * 1000;
  count();
}

// Written only when it changes: a screen reader says it again each time.
function write(id, words) {
  if (find(id).textContent !== words) find(id).textContent = words;
}

// Until the operator is tried again, or asked what became of a message.
function count() {
  const left = Math.ceil((until - Date.now()) / 1000);
  write('countdown', left > 0 ? say('countdown-' + step().what, { seconds: left }) : '');
}

setInterval(count, 200);
