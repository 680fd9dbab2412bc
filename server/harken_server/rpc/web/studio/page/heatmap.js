// A matrix as a heat map on a canvas, with a pointer and a keyboard cursor.

import { colours, redrawn, say, surface } from "./dom.js";

const MOST_CELL = 40;
const LEAST_LABELLED = 11;
const MOST_GUTTER = 92;
const CHARACTER = 7.5;
const SMALL = 0.6;

const STEPS = {
  ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1],
  PageUp: [-10, 0], PageDown: [10, 0], Home: [0, -Infinity], End: [0, Infinity],
};

/** A function that shows {title, values: [rows][columns], rows, columns (their labels), describe(i, j)}.
 *
 * `said` is told what is under the pointer or the cursor; `onRow(i)` which row that is.
 */
export function heatMap(canvas, said, onRow = () => {}) {
  let shown = null;
  let at = null;
  let place = null;
  // Painted once: a long text has a quarter of a million cells.
  let image = null;
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-roledescription", "heat map");

  function draw() {
    if (!shown) return;
    const { values, rows, columns } = shown;
    const longest = Math.max(...[...rows, ...columns].map((word) => word.length));
    let gutter = Math.min(longest * CHARACTER + 8, MOST_GUTTER);
    let cell = Math.min((canvas.clientWidth - gutter) / columns.length, MOST_CELL);
    const labelled = cell >= LEAST_LABELLED;
    if (!labelled) gutter = 0;
    if (!labelled) cell = Math.min(canvas.clientWidth / columns.length, MOST_CELL);
    const height = gutter + cell * rows.length;
    canvas.style.height = `${height}px`;
    const [context] = surface(canvas, height);
    const colour = colours();
    place = { cell, gutter };
    context.imageSmoothingEnabled = false;
    image ??= painted(values, colour);
    context.drawImage(image, gutter, gutter, cell * columns.length, cell * rows.length);
    context.strokeStyle = colour("line");
    context.strokeRect(gutter, gutter, cell * columns.length, cell * rows.length);
    if (labelled) labels(context, shown, place, colour("ink"));
    if (!at) return;
    context.lineWidth = 2;
    context.strokeStyle = colour("warm");
    context.strokeRect(gutter, gutter + at[0] * cell, cell * columns.length, cell);
    context.strokeStyle = colour("ink");
    context.strokeRect(gutter + at[1] * cell, gutter + at[0] * cell, cell, cell);
  }

  function go(i, j) {
    const inside = [Math.min(Math.max(i, 0), shown.rows.length - 1), Math.min(Math.max(j, 0), shown.columns.length - 1)];
    if (at && inside[0] === at[0] && inside[1] === at[1]) return;
    at = inside;
    say(said, shown.describe(...at));
    onRow(at[0]);
    draw();
  }

  function point({ offsetX, offsetY }) {
    if (!shown) return;
    const i = Math.floor((offsetY - place.gutter) / place.cell);
    const j = Math.floor((offsetX - place.gutter) / place.cell);
    if (i >= 0 && j >= 0 && i < shown.rows.length && j < shown.columns.length) go(i, j);
  }

  canvas.addEventListener("pointermove", point);
  // A finger that taps does not move.
  canvas.addEventListener("pointerdown", point);
  canvas.addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    if (!step || !shown) return;
    event.preventDefault();
    const [i, j] = at ?? [0, 0];
    go(i + step[0], j + step[1]);
  });
  canvas.addEventListener("focus", () => shown && !at && go(0, 0));
  redrawn(() => {
    image = null;
    draw();
  });

  return (now) => {
    shown = now;
    at = null;
    image = null;
    say(said, "");
    canvas.setAttribute("aria-label", `${now.title}: ${now.rows.length} rows, ${now.columns.length} columns. The arrow keys tell each cell.`);
    draw();
  };
}

/** A pixel for each cell: the largest opaque, small ones still to be seen; what is below 0 in the warm colour. */
function painted(values, colour) {
  const [height, width] = [values.length, values[0].length];
  let most = 1e-12;
  for (const row of values) for (const value of row) most = Math.max(most, Math.abs(value));
  const [above, below] = [rgb(colour("heat")), rgb(colour("warm"))];
  const image = new ImageData(width, height);
  let pixel = 0;
  for (const row of values) {
    for (const value of row) {
      const [red, green, blue] = value < 0 ? below : above;
      image.data.set([red, green, blue, Math.round(255 * (Math.abs(value) / most) ** SMALL)], pixel);
      pixel += 4;
    }
  }
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

/** "#0b4f8a" -> [11, 79, 138]. */
function rgb(hex) {
  return [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
}

function labels(context, { rows, columns }, { cell, gutter }, ink) {
  context.fillStyle = ink;
  context.font = `${Math.min(cell - 1, 12)}px ui-monospace, "DejaVu Sans Mono", monospace`;
  context.textBaseline = "middle";
  context.textAlign = "right";
  const middle = (index) => gutter + (index + 0.5) * cell;
  rows.forEach((word, i) => context.fillText(word, gutter - 4, middle(i), gutter - 6));
  context.textAlign = "left";
  columns.forEach((word, j) => {
    context.save();
    context.translate(middle(j), gutter - 4);
    context.rotate(-Math.PI / 2);
    context.fillText(word, 0, 0, gutter - 6);
    context.restore();
  });
}
