// What a model reads of a text, token by token, and what it never sees.

import { $, make, say } from "./dom.js";
import { count, many } from "./numbers.js";

/** Of what is cut off, so much is shown. */
const MOST_CUT = 2_000;

/** `read`: of POST /studio/tokens; its places count characters, which in a string here may take two units. */
export function showTokens(text, read, maxLength) {
  const characters = Array.from(text);
  const { ids, tokens, places, length, counted_all: countedAll } = read;
  const items = ids.map((id, index) => {
    const [start, end] = places[index];
    const special = end === 0;
    const joined = !special && index > 0 && places[index - 1][1] === start && start > 0;
    const where = special ? "special token" : `characters ${start} to ${end}`;
    return make("li", { class: special ? "special" : joined ? "joined" : "", title: `id ${id}, ${where}` },
      make("bdi", {}, tokens[index] || `#${id}`), make("small", {}, String(id)));
  });
  $("tokens").replaceChildren(...items);

  const cut = length > ids.length;
  say($("tokens-said"), `${many(ids.length, "token")} of at most ${count(maxLength)}${cut ? ", and the rest is cut off" : ""}.`);
  const place = $("tokens-cut");
  place.hidden = !cut;
  if (!cut) return;
  const end = Math.max(...places.map(([, last]) => last));
  const rest = characters.slice(end);
  const shown = rest.slice(0, MOST_CUT).join("");
  const more = rest.length > MOST_CUT ? ` … and ${count(rest.length - MOST_CUT)} characters more` : "";
  place.replaceChildren(
    make("strong", {}, `Cut off: ${countedAll ? "" : "at least "}${many(length - ids.length, "token")}, ${many(rest.length, "character")}`),
    make("del", { dir: "auto", tabindex: "0", "aria-label": "What is cut off" }, shown + more),
  );
}

$("tokens-ids").addEventListener("change", ({ target }) => $("tokens").classList.toggle("with-ids", target.checked));
