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

/** Let a choice be made where there is one. */
export async function offerModels(select, row) {
  const names = await models();
  const chosen = select.value;
  select.replaceChildren(...names.map((name) => make("option", { value: name }, name)));
  if (names.includes(chosen)) select.value = chosen;
  row.hidden = names.length < 2;
}
