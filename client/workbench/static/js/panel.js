// The panel at the right: which tool, which label, what is shown.

import { $, el, fill, swatch } from "./dom.js";
import { TOOLS } from "./tools.js";

export const OVERLAYS = [
  { name: "residual", title: "Disagreement", key: "r", kind: "heat", shown: false, opacity: 0.55 },
  { name: "confidence", title: "Confidence", key: "k", kind: "heat", shown: false, opacity: 0.45 },
  { name: "proxy", title: "Label so far", key: "x", kind: "fill", shown: true, opacity: 0.35 },
  { name: "prediction", title: "Prediction", key: "m", kind: "line", shown: true, opacity: 0.9 },
  { name: "reviewed", title: "Other's label", key: "", kind: "fill", shown: true, opacity: 0.35, hidden: true },
  { name: "drawn", title: "Drawn", key: "d", kind: "drawn", shown: true, opacity: 0.9 },
];

export class Panel {
  /** `changed` is called when something else is shown or drawn with. */
  constructor(labels, changed) {
    this.labels = [{ value: 0, name: "Background", colour: "#9ec5e8" }, ...labels];
    this.changed = changed;
    this.tool = "scribble";
    this.chosen = false; // whether somebody has chosen a tool
    this.label = labels.length ? 1 : 0;
    this.overlays = OVERLAYS.map((one) => ({ ...one }));
    this.allHidden = false;
    this._tools();
    this._labels();
    this._overlays();
    $("size").value = "4";
    $("size").addEventListener("input", () => this._size());
    this._size();
  }

  get mm() {
    return Number($("size").value);
  }

  /** Sizes of a brush that suit an image, in millimetres. */
  fit(spacing, shape) {
    const finest = Math.min(...spacing);
    const largest = Math.max(...shape.map((side, n) => side * spacing[n])) / 6;
    const step = Math.max(finest / 2, 0.1);
    Object.assign($("size"), { min: step, max: Math.max(largest, 4 * step), step });
    $("size").value = String(finest * 2);
    this._size();
  }

  resize(steps) {
    const size = $("size");
    if (steps > 0) size.stepUp(steps);
    else size.stepDown(-steps);
    this._size();
  }

  choose(tool) {
    this.tool = tool;
    this.chosen = true;
    document.querySelector(`#tools input[value="${tool}"]`).checked = true;
    this._chosen();
  }

  take(label) {
    if (label >= this.labels.length) return;
    this.label = label;
    document.querySelector(`#labels input[value="${label}"]`).checked = true;
    this.changed();
  }

  toggle(name) {
    const one = this._overlay(name);
    this._show(one, !one.shown);
    one.chosen = true;
  }

  /** Show a layer or not, unless the person has said otherwise. */
  suggest(name, shown) {
    const one = this._overlay(name);
    if (!one.chosen && one.shown !== shown) this._show(one, shown);
  }

  shows(name) {
    return this._overlay(name).shown;
  }

  /** Show the image alone, or all as it was. */
  hideAll() {
    this.allHidden = !this.allHidden;
    this.changed();
  }

  /** What the painter shows. */
  get visible() {
    return this.overlays.map((one) => ({ ...one, shown: one.shown && !this.allHidden }));
  }

  offer(name, is) {
    $(`show-${name}`).closest(".overlay").hidden = !is;
  }

  _overlay(name) {
    return this.overlays.find((overlay) => overlay.name === name);
  }

  _show(one, shown) {
    one.shown = shown;
    $(`show-${one.name}`).checked = shown;
    this.changed();
  }

  _tools() {
    fill(
      $("tools"),
      ...TOOLS.map(({ name, title, key, hint }) =>
        el(
          "label", { class: "tool", title: `${hint} (${key.toUpperCase()})` },
          el("input", {
            type: "radio", name: "tool", value: name, checked: name === this.tool,
            onchange: () => ((this.tool = name), (this.chosen = true), this._chosen()),
          }),
          el("span", {}, title), el("kbd", { "aria-hidden": "true" }, key.toUpperCase()),
        ),
      ),
    );
  }

  _chosen() {
    $("size-row").classList.toggle("off", this.tool !== "brush" && this.tool !== "erase");
    $("size-row").hidden = this.tool === "extent";
    $("extent-row").hidden = this.tool !== "extent";
    this.changed();
  }

  _labels() {
    fill(
      $("labels"),
      ...this.labels.map(({ value, name, colour }) =>
        el(
          "label", { class: "label" },
          el("input", {
            type: "radio", name: "label", value, checked: value === this.label,
            onchange: () => ((this.label = value), this.changed()),
          }),
          swatch(colour), el("span", {}, name), value < 10 ? el("kbd", { "aria-hidden": "true" }, value) : null,
        ),
      ),
    );
  }

  _overlays() {
    const rows = [...this.overlays].reverse().map((one) =>
      el(
        "div", { class: "overlay", hidden: Boolean(one.hidden) },
        el("input", {
          type: "checkbox", id: `show-${one.name}`, checked: one.shown,
          onchange: () => this.toggle(one.name),
        }),
        el("label", { for: `show-${one.name}`, class: `${one.kind} ${one.name}` }, one.title),
        el("input", {
          type: "range", min: 0.05, max: 1, step: 0.05, value: one.opacity, "aria-label": `Opacity of ${one.title}`,
          oninput: (event) => ((one.opacity = Number(event.target.value)), this.changed()),
        }),
        one.key ? el("kbd", { "aria-hidden": "true" }, one.key.toUpperCase()) : el("span"),
      ),
    );
    fill($("overlays"), ...rows);
  }

  _size() {
    $("size-text").textContent = `${this.mm.toFixed(1)} mm`;
    this.changed();
  }
}
