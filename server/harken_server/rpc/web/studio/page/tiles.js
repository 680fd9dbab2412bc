// The figures of the live view, each with its last minute as a line.

import { make, makeSvg } from "./dom.js";
import { bytes, count, many, percent, quantile, seconds } from "./numbers.js";

const answered = (one) => one.finished.answered ?? 0;
const real = (one) => one.tokens.real ?? 0;
const padding = (one) => one.tokens.padding ?? 0;
const refused = (one) => Object.values(one.rejected).reduce((sum, value) => sum + value, 0);

/** A function that shows samples: all of the last minute, the one that the figures count from, and the newest. */
export function makeTiles(place) {
  const tiles = ["Answered", "Tokens", "Time of a call", "Backlog", "Refused", "Memory"].map((name) => makeTile(place, name));
  return (samples, earlier, now) => {
    const past_s = now.time_s - earlier.time_s;
    const rate = (of) => (past_s ? (of(now) - of(earlier)) / past_s : 0);
    const [sequences, tokens, time, backlog, refusals, memory] = tiles;

    sequences(count(rate(answered)), "sequences/s", `${count(answered(now))} since the start`, perSecond(samples, answered));

    const share = rate(padding) ? rate(padding) / (rate(real) + rate(padding)) : 0;
    tokens(count(rate(real)), "tokens/s", `and ${percent(share)} padding`, perSecond(samples, real));

    const [p50, p95, p99] = [0.5, 0.95, 0.99].map((q) => between(earlier, now, q));
    const lately = samples.map((one, index) => between(samples[Math.max(index - 3, 0)], one, 0.99) ?? 0);
    time(seconds(p50), "p50", `p95 ${seconds(p95)}, p99 ${seconds(p99)}`, lately);

    const { sequences: waiting, tokens: waitingTokens, predicted_wait_s: wait_s } = now.backlog;
    backlog(count(waiting), "waiting", `${many(waitingTokens, "token")}, predicted wait ${seconds(wait_s)}`,
      samples.map((one) => one.backlog.sequences));

    refusals(count(rate(refused)), "refused/s", reasons(earlier, now), perSecond(samples, refused));

    const { rss, budget, predicted_batch: running, gpu_used: gpu } = now.memory_bytes;
    memory(rss === undefined ? "–" : bytes(rss), gpu === undefined ? "" : `and ${bytes(gpu)} of the GPU`,
      `batches ${bytes(running)} of ${bytes(budget)}`, samples.map((one) => one.memory_bytes.rss ?? 0));
  };
}

function makeTile(place, name) {
  const figure = make("span", { class: "figure" });
  const unit = make("span", { class: "unit" });
  const more = make("dd", { class: "more" });
  const line = makeSvg("polyline");
  const chart = makeSvg("svg", { viewBox: "0 0 60 24", preserveAspectRatio: "none", "aria-hidden": "true" }, line);
  place.append(make("div", {}, make("dt", {}, name), make("dd", {}, figure, " ", unit), more, make("dd", {}, chart)));
  return (value, what, rest, series) => {
    figure.textContent = value;
    unit.textContent = what;
    more.textContent = rest;
    line.setAttribute("points", points(series));
  };
}

/** The newest at the right, and from 0 to the most that there was. */
function points(series) {
  const most = Math.max(...series, 1e-9);
  return series.map((value, index) => `${60 - (series.length - 1 - index)},${(23 - (22 * value) / most).toFixed(2)}`).join(" ");
}

function perSecond(samples, of) {
  return samples.slice(1).map((one, index) => (of(one) - of(samples[index])) / Math.max(one.time_s - samples[index].time_s, 1e-3));
}

/** A percentile of the calls that ended between two samples. */
function between(earlier, now, q) {
  const counts = now.duration.counts.map((value, index) => value - earlier.duration.counts[index]);
  return quantile(now.duration.bounds, counts, q);
}

function reasons(earlier, now) {
  const lately = Object.entries(now.rejected).filter(([reason, value]) => value > (earlier.rejected[reason] ?? 0));
  if (lately.length) return lately.map(([reason]) => reason).join(", ");
  return refused(now) ? `${count(refused(now))} since the start` : "none since the start";
}
