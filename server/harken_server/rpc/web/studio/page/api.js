// Calls to this server, with its errors as it says them, and a key where it asks for one.

import { askKey } from "./key.js";

const PATIENCE_MS = 60_000;

let key = "";

/** The server said no. `message` is its own sentence, which names the field, the value and the limit. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Nobody answered. */
export class Away extends Error {}

/** Ask for another key at the next call. */
export function forgetKey() {
  key = "";
}

/** The JSON of GET `path`. Throws Refused, Away. */
export const get = (path) => ask(path, {});

/** The JSON of POST `path`. Throws Refused, Away, or what `signal` aborts with. */
export function post(path, body, signal) {
  return ask(path, { method: "POST", body: JSON.stringify(body), headers: { "content-type": "application/json" }, signal });
}

async function ask(path, options) {
  for (;;) {
    const response = await send(path, options);
    if (response.ok) return response.json();
    const message = await sentence(response);
    if (response.status !== 401) throw new Refused(response.status, message);
    const given = await askKey(key ? message : "");
    if (!given) throw new Refused(401, message);
    key = given;
  }
}

async function send(path, { headers, signal, ...options }) {
  const patience = AbortSignal.timeout(PATIENCE_MS);
  try {
    return await fetch(path, {
      ...options,
      headers: { ...headers, ...(key ? { authorization: `Bearer ${key}` } : {}) },
      signal: signal ? AbortSignal.any([signal, patience]) : patience,
      credentials: "omit",
      redirect: "error",
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Away("The server does not answer.");
  }
}

/** Each protocol here has its own form of errors. */
async function sentence(response) {
  try {
    const { error } = await response.json();
    return String(error?.message ?? error);
  } catch {
    return `The server answered with status ${response.status}.`;
  }
}

/** What to tell a person of an error. */
export function told(error) {
  if (error instanceof Away) return `${error.message} It is asked again when you try again.`;
  if (error instanceof Refused) return `The server refuses: ${error.message}`;
  throw error;
}
