// The last batches, drawn: as wide as they were padded, a line for each sequence.

import { $, colours, make, redrawn, say, surface } from "./dom.js";
import { count, many, percent, seconds } from "./numbers.js";

const KEPT = 48;
const MOST_HEIGHT = 110;
const LEAST_HEIGHT = 28;
const MOST_LINE = 10;
const GAP = 6;

export function startBatches() {
  let batches = [];
  let lanes = new Map();

  const newest = () => batches.at(-1)?.number ?? 0;

  function show(news) {
    if (news === null) {
      $("batches").replaceChildren(make("p", {}, "None are kept: the server's setting debug_batches is 0."));
      return;
    }
    // Two answers that were on their way at a time tell the same ones.
    const newer = news.filter(({ number }) => number > newest());
    if (!newer.length && lanes.size) return;
    batches = [...batches, ...newer].slice(-KEPT);
    for (const { lane } of batches) if (!lanes.has(lane)) lanes.set(lane, makeLane(lane));
    if (!lanes.size) {
      $("batches").replaceChildren(make("p", {}, "No batch has run yet: compare some texts, or start a load."));
      return;
    }
    const inOrder = [...lanes.keys()].sort();
    if ($("batches").children.length !== lanes.size || !$("batches").querySelector("canvas")) {
      $("batches").replaceChildren(...inOrder.map((lane) => lanes.get(lane).row));
    }
    draw();
    $("batches-rows").replaceChildren(...batches.toReversed().map(row));
  }

  function draw() {
    // One scale for all, so that they can be compared.
    const longest = Math.max(...batches.map((batch) => batch.padded_length), 1);
    const most = Math.max(...batches.map((batch) => batch.lengths.length), 1);
    for (const [lane, { row, canvas, drawn, mark }] of lanes) {
      const own = batches.filter((batch) => batch.lane === lane).toReversed();
      // One that ran nothing lately, as the wide one under load, takes no room.
      row.hidden = !own.length;
      drawn.length = 0;
      if (own.length) drawn.push(...drawLane(canvas, own, longest, most));
      mark();
    }
    say($("batches-scale"), `The longest here has ${many(longest, "token")}, the largest ${many(most, "sequence")}.`);
  }

  redrawn(() => batches.length && draw());
  return {
    show,
    newest,
    forget() {
      batches = [];
      lanes = new Map();
      $("batches").replaceChildren();
    },
  };
}

function makeLane(lane) {
  const name = lane === "wide" ? "wide" : `lane ${lane}`;
  const drawn = [];
  // Its number: where it stands changes with each new one.
  let told = 0;
  const canvas = make("canvas", { tabindex: "0", role: "img", "aria-label": `Batches of ${name}, drawn. The arrow keys tell each; the table below has all.` });
  /** A line below the batch that is told. */
  const mark = () => {
    const [context, bottom] = [canvas.getContext("2d"), canvas.clientHeight - 2];
    const { left, right } = drawn.find(({ batch }) => batch.number === told) ?? { left: 0, right: 0 };
    context.clearRect(0, bottom, canvas.clientWidth, 2);
    context.fillStyle = colours()("warm");
    context.fillRect(left, bottom, right - left, 2);
  };
  const tell = (index) => {
    if (!drawn[index]) return;
    told = drawn[index].batch.number;
    say($("batches-point"), described(drawn[index].batch));
    mark();
  };
  for (const event of ["pointermove", "pointerdown"]) {
    canvas.addEventListener(event, ({ offsetX }) => tell(drawn.findIndex(({ left, right }) => offsetX >= left && offsetX <= right)));
  }
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const at = drawn.findIndex(({ batch }) => batch.number === told);
    tell(Math.min(Math.max(at + step, 0), drawn.length - 1));
  });
  return { row: make("div", { class: "lane" }, make("span", {}, name), canvas), canvas, drawn, mark };
}

/** Where each batch that found room stands. */
function drawLane(canvas, batches, longest, most) {
  const line = Math.min((MOST_HEIGHT - 4) / most, MOST_LINE);
  const height = Math.max(line * Math.max(...batches.map((batch) => batch.lengths.length)) + 8, LEAST_HEIGHT);
  canvas.style.height = `${height}px`;
  const [context, width] = surface(canvas, height);
  const colour = colours();
  const widest = Math.min(Math.max(width / 4, 60), 220);
  const hatch = hatched(context, colour("padding"));
  const drawn = [];
  let left = 1;
  for (const batch of batches) {
    const span = Math.max((batch.padded_length / longest) * widest, 4);
    if (left + span > width) break;
    const top = (height - line * batch.lengths.length) / 2;
    batch.lengths.forEach((length, index) => {
      const filled = (length / batch.padded_length) * span;
      const y = top + index * line;
      const high = Math.max(line - (line > 3 ? 1 : 0), 0.75);
      context.fillStyle = colour("accent");
      context.fillRect(left, y, filled, high);
      context.fillStyle = hatch;
      context.fillRect(left + filled, y, span - filled, high);
    });
    context.strokeStyle = colour(batch.failed ? "bad" : "edge");
    context.strokeRect(left - 0.5, top - 0.5, span + 1, line * batch.lengths.length + 1);
    drawn.push({ left, right: left + span, batch });
    left += span + GAP;
  }
  return drawn;
}

/** Stripes: padding is told from tokens without colours, too. */
function hatched(context, colour) {
  const tile = new OffscreenCanvas(4, 4);
  const pen = tile.getContext("2d");
  pen.strokeStyle = colour;
  pen.lineWidth = 1.2;
  for (const start of [-4, 0, 4]) {
    pen.moveTo(start, 4);
    pen.lineTo(start + 4, 0);
  }
  pen.stroke();
  return context.createPattern(tile, "repeat");
}

const padded = ({ sequences, padded_length: length, real_tokens: real }) => 1 - real / (sequences * length);

function described(batch) {
  const failed = batch.failed ? `, ${count(batch.failed)} failed` : "";
  return `Batch ${batch.number} of ${batch.model}: ${many(batch.sequences, "sequence")} padded to ${many(batch.padded_length, "token")}, ` +
    `${percent(padded(batch))} padding, ${seconds(batch.lane_s)}${failed}. Why no more joined: ${batch.why}.`;
}

function row(batch) {
  const cells = [batch.number, batch.lane, batch.sequences, batch.padded_length, percent(padded(batch)), seconds(batch.lane_s), batch.why];
  return make("tr", {}, ...cells.map((cell) => make("td", {}, String(cell))));
}
