// The work list.

import * as api from "./api.js";
import { $, el, fill, say } from "./dom.js";

const PAGE = 200;
export const STATES = {
  new: "new", open: "draft", accepted: "accepted", approved: "approved", rejected: "rejected", skipped: "skipped",
};

export class Worklist {
  /** `choose` is called with a case's id. */
  constructor(choose, failed) {
    this.choose = choose;
    this.failed = failed;
    this.shown = [];
    this.current = null;
    $("filter").addEventListener("change", () => this.load());
    $("more").addEventListener("click", () => this.load(this.shown.length));
    $("cases").addEventListener("keydown", (event) => this._move(event));
  }

  async load(offset = 0) {
    try {
      const { cases, total } = await api.cases({ state: $("filter").value, offset, limit: PAGE });
      this.shown = offset ? [...this.shown, ...cases] : cases;
      this.total = total;
      this.show();
    } catch (error) {
      this.failed(error);
    }
  }

  /** The draft to go on with, if there is one. */
  draft() {
    return this.shown.find((one) => one.mine === "open")?.id ?? null;
  }

  mark(id) {
    this.current = id;
    this.show();
  }

  /** What the last answer says of its case. */
  drew({ case_id, step, effort_contour }) {
    const one = this.shown.find((row) => row.id === case_id);
    if (!one || !step) return;
    one.effort = effort_contour;
    if (one.mine === "new") one.mine = "open";
    if (one.state === "new") one.state = "open";
    this.show();
  }

  show() {
    $("count").textContent = `${this.total} ${this.total === 1 ? "case" : "cases"}`;
    $("more").hidden = this.shown.length >= this.total;
    const rows = this.shown.map((one) => this._row(one));
    if (!rows.length) rows.push(el("li", { class: "none" }, $("filter").value ? "No case is in this state." : "No case has arrived yet."));
    const focused = document.activeElement?.dataset?.case;
    fill($("cases"), ...rows);
    if (focused) $("cases").querySelector(`[data-case="${CSS.escape(focused)}"]`)?.focus();
  }

  _row({ id, shape, spacing, state, mine, authors, effort, role }) {
    const size = `${shape.join("×")} · ${spacing.map((one) => Number(one.toPrecision(2))).join("×")} mm`;
    const others = authors.length - (mine === "new" ? 0 : 1);
    const notes = [
      effort ? `${Math.round(effort)} px drawn` : null,
      others > 0 ? `${others} ${others === 1 ? "other" : "others"}` : null,
      role === "test" ? "test case" : null,
      mine !== state ? `yours: ${STATES[mine]}` : null,
    ].filter(Boolean);
    return el(
      "li", {},
      el(
        "button",
        { type: "button", "aria-current": id === this.current ? "true" : null, "data-case": id, onclick: () => this.choose(id) },
        el("span", { class: "case-name" }, id),
        el("span", { class: `state ${state}` }, STATES[state]),
        el("span", { class: "case-size" }, size),
        notes.length ? el("span", { class: "case-size" }, notes.join(" · ")) : null,
      ),
    );
  }

  _move(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const buttons = [...$("cases").querySelectorAll("button")];
    buttons[buttons.indexOf(document.activeElement) + step]?.focus();
  }

  async next(strategy = "disagreement") {
    const { id } = await api.nextCase(strategy);
    if (id === null) say("Nothing is left to draw.");
    return id;
  }
}
