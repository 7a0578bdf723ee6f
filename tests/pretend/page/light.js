// What is about the same message lights up together: its entry in the card, its requests, its file.
// Each of them says in data-about whose it is: one message id, or several (a batch).
let kept = ''; // the message whose entry was pressed stays lit

function light(ids) {
  document.querySelectorAll('.lit').forEach((one) => one.classList.remove('lit'));
  ids.filter(Boolean).forEach(function (id) {
    document.querySelectorAll('[data-about~="' + CSS.escape(id) + '"]').forEach((one) => {
      one.classList.add('lit');
    });
  });
}

function follow(event) {
  const about = event.target.closest && event.target.closest('[data-about]');
  light(about ? about.dataset.about.split(' ') : [kept]);
}

export function keep(id) {
  kept = kept === id ? '' : id;
  light([kept]);
  return kept === id;
}

export const forget = () => { kept = ''; };

document.addEventListener('mouseover', follow);
document.addEventListener('focusin', follow);
