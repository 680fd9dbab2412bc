// What POST /v1/attend tells, and nothing of its form outside this file.

import { post } from "./api.js";
import { vector } from "./numbers.js";

/** Of a text, the tokens, how focused each head is, and how much attention each token gets; of two, the pair. */
export async function summary(model, text, other, signal) {
  const told = await attend({ model, input: text, received: true, entropy: true, ...(other ? { other } : {}) }, signal);
  return {
    model: told.model,
    tokens: told.input.tokens,
    truncated: told.input.truncated,
    otherTokens: told.other?.tokens,
    otherTruncated: told.other?.truncated,
    layers: told.layers.length,
    heads: told.heads.length,
    entropy: array(told.entropy),
    received: array(told.received),
    similarity: told.similarity,
    contributions: told.contributions && array(told.contributions),
  };
}

/** One map, [tokens][tokens]: `chosen` is {layer, head}, {layer} for its mean, or {} for the rollout of all. */
export async function map(model, text, { layer, head }, signal) {
  if (layer === undefined) return array((await attend({ model, input: text, rollout: true }, signal)).rollout);
  const layers = [layer];
  if (head === undefined) return array((await attend({ model, input: text, layers, mean: true }, signal)).mean)[0];
  return array((await attend({ model, input: text, layers, heads: [head], maps: true }, signal)).maps)[0][0];
}

/** In base64: less than half of what digits would be. What is longer than the model is cut off, as everywhere here. */
const attend = (body, signal) => post("/v1/attend", { ...body, truncate: true, encoding_format: "base64" }, signal);

/** Nested arrays, the innermost of them Float32Arrays. */
function array({ shape, data }) {
  const values = vector(data);
  const nest = (start, [size, ...inner]) => {
    if (!inner.length) return values.subarray(start, start + size);
    const step = inner.reduce((product, one) => product * one, 1);
    return Array.from({ length: size }, (_, index) => nest(start + index * step, inner));
  };
  return nest(0, shape);
}
