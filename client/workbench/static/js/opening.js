// From a case in the work list to one that can be drawn on.

import * as api from "./api.js";
import { answered, enable, showInRendering } from "./answering.js";
import { bench, repaint } from "./bench.js";
import { $, say } from "./dom.js";
import { go, tellWhere } from "./moving.js";
import { Session } from "./session.js";
import { busy, failed } from "./telling.js";

export async function openCase(id) {
  const { viewer, painter, panel, connection, worklist } = bench;
  const before = bench.session;
  if (before) {
    await before.queue.idle();
    before.closed = true;
  }
  bench.hand.cancel();
  const session = sessionOf(id);
  bench.session = session;
  bench.answer = null;
  bench.ready = false;
  painter.forget();
  bench.guide.forget();
  panel.offer("reviewed", false);
  $("empty").hidden = true;
  worklist.mark(id);
  history.replaceState(null, "", `#${encodeURIComponent(id)}`);
  busy("Opening the case");
  try {
    const opening = session.open();
    opening.catch(() => {});
    const loading = (got, total) => busy("Loading the image", total ? got / total : null);
    const bytes = await connection.patiently(() => api.image(id, loading));
    if (session !== bench.session) return;
    const grid = await viewer.load(bytes, painter.colours);
    panel.fit(viewer.spacing, grid.shape);
    bench.windowing.begin();
    go(grid.shape.map((side) => Math.floor(side / 2)));
    busy("Asking the model");
    await opening;
    if (session !== bench.session) return;
    answered(session.answer);
    showInRendering();
    toImages();
    bench.ready = true;
    await bench.review.load(id);
    worklist.load();
    say(`Case ${id} is open. Keys act on its images.`);
  } catch (error) {
    if (session === bench.session) {
      bench.session = null;
      $("empty").hidden = false;
      viewer.clear();
    }
    throw error;
  } finally {
    if (session === bench.session || !bench.session) busy(null);
    enable();
  }
}

/** Keys act on the images at once. Whoever went to a field meanwhile, or is asked something, stays there. */
function toImages() {
  const at = document.activeElement;
  if (!document.querySelector("dialog[open]") && (at === document.body || at.matches("button"))) $("view").focus({ preventScroll: true });
}

/** A session that speaks to the page as long as its case is the one that is open. */
function sessionOf(id) {
  const { painter, panel, connection } = bench;
  const session = new Session(id, {
    answered: (answer) => session === bench.session && answered(answer),
    layered: (name, layer) => {
      if (session !== bench.session) return;
      painter.layers.set(name, layer);
      if (name === "proxy" || name === "prediction") showInRendering();
      repaint();
      tellWhere();
    },
    failed,
    patiently: (act) => connection.patiently(act),
    elsewhere: () => session === bench.session && say("Another window has a case open: draw here to go on with this one."),
    reopened: () => say("Another window had closed this case. It is open here again."),
    wanted: () => ["drawn", "proxy", ...["prediction", "residual", "confidence"].filter((name) => panel.shows(name))],
    waiting: (strokes) => {
      connection.waiting(strokes.length);
      painter.waiting = strokes;
      repaint();
    },
  });
  return session;
}
