// Three kinds of coordinates, and nothing else in the page may mix them:
//
//   voxel  [i, j, k]  as the image is stored, and as the workbench speaks; an integer is a voxel's centre
//   turned [x, y, z]  the same voxels in the order and direction of right, anterior, superior (as NiiVue shows them)
//   screen [px, py]   CSS pixels of the canvas
//
// A plane on the screen has a horizontal and a vertical turned axis; `u` and `v` count voxels along them from the
// edge of the image, so that voxel n reaches from n to n + 1.

export const PLANES = [
  { name: "axial", type: 0, h: 0, v: 1, d: 2, ends: ["L", "R", "P", "A"] },
  { name: "coronal", type: 1, h: 0, v: 2, d: 1, ends: ["L", "R", "I", "S"] },
  { name: "sagittal", type: 2, h: 1, v: 2, d: 0, ends: ["P", "A", "I", "S"] },
];

/** The voxel in the middle of a layer's box; null where it holds nothing. */
export function middleOf(layer) {
  if (!layer?.values.length) return null;
  return [0, 1, 2].map((n) => Math.floor((layer.box[2 * n] + layer.box[2 * n + 1] - 1) / 2));
}

export class Grid {
  /** `perm`: for each turned axis the stored axis, counted from 1, negative where it runs the other way. */
  constructor(shape, perm) {
    this.shape = shape;
    this.axis = perm.map((one) => Math.abs(one) - 1);
    this.flip = perm.map((one) => one < 0);
    this.turned = this.axis.map((axis) => shape[axis]);
  }

  /** Position along turned axis `t` of stored position `n`, or the other way: a flip is its own inverse. */
  along(t, n) {
    return this.flip[t] ? this.turned[t] - 1 - n : n;
  }

  toTurned(voxel) {
    return this.axis.map((axis, t) => this.along(t, voxel[axis]));
  }

  toVoxel(turned) {
    const voxel = [0, 0, 0];
    this.axis.forEach((axis, t) => (voxel[axis] = this.along(t, turned[t])));
    return voxel;
  }

  /** The plane on the screen that cuts stored axis `axis`. */
  planeOf(axis) {
    const t = this.axis.indexOf(axis);
    return PLANES.find((plane) => plane.d === t);
  }

  /** The stored axis that a plane on the screen cuts. */
  cut(plane) {
    return this.axis[plane.d];
  }

  /** Columns and rows of a plane on the screen. */
  size(plane) {
    return [this.turned[plane.h], this.turned[plane.v]];
  }

  /** Values in screen order (u fastest, v upwards) as the workbench wants a plane: stored axes ascending, C order. */
  toWire(plane, values) {
    const [columns] = this.size(plane);
    const [h, v] = [this.axis[plane.h], this.axis[plane.v]];
    const [first, second] = h < v ? [plane.h, plane.v] : [plane.v, plane.h];
    const shape = [this.turned[first], this.turned[second]];
    const sent = new Uint8Array(values.length);
    for (let a = 0; a < shape[0]; a += 1) {
      const at = this.along(first, a);
      for (let b = 0; b < shape[1]; b += 1) {
        const bt = this.along(second, b);
        const [u, w] = first === plane.h ? [at, bt] : [bt, at];
        sent[a * shape[1] + b] = values[w * columns + u];
      }
    }
    return { values: sent, shape };
  }

  /** A layer's slice in screen order; `layer` holds a box of stored voxels, i fastest. */
  slice(plane, depth, layer) {
    const [columns, rows] = this.size(plane);
    const found = new Uint8Array(columns * rows);
    if (!layer || layer.values.length === 0) return found;
    const [i0, i1, j0, j1, k0, k1] = layer.box;
    const low = [i0, j0, k0];
    const high = [i1, j1, k1];
    const stride = [1, i1 - i0, (i1 - i0) * (j1 - j0)];
    const d = this.axis[plane.d];
    const n = this.along(plane.d, depth);
    if (n < low[d] || n >= high[d]) return found;
    const [h, v] = [this.axis[plane.h], this.axis[plane.v]];
    const base = (n - low[d]) * stride[d];
    for (let row = 0; row < rows; row += 1) {
      const b = this.along(plane.v, row);
      if (b < low[v] || b >= high[v]) continue;
      const across = base + (b - low[v]) * stride[v];
      for (let a = low[h]; a < high[h]; a += 1) {
        found[row * columns + this.along(plane.h, a)] = layer.values[across + (a - low[h]) * stride[h]];
      }
    }
    return found;
  }
}

/** Where a plane lies on the screen: an affine map between (u, v) and pixels, cell and all. */
export class Tile {
  /** `left`, `right`: screen x of u = 0 and u = columns; `bottom`, `top`: screen y of v = 0 and v = rows. */
  constructor(plane, cell, size, { left, right, bottom, top }) {
    Object.assign(this, { plane, cell, size, left, bottom });
    this.perU = (right - left) / size[0];
    this.perV = (top - bottom) / size[1];
  }

  holds(px, py) {
    const [x, y, width, height] = this.cell;
    return px >= x && py >= y && px < x + width && py < y + height;
  }

  toPlane(px, py) {
    return [(px - this.left) / this.perU, (py - this.bottom) / this.perV];
  }

  toScreen(u, v) {
    return [this.left + u * this.perU, this.bottom + v * this.perV];
  }
}
