// The choice of a head, of a layer's mean, or of all layers together.

import { $, make } from "./dom.js";

/** `choose` is told {layer, head}, {layer} or {}; the first layer's first head is chosen. */
export function showHeads({ layers, heads, entropy, tokens }, choose) {
  const most = Math.log(Math.max(tokens.length, 2));
  const radio = (label, chosen, focus, checked) => {
    const input = make("input", { type: "radio", name: "head", "aria-label": label, title: label, checked, "data-chosen": JSON.stringify(chosen), on: { change: () => choose(chosen) } });
    if (focus !== undefined) input.style.setProperty("--w", String(Math.min(Math.max(focus, 0), 1)));
    return input;
  };
  const columns = Array.from({ length: heads }, (_, head) => head);
  const row = (_, layer) =>
    make("tr", {},
      make("th", { scope: "row" }, `layer ${layer + 1}`),
      ...columns.map((head) => {
        const nats = entropy[layer][head];
        return make("td", {}, radio(`layer ${layer + 1}, head ${head + 1}: entropy ${nats.toFixed(2)}`, { layer, head }, 1 - nats / most, !layer && !head));
      }),
      make("td", { class: "mean" }, radio(`layer ${layer + 1}, mean of its heads`, { layer })));
  $("heads").replaceChildren(
    make("fieldset", {},
      make("legend", { class: "hidden-label" }, "What to show"),
      make("table", { class: "heads" },
        make("thead", {}, make("tr", {}, make("td"), ...columns.map((head) => make("th", { scope: "col" }, String(head + 1))), make("th", { scope: "col" }, "mean"))),
        make("tbody", {}, ...Array.from({ length: layers }, row))),
      make("div", { class: "heads" }, make("label", { class: "whole" }, radio("rollout over all layers", {}), "rollout: all layers and heads together"))));
}
