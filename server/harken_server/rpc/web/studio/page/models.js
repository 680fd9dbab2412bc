// The names of the models that are served: others may be, the next time.

import { get } from "./api.js";
import { make } from "./dom.js";

/** Let a choice be made where there is one; `wanted` is chosen if it is served. Throws Refused, Away. */
export async function offerModels(select, row, wanted = select.value) {
  const { data } = await get("/v1/models");
  const names = data.map(({ id }) => id);
  select.replaceChildren(...names.map((name) => make("option", { value: name }, name)));
  if (names.includes(wanted)) select.value = wanted;
  row.hidden = names.length < 2;
}

/** After an error: where the chosen model is not served any more, those that are. */
export function offerAgain(error, select, row) {
  if (error.status === 404) offerModels(select, row).catch(() => {});
}
