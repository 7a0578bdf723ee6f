// A function of app.py as it stands in the file, and the way from it to the next one.
import { make, say } from './texts.js';

const known = new Map(); // name → what the server answered; the file does not change meanwhile

async function fetchCode(name) {
  if (!known.has(name)) {
    const answer = await fetch('/box/code?' + new URLSearchParams({ name }));
    if (!answer.ok) return null;
    known.set(name, await answer.json());
  }
  return known.get(name);
}

// A method stands in its class; here it is shown by itself.
function withoutIndent(text) {
  const [indent] = /^ */.exec(text);
  return text.replace(new RegExp('^' + indent, 'gm'), '');
}

// Its head, its source, and a link that opens the next one below it.
export async function codeOf(name) {
  const code = await fetchCode(name).catch(() => null);
  if (!code) return make('p', 'hint', say('no-code')); // or the launcher has ended
  const box = make('div', 'function');
  const where = say('lines', { first: code.first, last: code.last });
  box.dataset.name = code.name;
  box.append(make('h4', '', say('code') + ': '), make('pre', 'source', withoutIndent(code.text)));
  box.firstChild.append(make('code', '', code.name + '()'), ' ' + where,
    code.script ? ' · ' + say('stands-for', { script: say(code.script) }) : '');
  box.querySelector('pre').tabIndex = 0;
  if (code.next) box.append(nextButton(code.next, box));
  return box;
}

function nextButton(name, box) {
  const button = make('button', 'small next', say('next-function', { name: name + '()' }));
  button.type = 'button';
  button.addEventListener('click', async function () {
    const next = await codeOf(name);
    button.remove();
    box.after(next);
    next.scrollIntoView({ block: 'nearest' });
    next.querySelector('pre').focus({ preventScroll: true });
  });
  return button;
}
