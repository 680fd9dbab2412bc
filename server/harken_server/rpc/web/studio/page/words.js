// The tokens of a text in a row: which of them one attends to, as shades, as arcs, and as a list.

import { $, make, makeSvg, redrawn, say } from "./dom.js";

const MOST_ARCS = 8;
const LEAST_ARC = 0.02;

/** {show(tokens, map, received), point(i)}: the tokens, and one of them as if it were pointed at. */
export function startWords() {
  const place = $("words");
  const arcs = makeSvg("svg", { "aria-hidden": "true" });
  let tokens = [];
  let map = null;
  let received = [];
  let buttons = [];
  let at = -1;

  function rest() {
    at = -1;
    shade(received);
    arcs.replaceChildren();
    for (const button of buttons) button.setAttribute("aria-pressed", "false");
  }

  function point(index) {
    if (!map || index === at) return;
    buttons[at]?.setAttribute("aria-pressed", "false");
    at = index;
    buttons[at].setAttribute("aria-pressed", "true");
    shade(map[at]);
    const order = strongest(map[at]);
    draw(order);
    say($("words-said"), `“${tokens[at]}” (${at}) attends most to`);
    $("words-links").replaceChildren(...order.slice(0, MOST_ARCS).map((target) =>
      make("li", {}, make("bdi", {}, tokens[target]), ` ${map[at][target].toFixed(3)}`)));
  }

  function shade(weights) {
    const most = Math.max(...weights, 1e-9);
    buttons.forEach((button, index) => button.style.setProperty("--w", String((weights[index] ?? 0) / most)));
  }

  /** From the middle of a token over the others to the middle of each that it attends to. */
  function draw(order) {
    const frame = place.getBoundingClientRect();
    const middle = (index) => {
      const box = buttons[index].getBoundingClientRect();
      return [box.left - frame.left + box.width / 2, box.top - frame.top];
    };
    const [x, y] = middle(at);
    const drawn = order.slice(0, MOST_ARCS).filter((target) => target !== at && map[at][target] >= LEAST_ARC);
    arcs.replaceChildren(...drawn.map((target) => {
      const [toX, toY] = middle(target);
      const above = Math.min(y, toY) - Math.min(10 + Math.abs(toX - x) / 6, 42);
      return makeSvg("path", { d: `M${x},${y} C${x},${above} ${toX},${above} ${toX},${toY}`, "stroke-width": 1 + 5 * map[at][target], opacity: 0.35 + 0.6 * map[at][target] });
    }));
  }

  function move(event) {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity }[event.key];
    if (!step) return;
    event.preventDefault();
    const next = Math.min(Math.max(buttons.indexOf(document.activeElement) + step, 0), buttons.length - 1);
    buttons.forEach((button, index) => (button.tabIndex = index === next ? 0 : -1));
    buttons[next].focus();
  }

  redrawn(() => at >= 0 && draw(strongest(map[at])));
  return {
    point,
    show(words, values, weights) {
      [tokens, map, received] = [words, values, weights];
      buttons = words.map((word, index) =>
        make("button", { type: "button", class: "plain", tabindex: index ? "-1" : "0", "aria-pressed": "false",
          on: { pointerenter: () => point(index), focus: () => point(index), click: () => point(index) } }, make("bdi", {}, word)));
      const list = make("ol", { "aria-label": "Tokens", on: { keydown: move, pointerleave: rest, scroll: () => at >= 0 && draw(strongest(map[at])) } },
        ...buttons.map((button) => make("li", {}, button)));
      place.replaceChildren(list, arcs);
      say($("words-said"), "");
      $("words-links").replaceChildren();
      rest();
    },
  };
}

/** Indices by weight; of equals the earlier one first. */
export function strongest(weights) {
  return Array.from(weights, (_, index) => index).sort((left, right) => weights[right] - weights[left] || left - right);
}
