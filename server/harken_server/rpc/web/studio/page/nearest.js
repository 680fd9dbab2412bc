// The texts that are nearest to one of them.

import { $, bar, make } from "./dom.js";
import { brief } from "./matrix.js";
import { nearest } from "./numbers.js";

const MOST = 20;

/** An ordered list; each one may be chosen in turn. */
export function showNearest({ texts, cosines }, chosen, choose) {
  const row = cosines[chosen];
  $("nearest-of").textContent = brief(texts[chosen]);
  const others = nearest(row, chosen).slice(0, MOST);
  $("nearest").replaceChildren(...others.map((index) =>
    make("li", {},
      make("button", { type: "button", class: "plain", on: { click: () => choose(index) } },
        make("span", { class: "name", dir: "auto" }, brief(texts[index])),
        make("span", { class: "score" }, row[index].toFixed(2)),
        bar(row[index])))));
  if (!others.length) $("nearest").replaceChildren(make("li", { class: "hint" }, "There is no other text to compare it with."));
}
