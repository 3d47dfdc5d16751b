// The case that is open: its answers, its layers, and what waits to be answered.

import * as api from "./api.js";
import { Queue } from "./history.js";

export class Session {
  /** `told`: {answered(answer), layered(name, layer), failed(error), waiting(strokes), wanted() -> names of layers}. */
  constructor(id, told) {
    this.id = id;
    this.told = told;
    this.layers = new Map();
    this.answer = null;
    this.strokes = [];
    this.closed = false;
    this.queue = new Queue((error) => {
      this.strokes = [];
      this.told.waiting(this.strokes);
      this.told.failed(error);
    });
  }

  async open() {
    await this._answered(await api.open(this.id));
  }

  /** Send what was drawn. `prompts` is asked when all before it was answered; `shown` is painted until then. */
  draw(prompts, shown) {
    this.strokes.push(shown);
    this.told.waiting(this.strokes);
    return this.queue.add(async () => {
      const answer = await api.draw(this.id, prompts());
      await this._answered(answer);
      this.strokes = this.strokes.filter((one) => one !== shown);
      this.told.waiting(this.strokes);
    });
  }

  undo() {
    return this.queue.add(async () => this.answer.can_undo && this._answered(await api.undo(this.id)));
  }

  redo() {
    return this.queue.add(async () => this.answer.can_redo && this._answered(await api.redo(this.id)));
  }

  layer(name) {
    return this.layers.get(name) ?? null;
  }

  /** Fetch what is wanted and newer than what is here. Asked again meanwhile, it is done once more, not many times. */
  async refresh() {
    this.again = true;
    if (this.refreshing) return;
    this.refreshing = true;
    try {
      while (this.again && !this.closed) {
        this.again = false;
        await this._fetch(this.told.wanted());
      }
    } finally {
      this.refreshing = false;
    }
  }

  async _fetch(names) {
    await Promise.all(names.map((name) => this._refresh(name)));
  }

  async _refresh(name) {
    const known = this.layers.get(name);
    const found = await api.layer(this.id, name, known ? known.version : -1);
    const now = this.layers.get(name);
    if (this.closed || !found || (now && now.version >= found.version)) return;
    this.layers.set(name, found);
    this.told.layered(name, found);
  }

  async _answered(answer) {
    if (this.closed) return;
    this.answer = answer;
    const newer = Object.entries(answer.versions)
      .filter(([name, version]) => (this.layers.get(name)?.version ?? -1) < version)
      .map(([name]) => name);
    // The stroke is answered when the proxy is seen; the others may follow.
    await this._fetch(newer.filter((name) => name === "proxy" || name === "drawn"));
    this.refresh().catch((error) => this.told.failed(error));
    if (!this.closed) this.told.answered(answer);
  }
}
