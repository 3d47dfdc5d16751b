// One's own password; for administrators, who has an account. What decides is the workbench: here it is only shown.

import * as api from "./api.js";
import { $, el, fill } from "./dom.js";

const ROLES = ["annotator", "reviewer", "admin"];

export class Account {
  constructor(user) {
    this.user = user;
    $("person").addEventListener("click", () => this.open());
    $("account-close").addEventListener("click", () => $("account").close());
    $("account-password").addEventListener("submit", (event) => this._guarded(event, () => this._change()));
    $("account-new").addEventListener("submit", (event) => this._guarded(event, () => this._add()));
    $("accounts").hidden = !user.roles.includes("admin");
  }

  open() {
    this._told("");
    $("account-password").reset();
    $("account").showModal();
    if (!$("accounts").hidden) this._guarded(null, () => this._list());
  }

  _told(text, word = "") {
    fill($("account-told"), text, word ? el("code", {}, word) : null);
  }

  async _guarded(event, act) {
    event?.preventDefault();
    try {
      await act();
    } catch ({ problem, message, cause, fix }) {
      this._told([problem ?? message, cause, fix].filter(Boolean).join(" · "));
    }
  }

  async _change() {
    const [old, fresh, again] = ["old", "fresh", "repeated"].map((name) => $(`account-${name}`).value);
    if (fresh !== again) return this._told("The new password was not typed the same way twice.");
    await api.password(old, fresh);
    $("account-password").reset();
    this._told("Your password was changed. Other windows that were signed in with the old one have to sign in again.");
  }

  async _list() {
    const { accounts } = await api.accounts.list();
    fill($("account-rows"), ...accounts.map((one) => this._row(one)));
  }

  _row({ name, role, disabled, one_time, source }) {
    const own = name === this.user.name;
    const act = (what, then = () => {}) => () =>
      this._guarded(null, async () => {
        const found = await what();
        this._told("");
        then(found);
        await this._list();
      });
    const roles = el("select", { "aria-label": `Role of ${name}`, disabled: own || source !== "local" }, ...ROLES.map((one) => el("option", { value: one }, one)));
    roles.value = role;
    roles.addEventListener("change", act(() => api.accounts.role(name, roles.value), () => this._told(`${name} now is ${roles.value}, and signs in again.`)));
    const state = disabled ? "disabled" : one_time ? "one-time password" : source === "local" ? "local" : "hospital account";
    return el(
      "tr", {},
      el("th", { scope: "row" }, name),
      el("td", {}, roles),
      el("td", { class: "quiet" }, state),
      el(
        "td", { class: "acts" },
        own ? el("span", { class: "quiet" }, "you") : el("button", { type: "button", "aria-label": `${disabled ? "Enable" : "Disable"} ${name}`, onclick: act(() => api.accounts.disabled(name, !disabled)) }, disabled ? "Enable" : "Disable"),
        own || source !== "local" ? null : el("button", { type: "button", "aria-label": `New password for ${name}`, onclick: act(() => api.accounts.reset(name), (found) => this._shown(found)) }, "New password"),
      ),
    );
  }

  async _add() {
    const found = await api.accounts.add($("account-name").value.trim(), $("account-role").value);
    $("account-new").reset();
    this._shown(found);
    await this._list();
  }

  _shown({ name, password }) {
    this._told(`The password of ${name}, to be used once and shown only now: `, password);
  }
}
