// What a person is told while they wait, and when something goes wrong.

import { bench } from "./bench.js";
import { $, say } from "./dom.js";

export function failed(error) {
  if (error.name === "AbortError") return;
  if (error.code === "change-password") return location.replace("login.html?change");
  if (error.code === "not-signed-in") {
    if (!bench.connection) return location.replace(`login.html${location.hash}`);
    bench.connection.signIn().then(() => say("You are signed in again: please do that once more."));
    return;
  }
  $("problem").textContent = error.problem ?? "the page met a fault of its own";
  $("cause").textContent = error.cause ?? error.message;
  $("fix").textContent = error.fix ?? "load the page again; what you drew before is kept";
  $("failure").hidden = false;
}

/** A listener that shows what goes wrong. */
export const guarded = (act) => (...given) => Promise.resolve().then(() => act(...given)).catch(failed);

/** Cover the images while there is something to wait for; null uncovers them. `share` of it is done, if that is known. */
export function busy(text, share = null) {
  $("busy").hidden = text === null;
  if (text === null) return;
  $("busy-text").textContent = text;
  if (share === null) $("busy-bar").removeAttribute("value");
  else $("busy-bar").value = share;
}
