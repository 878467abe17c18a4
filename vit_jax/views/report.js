'use strict';
// What the page has beyond text: photos that enlarge, cells that open their images, curves that say
// their numbers and are smoothed, and a page that reads itself again while its run trains.

const dialog = document.getElementById('zoom');
const content = document.getElementById('zoom-content');

function show(...nodes) {
  content.replaceChildren(...nodes);
  if (!dialog.open) dialog.showModal();
}

function element(name, className, text) {
  const node = document.createElement(name);
  node.className = className;
  node.textContent = text;
  return node;
}

function enlarge(photo) {
  const image = element('div', photo.className.replace('photo', 'zoomed'), '');
  image.setAttribute('role', 'img');
  image.setAttribute('aria-label', photo.getAttribute('aria-label'));
  show(image, element('p', '', photo.dataset.caption), element('p', 'faint', photo.dataset.name));
}

function openCell(id) {
  const cell = document.getElementById(id).cloneNode(true);
  cell.removeAttribute('id');
  show(cell);
}

document.addEventListener('click', (event) => {
  const photo = event.target.closest('.photo');
  const link = event.target.closest('a[href^="#cell-"]');
  if (photo) enlarge(photo);
  if (link) {
    event.preventDefault();
    openCell(link.getAttribute('href').slice(1));
  }
  if (event.target === dialog) dialog.close();
});

// Curves: every line's points are its circles, whose titles are their numbers.

function readAt(chart, x) {
  const rule = chart.querySelector('.rule');
  const reading = chart.querySelector('.reading');
  const texts = [];
  for (const dot of chart.querySelectorAll('circle.at')) dot.classList.remove('at');
  for (const line of chart.querySelectorAll('.line')) {
    const dots = Array.from(line.querySelectorAll('circle'));
    if (!dots.length) continue;
    const distance = (dot) => Math.abs(dot.getAttribute('cx') - x);
    const nearest = dots.reduce((a, b) => (distance(b) < distance(a) ? b : a));
    nearest.classList.add('at');
    texts.push(nearest.textContent);
    if (texts.length === 1) {
      rule.setAttribute('x1', nearest.getAttribute('cx'));
      rule.setAttribute('x2', nearest.getAttribute('cx'));
      rule.setAttribute('visibility', 'visible');
    }
  }
  reading.textContent = texts.join(' · ');
}

function follow(chart) {
  const svg = chart.querySelector('svg');
  if (!chart.querySelector('.rule')) return;
  svg.addEventListener('pointermove', (event) => {
    const box = svg.getBoundingClientRect();
    readAt(chart, ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width);
  });
  svg.addEventListener('keydown', (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const dots = Array.from(chart.querySelectorAll('.line circle'));
    if (!step || !dots.length) return;
    event.preventDefault();
    const first = Array.from(dots[0].parentNode.querySelectorAll('circle'));
    const now = first.findIndex((dot) => dot.classList.contains('at'));
    const next = Math.min(Math.max(now + step, 0), first.length - 1);
    readAt(chart, first[next].getAttribute('cx'));
  });
}

// The exponential moving average of a line, corrected for its start as Adam's moments are.
function smooth(line, strength) {
  const dots = Array.from(line.querySelectorAll('circle'));
  const path = line.querySelector('polyline:not(.raw)');
  const points = dots.map((dot) => [+dot.getAttribute('cx'), +dot.getAttribute('cy')]);
  if (points.length < 3) return;
  if (!line.querySelector('.raw')) {
    const raw = path.cloneNode();
    raw.classList.add('raw');
    line.prepend(raw);
  }
  let mean = 0;
  const smoothed = points.map(([x, y], index) => {
    mean = strength * mean + (1 - strength) * y;
    return `${x},${(mean / (1 - strength ** (index + 1))).toFixed(2)}`;
  });
  path.setAttribute('points', smoothed.join(' '));
}

const slider = document.getElementById('smoothing');
if (slider) {  // of a page that has curves
  slider.closest('[hidden]').hidden = false;
  slider.addEventListener('input', () => {
    document.querySelectorAll('.line').forEach((line) => smooth(line, +slider.value));
  });
}
document.querySelectorAll('.chart').forEach(follow);

// While the run trains: read again, at the same place, unless somebody is looking at something.

const live = document.querySelector('meta[name=live]');
if (live) {
  const [period, written, patience] = live.content.split(',').map(Number);
  const place = sessionStorage.getItem('scroll');
  if (place !== null) scrollTo(0, +place);
  const isOld = () => Date.now() / 1000 - written > patience;
  const update = () => {
    if (isOld()) {  // its process was killed, or its disk or network is gone
      clearInterval(timer);
      const progress = document.querySelector('.live');
      progress.textContent = progress.textContent.replace(', read again by itself', '')
        + ` Nothing newer came for ${Math.round(patience / 60)} minutes: the run may have ended.`;
    } else if (!dialog.open && !String(getSelection())) {
      sessionStorage.setItem('scroll', scrollY);
      location.reload();
    }
  };
  const timer = setInterval(update, 1000 * period);
  if (isOld()) update();
}
