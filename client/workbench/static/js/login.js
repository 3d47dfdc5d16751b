// Signing in: the workbench sets a cookie that no script can read.

import { entrance, login, password } from "./api.js";
import { $, el, fill } from "./dom.js";

// Why a sign-in elsewhere was refused. What an address says is looked up here and never shown.
const REFUSED = {
  "not-reached": "The hospital's sign-in service does not answer. Try again in a moment.",
  expired: "That took too long, or another window was faster. Try again.",
  cancelled: "The sign-in was cancelled.",
  "not-valid": "What the sign-in service sent cannot be trusted. Tell your administrator.",
  "no-role": "Your account has no role here. Ask your administrator.",
  "no-name": "The name of your account cannot be used here. Ask your administrator.",
  disabled: "Your account is disabled. Ask your administrator.",
  busy: "Too many people are signing in. Try again in a moment.",
};
const query = new URLSearchParams(location.search);

const tell = (id, ...lines) => fill($(id), ...lines.filter(Boolean).map((text) => el("p", {}, text)));

/** The viewer's page that sent us here; empty for none. Never one of another site. */
function viewer() {
  const next = new URL(query.get("next") ?? "/", location.origin);
  return next.origin === location.origin && next.pathname.startsWith("/ohif/") ? next.pathname + next.search : "";
}

/** Go on to the viewer, if it sent us here; else to our page. */
const enter = () => location.replace(viewer() || "./" + location.hash);

function askToChange(old = "") {
  $("form").hidden = true;
  $("other").hidden = true;
  $("change").hidden = false;
  $("old").value = old;
  $(old ? "fresh" : "old").focus();
}

/** Do `act` when a form is sent, with its button off meanwhile, and show in `wrong` what goes wrong. */
function onSubmit(form, wrong, act, failed) {
  // Until this runs the button is off: a form that the browser sent by itself would be none of ours.
  const button = $(form).querySelector("button");
  button.disabled = false;
  $(form).addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    fill($(wrong));
    try {
      await act();
    } catch ({ problem, message, cause, fix }) {
      tell(wrong, problem ?? message, cause, fix);
      failed();
    }
    button.disabled = false;
  });
}

onSubmit(
  "form", "wrong",
  async () => {
    const person = await login($("name").value.trim(), $("password").value);
    if (person.change_password) askToChange($("password").value);
    else enter();
  },
  () => {
    $("password").value = "";
    $("password").focus();
  },
);

onSubmit(
  "change", "change-wrong",
  async () => {
    if ($("fresh").value !== $("repeated").value) return tell("change-wrong", "The new password was not typed the same way twice.");
    await password($("old").value, $("fresh").value);
    enter();
  },
  () => $("fresh").focus(),
);

if (query.has("refused")) tell("wrong", REFUSED[query.get("refused")] ?? "You could not be signed in.");
if (query.has("change")) askToChange();
// A link in somebody else's page comes without the cookie that we have, and is sent here by the viewer.
else if (query.has("next") && !query.has("refused") && (await fetch("/api/v1/me")).ok) enter();
else {
  // Where the workbench says nothing of other ways in, there is the password.
  const { passwords = true, oidc = null } = await entrance().catch(() => ({}));
  if (oidc) {
    $("elsewhere").textContent = `Sign in with ${oidc.title}`;
    const start = oidc.start.startsWith("/") && !oidc.start.startsWith("//") ? oidc.start : "/oidc/start";
    $("elsewhere").href = start + (viewer() && `?next=${encodeURIComponent(viewer())}`);
    $("other").hidden = false;
  }
  $("form").classList.toggle("no-passwords", !passwords);
  for (const part of $("form").querySelectorAll(".with-password")) part.hidden = !passwords;
}
