// The view of the server at work: what /studio/live tells each second.

import { Away, Refused, forgetKey, get } from "./api.js";
import { startBatches } from "./batches.js";
import { $, bar, make, say } from "./dom.js";
import { makeTiles } from "./tiles.js";
import { percent, seconds } from "./numbers.js";

const EVERY_MS = 1_000;
const KEPT = 61;
/** Rates and percentiles are of the last so many seconds. */
export const WINDOW_S = 10;

export function startLive() {
  const tiles = makeTiles($("tiles"));
  const batches = startBatches();
  const pause = $("live-pause");
  let samples = [];
  let timer;
  let going = false;
  let paused = false;

  async function look() {
    clearTimeout(timer);
    let again = true;
    try {
      let now = await get(`/studio/live?after=${batches.newest()}`);
      if (samples.length && now.run !== samples[0].run) {
        // Another process, which counts anew.
        samples = [];
        batches.forget();
        now = await get("/studio/live");
      }
      samples = [...samples, now].slice(-KEPT);
      if (going && !paused) show(now);
    } catch (error) {
      again = refused(error);
    }
    if (going && !paused && again) timer = setTimeout(look, EVERY_MS);
  }

  function refused(error) {
    if (error instanceof Away) {
      say($("live-said"), "The server does not answer. It is asked again each second; below is what it said last.", true);
      return true;
    }
    if (!(error instanceof Refused)) throw error;
    say($("live-said"), `The server refuses: ${error.message}`, true);
    const ofKey = error.status === 401 || error.status === 403;
    $("live-key").hidden = !ofKey;
    return !ofKey;
  }

  function show(now) {
    say($("live-said"), now.condition === "serving" ? "" : `The server is ${now.condition}.`);
    $("live-key").hidden = true;
    $("live-figures").hidden = false;
    const earlier = samples.find((one) => now.time_s - one.time_s <= WINDOW_S + 0.5) ?? now;
    tiles(samples, earlier, now);
    showLanes(earlier, now);
    showStages(earlier, now);
    batches.show(now.batches);
  }

  function resume() {
    if (going && !paused && !document.hidden) look();
    else clearTimeout(timer);
  }

  pause.addEventListener("click", () => {
    paused = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    resume();
  });
  $("live-key").addEventListener("click", () => {
    forgetKey();
    resume();
  });
  document.addEventListener("visibilitychange", resume);

  return {
    enter() {
      going = true;
      resume();
    },
    leave() {
      going = false;
      clearTimeout(timer);
    },
  };
}

function showLanes(earlier, now) {
  const past_s = now.time_s - earlier.time_s;
  const rows = Object.entries(now.lanes_busy_s).map(([lane, busy_s]) => {
    // What a lane runs is told once it is done.
    const share = past_s ? Math.min((busy_s - (earlier.lanes_busy_s[lane] ?? 0)) / past_s, 1) : 0;
    return measured(lane === "wide" ? "wide" : `lane ${lane}`, share, percent(share));
  });
  $("lanes").replaceChildren(...rows);
}

function showStages(earlier, now) {
  const finished = answered(now) - answered(earlier);
  const means = Object.entries(now.stages_s).map(([stage, sum]) => [
    stage,
    finished ? (sum - earlier.stages_s[stage]) / finished : 0,
  ]);
  const longest = Math.max(...means.map(([, mean]) => mean), 1e-9);
  $("stages").replaceChildren(...means.map(([stage, mean]) => measured(stage, mean / longest, finished ? seconds(mean) : "–")));
}

const measured = (name, share, said) => make("div", {}, make("dt", {}, name), make("dd", {}, bar(share)), make("dd", {}, said));

export const answered = (sample) => sample.finished.answered ?? 0;
