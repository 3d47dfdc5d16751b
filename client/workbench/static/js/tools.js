// Tools turn a hand's way over a slice into prompts: what the workbench learns from.

import { encode } from "./rle.js";
import { NOTHING, Stroke } from "./strokes.js";

export const TOOLS = [
  { name: "look", title: "Look", key: "v", hint: "Click to move the cursor" },
  { name: "scribble", title: "Scribble", key: "s", hint: "A thin line over what has the label" },
  { name: "brush", title: "Brush", key: "b", hint: "Paint an area; [ and ] change the size" },
  { name: "contour", title: "Contour", key: "c", hint: "Draw round it: inside has the label, and the slice counts as complete" },
  { name: "point", title: "Point", key: "p", hint: "One click gives one voxel its label" },
  { name: "extent", title: "Extent", key: "t", hint: "Drag a box round the object, or one of its sides; I and O set its first and last slice" },
  { name: "erase", title: "Erase", key: "e", hint: "Take away what was drawn" },
];

/** A stroke begun with a tool on a plane; it knows how it becomes prompts. */
export class Drawing {
  constructor({ tool, plane, depth, label, mm, grid, spacing }) {
    Object.assign(this, { tool, plane, depth, label, mm, grid });
    this.axis = grid.cut(plane);
    this.index = grid.along(plane.d, depth);
    this.stroke = new Stroke(grid.size(plane), [spacing[grid.axis[plane.h]], spacing[grid.axis[plane.v]]]);
  }

  to(u, v) {
    if (this.tool === "contour") this.stroke.trace.push([u, v]);
    else this.stroke.to(u, v, this.label, this.tool === "brush" || this.tool === "erase" ? this.mm : 0);
  }

  /** For the painter. */
  get shown() {
    const what = this.tool === "erase" ? "erase" : this.closed ? "filled" : "drawn";
    const trace = this.tool === "contour" ? this.stroke.trace : null;
    return { plane: this.plane, depth: this.depth, values: this.stroke.values, label: this.label, what, trace };
  }

  /** End it. False if there is nothing in it to send. */
  end() {
    if (this.tool === "contour") {
      this.closed = true;
      this.stroke.close(this.label);
    }
    return !this.stroke.empty;
  }

  /** What is sent. `drawn` is the layer of all that was drawn before. */
  prompts(drawn) {
    const { grid, plane, axis, index, stroke } = this;
    if (this.tool === "erase") {
      const { values, shape } = grid.toWire(plane, stroke.values.map((value) => (value === NOTHING ? 0 : 1)));
      return [{ kind: "erase", axis, index, mask: encode(values, shape) }];
    }
    if (this.tool === "contour") return [complete(grid, plane, this.depth, drawn, stroke.values)];
    if (this.tool === "point") {
      const [columns] = stroke.size;
      const at = stroke.values.findIndex((value) => value !== NOTHING);
      const turned = [0, 0, 0];
      turned[plane.h] = at % columns;
      turned[plane.v] = Math.floor(at / columns);
      turned[plane.d] = this.depth;
      return [{ kind: "point", index: grid.toVoxel(turned), label: this.label }];
    }
    const { values, shape } = grid.toWire(plane, stroke.values);
    return [{ kind: "scribble", axis, index, labels: encode(values, shape) }];
  }
}

/** A slice of which every pixel is told: `over` where it says something, then what was drawn, then `under`. */
export function complete(grid, plane, depth, drawn, over = null, under = null) {
  const before = grid.slice(plane, depth, drawn);
  const rest = grid.slice(plane, depth, under);
  const whole = before.map((value, n) => {
    if (over && over[n] !== NOTHING) return over[n];
    return value ? value - 1 : rest[n];
  });
  const { values, shape } = grid.toWire(plane, whole);
  return { kind: "slice", axis: grid.cut(plane), index: grid.along(plane.d, depth), labels: encode(values, shape) };
}
