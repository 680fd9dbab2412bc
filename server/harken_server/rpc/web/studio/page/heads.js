// The choice of a head, of a layer's mean, or of all layers together.

import { $, make } from "./dom.js";

/** In words, what {layer, head}, {layer} or {} is: counted from 0, as in every call. */
export function nameOf({ layer, head }) {
  if (layer === undefined) return "the rollout over all layers";
  return `layer ${layer}, ${head === undefined ? "the mean of its heads" : `head ${head}`}`;
}

/** `choose` is told {layer, head}, {layer} or {}; the first layer's first head is chosen. */
export function showHeads({ layers, heads, entropy, tokens }, choose) {
  const most = Math.log(Math.max(tokens.length, 2));
  const radio = (chosen, checked, nats) => {
    const label = nats === undefined ? nameOf(chosen) : `${nameOf(chosen)}: entropy ${nats.toFixed(2)}`;
    const input = make("input", { type: "radio", name: "head", "aria-label": label, title: label, checked, "data-chosen": JSON.stringify(chosen), on: { change: () => choose(chosen) } });
    if (nats !== undefined) input.style.setProperty("--w", String(Math.min(Math.max(1 - nats / most, 0), 1)));
    return input;
  };
  const columns = Array.from({ length: heads }, (_, head) => head);
  const row = (_, layer) =>
    make("tr", {},
      make("th", { scope: "row" }, `layer ${layer}`),
      ...columns.map((head) => make("td", {}, radio({ layer, head }, !layer && !head, entropy[layer][head]))),
      make("td", { class: "mean" }, radio({ layer }, false)));
  $("heads").replaceChildren(
    make("fieldset", {},
      make("legend", { class: "hidden-label" }, "What to show"),
      make("table", { class: "heads" },
        make("thead", {}, make("tr", {}, make("td"), ...columns.map((head) => make("th", { scope: "col" }, String(head))), make("th", { scope: "col" }, "mean"))),
        make("tbody", {}, ...Array.from({ length: layers }, row))),
      make("div", { class: "heads" }, make("label", { class: "whole" }, radio({}, false), "rollout: all layers and heads together"))));
}
