// The portal's side of the application's frame: opens it as Bitrix24 does and answers what it says.
import { ask, find } from './texts.js';

let opened = null; // {frame, sid, origin}
let handlers = {}; // what a command does to the page: resizeWindow, setTitle, ...

// A new iframe each time: its name is what BX24.js reads as window.name.
export async function open(fields, title) {
  const answer = await ask('open', fields);
  close();
  const frame = document.createElement('iframe');
  frame.id = 'app-frame';
  frame.name = answer.name;
  frame.title = title;
  frame.allow = 'clipboard-read; clipboard-write';
  find('app-place').append(frame);
  opened = { frame, sid: answer.sid, origin: new URL(answer.url).origin };
  post(answer);
  return answer.page;
}

// The browser itself sends the form to the application, into the frame.
function post(answer) {
  const form = document.createElement('form');
  Object.assign(form, { method: 'POST', action: answer.url, target: answer.name, hidden: true });
  Object.entries(answer.fields).forEach(function ([name, value]) {
    const input = document.createElement('input');
    Object.assign(input, { type: 'hidden', name, value });
    form.append(input);
  });
  document.body.append(form);
  form.submit();
  form.remove();
}

export function close() {
  if (opened) opened.frame.remove();
  opened = null;
}

// COMMAND:JSON:CALLBACK:APP_SID. The JSON may hold colons; the npm SDK leaves an empty one out.
function parse(text) {
  const parts = text.split(':');
  if (parts.length < 3) return null;
  const [callback, sid] = parts.slice(-2);
  try {
    const json = parts.slice(1, -2).join(':');
    return { command: parts[0], params: json ? JSON.parse(json) : {}, callback, sid };
  } catch (error) {
    return null;
  }
}

window.addEventListener('message', async function (event) {
  const from = opened;
  if (!from || event.source !== from.frame.contentWindow || event.origin !== from.origin) return;
  const said = typeof event.data === 'string' && parse(event.data);
  if (!said || said.sid !== from.sid) return;
  const { command, params } = said;
  const asked = ask('command', { sid: said.sid, command, params });
  const { answer } = await asked.catch(() => ({ answer: null })); // the launcher has ended
  if (said.callback) {
    event.source.postMessage(said.callback + ':' + JSON.stringify(answer), event.origin);
  }
  if (opened === from && handlers[command]) handlers[command](params, answer, from.frame);
});

export const isOpen = () => Boolean(opened);

export function on(table) {
  handlers = table;
}
