// What each two tokens of two texts add to their similarity.

import { $, make, say } from "./dom.js";
import { heatMap } from "./heatmap.js";
import { weight } from "./numbers.js";

const MOST = 12;

/** A function that shows the pair of a summary, or hides its place where there is none. */
export function startPair() {
  const draw = heatMap($("pair-map"), $("pair-point"));
  return ({ tokens, otherTokens, contributions, similarity }) => {
    $("pair").hidden = !contributions;
    if (!contributions) return;
    const told = (i, j) => `“${tokens[i]}” and “${otherTokens[j]}”: ${weight(contributions[i][j])}`;
    say($("pair-said"), `Their cosine is ${similarity.toFixed(3)}. Each cell is what a token of the first (rows) and one of the second (columns) add to it; together they are the cosine.`);
    draw({ title: "What the tokens of two texts add to their similarity", values: contributions, rows: tokens, columns: otherTokens, describe: told });
    const pairs = contributions.flatMap((row, i) => Array.from(row, (value, j) => ({ value, i, j })));
    pairs.sort((left, right) => right.value - left.value);
    $("pair-top").replaceChildren(...pairs.slice(0, MOST).map(({ value, i, j }) =>
      make("li", {}, make("bdi", {}, tokens[i]), " and ", make("bdi", {}, otherTokens[j]), ` ${weight(value)}`)));
  };
}
