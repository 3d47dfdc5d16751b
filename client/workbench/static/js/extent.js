// The object's extent: a box of voxels, outside of which there is none of it. As the workbench speaks of it, `lower`
// and `upper` are the first and last stored voxel along each axis, both within.

/** First and last turned position of a box along each axis; of the whole image where there is none. */
export function turnedBox(grid, extent) {
  if (!extent) return [[0, 0, 0], grid.turned.map((side) => side - 1)];
  const [one, other] = [grid.toTurned(extent.lower), grid.toTurned(extent.upper)];
  return [one.map((at, t) => Math.min(at, other[t])), one.map((at, t) => Math.max(at, other[t]))];
}

function stored(grid, low, high) {
  const [one, other] = [grid.toVoxel(low), grid.toVoxel(high)];
  return { lower: one.map((at, n) => Math.min(at, other[n])), upper: one.map((at, n) => Math.max(at, other[n])) };
}

/** Whether a box says anything: one of the whole image does not. */
export const tells = (grid, extent) =>
  Boolean(extent) && (extent.lower.some((at) => at > 0) || extent.upper.some((at, n) => at < grid.shape[n] - 1));

/** The box with its first (`last` false) or last slice of a plane, as it is seen, set to `depth`. */
export function withEnd(grid, extent, plane, depth, last) {
  const [low, high] = turnedBox(grid, extent);
  if (last) [low[plane.d], high[plane.d]] = [Math.min(low[plane.d], depth), depth];
  else [low[plane.d], high[plane.d]] = [depth, Math.max(high[plane.d], depth)];
  return stored(grid, low, high);
}

/** A box under the hand: drawn anew on a plane, or one of its sides moved. Across the plane it stays as it was. */
export class Boxing {
  /** `near`: how close to a side, in voxels along u and v, a hand takes hold of it. */
  constructor({ plane, grid, extent, near = [0, 0] }) {
    Object.assign(this, { tool: "extent", plane, grid, near });
    this.before = tells(grid, extent);
    [this.low, this.high] = turnedBox(grid, extent);
    this.start = null;
  }

  to(u, v) {
    const { plane, low, high } = this;
    if (!this.start) {
      this.start = [u, v];
      this.held = this.before ? [this._side(plane.h, u, v, 0), this._side(plane.v, v, u, 1)] : [null, null];
      this.fresh = this.held.every((side) => side === null);
    }
    [plane.h, plane.v].forEach((t, n) => {
      const at = this._at(t, [u, v][n]);
      if (this.fresh) {
        const from = this._at(t, this.start[n]);
        [low[t], high[t]] = [Math.min(from, at), Math.max(from, at)];
      } else if (this.held[n] === "low") low[t] = Math.min(at, high[t]);
      else if (this.held[n] === "high") high[t] = Math.max(at, low[t]);
    });
  }

  /** For the painter. */
  get box() {
    return stored(this.grid, this.low, this.high);
  }

  /** End it. False if it holds no more than the voxel under a click. */
  end() {
    return !this.fresh || [this.plane.h, this.plane.v].some((t) => this.low[t] !== this.high[t]);
  }

  _at(t, position) {
    return Math.max(0, Math.min(this.grid.turned[t] - 1, Math.floor(position)));
  }

  /** Which side across axis `t` lies under the hand. */
  _side(t, along, across, n) {
    const other = n === 0 ? this.plane.v : this.plane.h;
    const reach = this.near[1 - n];
    if (across < this.low[other] - reach || across > this.high[other] + 1 + reach) return null;
    if (Math.abs(along - this.low[t]) < this.near[n]) return "low";
    if (Math.abs(along - this.high[t] - 1) < this.near[n]) return "high";
    return null;
  }
}
