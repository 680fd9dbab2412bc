// Whether the server takes requests, in the corner of every view.

import { $ } from "./dom.js";

const EVERY_MS = 3_000;

/** Ask while the page is seen; say only what has changed, so that a screen reader is not told each time. */
export function startHealth() {
  const place = $("health");
  const said = $("health-said");
  let timer;

  async function look() {
    clearTimeout(timer);
    const now = await condition();
    place.className = `health ${now.kind}`;
    if (said.textContent !== now.words) said.textContent = now.words;
    timer = document.hidden ? undefined : setTimeout(look, EVERY_MS);
  }

  document.addEventListener("visibilitychange", () => document.hidden || look());
  look();
}

async function condition() {
  try {
    const response = await fetch("/readyz", { cache: "no-store", signal: AbortSignal.timeout(EVERY_MS) });
    if (response.ok) return { kind: "serving", words: "serving" };
    return { kind: "waiting", words: (await response.text()).trim().slice(0, 40) };
  } catch {
    return { kind: "away", words: "the server does not answer" };
  }
}
