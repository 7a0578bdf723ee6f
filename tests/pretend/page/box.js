// The portal's page: who I am, the language, the menu, the news from the server.
import { ask, choice, copyText, find, loadTexts, say, translate } from './texts.js';
import { openCard, showCard, showMessages, textOf, translateCard, written } from './card.js';
import { addExchanges, arrange, openWire, translateWire } from './wire.js';
import { openDisk, showDisk, translateDisk } from './disk.js';
import { makeSwitches, showSwitches } from './switches.js';
import { show as showStep, showNext, tell } from './step.js';
import * as Frame from './frame.js';
import './light.js';

const VIEWS = ['card', 'application'];
const brought = new URLSearchParams(location.search); // what a moved page brings along
let state = null;
let moving = false;

// ---- the menu, the language, the user -------------------------------------------------------
function view(name) {
  VIEWS.forEach(function (one) {
    find(one).classList.toggle('shown', one === name);
    find('view-' + one).setAttribute('aria-current', one === name ? 'page' : 'false');
  });
}

function translateAll() {
  translate();
  ['ru', 'en'].forEach((lang) => press('lang-' + lang, lang === choice.lang));
  press('user-admin', choice.user === '1');
  press('user-employee', choice.user === '2');
  translateCard();
  translateWire();
  translateDisk();
  if (state) show(state);
  showStep();
}

const press = (id, now) => find(id).setAttribute('aria-pressed', now);

function choose(name, value) {
  if (choice[name] === value) return;
  choice[name] = value;
  if (name === 'lang') localStorage.setItem('lang', value);
  translateAll();
  if (name === 'user') tell('note-user', { user: value === '1' ? 'admin' : 'employee' });
  if (Frame.isOpen()) open(false);
}

// ---- the application --------------------------------------------------------------------
async function open(aloud = true) {
  const page = await Frame.open(choice, find('app-name').textContent);
  find('app-empty').hidden = true;
  if (aloud) tell('note-opened-' + page);
}

function closed() {
  Frame.close();
  find('app-empty').hidden = false;
}

Frame.on({
  async setInstallFinish(params, done) {
    tell(done ? 'note-finished' : 'note-refused');
    if (!done) return;
    await open(false); // as Bitrix24 does; the way goes on in the card
    view('card');
  },
  resizeWindow(params, answer, frame) {
    if (Number(params.height) > 0) frame.style.height = Math.ceil(params.height) + 'px';
  },
  setTitle(params) {
    find('application-title').textContent = String(params.title);
  },
  reloadWindow: () => open(false),
  closeApplication() {
    closed();
    tell('note-closed');
  },
});

// ---- how everything is now --------------------------------------------------------------
function show(newState) {
  state = newState;
  find('open-app').textContent = say(state.installed ? 'open' : 'install');
  find('key').textContent = state.key || '';
  find('key-hint').hidden = state.operator !== 'smsru'; // any key will do for another one
  find('app-name').textContent = state.sender || say('application');
  showCard(state);
  showSwitches(state);
  showNext(state, Frame.isOpen());
}

function writtenInCard() {
  view('card');
  return written();
}

// After a switch; a renamed portal takes this page along, an uninstalled app leaves its frame.
function switched(name, newState) {
  show(newState);
  if (name === 'uninstall') {
    closed();
    view('application');
  }
  follow(newState.address);
}

// A renamed portal: the page moves along, so that the frame's DOMAIN is the page's own.
function follow(address) {
  if (address === location.origin || moving) return;
  moving = true;
  const query = new URLSearchParams({ ...choice, moved: 1, to: find('phone').value,
    text: find('text').value, view: document.querySelector('.view.shown').id });
  if (Frame.isOpen()) query.set('open', 1);
  location.replace(address + '/?' + query);
}

async function startOver() {
  tell('working');
  closed();
  await ask('over');
  location.reload();
}

async function copyKey() {
  await copyText(state.key);
  tell('copied');
}

// ---- news -------------------------------------------------------------------------------
async function listen() {
  let last = -1;
  while (!moving) {
    try {
      const seen = new URLSearchParams({ after: last, stamp: state ? state.stamp : '' });
      const answer = await fetch('/box/news?' + seen, { redirect: 'manual' });
      if (answer.type === 'opaqueredirect') { // renamed: a switch's answer takes all along
        await pause(1000);
        return moving || location.reload();
      }
      const news = await answer.json();
      if (state && news.state.life !== state.life) return location.reload(); // started over
      last = news.last;
      addExchanges(news.exchanges);
      showMessages(news.messages);
      arrange(); // the messages' groups have their texts now
      if (!state && news.state.installed && !brought.has('view')) view('card'); // after a reload
      show(news.state);
      await showDisk();
      follow(news.state.address);
      await pause(60);
    } catch (error) {
      if (!moving) tell('note-error');
      await pause(1000);
    }
  }
}

const pause = (time) => new Promise((then) => setTimeout(then, time));

async function start() {
  await loadTexts();
  openWire(textOf);
  openDisk();
  openCard(brought);
  makeSwitches(writtenInCard, switched);
  translateAll();
  if (brought.has('moved')) tell('note-renamed', { address: location.origin });
  VIEWS.forEach((name) => find('view-' + name).addEventListener('click', () => view(name)));
  find('open-app').addEventListener('click', () => open());
  find('start-over').addEventListener('click', startOver);
  find('user-admin').addEventListener('click', () => choose('user', '1'));
  find('user-employee').addEventListener('click', () => choose('user', '2'));
  ['ru', 'en'].forEach((lang) => {
    find('lang-' + lang).addEventListener('click', () => choose('lang', lang));
  });
  find('copy-key').addEventListener('click', copyKey);
  localStorage.setItem('lang', choice.lang);
  history.replaceState(null, '', '/');
  view(brought.get('view') || 'application');
  if (brought.has('open')) open(false);
  listen();
}

start();
