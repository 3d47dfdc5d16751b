// The case that is open: its answers, its layers, and what waits to be answered.

import * as api from "./api.js";
import { passes } from "./connection.js";
import { Queue } from "./history.js";

const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);

export class Session {
  /**
   * `told`: {answered(answer), layered(name, layer), failed(error), waiting(strokes), elsewhere(), reopened(),
   * wanted() -> names of layers, patiently(act)}.
   */
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
    await this._answered(await this.told.patiently(() => api.open(this.id)));
  }

  /** Open it once more: the workbench may have been started anew, or another window had the case. */
  resume() {
    return this.queue.add(async () => !this.closed && this.answer && this.open());
  }

  /** Send what was drawn. `prompts` is asked when all before it was answered; `shown` is painted until then. */
  draw(prompts, shown) {
    this.strokes.push(shown);
    this.told.waiting(this.strokes);
    return this.queue.add(async () => {
      const { step } = this.answer;
      await this._answered(await this._asked(() => api.draw(this.id, prompts()), (found) => found.step > step));
      this.strokes = this.strokes.filter((one) => one !== shown);
      this.told.waiting(this.strokes);
    });
  }

  /** Say where the object begins and ends. */
  extend(extent) {
    const ask = () => this._asked(() => api.draw(this.id, [], extent), (found) => same(found.extent, extent));
    return this.queue.add(async () => this._answered(await ask()));
  }

  undo() {
    return this._back("can_undo", () => api.undo(this.id), (found, step) => found.step < step);
  }

  redo() {
    return this._back("can_redo", () => api.redo(this.id), (found, step) => found.step > step);
  }

  /**
   * Accept or skip it: the outcome of `act`, also where the line was cut: then the case tells whether that was heard,
   * and `next` which one comes next.
   */
  async finish(act, next) {
    for (;;) {
      try {
        return await act(this);
      } catch (error) {
        if (!passes(error)) throw error;
        const { mine } = await this.told.patiently(() => api.oneCase(this.id));
        if (mine === "accepted" || mine === "skipped") return { next: await next() };
        await this.resume();
      }
    }
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
    } catch (error) {
      // Nobody waits for this: what is missing comes with the next answer.
      if (error.status === 409) this.told.elsewhere();
      else if (!passes(error)) throw error;
    } finally {
      this.refreshing = false;
    }
  }

  _back(can, act, arrived) {
    return this.queue.add(async () => {
      const { step } = this.answer;
      if (this.answer[can]) await this._answered(await this._asked(act, (found) => arrived(found, step)));
    });
  }

  /**
   * The answer to `act`, whatever happens to the line. Where it was cut nobody knows whether `act` was heard: the case
   * is opened again, and `arrived` is asked. A case that another window has closed is opened again once.
   */
  async _asked(act, arrived) {
    for (let tries = 0; ; tries += 1) {
      try {
        return await act();
      } catch (error) {
        const shut = error.status === 409 && error.code === "not-possible" && tries === 0;
        if (this.closed || (!passes(error) && !shut)) throw error;
        const found = await this.told.patiently(() => api.open(this.id));
        if (!shut && arrived(found)) return found;
        await this._answered(found);
        if (shut) this.told.reopened();
      }
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
    const first = newer.filter((name) => name === "proxy" || name === "drawn");
    await this.told.patiently(() => this._fetch(first));
    this.refresh().catch((error) => this.told.failed(error));
    if (!this.closed) this.told.answered(answer);
  }
}
