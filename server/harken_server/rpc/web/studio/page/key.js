// The dialog that asks for an API key.

import { $, say } from "./dom.js";

let asking = null;

/** The key that somebody gives, or "" if they do not want to. `why`: what was wrong with the last one. */
export function askKey(why) {
  // Several calls may find out at once.
  asking ??= new Promise((resolve) => open(why, resolve)).finally(() => (asking = null));
  return asking;
}

function open(why, resolve) {
  const dialog = $("key");
  const input = $("key-input");
  const done = new AbortController();
  const { signal } = done;
  const end = (given) => {
    done.abort();
    input.value = "";
    dialog.close();
    resolve(given);
  };
  say($("key-said"), why, true);
  $("key-form").addEventListener(
    "submit",
    (event) => {
      event.preventDefault();
      const given = input.value.trim();
      // Only such characters can stand in a header.
      if (/^[!-~]+$/.test(given)) end(given);
      else say($("key-said"), "A key has letters, digits and signs, without spaces.", true);
    },
    { signal },
  );
  $("key-cancel").addEventListener("click", () => end(""), { signal });
  dialog.addEventListener("cancel", () => end(""), { signal });
  dialog.showModal();
  input.focus();
}
