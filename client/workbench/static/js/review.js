// Labels of a case. An annotator is shown their own; a reviewer all of them, and says which are good.

import * as api from "./api.js";
import { $, el, fill, say } from "./dom.js";
import { STATES } from "./worklist.js";

// A label that nobody drew here has words of its own.
const LABELS = { ...STATES, imported: "imported", learnt: "learnt" };
const SOURCES = { proxy: "label so far", prediction: "prediction", whole: "whole label" };

/** Where a label comes from, in words. */
function origin({ state, source, effort, round }) {
  if (state === "imported") return "came with the image";
  const pixels = `${Math.round(effort)} px drawn`;
  if (state === "learnt") return round ? `made by round ${round} of the federation · ${pixels}` : `made by a round of the federation · ${pixels}`;
  return `${SOURCES[source] ?? source} · ${pixels}`;
}

export class Review {
  /** `told`: {show(author, bytes or null), judged(), failed(error)}; `sends`: whether there is an archive. */
  constructor(user, reasons, sends, told) {
    this.sends = sends;
    this.user = user;
    this.reasons = reasons;
    this.told = told;
    this.judges = user.roles.includes("reviewer");
    this.seen = null;
  }

  async load(id) {
    this.id = id;
    this.seen = null;
    try {
      const { labels } = await api.labels(id);
      if (id !== this.id) return;
      $("review").hidden = !labels.length || !this.judges;
      fill($("reviewed"), ...labels.map((one) => this._row(one)));
    } catch (error) {
      this.told.failed(error);
    }
  }

  _row(label) {
    const { author, state, stored, updated } = label;
    const why = el("select", { "aria-label": `Reason to reject the label of ${author}` }, ...this.reasons.map((one) => el("option", { value: one }, one.replaceAll("-", " "))));
    why.value = "inaccurate";
    const can = this.judges && author !== this.user.name && ["accepted", "approved", "rejected"].includes(state);
    const seen = this.seen === author;
    return el(
      "li", {},
      el("div", {}, el("strong", {}, author), " ", el("span", { class: `state ${state}` }, LABELS[state] ?? state)),
      el("div", { class: "quiet" }, origin(label)),
      el(
        "div", { class: "pair" },
        stored ? el("button", { type: "button", "aria-pressed": String(seen), onclick: () => this._see(author) }, seen ? "Hide" : "Show") : null,
        can ? el("button", { type: "button", class: "good", onclick: () => this._judge(author, "approved", "", updated) }, "Approve") : null,
      ),
      this.sends && stored && ["accepted", "approved"].includes(state)
        ? el("button", { type: "button", onclick: () => this._send(author) }, "Send to the archive")
        : null,
      can ? el("div", { class: "pair" }, why, el("button", { type: "button", onclick: () => this._judge(author, "rejected", why.value, updated) }, "Reject")) : null,
    );
  }

  async _see(author) {
    try {
      const hide = this.seen === author;
      this.told.show(author, hide ? null : await api.label(this.id, author));
      this.seen = hide ? null : author;
      await this._again();
    } catch (error) {
      this.told.failed(error);
    }
  }

  async _again() {
    const { labels } = await api.labels(this.id);
    fill($("reviewed"), ...labels.map((one) => this._row(one)));
  }

  async _send(author) {
    try {
      say("Sending the label to the archive …");
      const { archive, segments } = await api.send(this.id, author);
      say(`${segments} ${segments === 1 ? "structure" : "structures"} sent to ${archive}.`);
    } catch (error) {
      say("");
      this.told.failed(error);
    }
  }

  async _judge(author, verdict, reason, seen) {
    try {
      await api.review(this.id, author, verdict, reason, seen);
      say(`The label of ${author} is ${verdict}.`);
      await this.load(this.id);
      this.told.judged();
    } catch (error) {
      this.told.failed(error);
    }
  }
}
