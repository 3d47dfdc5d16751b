// What the plan asks for, and what of it is there: seven points of every structure, or strokes on the suggested slice.

import { bench, repaint } from "./bench.js";
import { $, el, fill, say, swatch } from "./dom.js";
import { planeOf } from "./moving.js";
import { ENDS, beyond, endsOf, withSent } from "./sevens.js";

const NOTHING = { complete: [], begun: null };
const TITLES = { points: "Seven points", scribbles: "Strokes" };

export class Guide {
  constructor(panel) {
    this.panel = panel;
    this.forget();
  }

  /** Another case is opened. */
  forget() {
    this.answer = null;
    this.sent = []; // points that are on their way
    this.ends = new Map(); // which end a person set at a voxel, as long as the case is open
    this.want = null; // the end that somebody chose
    this.asked = ""; // what the label was set for
    $("guide").hidden = true;
  }

  /** Show what an answer leaves to do. */
  show(answer) {
    if (!bench.painter.cursor) return; // the image is still on its way, and the answer will be shown again
    const first = !this.answer;
    this.answer = answer;
    const there = answer.drawn.filter(({ kind }) => kind === "point").map(({ index }) => String(index));
    this.sent = this.sent.filter(({ index }) => !there.includes(String(index)));
    const title = TITLES[answer.prompts];
    $("guide").hidden = !title;
    bench.painter.sets = [];
    if (!title) return;
    $("guide-head").textContent = title;
    if (first && answer.prompts === "points" && !this.panel.chosen) this.panel.choose("point");
    this.refresh();
  }

  /** A tool or a label was chosen, or something has arrived. */
  refresh() {
    if (this.answer?.prompts === "points") this._points();
    if (this.answer?.prompts === "scribbles") this._strokes();
  }

  /** Whether a point may be sent: one that is asked for lies where it is asked for. */
  takes(point) {
    if (this.answer?.prompts !== "points") return true;
    const { begun } = this._known();
    const end = this._next(begun);
    if (begun && end !== null) {
      const name = this._name(begun.label);
      if (point.label === begun.label) return this._refuse(`An end lies outside ${name}: choose Background (0), or undo (Z).`);
      if (!beyond(bench.viewer.grid, point.index, begun.inner, ENDS[end])) {
        return this._refuse(`That is not to the ${ENDS[end].name} (${ENDS[end].letter}) of the point inside ${name}.`);
      }
      this.ends.set(String(point.index), end);
    } else if (begun) return this._refuse(`These points do not enclose ${this._name(begun.label)}: undo (Z), and set them again.`);
    this.want = null;
    this.sent.push(point);
    this.refresh();
    return true;
  }

  /** A point was answered, or refused. */
  heard(point) {
    this.sent = this.sent.filter((one) => one !== point);
    this.refresh();
  }

  _known() {
    return withSent(bench.viewer.grid, this.answer?.points ?? NOTHING, this.sent);
  }

  /** The next end of a set that is begun: the one that was chosen, or the first that is missing; null for none. */
  _next(begun) {
    if (!begun) return null;
    const missing = ENDS.map((_, n) => n).filter((n) => !this._set(begun).includes(n));
    if (missing.includes(this.want)) return this.want;
    return missing[0] ?? null;
  }

  _set(begun) {
    return begun ? endsOf(bench.viewer.grid, bench.viewer.spacing, begun, this.ends) : [];
  }

  _name(label) {
    return this.panel.labels[label]?.name ?? `label ${label}`;
  }

  _refuse(text) {
    say(text);
    return false;
  }

  _points() {
    const { panel } = this;
    const known = this._known();
    const { complete, begun } = known;
    const done = new Set(complete.map(({ label }) => label));
    const structures = panel.labels.slice(1);
    const left = structures.find(({ value }) => !done.has(value));
    bench.painter.sets = [...complete, ...(begun ? [begun] : [])];
    // The label that a click gives is set once for every point that is asked for; whoever takes another one, means it.
    const asked = `${begun?.label ?? ""}/${begun?.outer.length ?? ""}/${complete.length}`;
    if (asked !== this.asked) {
      this.asked = asked;
      if (begun) panel.take(0);
      else if (left && (!panel.label || done.has(panel.label))) panel.take(left.value);
    }
    const active = begun?.label ?? (panel.label || left?.value || 0);
    const end = this._next(begun);
    const set = this._set(begun);
    const rows = structures.map(({ value, name, colour }) => {
      const count = value === begun?.label ? 1 + begun.outer.length : done.has(value) ? 7 : 0;
      return el(
        "button",
        {
          type: "button", "data-key": `label-${value}`, "aria-pressed": String(value === active),
          disabled: Boolean(begun) && value !== begun.label, onclick: () => this._choose(value),
        },
        swatch(colour), el("span", {}, name), el("span", { class: count === 7 ? "done" : "" }, `${count} of 7`),
      );
    });
    const inside = { name: "inside", state: begun ? "set" : "next" };
    const ends = ENDS.map(({ name, letter }, n) => ({
      name, letter, n, state: set.includes(n) ? "set" : n === end ? "next" : "missing",
    }));
    const chips = [inside, ...ends].map(({ name, letter, n, state }) =>
      el(
        "li", {},
        el(
          "button",
          {
            type: "button", class: state, "data-key": `end-${name}`, "aria-current": state === "next" ? "step" : null,
            disabled: state === "set" || !begun, onclick: () => ((this.want = n), this.refresh()),
          },
          letter ? el("span", { "aria-hidden": "true" }, letter) : null, name,
          el("span", { class: "hidden" }, { set: ", set", next: ", next", missing: ", missing" }[state]),
        ),
      ),
    );
    put($("guide-rows"), rows);
    put($("guide-ends"), begun || (left && !done.has(active)) ? chips : []);
    tell(this._asks(begun, end, active, left, done));
    repaint();
  }

  /** The next point in words. */
  _asks(begun, end, active, left, done) {
    const how = "Click, or Space at the cursor.";
    if (begun && end === null) return `These points do not enclose ${this._name(begun.label)}: undo (Z), and set them again.`;
    if (begun) return `Just outside the ${ENDS[end].name} (${ENDS[end].letter}) end of ${this._name(begun.label)}. ${how} Z takes back.`;
    if (!left) return "All structures are enclosed: correct single voxels, or accept (Shift+A).";
    if (done.has(active)) return `${this._name(active)} is enclosed: a click corrects one voxel.`;
    return `Inside ${this._name(active)}. ${how}`;
  }

  _choose(label) {
    this.panel.choose("point");
    this.panel.take(label);
    if (this._known().begun) this.panel.take(0);
  }

  _strokes() {
    const [asked] = this.answer.suggestion;
    put($("guide-ends"), []);
    if (!asked) {
      put($("guide-rows"), []);
      return tell("Nothing more is asked for: accept (Shift+A).");
    }
    const here = this.answer.drawn.filter(({ kind, axis, index }) => kind === "scribble" && axis === asked.axis && index === asked.index);
    const labels = new Set(here.flatMap((one) => one.labels.rle.map(([value]) => value)));
    const rows = [...this.panel.labels.slice(1), this.panel.labels[0]].map(({ value, name, colour }) =>
      el(
        "button",
        { type: "button", "data-key": `label-${value}`, "aria-pressed": String(value === this.panel.label), onclick: () => this._stroke(value) },
        swatch(colour), el("span", {}, name), el("span", { class: labels.has(value) ? "done" : "" }, labels.has(value) ? "stroked" : "–"),
      ),
    );
    put($("guide-rows"), rows);
    tell(`On ${planeOf(asked)} (N): a stroke in each structure that is seen there, then one on the background (0).`);
  }

  _stroke(label) {
    this.panel.choose("scribble");
    this.panel.take(label);
  }
}

/** What is asked for, told to those who listen once it is another. */
function tell(text) {
  if ($("guide-next").textContent !== text) $("guide-next").textContent = text;
}

/** Fill `parent`, and leave the focus where it was. */
function put(parent, children) {
  const key = parent.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  fill(parent, ...children);
  if (!key) return;
  const same = parent.querySelector(`[data-key="${CSS.escape(key)}"]:enabled`);
  (same ?? $("view")).focus({ preventScroll: true });
}
