// Which intensities are told apart. CT has units, and therefore presets; MR has none, and is measured.

import { $, el, fill } from "./dom.js";

const CT = [
  ["Soft tissue", 40, 400],
  ["Abdomen", 60, 350],
  ["Liver", 90, 150],
  ["Lung", -600, 1500],
  ["Bone", 400, 1800],
  ["Brain", 40, 80],
];
const AIR = -500; // No MR image holds values below; every CT with air does.

export class Windowing {
  constructor(viewer) {
    this.viewer = viewer;
    $("window").addEventListener("change", (event) => this.choose(Number(event.target.value)));
    for (const id of ["level", "width"]) $(id).addEventListener("change", () => this._typed());
  }

  /** Offer what suits the image, and take the first. */
  begin() {
    const { robust, full } = this.viewer.range;
    const auto = ["Auto", (robust[0] + robust[1]) / 2, robust[1] - robust[0]];
    const whole = ["Full range", (full[0] + full[1]) / 2, full[1] - full[0]];
    this.presets = full[0] < AIR ? [...CT, auto, whole] : [auto, whole];
    fill($("window"), ...this.presets.map(([name], n) => el("option", { value: n }, name)), el("option", { value: -1, hidden: true }, "Own"));
    this.choose(0);
  }

  choose(n) {
    if (!this.viewer.grid || !this.presets[n]) return;
    this.chosen = n;
    const [, level, width] = this.presets[n];
    this._set(level, width);
    $("window").value = String(n);
  }

  next() {
    if (this.presets) this.choose(((this.chosen ?? -1) + 1) % this.presets.length);
  }

  /** A drag: to the right widens, downwards darkens. */
  drag(dx, dy) {
    const [low, high] = this.viewer.window;
    const step = (high - low) / 250;
    this._own((low + high) / 2 + dy * step, Math.max(1e-3, high - low + dx * step * 2));
  }

  _typed() {
    const [level, width] = [$("level").valueAsNumber, $("width").valueAsNumber];
    if (this.viewer.grid && Number.isFinite(level) && width > 0) this._own(level, width);
  }

  _own(level, width) {
    this.chosen = -1;
    this._set(level, width);
    $("window").value = "-1";
  }

  _set(level, width) {
    this.viewer.window = [level - width / 2, level + width / 2];
    const shown = (value) => String(Number(value.toPrecision(4)));
    $("level").value = shown(level);
    $("width").value = shown(width);
  }
}
