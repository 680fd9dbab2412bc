// The view of texts: what the model reads of each, and how near they are to one another.

import { post, told } from "./api.js";
import { $, say, sentByKeys } from "./dom.js";
import { showMatrix } from "./matrix.js";
import { offerAgain, offerModels } from "./models.js";
import { showNearest } from "./nearest.js";
import { cosines, many, vector } from "./numbers.js";
import { showTokens } from "./tokens.js";

const EXAMPLES = [
  "The cat sleeps.",
  "A kitten is napping on the warm windowsill.",
  "Dogs bark at the postman every morning.",
  "How do I reset my password?",
  "I cannot log in any more.",
  "The central bank raised its key rate.",
  "Interest rates rose.",
  "Mix flour, water, salt and yeast, and let the dough rest.",
];

/** `attend(text, model)` is told which text is to be looked into. */
export function startTexts(attend) {
  const input = $("texts-input");
  const said = $("texts-said");
  let going = null;
  let found = null;
  let entered = false;

  async function compare() {
    going?.abort();
    const { signal } = (going = new AbortController());
    const texts = parted(input.value, document.querySelector("input[name=parted]:checked").value);
    if (!texts.length) {
      $("texts-results").hidden = true;
      say(said, "There is no text yet: type one, or more to compare them.");
      return;
    }
    say(said, `Asking for ${many(texts.length, "text")} …`);
    try {
      const answer = await encoded(texts, $("texts-model").value, signal);
      if (signal.aborted) return;
      found = { texts, ...answer };
      say(said, summary(found));
      $("texts-results").hidden = false;
      choose(0);
    } catch (error) {
      if (!signal.aborted) fail(error);
    }
  }

  /** What was found before answers what was asked before: it would seem to belong to what was refused. */
  function fail(error) {
    $("texts-results").hidden = true;
    say(said, told(error), true);
    offerAgain(error, $("texts-model"), $("texts-model-row"));
  }

  function choose(index) {
    showMatrix(found, index, choose);
    showNearest(found, index, choose);
    showTokens(found.texts[index], found.read[index], found.maxLength);
    $("tokens-attend").onclick = () => {
      attend(found.texts[index], found.model);
      location.hash = "#attention";
    };
  }

  $("texts-form").addEventListener("submit", (event) => {
    event.preventDefault();
    compare();
  });
  sentByKeys(input, compare);
  $("texts-clear").addEventListener("click", () => {
    input.value = "";
    input.focus();
    compare();
  });
  input.value = EXAMPLES.join("\n");

  return {
    async enter() {
      try {
        await offerModels($("texts-model"), $("texts-model-row"));
      } catch (error) {
        entered = false;
        fail(error);
        return;
      }
      // The examples, so that there is something to see at once.
      if (!entered) compare();
      entered = true;
    },
    leave() {},
  };
}

async function encoded(texts, model, signal) {
  const read = await post("/studio/tokens", { model, texts }, signal);
  // What the model reads, to the token: so a text that is too long is compared by what is left of it.
  const ids = read.texts.map((one) => one.ids);
  const body = { model: read.model, input: ids, encoding_format: "base64" };
  const { data } = await post("/v1/embeddings", body, signal);
  const vectors = data.map(({ embedding }) => vector(embedding));
  return { model: read.model, read: read.texts, maxLength: read.max_length, cosines: cosines(vectors) };
}

function summary({ texts, read, model }) {
  const cut = read.filter((one) => one.length > one.ids.length).length;
  const tokens = read.reduce((sum, one) => sum + one.ids.length, 0);
  const more = cut ? `; ${many(cut, "text")} cut off` : "";
  return `${many(texts.length, "text")}, ${many(tokens, "token")} by ${model}${more}.`;
}

/** The texts in what was typed: without those that hold nothing. */
function parted(value, by) {
  const parts = value.toWellFormed().split(by === "lines" ? /\r?\n/ : /\r?\n[^\S\n]*\r?\n\s*/);
  return parts.map((part) => part.trim()).filter(Boolean);
}
