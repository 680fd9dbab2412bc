// What POST /v1/attend tells, and nothing of its form outside this file.

import { post } from "./api.js";

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
    entropy: told.entropy,
    received: told.received,
    similarity: told.similarity,
    contributions: told.contributions,
  };
}

/** One map, [tokens][tokens]: `chosen` is {layer, head}, {layer} for its mean, or {} for the rollout of all. */
export async function map(model, text, { layer, head }, signal) {
  if (layer === undefined) return (await attend({ model, input: text, rollout: true }, signal)).rollout;
  const layers = [layer];
  if (head === undefined) return (await attend({ model, input: text, layers, mean: true }, signal)).mean[0];
  return (await attend({ model, input: text, layers, heads: [head], maps: true }, signal)).maps[0][0];
}

const attend = (body, signal) => post("/v1/attend", body, signal);
