// Signing in: the workbench sets a cookie that no script can read.

import { login } from "./api.js";
import { $, el, fill } from "./dom.js";

// Until this runs the button is off: a form that the browser sent by itself would be none of ours.
$("form").querySelector("button").disabled = false;
$("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = event.target.querySelector("button");
  button.disabled = true;
  fill($("wrong"));
  try {
    await login($("name").value.trim(), $("password").value);
    location.replace("./" + location.hash);
  } catch (failure) {
    const { problem, cause, fix } = failure;
    fill($("wrong"), ...[problem ?? failure.message, cause, fix].filter(Boolean).map((text) => el("p", {}, text)));
    $("password").value = "";
    $("password").focus();
  }
  button.disabled = false;
});
