// The table of similarities.

import { $, make, say } from "./dom.js";

/** More are not drawn: nobody reads a table of thousands, and a browser takes long over it. */
const MOST = 60;
const DENSE = 14;
const SHOWN = 80;

/** A row and a column for each text; `chosen` is marked, and `choose(index)` is told another one. */
export function showMatrix({ texts, cosines }, chosen, choose) {
  const held = $("matrix");
  const refocus = held.contains(document.activeElement) && document.activeElement.tagName === "BUTTON";
  const shown = texts.slice(0, MOST);
  const head = make("tr", {}, make("td"), ...shown.map((text, index) =>
    make("th", { scope: "col", title: brief(text) }, make("span", { class: "hidden-label" }, "text "), String(index + 1))));
  const rows = shown.map((text, i) =>
    make("tr", { class: i === chosen ? "chosen" : "" },
      make("th", { scope: "row" },
        make("button", { type: "button", class: "plain", "aria-pressed": String(i === chosen), title: brief(text), on: { click: () => choose(i) } },
          `${i + 1}  ${brief(text)}`)),
      ...shown.map((_, j) => make("td", { class: step(cosines[i][j]), "data-at": `${i},${j}` }, figure(cosines[i][j])))));
  const table = make("table", { class: shown.length > DENSE ? "matrix dense" : "matrix" },
    make("caption", { class: "hidden-label" }, "Cosine similarity of each two texts"),
    make("thead", {}, head), make("tbody", {}, ...rows));
  table.addEventListener("pointerover", ({ target }) => point(target, texts, cosines));
  held.replaceChildren(table);
  if (refocus) held.querySelectorAll("tbody button")[chosen]?.focus();
  say($("matrix-point"), shown.length < texts.length ? `The first ${MOST} of ${texts.length} texts.` : "");
}

function point(target, texts, cosines) {
  if (!target.dataset.at) return;
  const [i, j] = target.dataset.at.split(",").map(Number);
  say($("matrix-point"), `${cosines[i][j].toFixed(3)}: “${brief(texts[i])}” and “${brief(texts[j])}”`);
}

/** One of eleven colours of the style sheet, and one for what is below 0. */
function step(cosine) {
  return cosine < -0.005 ? "negative" : `s${Math.max(Math.round(10 * cosine), 0)}`;
}

/** ".53": at a look, and narrow. */
function figure(cosine) {
  return cosine.toFixed(2).replace(/^(-?)0\./, "$1.").replace(/^-\.00$/, ".00");
}

/** The beginning of a text, without the marks that would turn what stands around it from right to left. */
export function brief(text) {
  const start = Array.from(text.slice(0, 4 * SHOWN)).filter((one) => !/[\u202a-\u202e\u2066-\u2069\u200e\u200f]/.test(one));
  return start.length > SHOWN || text.length > 4 * SHOWN ? `${start.slice(0, SHOWN).join("")}…` : start.join("");
}
