'use strict';
// L layers, H heads and their mean, Q queries, T tokens, R discards. A stored weight is a whole
// number of hundredths of a percent, so that what is shown is what is stored.

const facts = JSON.parse(document.getElementById('facts').textContent);
const byId = (id) => document.getElementById(id);
const [rows, columns] = [facts.rows.length, facts.columns.length];  // of patches, or of blocks
const patches = rows * columns;
const tokens = facts.prefix.length + patches;  // T
const queries = tokens + facts.readers.length;  // Q: readers attend, but nothing attends to them
const RAMP = facts.ramp;
const state = {
  image: 0, mode: 'attention', layer: facts.layers - 1, head: 'mean', discard: 0,
  query: facts.readers.length ? tokens : 0, pointed: null, held: false, contrast: 'stretch',
};
const weights = new Map();  // by image: Uint16Array
const cells = [];  // by token: its element
const tiles = [];  // by layer and head: its canvas in the wall
let playing = null;  // the timer that shows one layer of the rollout after another
const PACE = 800;  // milliseconds of a layer

function percent(value) {
  return (value / 100).toFixed(2) + ' %';
}

function named(token) {
  if (token >= tokens) return facts.readers[token - tokens];
  if (token < facts.prefix.length) return facts.prefix[token];
  const patch = token - facts.prefix.length;
  return `row ${Math.floor(patch / columns) + 1}, column ${patch % columns + 1}`;
}

async function unpacked(image) {
  if (!weights.has(image)) {
    const text = atob(byId(`weights-${image}`).textContent.trim());
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);  // from() takes ten times as long
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
    const raw = new Uint8Array(await new Response(stream).arrayBuffer());
    const size = queries * tokens;  // of a matrix: its low bytes, then its high ones
    const values = new Uint16Array(raw.length / 2);
    for (let i = 0; i < values.length; i++) {
      const low = i + size * Math.floor(i / size);
      values[i] = raw[low] + 256 * raw[low + size];
    }
    weights.set(image, values);
  }
  return weights.get(image);
}

// The T weights of a query in one matrix (Q, T) of those that begin at `start`.
function matrixRow(values, start, matrix, query) {
  const from = start + (matrix * queries + query) * tokens;
  return values.subarray(from, from + tokens);
}

// The T weights of a query, as the controls ask for them: (L, H, Q, T), then rollout (R, L, Q, T).
function row(values, query) {
  const at = (start, matrix) => matrixRow(values, start, matrix, query);
  const kept = facts.heads + 1;
  if (state.mode === 'rollout') {
    return at(facts.layers * kept * queries * tokens, state.discard * facts.layers + state.layer);
  }
  if (state.head === 'mean') return at(0, state.layer * kept + facts.heads);
  if (state.head !== 'max' && state.head !== 'min') return at(0, state.layer * kept + Number(state.head));
  const all = Array.from({length: facts.heads}, (_, head) => at(0, state.layer * kept + head));
  return Uint16Array.from(all[0], (_, token) => Math[state.head](...all.map((one) => one[token])));
}

function channels(share) {
  const place = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1);
  const low = Math.min(Math.floor(place), RAMP.length - 2);
  return RAMP[low].map((c, i) => Math.round(c + (RAMP[low + 1][i] - c) * (place - low)));
}

function colour(share, alpha) {
  return `rgba(${channels(share).join(',')},${alpha})`;
}

function patchRange(weights) {  // [lowest, highest] of the patches
  const shown = weights.subarray(facts.prefix.length);
  return [shown.reduce((a, b) => Math.min(a, b), Infinity), shown.reduce((a, b) => Math.max(a, b), 0)];
}

// The weights that get the first and the last colour. Of patches: a token without a place often
// gets most, and would leave the image dark.
function scale(values, shown) {
  const [lowest, highest] = patchRange(shown);
  if (state.contrast === 'stretch') return [lowest, highest];
  if (state.contrast === 'most' || state.mode === 'rollout') return [0, highest];
  const mean = state.layer * (facts.heads + 1) + facts.heads;
  return [0, patchRange(matrixRow(values, 0, mean, state.query))[1]];
}

function fraction(weight, [from, to]) {
  return to > from ? (weight - from) / (to - from) : Number(weight >= to && to > 0);
}

// What is said of an explanation as a whole: attention was judged by its last layer's mean.
function drawJudged() {
  const image = facts.images[state.image];
  const last = state.layer === facts.layers - 1;
  const judged = state.mode === 'attention' ? last && state.head === 'mean' : state.mode !== 'rollout' || last;
  byId('judged').textContent = (judged && image.judged[state.mode]) || '';
}

// Evidence or occlusion: one value for each patch, whatever the query.
function drawExplanation({values, unit, title}) {
  const range = [Math.min(...values), Math.max(...values)];
  const strength = byId('strength').value / 100;
  const said = (value) => `${value.toFixed(2)} ${unit}`;
  cells.forEach((cell, token) => {
    const patch = token - facts.prefix.length;
    cell.classList.toggle('query', false);
    cell.classList.toggle('pointed', token === state.pointed && patch >= 0 && patch < patches);
    if (patch >= 0 && patch < patches) {
      cell.dataset.weight = values[patch];
      cell.style.backgroundColor = colour(fraction(values[patch], range), strength);
    } else {
      delete cell.dataset.weight;
    }
  });
  byId('lowest').textContent = range[0].toFixed(2);
  byId('highest').textContent = said(range[1]);
  byId('query').textContent = title;
  byId('held').textContent = '';
  const pointed = (state.pointed ?? -1) - facts.prefix.length;
  byId('pointed').textContent = pointed >= 0 && pointed < patches ? `${named(state.pointed)}: ${said(values[pointed])}` : '';
  const ranked = Array.from(values.keys()).sort((a, b) => values[b] - values[a] || a - b).slice(0, 5);
  list(ranked.map((patch) => `${named(patch + facts.prefix.length)}: ${said(values[patch])}`));
}

function list(lines) {
  byId('highest-list').replaceChildren(...lines.map((line) => {
    const item = document.createElement('li');
    item.textContent = line;
    return item;
  }));
}

function draw() {
  const values = weights.get(state.image);
  if (!values) return;
  drawJudged();
  const explanation = facts.images[state.image].explanations[state.mode];
  if (explanation) {
    drawWall(values);
    return drawExplanation(explanation);
  }
  const shown = row(values, state.query);
  const range = scale(values, shown);
  const strength = byId('strength').value / 100;
  cells.forEach((cell, token) => {
    const paint = token < facts.prefix.length || token >= tokens ? cell.firstChild : cell;
    if (token < tokens) {
      cell.dataset.weight = shown[token];
      paint.style.backgroundColor = colour(fraction(shown[token], range), paint === cell ? strength : 1);
    }
    cell.classList.toggle('pointed', token === state.pointed && paint === cell);
    cell.classList.toggle('query', token === state.query && paint === cell);
    cell.setAttribute(paint === cell ? 'aria-selected' : 'aria-pressed', String(token === state.query));
  });
  byId('lowest').textContent = percent(range[0]);
  byId('highest').textContent = percent(range[1]);
  drawWall(values);
  byId('query').textContent = `Query: ${named(state.query)}`;
  byId('held').textContent = state.held ? '(held until Escape or another click)' : '';
  const pointed = state.pointed ?? state.query;
  byId('pointed').textContent = pointed < tokens ? `To ${named(pointed)}: ${percent(shown[pointed])}` : '';
  const ranked = Array.from(shown.keys()).sort((a, b) => shown[b] - shown[a] || a - b).slice(0, 5);
  list(ranked.map((token) => `${named(token)}: ${percent(shown[token])}`));
}

// Every head of every layer at the query, each from its lowest to its highest patch.
function drawWall(values) {
  tiles.forEach((tile, number) => {
    const [layer, head] = [Math.floor(number / facts.heads), number % facts.heads];
    const weights = matrixRow(values, 0, layer * (facts.heads + 1) + head, state.query);
    const range = patchRange(weights);
    const context = tile.firstChild.getContext('2d');
    const pixels = context.createImageData(columns, rows);
    for (let patch = 0; patch < patches; patch++) {
      const mixed = channels(fraction(weights[facts.prefix.length + patch], range));
      pixels.data.set([...mixed, 255], 4 * patch);
    }
    context.putImageData(pixels, 0, 0);
    const chosen = state.mode === 'attention' && state.layer === layer && state.head === String(head);
    tile.setAttribute('aria-pressed', String(chosen));
  });
}

function drawControls() {
  byId('layer-shown').textContent = `${state.layer + 1} of ${facts.layers}`;
  const left = Math.round(facts.discards[state.discard] * 100);
  byId('discard-shown').textContent = left ? `lowest ${left} %` : 'nothing';
  byId('strength-shown').textContent = `${byId('strength').value} %`;
  for (const kind of ['evidence', 'occlusion']) {
    byId(`show-${kind}`).hidden = !facts.images.every((image) => image.explanations[kind]);
  }
  const explains = state.mode === 'evidence' || state.mode === 'occlusion';
  byId('layer').disabled = explains;
  byId('contrast').disabled = explains;
  byId('head').disabled = state.mode !== 'attention';
  byId('discard').disabled = state.mode !== 'rollout';
  byId('layer').setAttribute('aria-valuetext', byId('layer-shown').textContent);
  byId('discard').setAttribute('aria-valuetext', byId('discard-shown').textContent);
}

function wait() {  // without another image's weights over this one
  cells.forEach((cell, token) => {
    const paint = token < facts.prefix.length || token >= tokens ? cell.firstChild : cell;
    paint.style.backgroundColor = '';
    delete cell.dataset.weight;
  });
  byId('query').textContent = 'Unpacking the weights …';
  byId('pointed').textContent = '';
  byId('highest-list').replaceChildren();
}

async function drawImage() {
  const image = facts.images[state.image];
  byId('image').src = image.src;
  byId('image').alt = image.name;
  byId('image').classList.toggle('pixels', image.width < 200);
  byId('predictions').replaceChildren(...image.predictions.map((guess) => {
    const line = document.createElement('tr');
    for (const text of [guess.label, (100 * guess.score).toFixed(2) + ' %', '']) {
      const cell = document.createElement('td');
      cell.textContent = text;
      line.append(cell);
    }
    line.lastChild.className = 'bars';
    const bar = document.createElement('span');
    bar.className = 'bar';
    bar.style.width = `${100 * guess.score}%`;
    line.lastChild.append(bar);
    return line;
  }));
  const asked = state.image;
  if (!weights.has(asked)) wait();
  await unpacked(asked);
  if (asked === state.image) draw();
}

function point(token) {
  state.pointed = token;
  if (!state.held) state.query = token;
  draw();
}

function hold(token) {
  state.held = !(state.held && token === state.query);
  state.query = token;
  state.pointed = token;
  draw();
}

function release() {
  state.held = false;
  if (state.pointed !== null) state.query = state.pointed;
  draw();
}

function reach(token) {  // one patch is in the tab order
  for (const cell of cells.slice(facts.prefix.length, tokens)) cell.tabIndex = -1;
  cells[token].tabIndex = 0;
}

function moved(patch, key) {
  const [r, c] = [Math.floor(patch / columns), patch % columns];
  const to = {
    ArrowUp: [r - 1, c], ArrowDown: [r + 1, c], ArrowLeft: [r, c - 1], ArrowRight: [r, c + 1],
    Home: [r, 0], End: [r, columns - 1],
  }[key];
  if (!to) return null;
  const row = Math.min(Math.max(to[0], 0), rows - 1);
  return row * columns + Math.min(Math.max(to[1], 0), columns - 1);
}

function listen(cell, token) {
  cell.addEventListener('pointerenter', () => point(token));
  cell.addEventListener('focus', () => point(token));
  cell.addEventListener('click', () => hold(token));
}

function buildTokens() {
  const button = (token) => {
    const made = document.createElement('button');
    made.type = 'button';
    made.append(document.createElement('i'), named(token));
    if (token >= tokens) made.firstChild.hidden = true;
    listen(made, token);
    return made;
  };
  const made = [...facts.prefix.keys(), ...facts.readers.map((_, i) => tokens + i)].map((token) => {
    cells[token] = button(token);
    return cells[token];
  });
  byId('tokens').append(...made);
  byId('tokens').hidden = !made.length;
}

function buildPatches() {
  const grid = byId('patches');
  const tracks = (sizes) => sizes.map((size) => `${size}fr`).join(' ');
  grid.style.gridTemplate = `${tracks(facts.rows)} / ${tracks(facts.columns)}`;
  for (let r = 0; r < rows; r++) {
    const line = document.createElement('div');
    line.setAttribute('role', 'row');
    for (let c = 0; c < columns; c++) {
      const token = facts.prefix.length + r * columns + c;
      const cell = document.createElement('div');
      cell.setAttribute('role', 'gridcell');
      cell.setAttribute('aria-label', named(token));
      cell.tabIndex = -1;
      listen(cell, token);
      cell.addEventListener('focus', () => reach(token));
      cells[token] = cell;
      line.append(cell);
    }
    grid.append(line);
  }
  reach(facts.prefix.length);
  grid.addEventListener('keydown', (event) => {
    const token = cells.indexOf(event.target);
    const to = moved(token - facts.prefix.length, event.key);
    if (event.key === 'Enter' || event.key === ' ') hold(token);
    else if (to !== null) cells[facts.prefix.length + to].focus();
    else return;
    event.preventDefault();
  });
}

function buildWall() {
  const wall = byId('wall');
  wall.style.gridTemplateColumns = `repeat(${facts.heads}, minmax(2.75rem, 7rem))`;
  for (let number = 0; number < facts.layers * facts.heads; number++) {
    const [layer, head] = [Math.floor(number / facts.heads), number % facts.heads];
    const tile = document.createElement('button');
    tile.type = 'button';
    tile.tabIndex = number ? -1 : 0;
    tile.setAttribute('aria-label', `layer ${layer + 1}, head ${head + 1}`);
    tile.title = `layer ${layer + 1}, head ${head + 1}`;
    const canvas = document.createElement('canvas');
    [canvas.width, canvas.height] = [columns, rows];
    tile.append(canvas);
    tile.addEventListener('click', () => choose('attention', layer, String(head)));
    tiles.push(tile);
  }
  wall.append(...tiles);
  wall.addEventListener('keydown', (event) => {
    const number = tiles.indexOf(event.target);
    const by = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -facts.heads, ArrowDown: facts.heads}[event.key];
    if (!by || !tiles[number + by]) return;
    tiles[number].tabIndex = -1;
    tiles[number + by].tabIndex = 0;
    tiles[number + by].focus();
    event.preventDefault();
  });
}

// Sets the controls and what they ask for.
function choose(mode, layer, head) {
  byId('controls').elements.mode.value = mode;
  byId('layer').value = layer + 1;
  byId('head').value = head;
  Object.assign(state, {mode, layer, head});
  drawControls();
  draw();
}

function stop() {
  clearInterval(playing);
  playing = null;
  byId('play').textContent = 'Play rollout';
}

function play() {
  if (playing !== null) return stop();
  byId('play').textContent = 'Pause';
  choose('rollout', 0, state.head);
  playing = setInterval(() => {
    if (state.layer + 1 >= facts.layers) return stop();
    choose('rollout', state.layer + 1, state.head);
  }, PACE);
}

function buildControls() {
  const option = (value, text) => new Option(text, value);
  byId('which').append(...facts.images.map((image, i) => option(i, image.name)));
  byId('head').append(
    option('mean', 'mean of all'), option('max', 'highest of all'), option('min', 'lowest of all'),
    ...Array.from({length: facts.heads}, (_, i) => option(i, `${i + 1} of ${facts.heads}`)),
  );
  byId('layer').max = facts.layers;
  byId('layer').value = facts.layers;
  byId('discard').max = facts.discards.length - 1;
  byId('discard').value = 0;
  byId('controls').addEventListener('submit', (event) => event.preventDefault());
  byId('play').addEventListener('click', play);
  document.addEventListener('input', () => {  // the layer's slider lies beside the image
    stop();
    const image = Number(byId('which').value);
    state.mode = byId('controls').elements.mode.value;
    state.layer = Number(byId('layer').value) - 1;
    state.head = byId('head').value;
    state.discard = Number(byId('discard').value);
    state.contrast = byId('contrast').value;
    drawControls();
    if (image === state.image) return draw();
    state.image = image;
    start();
  });
  document.addEventListener('keydown', (event) => {
    if (event.key === 'Escape') release();
  });
  byId('ramp').style.background =
    `linear-gradient(to right, ${RAMP.map((c) => `rgb(${c.join(',')})`).join(', ')})`;
}

function start() {
  drawImage().catch((error) => {
    byId('query').textContent = '';
    byId('problem').hidden = false;
    byId('problem').textContent = `This browser cannot show the weights (${error.message}); a newer one can.`;
  });
}

byId('controls').reset();
buildTokens();
buildPatches();
buildWall();
buildControls();
drawControls();
start();
