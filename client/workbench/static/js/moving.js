// Where the cursor is, which plane is large, and the slice that the workbench suggests.

import { bench } from "./bench.js";
import { $, say } from "./dom.js";
import { middleOf } from "./geometry.js";

export function go(voxel) {
  bench.painter.cursor = voxel;
  bench.viewer.go(voxel);
  tellWhere();
}

/** Say what lies under the cursor, or under the mouse. */
export function tellWhere(at = null) {
  const { viewer, painter } = bench;
  if (!viewer.grid || !painter.cursor) return;
  let voxel = painter.cursor;
  if (at) {
    const turned = viewer.grid.toTurned(voxel);
    turned[at.tile.plane.h] = Math.floor(at.u);
    turned[at.tile.plane.v] = Math.floor(at.v);
    voxel = viewer.grid.toVoxel(turned);
  }
  const value = Number(viewer.value(voxel).toPrecision(4));
  const label = nameOf("proxy", voxel) ?? (painter.layers.has("proxy") ? null : nameOf("prediction", voxel));
  $("where").textContent = `voxel ${voxel.map((one) => one + 1).join(", ")} · intensity ${value}${label ? ` · ${label}` : ""}`;
}

/** What a layer calls a voxel; null outside of it. */
function nameOf(name, [i, j, k]) {
  const layer = bench.painter.layers.get(name);
  const [i0, i1, j0, j1, k0, k1] = layer?.box ?? [0, 0, 0, 0, 0, 0];
  if (i < i0 || i >= i1 || j < j0 || j >= j1 || k < k0 || k >= k1) return null;
  return bench.panel.labels[layer.values[i - i0 + (i1 - i0) * (j - j0 + (j1 - j0) * (k - k0))]]?.name ?? null;
}

export function activate(plane, larger = true) {
  const { viewer } = bench;
  const active = larger || !viewer.large ? plane : viewer.active;
  // A stroke that begins changes nothing of the layout, and the rendering need not be drawn anew for it.
  if (active === viewer.active) return;
  viewer.arrange(viewer.large, active);
  bench.painter.paint();
}

export function layout() {
  bench.viewer.arrange(!bench.viewer.large, bench.viewer.active);
  bench.painter.paint();
}

/** A slice in words, such as "axial 12". */
export function planeOf({ axis, index }) {
  const { grid } = bench.viewer;
  if (!grid) return "";
  const plane = grid.planeOf(axis);
  return `${plane.name} ${grid.along(plane.d, index) + 1}`;
}

export function suggested() {
  const { viewer, painter } = bench;
  const all = bench.answer?.suggestion ?? [];
  if (!all.length || !viewer.grid) return;
  // Asked again where one already is, it goes on to the one that helps next.
  const on = ({ axis, index }) => painter.cursor[axis] === index && viewer.grid.cut(viewer.active) === axis;
  if (on(all[bench.asked])) bench.asked = (bench.asked + 1) % all.length;
  const first = all[bench.asked];
  painter.suggestion = first;
  activate(viewer.grid.planeOf(first.axis));
  go(middleOfLabel().with(first.axis, first.index));
  say(`Suggested: ${planeOf(first)}.`);
}

/** The middle of the label, so that the cursor is where there is something to see. */
function middleOfLabel() {
  const { painter } = bench;
  const proxy = painter.layers.get("proxy");
  return middleOf(proxy?.values.length ? proxy : painter.layers.get("prediction")) ?? painter.cursor;
}
