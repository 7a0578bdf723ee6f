// The page's words: who reads them, in which language, and how an element gets its own.
const asked = new URLSearchParams(location.search); // what a moved page brings along
export const choice = { lang: chosenLanguage(), user: asked.get('user') || '1' };
let texts = { en: {}, ru: {} };

function chosenLanguage() {
  const wanted = asked.get('lang') || localStorage.getItem('lang') || navigator.language;
  return wanted.slice(0, 2) === 'ru' ? 'ru' : 'en';
}

export async function loadTexts() {
  texts = await (await fetch('/box/texts.json')).json();
}

export const knows = (key) => key in texts[choice.lang];

// The text with this name, {values} put in; a name without a text is shown as it is.
export function say(key, values = {}) {
  const words = knows(key) ? texts[choice.lang][key] : key;
  return words.replace(/\{(\w+)\}/g, (all, name) => (name in values ? values[name] : all));
}

// What the server says in both languages: {"en": ..., "ru": ...}
export const inBoth = (words) => (words && words[choice.lang]) || '';

export const inAll = (key) => [texts.en[key], texts.ru[key]];

export function translate() {
  document.documentElement.lang = choice.lang;
  document.title = say('title');
  document.querySelectorAll('[data-text]').forEach((one) => {
    one.textContent = say(one.dataset.text);
  });
  document.querySelectorAll('[data-label]').forEach((one) => {
    one.setAttribute('aria-label', say(one.dataset.label));
  });
}

export const clock = (seconds) =>
  new Date(seconds * 1000).toLocaleTimeString(choice.lang);

export function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

export const find = (id) => document.getElementById(id);

export async function ask(what, fields = {}) {
  const answer = await fetch('/box/' + what, {
    method: 'POST', headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify(fields) });
  return answer.json();
}

// The clipboard, or where it may not be used, the old way.
export async function copyText(text) {
  const way = navigator.clipboard ? navigator.clipboard.writeText(text) : Promise.reject();
  await way.catch(function () {
    const place = make('textarea', '', text);
    document.body.append(place);
    place.select();
    document.execCommand('copy');
    place.remove();
  });
}
