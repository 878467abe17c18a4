'use strict';
// Q queries (what the classifier reads, then the patches), P patches, L layers. A weight is a whole
// number of hundredths of a percent.

const facts = JSON.parse(document.getElementById('facts').textContent);
const byId = (id) => document.getElementById(id);
const MEANING = {
  photo: 'The photo as the model takes it.',
  attention: 'How much of each patch one patch reads in this layer, mean of all heads. Point at a patch to ask with it.',
  rollout: 'Attention followed through the layers up to this one. Point at a patch to ask with it.',
  occlusion: 'What the score of the class loses (orange) or gains (blue) where a grey square hides the photo.',
};
const DROP_SCALE = 0.05;  // of a score: the end of the colours at least, so that nothing looks like nothing
let asked = 0;  // photos that were given
let turn = 0;  // the one of them that is shown: what comes late for an earlier one is dropped
let state = {};  // of that photo

// Photos in

function say(text, bad = false) {
  byId('status').textContent = text;
  byId('status').classList.toggle('bad', bad);
}

async function ask(path, photo) {
  const reply = await fetch(path, {method: 'POST', body: photo, headers: {'Content-Type': 'application/octet-stream'}});
  const answer = await reply.json();
  if (!reply.ok) throw new Error(answer.error);
  return answer;
}

async function take(photo) {
  if (!photo) return;
  if (photo.size > facts.bytes) return say(`The photo is larger than ${Math.floor(facts.bytes / 2 ** 20)} MiB.`, true);
  const mine = ++asked;
  say('Looking …');
  try {
    const {predictions} = await ask('predict', photo);
    if (mine !== asked) return;
    turn = mine;
    state = {photo, label: predictions[0].label, best: predictions[0].label, view: 'photo', query: 0, drops: new Map()};
    byId('views').hidden = true;
    showPhoto(URL.createObjectURL(photo));
    byId('result').hidden = false;
    byId('drop').classList.add('small');
    drawScores(predictions);
    drawView();
    say('');
    if (facts.photos) nearest(mine);
    if (facts.looks) await look(mine);
  } catch (error) {
    if (mine === asked) say(explained(error), true);
  }
}

function explained(error) {
  return error instanceof TypeError ? 'The server does not answer.' : error.message;
}

function showPhoto(source) {
  const image = byId('image');
  if (image.src.startsWith('blob:')) URL.revokeObjectURL(image.src);
  image.src = source;
}

function listenForPhotos() {
  const chosen = (event) => { take(event.target.files[0]); event.target.value = ''; };
  byId('file').addEventListener('change', chosen);
  byId('capture').addEventListener('change', chosen);
  byId('choose').addEventListener('click', () => byId('file').click());
  const body = document.body;
  body.addEventListener('dragover', (event) => { event.preventDefault(); body.classList.add('over'); });
  body.addEventListener('dragleave', () => body.classList.remove('over'));
  body.addEventListener('drop', (event) => {
    event.preventDefault();
    body.classList.remove('over');
    const file = event.dataTransfer.files[0];
    if (file) take(file); else say('That was no file: save the picture, or copy and paste it.', true);
  });
  document.addEventListener('paste', (event) => {
    const file = Array.from(event.clipboardData.files).find((item) => item.type.startsWith('image/'));
    if (file) take(file); else say('There is no picture in the clipboard.', true);
  });
}

// The camera: the phone's own where there is one, else a picture of the video

function listenForCamera() {
  const phone = matchMedia('(pointer: coarse)').matches;
  const video = navigator.mediaDevices && navigator.mediaDevices.getUserMedia;
  byId('shoot').hidden = !phone && !video;
  byId('shoot').addEventListener('click', () => (phone || !video ? byId('capture').click() : film()));
  byId('stop').addEventListener('click', stopFilm);
  byId('snap').addEventListener('click', () => {
    const {videoWidth: width, videoHeight: height} = byId('video');
    const canvas = Object.assign(document.createElement('canvas'), {width, height});
    canvas.getContext('2d').drawImage(byId('video'), 0, 0);
    canvas.toBlob((photo) => { stopFilm(); take(photo); }, 'image/jpeg', 0.95);
  });
}

async function film() {
  try {
    byId('video').srcObject = await navigator.mediaDevices.getUserMedia({video: {facingMode: 'environment'}});
    byId('camera').hidden = false;
    byId('snap').focus();
    say('');
  } catch (error) {
    say('The camera cannot be used here.', true);
  }
}

function stopFilm() {
  const stream = byId('video').srcObject;
  if (stream) stream.getTracks().forEach((track) => track.stop());
  byId('video').srcObject = null;
  byId('camera').hidden = true;
}

// Classes

function percent(score) {
  return (100 * score).toFixed(1) + '\u00a0%';
}

function drawScores(predictions) {
  byId('scores').replaceChildren(...predictions.map(({label, score}) => {
    const line = document.createElement('li');
    const button = document.createElement('button');
    const [name, value, track, bar] = ['b', 'span', 'span', 'i'].map((tag) => document.createElement(tag));
    button.type = 'button';
    button.dataset.label = label;
    name.textContent = label;
    value.textContent = percent(score);
    value.className = 'value';
    track.className = 'track';
    bar.style.width = `${100 * score}%`;
    track.append(bar);
    button.append(name, value, track);
    button.addEventListener('click', () => { state.label = label; showView(facts.looks ? 'occlusion' : 'photo'); });
    line.append(button);
    return line;
  }));
}

// Looks into the model

async function look(mine) {
  const answer = await ask('look', state.photo);
  if (mine !== turn) return;
  showPhoto(answer.image);
  byId('image').classList.toggle('pixels', answer.image.length < 40000);
  if (facts.attends) {
    Object.assign(state, answer, {attention: unpacked(answer.attention), rollout: unpacked(answer.rollout)});
    byId('layer').max = state.layers.length - 1;
    byId('layer').value = byId('layer').max;
  }
  for (const button of byId('views').children) {
    button.hidden = !facts.attends && ['attention', 'rollout'].includes(button.dataset.view);
  }
  byId('views').hidden = false;
  drawView();
}

function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Uint16Array.from({length: bytes.length / 2}, (_, i) => view.getUint16(2 * i, true));
}

async function occlude() {
  const [mine, label, drops] = [turn, state.label, state.drops];
  if (drops.has(label)) return;
  drops.set(label, null);
  byId('pointed').textContent = `Hiding part after part for ${label} …`;
  try {
    const answer = await ask(`occlusion?label=${encodeURIComponent(label)}`, state.photo);
    drops.set(label, answer);
    if (mine !== turn) return;
  } catch (error) {
    drops.delete(label);
    if (mine === turn) say(explained(error), true);
  }
  if (mine === turn) drawView();
}

function showView(view) {
  state.view = view;
  say('');
  drawView();
  if (view === 'occlusion') occlude();
}

// The P numbers that are laid over the photo, in rows and columns, their largest, and the words for one.
function layer() {
  if (state.view === 'occlusion') {
    const answer = state.drops.get(state.label);
    if (!answer) return null;
    const values = answer.drop.flat();
    const largest = Math.max(DROP_SCALE, ...values.map(Math.abs));
    const words = (value) => `${state.label} ${value < 0 ? 'gains' : 'loses'} ${(100 * Math.abs(value)).toFixed(1)} points of ${percent(answer.score)}`;
    return {...answer, values, largest, words};
  }
  if (state.view === 'photo' || !state.layers) return null;
  const query = state.query < state.queries ? state.query : 0;
  const patches = state.rows * state.columns;
  const start = (Number(byId('layer').value) * state.queries + query) * patches;
  const values = Array.from(state[state.view].subarray(start, start + patches));
  return {rows: state.rows, columns: state.columns, values, largest: Math.max(1, ...values), words: (value) => `${(value / 100).toFixed(2)}\u00a0%`};
}

function colour(share) {
  if (state.view === 'occlusion') return `rgba(${share < 0 ? '40,120,255' : '255,130,0'},${0.85 * Math.abs(share)})`;
  const place = Math.min(share, 1) * (facts.ramp.length - 1);
  const low = Math.min(Math.floor(place), facts.ramp.length - 2);
  const mixed = facts.ramp[low].map((c, i) => Math.round(c + (facts.ramp[low + 1][i] - c) * (place - low)));
  return `rgba(${mixed.join(',')},0.7)`;
}

function drawView() {
  let shown = layer();
  if (shown && state.grid !== `${shown.rows} ${shown.columns}`) {
    buildPatches(shown);
    shown = layer();  // as nobody points at the new ones
  }
  const asks = state.view === 'attention' || state.view === 'rollout';
  byId('patches').hidden = !shown;
  byId('image').classList.toggle('grey', Boolean(shown) && !asks);
  byId('layers').hidden = !asks;
  byId('meaning').textContent = MEANING[state.view];
  for (const button of byId('views').children) button.setAttribute('aria-pressed', String(button.dataset.view === state.view));
  for (const button of byId('scores').querySelectorAll('button')) {
    button.setAttribute('aria-pressed', String(state.view === 'occlusion' && button.dataset.label === state.label));
  }
  if (!shown) {
    if (state.view !== 'occlusion') byId('pointed').textContent = '';
    return;
  }
  if (asks) {
    byId('layer-shown').textContent = `${state.layers[byId('layer').value]} of ${state.layers[state.layers.length - 1]}`;
    byId('layer').setAttribute('aria-valuetext', byId('layer-shown').textContent);
  }
  cells().forEach((cell, patch) => {
    cell.style.backgroundColor = colour(shown.values[patch] / shown.largest);
    cell.dataset.value = shown.values[patch];
    cell.classList.toggle('query', patch === state.pointed);
  });
  const patch = state.pointed;
  const query = state.query && state.queries > 1 ? named(state.query - 1) : 'what the classifier reads';
  const value = patch === undefined ? '' : `${named(patch)}: ${shown.words(shown.values[patch])}`;
  byId('pointed').textContent = asks ? `By ${query}: ${shown.words(shown.largest)} at most.` : value;
}

function cells() {
  return byId('patches').querySelectorAll('[role=gridcell]');
}

function named(patch) {
  const columns = byId('patches').firstChild.childElementCount;
  return `row ${Math.floor(patch / columns) + 1}, column ${patch % columns + 1}`;
}

function point(patch) {
  state.pointed = patch;
  state.query = patch === undefined ? 0 : patch + 1;
  drawView();
}

function buildPatches({rows, columns}) {
  const grid = byId('patches');
  Object.assign(state, {grid: `${rows} ${columns}`, pointed: undefined, query: 0});
  grid.style.gridTemplate = `repeat(${rows}, 1fr) / repeat(${columns}, 1fr)`;
  grid.replaceChildren(...Array.from({length: rows}, (_, row) => {
    const line = document.createElement('div');
    line.setAttribute('role', 'row');
    line.append(...Array.from({length: columns}, (_, column) => {
      const cell = document.createElement('div');
      cell.setAttribute('role', 'gridcell');
      cell.setAttribute('aria-label', `row ${row + 1}, column ${column + 1}`);
      cell.tabIndex = row || column ? -1 : 0;
      return cell;
    }));
    return line;
  }));
}

function listenToPatches() {
  const grid = byId('patches');
  const at = (event) => {
    const cell = document.elementFromPoint(event.clientX, event.clientY);
    const patch = Array.prototype.indexOf.call(cells(), cell);
    if (patch >= 0 && patch !== state.pointed) point(patch);
  };
  grid.addEventListener('pointerdown', at);
  grid.addEventListener('pointermove', at);
  grid.addEventListener('pointerleave', (event) => { if (event.pointerType === 'mouse') point(undefined); });
  grid.addEventListener('focusin', (event) => {
    cells().forEach((cell) => { cell.tabIndex = cell === event.target ? 0 : -1; });
    point(Array.prototype.indexOf.call(cells(), event.target));
  });
  grid.addEventListener('keydown', (event) => {
    if (event.key === 'Escape') return point(undefined);
    const patch = Array.prototype.indexOf.call(cells(), event.target);
    const [rows, columns] = [grid.childElementCount, grid.firstChild.childElementCount];
    const [row, column] = [Math.floor(patch / columns), patch % columns];
    const to = {ArrowUp: [row - 1, column], ArrowDown: [row + 1, column], ArrowLeft: [row, column - 1],
      ArrowRight: [row, column + 1], Home: [row, 0], End: [row, columns - 1]}[event.key];
    if (!to) return;
    event.preventDefault();
    const inside = (value, count) => Math.min(Math.max(value, 0), count - 1);
    cells()[inside(to[0], rows) * columns + inside(to[1], columns)].focus();
  });
}

// The nearest training photos

async function nearest(mine) {
  byId('near').hidden = false;
  byId('photos').replaceChildren();
  byId('near-status').textContent = 'Being read …';
  const photo = state.photo;
  for (;;) {
    let answer;
    try {
      answer = await ask('nearest', photo);
    } catch (error) {
      answer = {state: 'absent', reason: explained(error)};
    }
    if (mine !== turn) return;
    if (answer.state === 'absent') return void (byId('near-status').textContent = answer.reason);
    if (answer.state === 'ready') return drawPhotos(answer.photos);
    byId('near-status').textContent = 'The training photos are being read for the first time …';
    await new Promise((done) => setTimeout(done, 1500));
    if (mine !== turn) return;
  }
}

function drawPhotos(photos) {
  byId('near-status').textContent = 'By the cosine of what the classifier reads; 1 is the same.';
  byId('photos').replaceChildren(...photos.map(({label, name, similarity, image}) => {
    const line = document.createElement('li');
    const picture = Object.assign(document.createElement('img'), {src: image, alt: `${label || 'no label'}: ${name}`, title: name});
    const [word, value] = ['span', 'span'].map((tag) => document.createElement(tag));
    word.textContent = label || 'no label';
    word.classList.toggle('same', label === state.best);
    value.textContent = similarity.toFixed(3);
    value.className = 'faint';
    line.append(picture, word, value);
    return line;
  }));
}

listenForPhotos();
listenForCamera();
listenToPatches();
byId('layer').addEventListener('input', drawView);
byId('views').addEventListener('click', (event) => {
  if (event.target.dataset.view) showView(event.target.dataset.view);
});
byId('curl').textContent = [
  `curl --data-binary @photo.jpg '${location.origin}/predict?top=3'`,
  `curl -H 'Content-Type: application/json' -d '{"images": ["BASE64", "BASE64"]}' ${location.origin}/predict`,
].join('\n');
