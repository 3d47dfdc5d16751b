// From a hand that rests to the workbench: what was drawn, where the object is, and that a slice is right.

import { bench, repaint } from "./bench.js";
import { say } from "./dom.js";
import { withEnd } from "./extent.js";
import { complete } from "./tools.js";

export function send(drawing) {
  const { session } = bench;
  if (!session?.answer) return;
  say("");
  if (drawing.tool === "extent") return extend(drawing.box);
  const [point] = drawing.tool === "point" ? drawing.prompts(null) : [];
  if (point && !bench.guide.takes(point)) return;
  session.draw(() => drawing.prompts(session.layer("drawn")), drawing.shown).then((done) => {
    if (session !== bench.session || !session.answer) return;
    if (point) bench.guide.heard(point);
    if (done) say(`Answered in ${Math.round(session.answer.latency_ms.total)} ms. The draft is saved.`);
  });
}

/** Say where the object is; it is shown at once, and as it was where the workbench refuses it. */
function extend(extent) {
  const { session, painter } = bench;
  if (!session?.answer) return;
  painter.extent = extent;
  repaint();
  session.extend(extent).then((done) => {
    if (session !== bench.session) return;
    painter.extent = session.answer.extent;
    repaint();
    if (done) say("The extent is known.");
  });
}

/** The slice that is shown is the object's first, or its last. */
export function end(last) {
  const { painter } = bench;
  if (!bench.session?.answer || !painter.cursor) return;
  const { grid, active: plane } = bench.viewer;
  extend(withEnd(grid, painter.extent, plane, grid.toTurned(painter.cursor)[plane.d], last));
}

export const wholeImage = () =>
  bench.painter.extent && extend({ lower: [0, 0, 0], upper: bench.viewer.grid.shape.map((side) => side - 1) });

export function confirmSlice() {
  const { session, painter, hand } = bench;
  if (!session?.answer || !painter.cursor) return;
  if (hand.penDown) return hand.pen();
  const { grid, active: plane } = bench.viewer;
  const depth = grid.toTurned(painter.cursor)[plane.d];
  const shown = { plane, depth, values: new Uint8Array(0), what: "drawn", label: 0, trace: [] };
  session.draw(() => {
    const proxy = session.layer("proxy");
    const under = proxy && proxy.values.length ? proxy : session.layer("prediction");
    return [complete(grid, plane, depth, session.layer("drawn"), null, under)];
  }, shown).then((done) => done && say("The slice counts as drawn."));
}
