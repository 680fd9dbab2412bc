// The view of attention: which tokens of a text look at which, by layer and head.

import { told } from "./api.js";
import { map, summary } from "./attend.js";
import { $, say, sentByKeys } from "./dom.js";
import { heatMap } from "./heatmap.js";
import { nameOf, showHeads } from "./heads.js";
import { offerAgain, offerModels } from "./models.js";
import { many, weight } from "./numbers.js";
import { startPair } from "./pair.js";
import { startWords } from "./words.js";

const EXAMPLE = "The animal didn't cross the street because it was too tired.";

export function startAttention() {
  const said = $("attention-said");
  const showPair = startPair();
  const words = startWords();
  const drawMap = heatMap($("map"), $("map-point"), (row) => words.point(row));
  let going = null;
  let asked = null;
  let maps = new Map();
  // Which choice the words and the map show, of the text that was asked for.
  let drawn = null;
  let entered = false;
  let wanted;

  async function look() {
    going?.abort();
    const { signal } = (going = new AbortController());
    const [text, other] = [$("attention-input").value.toWellFormed().trim(), $("attention-other").value.toWellFormed().trim()];
    if (!text) {
      $("attention-results").hidden = true;
      say(said, "There is no text yet: type one.");
      return;
    }
    say(said, "Asking for the attention …");
    try {
      const found = await summary($("attention-model").value, text, other, signal);
      asked = { text, found };
      maps = new Map();
      drawn = null;
      $("attention-results").hidden = false;
      showPair(found);
      showHeads(found, (chosen) => choose(chosen));
      await choose({ layer: 0, head: 0 });
    } catch (error) {
      if (!signal.aborted) fail(error);
    }
  }

  function fail(error) {
    $("attention-results").hidden = true;
    say(said, told(error), true);
    offerAgain(error, $("attention-model"), $("attention-model-row"));
  }

  /** What is drawn stays, as what it is; of another text it must not. */
  function failToDraw(error) {
    if (!drawn) return fail(error);
    radios().find((radio) => radio.dataset.chosen === drawn).checked = true;
    say(said, told(error), true);
  }

  async function choose(chosen) {
    const { text, found } = asked;
    const name = JSON.stringify(chosen);
    const { signal } = going;
    try {
      if (!maps.has(name)) maps.set(name, await map(found.model, text, chosen, signal));
    } catch (error) {
      if (!signal.aborted && chosenNow() === name) failToDraw(error);
      return;
    }
    // Another one may have been chosen while this one was on its way.
    if (signal.aborted || chosenNow() !== name) return;
    const values = maps.get(name);
    const { tokens } = found;
    say(said, sentence(found));
    words.show(tokens, values, chosen.head === undefined ? means(values) : found.received[chosen.layer][chosen.head]);
    say($("map-of"), nameOf(chosen));
    drawMap({ title: `Attention, ${nameOf(chosen)}`, values, rows: tokens, columns: tokens, describe: (i, j) => `“${tokens[i]}” (${i}) to “${tokens[j]}” (${j}): ${weight(values[i][j])}` });
    drawn = name;
  }

  $("attention-form").addEventListener("submit", (event) => {
    event.preventDefault();
    look();
  });
  for (const id of ["attention-input", "attention-other"]) sentByKeys($(id), look);
  $("attention-input").value = EXAMPLE;

  return {
    /** Look into this text. */
    show(text, model) {
      $("attention-input").value = text;
      $("attention-other").value = "";
      wanted = model;
      entered = false;
    },
    async enter() {
      try {
        await offerModels($("attention-model"), $("attention-model-row"), wanted);
        wanted = undefined;
      } catch (error) {
        entered = false;
        fail(error);
        return;
      }
      if (!entered) look();
      entered = true;
    },
    leave() {},
  };
}

/** What the picker of heads says is chosen, as `choose` is told it. */
function chosenNow() {
  return radios().find((radio) => radio.checked)?.dataset.chosen;
}

const radios = () => [...document.querySelectorAll("#heads input")];

function sentence({ tokens, truncated, otherTruncated, layers, heads, model }) {
  const cut = truncated || otherTruncated ? "; what is longer than the model is cut off" : "";
  return `${many(tokens.length, "token")}, ${many(layers, "layer")} of ${many(heads, "head")}, by ${model}${cut}.`;
}

/** Of each column. */
function means(values) {
  return values[0].map((_, column) => values.reduce((sum, row) => sum + row[column], 0) / values.length);
}
