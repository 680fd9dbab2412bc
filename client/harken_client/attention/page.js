"use strict";
// Draws what the element #data holds. Everything that comes from a text is set as text, never as markup.
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const at = id => document.getElementById(id);
const bytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
const tokens = data.tokens, length = tokens.length;
const others = data.pair ? data.pair.tokens : null;
const MOST_PIXELS = 4096, LEAST_LABELED = 8, THUMB = 64;

// Every map: its name, its columns' tokens, and the weight of a cell; signed ones are terms of a similarity.
const maps = [];
const square = length * length;
const add = (name, raw, index, more = {}) => {
  const own = raw.subarray(index * square, (index + 1) * square);
  maps.push({
    name, columns: tokens, signed: false, about: "", ...more,
    weight: (i, j) => (own[i * length + j] / 255) ** 2,
    shade(i, j) { return Math.min(own[i * length + j] / (this.full ??= fullest(own)), 1); },
  });
};
// What is drawn darkest: in a long text most weights are small, and few cells must not pale all others.
function fullest(own) {
  const counts = new Uint32Array(256);
  own.forEach(weight => counts[weight]++);
  let above = own.length * .005, full = 255;
  while (full > 8 && (above -= counts[full]) > 0) full--;
  return full;
}
if (data.rollout) add("rollout over all layers", bytes(data.rollout), 0);
if (data.mean) {
  const raw = bytes(data.mean);
  data.layers.forEach((layer, n) => add(`layer ${layer}, mean of its heads`, raw, n));
}
if (data.maps) {
  const raw = bytes(data.maps), heads = data.heads.length;
  data.layers.forEach((layer, n) => data.heads.forEach((head, k) => {
    const spread = data.entropy ? `, entropy ${data.entropy[n][k].toFixed(2)} nats` : "";
    add(`layer ${layer}, head ${head}`, raw, n * heads + k, {layer: n, head: k, about: spread});
  }));
}
if (data.pair) {
  const terms = new Float32Array(bytes(data.pair.contributions).buffer), m = others.length;
  const most = Math.sqrt(terms.reduce((a, b) => Math.max(a, Math.abs(b)), 1e-12));
  const cell = (i, j) => terms[i * m + j];
  maps.unshift({
    name: "similarity of the two texts", columns: others, signed: true,
    about: `, ${data.pair.similarity.toFixed(4)} in all`,
    weight: cell, shade: (i, j) => Math.sign(cell(i, j)) * Math.sqrt(Math.abs(cell(i, j))) / most,
  });
}

at("about").textContent = `${data.model}, ${others ? `two texts of ${length} and ${others.length}` : length} tokens` +
  (data.truncated ? "; the text was longer than the model and lost a part" : "") + (data.note ? `. ${data.note}` : "");
if (others) at("whose").textContent = "Of the first text. ";
let current = 0, row = 0, column = 0;
// What is said of a map of attention, and of the terms of a similarity, which are no attention.
const HINTS = {
  attention: {
    tokens: "Point at a token, or move with the arrow keys: what it attends to is shaded, its strongest links are arcs.",
    map: "Rows attend to columns; the fullest colour is what is strongest in this map.",
  },
  similarity: {
    tokens: "Point at a token of the first text, or move with the arrow keys: what it and each token of the second text " +
      "add to the similarity is shaded, the largest parts are arcs.",
    map: "Rows are the first text's tokens, columns the second's; a cell is what the two add to the similarity, " +
      "in the other colour what they take from it.",
  },
};

const paints = () => {
  const style = getComputedStyle(document.documentElement);
  const paint = name => [1, 3, 5].map(k => parseInt(style.getPropertyValue(name).trim().slice(k, k + 2), 16));
  return {paper: paint("--paper"), ink: style.getPropertyValue("--ink"), faint: style.getPropertyValue("--faint"),
    weight: paint("--weight"), against: paint("--against")};
};
let paint = null;
// The colours of shades from -1 to 1, in steps of 1/255.
const ramp = new Uint8ClampedArray(3 * 511);
function mix() {
  paint = paints();
  for (let step = -255; step <= 255; step++) {
    const full = step < 0 ? paint.against : paint.weight, part = Math.abs(step) / 255;
    paint.paper.forEach((low, k) => { ramp[3 * (step + 255) + k] = low + part * (full[k] - low); });
  }
  maps.forEach(map => { map.small = null; });
}
const step = shade => 3 * (Math.round(Math.min(Math.max(shade, -1), 1) * 255) + 255);
const css = shade => `rgb(${ramp.slice(step(shade), step(shade) + 3).join(" ")})`;

function image(map, rows, columns, width, height) {
  // Where a picture has fewer pixels than the map has cells, a pixel is the strongest of its cells.
  const shades = new Float32Array(width * height);
  for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) {
    const pixel = Math.floor(i * height / rows) * width + Math.floor(j * width / columns), shade = map.shade(i, j);
    if (Math.abs(shade) > Math.abs(shades[pixel])) shades[pixel] = shade;
  }
  const canvas = document.createElement("canvas"), picture = new ImageData(width, height);
  shades.forEach((shade, pixel) => {
    const from = step(shade);
    for (let k = 0; k < 3; k++) picture.data[4 * pixel + k] = ramp[from + k];
    picture.data[4 * pixel + 3] = 255;
  });
  canvas.width = width; canvas.height = height;
  canvas.getContext("2d").putImageData(picture, 0, 0);
  return canvas;
}

const heat = at("heat"), pen = heat.getContext("2d");
let layout = null;
function drawHeat() {
  if (!maps.length) return;
  const map = maps[current], cell = Number(at("zoom").value), columns = map.columns.length;
  const labeled = cell >= LEAST_LABELED, font = `${Math.min(cell, 12)}px system-ui, sans-serif`;
  pen.font = font;
  const widest = list => Math.ceil(list.reduce((most, token) => Math.max(most, pen.measureText(token).width), 0));
  const left = labeled ? Math.min(widest(tokens), 160) + 6 : 4, top = labeled ? Math.min(widest(map.columns), 160) + 6 : 4;
  heat.width = left + columns * cell; heat.height = top + length * cell;
  layout = {left, top, cell, columns};
  map.small ??= image(map, length, columns, columns, length);
  pen.imageSmoothingEnabled = false;
  pen.drawImage(map.small, left, top, columns * cell, length * cell);
  if (labeled) {
    pen.font = font; pen.fillStyle = paint.ink; pen.textBaseline = "middle";
    tokens.forEach((token, i) => pen.fillText(token, 2, top + (i + .5) * cell, left - 4));
    map.columns.forEach((token, j) => {
      pen.save(); pen.translate(left + (j + .5) * cell, top - 3); pen.rotate(-Math.PI / 2);
      pen.fillText(token, 0, 0, top - 4); pen.restore();
    });
  }
  pen.strokeStyle = paint.ink;
  pen.strokeRect(left + .5, top + row * cell + .5, columns * cell - 1, cell - 1);
  pen.strokeRect(left + column * cell + .5, top + .5, cell - 1, length * cell - 1);
}

const spans = [], otherSpans = [];
function makeTokens(list, into, made, chosen) {
  list.forEach((token, index) => {
    const span = document.createElement("span");
    span.className = "token"; span.textContent = token;
    if (chosen) {
      span.setAttribute("role", "option"); span.tabIndex = index ? -1 : 0;
      span.addEventListener("pointerenter", () => choose(index, column));
      span.addEventListener("focus", () => choose(index, column));
      span.addEventListener("keydown", event => {
        const move = {ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1, Home: -length, End: length}[event.key];
        if (!move) return;
        event.preventDefault();
        spans[Math.min(Math.max(index + move, 0), length - 1)].focus();
      });
    } else span.setAttribute("role", "listitem");
    made.push(span); into.append(span);
  });
}
function strongest() {
  const map = maps[current], order = map.columns.map((_, j) => j);
  order.sort((a, b) => Math.abs(map.weight(row, b)) - Math.abs(map.weight(row, a)) || a - b);
  return order.slice(0, Number(at("links").value)).filter(j => map.weight(row, j));
}
function drawTokens() {
  spans.forEach((span, index) => {
    span.setAttribute("aria-selected", index === row); span.tabIndex = index === row ? 0 : -1;
  });
  const arcs = at("arcs"); arcs.replaceChildren();
  if (!maps.length) return;
  const map = maps[current], ends = map.signed ? otherSpans : spans;
  [...spans, ...otherSpans].forEach(span => { span.style.background = ""; });
  ends.forEach((span, j) => { span.style.background = `color-mix(in srgb, ${css(map.shade(row, j))} 45%, transparent)`; });
  const ground = at("text").getBoundingClientRect(), from = spans[row].getBoundingClientRect();
  const x0 = from.x + from.width / 2 - ground.x, y0 = (map.signed ? from.bottom : from.y) - ground.y;
  const links = strongest(), most = links.length ? Math.abs(map.weight(row, links[0])) : 1;
  for (const j of links) {
    const to = ends[j].getBoundingClientRect(), x1 = to.x + to.width / 2 - ground.x, y1 = to.y - ground.y;
    const rise = 12 + Math.min(Math.abs(x1 - x0) / 6, 40), part = Math.abs(map.weight(row, j)) / most;
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", `M${x0} ${y0}C${x0} ${y0 + (map.signed ? rise : -rise)} ${x1} ${y1 - rise} ${x1} ${y1}`);
    path.style.strokeWidth = 1 + 2.5 * part; path.style.opacity = .35 + .65 * part;
    if (map.weight(row, j) < 0) path.style.stroke = "var(--against)";
    arcs.append(path);
  }
}
function tell() {
  if (!maps.length) { at("status").textContent = "No map was asked for."; return; }
  const map = maps[current], small = weight => weight && Math.abs(weight) < .001;
  // Of a long text's many parts each is small, and none of them nothing.
  const told = weight => small(weight) ? weight.toPrecision(2) : weight.toFixed(map.signed ? 5 : 3);
  const links = strongest().slice(0, 5).map(j => `${map.columns[j]} ${told(map.weight(row, j))}`).join(", ");
  at("status").textContent = `${map.name}${map.about || ""}: “${tokens[row]}” (${row}) and “${map.columns[column]}” ` +
    `(${column}): ${told(map.weight(row, column))}` + (links ? `. Strongest: ${links}` : "");
}
let asked = 0;
function choose(i, j) {
  row = Math.min(Math.max(i, 0), length - 1);
  column = maps.length ? Math.min(Math.max(j, 0), maps[current].columns.length - 1) : 0;
  if (!asked) asked = requestAnimationFrame(() => { asked = 0; drawTokens(); drawHeat(); tell(); });
}
function show(index) {
  const hints = maps[index].signed ? HINTS.similarity : HINTS.attention;
  at("tokens-hint").textContent = hints.tokens + (others && !maps[index].signed ? " Of the first text." : "");
  at("map-hint").textContent = `${hints.map} Point at a cell, or move with the arrow keys.`;
  current = index; at("which").value = String(index);
  at("zoom").max = Math.max(2, Math.min(24, Math.floor(MOST_PIXELS / Math.max(length, maps[index].columns.length))));
  document.querySelectorAll("#gallery button").forEach(button => {
    button.setAttribute("aria-pressed", button.dataset.map === String(index));
  });
  choose(row, column);
}
function gallery() {
  const grid = at("gallery"), shown = maps.filter(map => map.layer !== undefined);
  at("heads").hidden = !shown.length;
  grid.replaceChildren();
  grid.style.gridTemplateColumns = `auto repeat(${data.heads.length}, minmax(2.5rem, 5rem))`;
  let layer = -1;
  shown.forEach(map => {
    if (map.layer !== layer) {
      layer = map.layer;
      const name = document.createElement("span"); name.textContent = `layer ${data.layers[layer]}`; grid.append(name);
    }
    const button = document.createElement("button"), side = Math.min(length, THUMB), index = maps.indexOf(map);
    button.type = "button"; button.dataset.map = String(index); button.title = map.name + map.about;
    button.setAttribute("aria-label", map.name + map.about);
    button.setAttribute("aria-pressed", index === current);
    button.addEventListener("click", () => show(index));
    button.append(image(map, length, length, side, side)); grid.append(button);
  });
}

maps.forEach((map, index) => {
  const option = document.createElement("option");
  option.value = String(index); option.textContent = map.name; at("which").append(option);
});
makeTokens(tokens, at("tokens"), spans, true);
if (others) { at("others").hidden = false; makeTokens(others, at("others"), otherSpans, false); }
at("zoom").value = String(Math.max(2, Math.min(20, Math.floor(900 / length))));
at("choice").addEventListener("submit", event => event.preventDefault());
at("which").addEventListener("change", event => show(Number(event.target.value)));
at("links").addEventListener("input", () => choose(row, column));
at("zoom").addEventListener("input", () => choose(row, column));
heat.addEventListener("pointermove", event => {
  if (!layout) return;
  const box = heat.getBoundingClientRect();
  choose(Math.floor((event.clientY - box.y - layout.top) / layout.cell),
    Math.floor((event.clientX - box.x - layout.left) / layout.cell));
});
heat.addEventListener("keydown", event => {
  const move = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}[event.key];
  if (!move) return;
  event.preventDefault(); choose(row + move[0], column + move[1]);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { mix(); gallery(); choose(row, column); });
addEventListener("resize", () => choose(row, column));
mix();
gallery();
if (maps.length) show(0); else { at("choice").hidden = true; at("scroll").hidden = true; choose(0, 0); }
})();
