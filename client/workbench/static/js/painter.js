// What lies over the planes: labels, heat, strokes, the cursor. One slice at a time on a canvas of its own, so that its
// cost does not depend on the size of the image.

import { tells, turnedBox } from "./extent.js";
import { FAINT, INK, scale, write } from "./lettering.js";

const EXTENT = "#cdb4ff";
const BACKGROUND = [158, 197, 232];

/** Dark to bright, for how much the model disagrees. */
const HEAT = ramp([[60, 10, 90], [190, 40, 90], [250, 130, 40], [255, 235, 130]]);
/** For how sure the model is. */
const SURE = ramp([[20, 40, 90], [20, 120, 150], [60, 200, 140], [230, 250, 120]]);

function ramp(stops) {
  const made = new Uint8Array(256 * 3);
  for (let value = 0; value < 256; value += 1) {
    const at = (value / 255) * (stops.length - 1);
    const low = Math.min(stops.length - 2, Math.floor(at));
    for (let c = 0; c < 3; c += 1) made[value * 3 + c] = stops[low][c] + (at - low) * (stops[low + 1][c] - stops[low][c]);
  }
  return made;
}

const MANY = 20000; // lines of a slice; anatomy has far fewer, and more take a browser seconds at every frame

/**
 * Lines between pixels of different labels, one path for each label, in coordinates of the plane. Null where they are
 * too many: a model that has learnt little sees something everywhere.
 */
export function outlines(values, columns, rows) {
  const paths = new Map();
  const path = (label) => {
    if (!paths.has(label)) paths.set(label, new Path2D());
    return paths.get(label);
  };
  let count = 0;
  const at = (u, v) => (u < 0 || v < 0 || u >= columns || v >= rows ? 0 : values[v * columns + u]);
  for (let v = 0; v <= rows; v += 1) {
    for (let u = 0; u <= columns; u += 1) {
      const here = at(u, v);
      const left = at(u - 1, v);
      const below = at(u, v - 1);
      count += (here !== left) + (here !== below);
      if (here !== left && u <= columns) line(path(here || left), u, v, u, v + 1);
      if (here !== below) line(path(here || below), u, v, u + 1, v);
    }
    if (count > MANY) return null;
  }
  return paths;
}

/** The pixels of labels at the edge of them, for a slice of too many lines. */
function rims(values, columns) {
  return values.map((here, n) => ([-1, 1, -columns, columns].some((step) => values[n + step] !== here) ? here : 0));
}

function line(path, u0, v0, u1, v1) {
  path.moveTo(u0, v0);
  path.lineTo(u1, v1);
}

export class Painter {
  constructor(canvas, viewer) {
    this.canvas = canvas;
    this.viewer = viewer;
    this.context = canvas.getContext("2d");
    this.layers = new Map();
    this.colours = []; // of label n + 1, as three numbers
    this.overlays = []; // what is shown, from below: {name, kind, shown, opacity}
    this.cursor = null;
    this.suggestion = null;
    this.waiting = []; // strokes on their way: {plane, depth, values, what}
    this.stroke = null; // the stroke under the hand, in the same form, with .trace for a contour
    this.brush = null; // {tile, u, v, mm}
    this.extent = null; // {lower, upper}: where the object is
    this.sets = []; // points that belong together: {label, inner, outer}
    this.box = null; // the same, while it is being drawn
    this._kept = new Map();
  }

  forget() {
    this.layers.clear();
    this._kept.clear();
    this.waiting = this.sets = [];
    this.stroke = this.brush = this.suggestion = this.cursor = this.extent = this.box = null;
  }

  paint() {
    const { canvas, context } = this;
    const dpr = globalThis.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight].map((side) => Math.round(side * dpr));
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, width, height);
    if (!this.viewer.grid || !this.cursor) return;
    this.dpr = dpr;
    const turned = this.viewer.grid.toTurned(this.cursor);
    for (const tile of this.viewer.tiles()) this._tile(tile, turned);
    this._identity();
    context.imageSmoothingEnabled = true;
    context.drawImage(this.viewer.solid, ...this.viewer.solidCell);
    if (this.viewer.outdated) this._outdated();
    this._frames();
  }

  _tile(tile, turned) {
    const { context } = this;
    const { plane, cell } = tile;
    const depth = turned[plane.d];
    context.save();
    this._identity();
    context.beginPath();
    context.rect(...cell);
    context.clip();
    for (const overlay of this.overlays) if (overlay.shown) this._overlay(tile, depth, overlay);
    for (const one of [...this.waiting, this.stroke]) {
      if (one && one.plane === plane && one.depth === depth) this._stroke(tile, one);
    }
    this._extent(tile, depth);
    this._sets(tile, depth);
    this._cursor(tile, turned);
    this._brush(tile);
    this._text(tile, depth);
    context.restore();
  }

  _overlay(tile, depth, overlay) {
    const layer = this.layers.get(overlay.name);
    if (!layer || !layer.values.length) return;
    const kept = this._picture(tile.plane, depth, overlay, layer);
    if (!kept) return;
    const { context } = this;
    if (kept.image) {
      context.globalAlpha = overlay.kind === "line" ? overlay.opacity / 2 : overlay.opacity;
      this._plane(tile);
      context.imageSmoothingEnabled = overlay.kind === "heat";
      context.drawImage(kept.image, 0, 0);
    }
    this._identity();
    context.globalAlpha = overlay.kind === "line" ? overlay.opacity : Math.min(1, overlay.opacity * 2);
    for (const [label, path] of kept.lines) {
      const line = this._onScreen(tile, path);
      if (overlay.kind === "line") {
        // Dark below bright: to be seen on any tissue, and told from the edge of a filled label.
        context.strokeStyle = "#000";
        context.lineWidth = 3.6;
        context.stroke(line);
      }
      context.strokeStyle = this._colour(label);
      context.lineWidth = overlay.kind === "line" ? 1.8 : 1;
      context.stroke(line);
    }
    context.globalAlpha = 1;
  }

  /** What an overlay shows on a slice; made once, until the layer or the slice is another. */
  _picture(plane, depth, overlay, layer) {
    const key = `${overlay.name}/${plane.name}`;
    const found = this._kept.get(key);
    if (found && found.layer === layer && found.depth === depth) return found;
    const { grid } = this.viewer;
    const values = grid.slice(plane, depth, layer);
    const [columns, rows] = grid.size(plane);
    const made = { layer, depth, image: null, lines: new Map() };
    if (values.some(Boolean)) {
      if (overlay.kind === "heat") made.image = this._heat(values, columns, rows, overlay.name === "residual" ? HEAT : SURE);
      else if (overlay.kind === "drawn") made.image = this._picked(values, columns, rows, -1);
      else {
        const lines = outlines(values, columns, rows);
        if (lines) made.lines = lines;
        if (overlay.kind === "fill") made.image = this._picked(values, columns, rows, 0);
        else if (!lines) made.image = this._picked(rims(values, columns), columns, rows, 0);
      }
    }
    this._kept.set(key, made);
    return made;
  }

  /** Labels as a picture. `shift` is added to a value to get its label; 0 of the values is nothing. */
  _picked(values, columns, rows, shift) {
    return this._pixels(columns, rows, (put) => {
      for (let n = 0; n < values.length; n += 1) {
        if (values[n] === 0) continue;
        const label = values[n] + shift;
        const [r, g, b] = label === 0 ? BACKGROUND : this.colours[label - 1] ?? [200, 200, 200];
        put(n, r, g, b, label === 0 ? 95 : 255);
      }
    });
  }

  _heat(values, columns, rows, table) {
    return this._pixels(columns, rows, (put) => {
      for (let n = 0; n < values.length; n += 1) {
        const value = values[n];
        // Little of it is next to invisible: what is nearly nothing everywhere shall not lie over the image as a pattern.
        if (value) put(n, table[value * 3], table[value * 3 + 1], table[value * 3 + 2], Math.min(255, 3 * value));
      }
    });
  }

  _pixels(columns, rows, paint) {
    const image = new ImageData(columns, rows);
    paint((n, r, g, b, a) => {
      image.data[n * 4] = r;
      image.data[n * 4 + 1] = g;
      image.data[n * 4 + 2] = b;
      image.data[n * 4 + 3] = a;
    });
    const made = new OffscreenCanvas(columns, rows);
    made.getContext("2d").putImageData(image, 0, 0);
    return made;
  }

  _stroke(tile, { values, what, label, trace }) {
    const { context } = this;
    if (trace) {
      context.beginPath();
      trace.forEach(([u, v], n) => context[n ? "lineTo" : "moveTo"](...tile.toScreen(u, v)));
      if (what === "filled") context.closePath();
      context.strokeStyle = label === 0 ? INK : this._colour(label);
      context.lineWidth = 2;
      context.stroke();
      return;
    }
    const [columns, rows] = tile.size;
    const image =
      what === "erase"
        ? this._pixels(columns, rows, (put) => values.forEach((value, n) => value !== 255 && put(n, 20, 24, 28, 200)))
        : this._picked(values.map((value) => (value === 255 ? 0 : value + 1)), columns, rows, -1);
    this._plane(tile);
    context.globalAlpha = 0.9;
    context.imageSmoothingEnabled = false;
    context.drawImage(image, 0, 0);
    context.globalAlpha = 1;
    this._identity();
  }

  _cursor(tile, turned) {
    const { context } = this;
    const { plane, cell } = tile;
    const [x, y] = tile.toScreen(turned[plane.h] + 0.5, turned[plane.v] + 0.5);
    this._identity();
    context.strokeStyle = "rgba(92, 200, 215, 0.45)";
    context.lineWidth = 1;
    context.beginPath();
    const gap = 9;
    for (const [x0, y0, x1, y1] of [
      [cell[0], y, x - gap, y], [x + gap, y, cell[0] + cell[2], y],
      [x, cell[1], x, y - gap], [x, y + gap, x, cell[1] + cell[3]],
    ]) {
      context.moveTo(x0, y0);
      context.lineTo(x1, y1);
    }
    context.stroke();
    if (this.suggestion) this._suggested(tile);
  }

  /** Where the suggested slice crosses this plane. */
  _suggested(tile) {
    const { context } = this;
    const { grid } = this.viewer;
    const { plane, cell } = tile;
    const t = grid.axis.indexOf(this.suggestion.axis);
    if (t === plane.d) return;
    const at = grid.along(t, this.suggestion.index) + 0.5;
    const [x, y] = t === plane.h ? tile.toScreen(at, 0) : tile.toScreen(0, at);
    context.strokeStyle = "#f2b75c";
    context.setLineDash([2, 4]);
    context.beginPath();
    if (t === plane.h) {
      context.moveTo(x, cell[1]);
      context.lineTo(x, cell[1] + cell[3]);
    } else {
      context.moveTo(cell[0], y);
      context.lineTo(cell[0] + cell[2], y);
    }
    context.stroke();
    context.setLineDash([]);
  }

  /** The box about the object; fainter on slices in front of it and behind. */
  _extent(tile, depth) {
    const { context } = this;
    const { grid } = this.viewer;
    const extent = this.box ?? this.extent;
    if (!tells(grid, extent)) return;
    const { h, v, d } = tile.plane;
    const [low, high] = turnedBox(grid, extent);
    const [x0, y0] = tile.toScreen(low[h], low[v]);
    const [x1, y1] = tile.toScreen(high[h] + 1, high[v] + 1);
    const within = depth >= low[d] && depth <= high[d];
    this._identity();
    const lines = [["rgba(0, 0, 0, 0.65)", 4, []], [within ? EXTENT : "#8d7fae", 2, within ? [7, 4] : [2, 6]]];
    for (const [colour, width, dash] of lines) {
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.setLineDash(dash);
      context.strokeRect(x0, y0, x1 - x0, y1 - y0);
    }
    context.setLineDash([]);
  }

  /** A ring about every point on this slice, and a box about those that enclose a structure. */
  _sets(tile, depth) {
    const { context } = this;
    const { grid } = this.viewer;
    const { h, v, d } = tile.plane;
    this._identity();
    for (const { label, inner, outer } of this.sets) {
      const places = [inner, ...outer].map((voxel) => grid.toTurned(voxel));
      const shape = new Path2D();
      for (const at of places.filter((one) => one[d] === depth)) {
        const [x, y] = tile.toScreen(at[h] + 0.5, at[v] + 0.5);
        shape.moveTo(x + 6, y);
        shape.arc(x, y, 6, 0, 2 * Math.PI);
      }
      const [low, high] = [Math.min, Math.max].map((most) => [0, 1, 2].map((t) => most(...places.map((at) => at[t]))));
      if (outer.length === 6 && depth >= low[d] && depth <= high[d]) {
        const [x0, y0] = tile.toScreen(low[h], low[v]);
        const [x1, y1] = tile.toScreen(high[h] + 1, high[v] + 1);
        shape.rect(Math.min(x0, x1), Math.min(y0, y1), Math.abs(x1 - x0), Math.abs(y1 - y0));
      }
      for (const [colour, width] of [["rgba(0, 0, 0, 0.65)", 3.5], [this._colour(label), 1.5]]) {
        context.strokeStyle = colour;
        context.lineWidth = width;
        context.stroke(shape);
      }
    }
  }

  _brush(tile) {
    const { brush, context } = this;
    if (!brush || brush.tile.plane !== tile.plane) return;
    const [x, y] = tile.toScreen(brush.u, brush.v);
    const { grid, spacing } = this.viewer;
    const mm = (t) => spacing[grid.axis[t]];
    context.beginPath();
    context.ellipse(
      x, y,
      Math.abs((brush.mm / mm(tile.plane.h)) * tile.perU),
      Math.abs((brush.mm / mm(tile.plane.v)) * tile.perV),
      0, 0, 2 * Math.PI,
    );
    context.strokeStyle = INK;
    context.lineWidth = 1;
    context.stroke();
  }

  _text(tile, depth) {
    const { plane, cell } = tile;
    const [x, y, width, height] = cell;
    const { grid, spacing } = this.viewer;
    const put = (...given) => write(this.context, ...given);
    const asked = this.suggestion;
    const here = asked && grid.cut(plane) === asked.axis && grid.along(plane.d, depth) === asked.index;
    put(`${plane.name} ${depth + 1} / ${grid.turned[plane.d]}`, x + 8, y + 7, "left");
    if (here) put("suggested slice", x + 8, y + 23, "left", "#f2b75c");
    const [low, high, down, up] = plane.ends;
    const [left, right] = tile.perU < 0 ? [high, low] : [low, high];
    put(left, x + 8, y + height / 2 - 6, "left", FAINT);
    put(right, x + width - 8, y + height / 2 - 6, "right", FAINT);
    put(up, x + width / 2, y + 7, "center", FAINT);
    put(down, x + width / 2, y + height - 19, "center", FAINT);
    scale(this.context, tile, Math.abs(tile.perU) / spacing[grid.axis[plane.h]]);
  }

  _outdated() {
    const [x, y, width, height] = this.viewer.renderingCell;
    write(this.context, "Click to draw this anew", x + width / 2, y + height - 22, "center", "#f2b75c");
  }

  /** Lines between the cells, and a brighter one about the plane that the keyboard works on. */
  _frames() {
    const { context, viewer, canvas } = this;
    this._identity();
    for (const [type, cell] of viewer.cells) {
      const box = [cell[0] * canvas.clientWidth, cell[1] * canvas.clientHeight, cell[2] * canvas.clientWidth, cell[3] * canvas.clientHeight];
      const active = type === viewer.active.type;
      context.strokeStyle = active ? "#5cc8d7" : "#22313a";
      context.lineWidth = active ? 1.5 : 1;
      context.strokeRect(box[0] + 0.75, box[1] + 0.75, box[2] - 1.5, box[3] - 1.5);
    }
  }

  _colour(label) {
    const [r, g, b] = this.colours[label - 1] ?? [200, 200, 200];
    return `rgb(${r}, ${g}, ${b})`;
  }

  _identity() {
    this.context.setTransform(this.dpr, 0, 0, this.dpr, 0, 0);
  }

  _plane(tile) {
    const { dpr } = this;
    this.context.setTransform(tile.perU * dpr, 0, 0, tile.perV * dpr, tile.left * dpr, tile.bottom * dpr);
  }

  _onScreen(tile, path) {
    const made = new Path2D();
    made.addPath(path, new DOMMatrix([tile.perU, 0, 0, tile.perV, tile.left, tile.bottom]));
    return made;
  }
}
