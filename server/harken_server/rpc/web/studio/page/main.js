// The views, one at a time, by the part of the address after #.

import { startAttention } from "./attention.js";
import { $ } from "./dom.js";
import { startHealth } from "./health.js";
import { startLive } from "./live.js";
import { startTexts } from "./texts.js";

const VIEWS = ["texts", "attention", "live"];
const TITLES = { texts: "Texts", attention: "Attention", live: "Live" };

const attention = startAttention();
const views = { texts: startTexts((text, model) => attention.show(text, model)), attention, live: startLive() };

function turn() {
  const asked = location.hash.slice(1);
  // The skip link's target is no view.
  if (asked === "main") return;
  const now = VIEWS.includes(asked) ? asked : VIEWS[0];
  for (const view of VIEWS) $(`view-${view}`).hidden = view !== now;
  for (const link of document.querySelectorAll(".top nav a")) {
    if (link.hash === `#${now}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${TITLES[now]} - harken studio`;
  for (const view of VIEWS) if (view !== now) views[view].leave();
  views[now].enter();
}

window.addEventListener("hashchange", turn);
startHealth();
turn();
