// What a hand draws on one slice, as pixels in screen order: 255 where it did not go.

export const NOTHING = 255;

export class Stroke {
  /** `size`: columns and rows; `spacing`: millimetres between them. */
  constructor(size, spacing) {
    this.size = size;
    this.spacing = spacing;
    this.values = new Uint8Array(size[0] * size[1]).fill(NOTHING);
    this.trace = [];
  }

  get empty() {
    return !this.values.some((value) => value !== NOTHING);
  }

  /** Go on to (u, v), painting `label` with a disc of `mm` in radius, or one pixel wide where that is 0. */
  to(u, v, label, mm = 0) {
    const last = this.trace.at(-1) ?? [u, v];
    const steps = Math.max(1, Math.ceil(Math.hypot(u - last[0], v - last[1]) * 4));
    for (let n = 0; n <= steps; n += 1) {
      const at = [last[0] + ((u - last[0]) * n) / steps, last[1] + ((v - last[1]) * n) / steps];
      if (mm > 0) this._disc(at, label, mm);
      this._put(Math.floor(at[0]), Math.floor(at[1]), label);
    }
    this.trace.push([u, v]);
  }

  /** Fill the polygon of the trace: every pixel whose middle lies within, and none of what it merely touches. */
  close(label) {
    const { trace } = this;
    const [columns, rows] = this.size;
    for (let row = 0; row < rows; row += 1) {
      const y = row + 0.5;
      const crossings = [];
      trace.forEach(([u0, v0], n) => {
        const [u1, v1] = trace[(n + 1) % trace.length];
        if ((v0 <= y) === (v1 <= y)) return;
        crossings.push(u0 + ((y - v0) / (v1 - v0)) * (u1 - u0));
      });
      crossings.sort((one, other) => one - other);
      for (let n = 0; n + 1 < crossings.length; n += 2) {
        const first = Math.max(0, Math.ceil(crossings[n] - 0.5));
        const last = Math.min(columns - 1, Math.ceil(crossings[n + 1] - 0.5) - 1);
        for (let u = first; u <= last; u += 1) this.values[row * columns + u] = label;
      }
    }
  }

  _disc([u, v], label, mm) {
    const [ru, rv] = [mm / this.spacing[0], mm / this.spacing[1]];
    for (let row = Math.floor(v - rv); row <= v + rv; row += 1)
      for (let column = Math.floor(u - ru); column <= u + ru; column += 1) {
        const away = ((column + 0.5 - u) / ru) ** 2 + ((row + 0.5 - v) / rv) ** 2;
        if (away <= 1) this._put(column, row, label);
      }
  }

  _put(u, v, label) {
    const [columns, rows] = this.size;
    if (u >= 0 && v >= 0 && u < columns && v < rows) this.values[v * columns + u] = label;
  }
}
