// The hand on the images: a mouse or a pen, or the keyboard alone.

import { Boxing } from "./extent.js";
import { Drawing } from "./tools.js";

const GRIP = 7; // pixels around the side of a box in which a hand takes hold of it

export class Hand {
  /** `bench`: {viewer, painter, panel, windowing, go(voxel), send(drawing), repaint(), hint(text)}. */
  constructor(view, bench) {
    this.view = view;
    this.bench = bench;
    this.drawing = null;
    this.drag = null;
    this.penDown = false;
    view.addEventListener("pointerdown", (event) => this._down(event));
    view.addEventListener("pointermove", (event) => this._move(event));
    view.addEventListener("pointerup", (event) => this._up(event));
    view.addEventListener("pointercancel", () => this.cancel());
    view.addEventListener("pointerleave", () => this._hover(null));
    view.addEventListener("contextmenu", (event) => event.preventDefault());
    view.addEventListener("wheel", (event) => this._wheel(event), { passive: false });
    view.addEventListener("dblclick", (event) => {
      const at = this._at(event);
      if (at) this.bench.activate(at.tile.plane);
    });
  }

  /** Leave a stroke that was begun. */
  cancel() {
    this.drawing = this.drag = null;
    this.penDown = false;
    this.bench.painter.stroke = this.bench.painter.box = null;
    this.bench.repaint();
  }

  /** With the keyboard: step the cursor within the active plane, and draw if the pen is down. */
  step(du, dv) {
    const { viewer, painter } = this.bench;
    if (!viewer.grid) return;
    const tile = this._activeTile();
    const turned = viewer.grid.toTurned(painter.cursor);
    turned[tile.plane.h] += du * Math.sign(tile.perU);
    turned[tile.plane.v] += dv;
    this.bench.go(viewer.grid.toVoxel(this._clamped(turned)));
    if (this.penDown) this._to(this._middle(tile.plane));
  }

  /** With the keyboard: go through slices of the active plane. */
  scroll(plane, steps) {
    const { viewer, painter } = this.bench;
    if (!viewer.grid) return;
    const turned = viewer.grid.toTurned(painter.cursor);
    turned[plane.d] += steps;
    this.bench.go(viewer.grid.toVoxel(this._clamped(turned)));
    if (this.penDown) this.cancel();
  }

  /** With the keyboard: put the pen down, or lift it and send what it drew. */
  pen() {
    if (!this.bench.viewer.grid) return;
    if (this.penDown) return this._end();
    const tile = this._activeTile();
    if (this.bench.panel.tool === "look") return this.bench.hint("Choose a tool to draw with");
    this._begin(tile);
    this._to(this._middle(tile.plane));
    if (this.bench.panel.tool === "point") return this._end();
    this.penDown = true;
    this.bench.hint("The pen is down: arrow keys draw, Space sends, Escape leaves it");
  }

  _at(event) {
    const box = this.view.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const tile = this.bench.viewer.tiles().find((one) => one.holds(x, y));
    if (!tile) return null;
    const [u, v] = tile.toPlane(x, y);
    const inside = u >= 0 && v >= 0 && u < tile.size[0] && v < tile.size[1];
    return { tile, u, v, inside };
  }

  _down(event) {
    const { viewer, panel } = this.bench;
    this.view.focus({ preventScroll: true });
    if (!viewer.grid || this.drag) return;
    if (this.penDown) this.cancel();
    event.preventDefault();
    this.view.setPointerCapture(event.pointerId);
    const box = this.view.getBoundingClientRect();
    const start = { x: event.clientX, y: event.clientY, id: event.pointerId };
    if (viewer.inRendering(event.clientX - box.left, event.clientY - box.top)) {
      this.drag = { ...start, kind: "turn" };
      return;
    }
    const at = this._at(event);
    if (!at) return;
    if (event.button === 2) this.drag = { ...start, kind: "window" };
    else if (event.button === 1 || event.shiftKey) this.drag = { ...start, kind: "pan", tile: at.tile };
    else if (panel.tool === "look") {
      this.drag = { ...start, kind: "look", tile: at.tile };
      this._look(at);
    } else {
      if (!at.inside && !["contour", "extent"].includes(panel.tool)) return;
      this.bench.activate(at.tile.plane, false);
      this.drag = { ...start, kind: "draw", tile: at.tile };
      this._begin(at.tile, [GRIP / Math.abs(at.tile.perU), GRIP / Math.abs(at.tile.perV)]);
      this._to([at.u, at.v]);
      if (panel.tool === "point") this._end();
    }
  }

  _move(event) {
    const { viewer, windowing } = this.bench;
    const { drag } = this;
    if (!drag) return this._hover(this._at(event));
    const [dx, dy] = [event.clientX - drag.x, event.clientY - drag.y];
    if (drag.kind === "draw") {
      const box = this.view.getBoundingClientRect();
      // A fast hand is heard between two frames as well.
      const heard = event.getCoalescedEvents?.() ?? [];
      for (const one of heard.length ? heard : [event]) {
        this._to(drag.tile.toPlane(one.clientX - box.left, one.clientY - box.top));
      }
      this._hover(this._at(event));
      return;
    }
    if (drag.kind === "look") return this._look(this._at(event));
    Object.assign(drag, { x: event.clientX, y: event.clientY });
    if (drag.kind === "turn") viewer.turn(dx, dy);
    if (drag.kind === "window") windowing.drag(dx, dy);
    if (drag.kind === "pan") viewer.pan(viewer.tiles().find((one) => one.plane === drag.tile.plane), dx, dy);
  }

  _up(event) {
    const { drag } = this;
    if (!drag || drag.id !== event.pointerId) return;
    this.drag = null;
    if (drag.kind === "draw" && this.drawing) this._end();
    if (drag.kind === "turn") this.bench.viewer.render();
  }

  _look(at) {
    if (!at) return;
    const { viewer, painter } = this.bench;
    const turned = viewer.grid.toTurned(painter.cursor);
    turned[at.tile.plane.h] = Math.floor(at.u);
    turned[at.tile.plane.v] = Math.floor(at.v);
    this.bench.go(viewer.grid.toVoxel(this._clamped(turned)));
  }

  _wheel(event) {
    const at = this.bench.viewer.grid ? this._at(event) : null;
    if (!at) return;
    event.preventDefault();
    if (event.ctrlKey) return this.bench.viewer.zoom(event.deltaY < 0 ? 1.15 : 1 / 1.15, this.bench.painter.cursor);
    if (!this.drag) this.scroll(at.tile.plane, event.deltaY < 0 ? 1 : -1);
  }

  _hover(at) {
    const { painter, panel } = this.bench;
    const sized = panel.tool === "brush" || panel.tool === "erase";
    const brush = at && at.inside && sized ? { tile: at.tile, u: at.u, v: at.v, mm: panel.mm } : null;
    if (brush || painter.brush) {
      painter.brush = brush;
      this.bench.repaint();
    }
    this.bench.under(at && at.inside ? at : null);
  }

  _begin(tile, near) {
    const { viewer, painter, panel } = this.bench;
    if (panel.tool === "extent") {
      this.drawing = new Boxing({ plane: tile.plane, grid: viewer.grid, extent: painter.extent, near });
      return;
    }
    const depth = viewer.grid.toTurned(painter.cursor)[tile.plane.d];
    const { grid, spacing } = viewer;
    this.drawing = new Drawing({ tool: panel.tool, plane: tile.plane, depth, label: panel.label, mm: panel.mm, grid, spacing });
  }

  _to([u, v]) {
    if (!this.drawing) return;
    this.drawing.to(u, v);
    if (this.drawing.box) this.bench.painter.box = this.drawing.box;
    else this.bench.painter.stroke = this.drawing.shown;
    this.bench.repaint();
  }

  _end() {
    const { drawing } = this;
    this.drawing = null;
    this.penDown = false;
    this.bench.painter.stroke = this.bench.painter.box = null;
    if (drawing?.end()) this.bench.send(drawing);
    else if (drawing?.tool === "extent") this.bench.hint("Drag a box round the object");
    else if (drawing?.tool === "contour") this.bench.hint("The contour holds no voxel: draw round the structure");
    this.bench.repaint();
  }

  _activeTile() {
    const { viewer } = this.bench;
    return viewer.tiles().find((one) => one.plane === viewer.active);
  }

  _middle(plane) {
    const { viewer, painter } = this.bench;
    const turned = viewer.grid.toTurned(painter.cursor);
    return [turned[plane.h] + 0.5, turned[plane.v] + 0.5];
  }

  _clamped(turned) {
    return turned.map((at, t) => Math.max(0, Math.min(this.bench.viewer.grid.turned[t] - 1, at)));
  }
}
