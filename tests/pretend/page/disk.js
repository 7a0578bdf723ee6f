// The app's disk: the queue's four folders and settings.json. A file that moves is seen to move.
import { find, make, say } from './texts.js';

const FOLDERS = ['new', 'sending', 'sent', 'failed'];
const files = new Map(); // message id → its button, which moves from folder to folder
const MOST = 3; // files shown in a folder; the others are counted
let disk = { folders: [], settings: null, rests: null };
let opened = ''; // the file that is looked into

export function openDisk() {
  find('folders').append(...FOLDERS.map(makeFolder), makeSettings());
  find('file-close').addEventListener('click', () => look(''));
}

function makeFolder(name) {
  const item = make('li', 'folder');
  const list = make('div', 'files');
  const why = make('p', 'hint');
  item.id = 'folder-' + name;
  why.dataset.text = 'folder-' + name;
  const head = make('h3', '', name + '/ ');
  head.append(make('span', 'count'));
  item.append(head, why, list, make('span', 'more hint'));
  return item;
}

function makeSettings() {
  const item = make('li', 'folder');
  item.id = 'folder-settings';
  item.append(fileButton('settings.json'));
  return item;
}

function fileButton(name) {
  const button = make('button', 'file', name);
  button.type = 'button';
  button.dataset.name = name;
  button.setAttribute('aria-expanded', 'false');
  button.addEventListener('click', () => look(opened === name ? '' : name));
  return button;
}

export async function showDisk() {
  const answer = await fetch('/box/disk', { redirect: 'manual' });
  if (!answer.ok) return; // an application that is not ours
  disk = await answer.json();
  disk.folders.forEach(fill);
  const there = new Set(disk.folders.flatMap(({ files: inside }) =>
    inside.slice(0, MOST).map((one) => one.id)));
  [...files.keys()].filter((id) => !there.has(id)).forEach(leave);
  translateDisk();
  look(opened);
}

// A message may lie in two folders for a moment: the later one counts.
const allFiles = () => disk.folders.flatMap((folder) => folder.files);

function fill({ name, files: inside }) {
  const folder = find('folder-' + name);
  folder.querySelector('.count').textContent = inside.length || '';
  const shown = inside.slice(0, MOST);
  shown.forEach(function (one) {
    const file = files.get(one.id) || newFile(one.id);
    if (file.closest('.folder') === folder) return;
    move(file, folder.querySelector('.files'));
  });
  const more = inside.length - shown.length;
  folder.querySelector('.more').textContent = more ? '+' + more : '';
}

function newFile(id) {
  const file = fileButton(id + '.json');
  file.dataset.about = id;
  files.set(id, file);
  return file;
}

// It is in its new folder at once; the eye is shown the way from where it was.
function move(file, place) {
  const from = file.isConnected && file.getBoundingClientRect();
  place.append(file);
  const to = file.getBoundingClientRect();
  const calm = matchMedia('(prefers-reduced-motion: reduce)').matches;
  if (!from || calm || document.hidden) return;
  const [x, y] = [from.left - to.left, from.top - to.top];
  file.animate([{ transform: 'translate(' + x + 'px, ' + y + 'px)', zIndex: 1 }, {}],
    { duration: 450, easing: 'ease-out' });
}

function leave(id) {
  files.get(id).remove();
  files.delete(id);
}

// ---- one file's JSON ------------------------------------------------------------------------
function contentOf(name) {
  if (name === 'settings.json') return disk.settings;
  const found = allFiles().reverse().find((one) => one.name === name);
  return found && found.content;
}

function look(name) {
  opened = name;
  const content = name && contentOf(name);
  find('file-view').hidden = !name;
  document.querySelectorAll('.file').forEach((one) => {
    one.setAttribute('aria-expanded', one.dataset.name === name);
  });
  if (!name) return;
  find('file-name').textContent = name;
  const gone = name === 'settings.json' ? 'no-settings' : 'file-gone';
  find('file-json').textContent = content ? JSON.stringify(content, null, 1) : say(gone);
}

export function translateDisk() {
  const left = disk.rests && Math.ceil(disk.rests.seconds);
  find('resting').textContent = left > 0 ? say('resting', { seconds: left }) : '';
}
