// The names of the models that are served, asked once.

import { get } from "./api.js";
import { make } from "./dom.js";

let asked = null;

/** Their names. Throws Refused, Away; then the next one asks again. */
export function models() {
  asked ??= get("/v1/models").then(
    ({ data }) => data.map(({ id }) => id),
    (error) => {
      asked = null;
      throw error;
    },
  );
  return asked;
}

/** Let a choice be made where there is one; `wanted` is chosen if it is served. */
export async function offerModels(select, row, wanted = select.value) {
  const names = await models();
  select.replaceChildren(...names.map((name) => make("option", { value: name }, name)));
  if (names.includes(wanted)) select.value = wanted;
  row.hidden = names.length < 2;
}
