// The page: it joins the parts, and holds which case is open.

import * as api from "./api.js";
import { Account } from "./account.js";
import { bindButtons, bindKeys, tellSite } from "./bindings.js";
import { Connection } from "./connection.js";
import { $, oncePerFrame, rgb, say } from "./dom.js";
import { withEnd } from "./extent.js";
import { middleOf } from "./geometry.js";
import { Hand } from "./hand.js";
import { Painter } from "./painter.js";
import { Panel } from "./panel.js";
import { showAnswer, showModel } from "./progress.js";
import { Review } from "./review.js";
import { Session } from "./session.js";
import { complete } from "./tools.js";
import { Viewer } from "./viewer.js";
import { Windowing } from "./windowing.js";
import { Worklist } from "./worklist.js";

const bench = { session: null };
let panel, viewer, painter, windowing, hand, worklist, review, colours, about, connection;

function failed(error) {
  if (error.name === "AbortError") return;
  if (error.code === "change-password") return location.replace("login.html?change");
  if (error.code === "not-signed-in") {
    if (!connection) return location.replace(`login.html${location.hash}`);
    connection.signIn().then(() => say("You are signed in again: please do that once more."));
    return;
  }
  $("problem").textContent = error.problem ?? "the page met a fault of its own";
  $("cause").textContent = error.cause ?? error.message;
  $("fix").textContent = error.fix ?? "load the page again; what you drew before is kept";
  $("failure").hidden = false;
}

/** A listener that shows what goes wrong. */
const guarded = (act) => (...given) => Promise.resolve().then(() => act(...given)).catch(failed);

function busy(text, share = null) {
  $("busy").hidden = text === null;
  if (text === null) return;
  $("busy-text").textContent = text;
  if (share === null) $("busy-bar").removeAttribute("value");
  else $("busy-bar").value = share;
}

const repaint = oncePerFrame(() => painter.paint());

function go(voxel) {
  painter.cursor = voxel;
  viewer.go(voxel);
  tellWhere();
}

function tellWhere(at = null) {
  if (!viewer.grid || !painter.cursor) return;
  let voxel = painter.cursor;
  if (at) {
    const turned = viewer.grid.toTurned(voxel);
    turned[at.tile.plane.h] = Math.floor(at.u);
    turned[at.tile.plane.v] = Math.floor(at.v);
    voxel = viewer.grid.toVoxel(turned);
  }
  const value = Number(viewer.value(voxel).toPrecision(4));
  const named = (name) => {
    const layer = painter.layers.get(name);
    const [i0, i1, j0, j1, k0, k1] = layer?.box ?? [0, 0, 0, 0, 0, 0];
    const [i, j, k] = voxel;
    if (i < i0 || i >= i1 || j < j0 || j >= j1 || k < k0 || k >= k1) return null;
    return panel.labels[layer.values[i - i0 + (i1 - i0) * (j - j0 + (j1 - j0) * (k - k0))]]?.name ?? null;
  };
  const label = named("proxy") ?? (painter.layers.has("proxy") ? null : named("prediction"));
  $("where").textContent = `voxel ${voxel.map((one) => one + 1).join(", ")} · intensity ${value}${label ? ` · ${label}` : ""}`;
}

function activate(plane, larger = true) {
  if (larger && viewer.active === plane && viewer.large) return;
  viewer.arrange(viewer.large, larger || !viewer.large ? plane : viewer.active);
  painter.paint();
}

function refreshPanel() {
  if (!painter) return;
  const before = painter.overlays;
  painter.overlays = panel.visible;
  repaint();
  const more = painter.overlays.some((one, n) => one.shown && !before[n]?.shown);
  if (more && bench.session?.answer) {
    bench.session.refresh().catch(failed);
    showInRendering();
  }
}

async function openCase(id) {
  const before = bench.session;
  if (before) {
    await before.queue.idle();
    before.closed = true;
  }
  hand.cancel();
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
  bench.session = session;
  bench.answer = null;
  bench.ready = false;
  painter.forget();
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
    const grid = await viewer.load(bytes, colours);
    panel.fit(viewer.spacing, grid.shape);
    windowing.begin();
    go(grid.shape.map((side) => Math.floor(side / 2)));
    busy("Asking the model");
    await opening;
    if (session !== bench.session) return;
    answered(session.answer);
    showInRendering();
    bench.ready = true;
    await review.load(id);
    worklist.load();
    say(`Case ${id} is open.`);
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

/** Put the label into the rendering, when the hand rests: without a graphics card a rendering takes long. */
function showInRendering() {
  clearTimeout(bench.rendering);
  bench.rendering = setTimeout(() => {
    if (!bench.ready) return;
    if (hand.drawing || bench.session?.strokes.length) return showInRendering();
    const proxy = painter.layers.get("proxy");
    const prediction = panel.shows("prediction") ? painter.layers.get("prediction") : null;
    viewer.renderLabels(proxy && proxy.values.length ? proxy : prediction);
  }, Math.min(5000, Math.max(350, 4 * viewer.cost)));
}

/** The prediction of a model that has learnt nothing is noise, and not shown unless somebody asks. */
function judgeModel({ run, updates_done }) {
  panel.suggest("prediction", Boolean(run) || updates_done > 0);
}

function planeOf({ axis, index }) {
  if (!viewer.grid) return "";
  const plane = viewer.grid.planeOf(axis);
  return `${plane.name} ${viewer.grid.along(plane.d, index) + 1}`;
}

function answered(answer) {
  bench.answer = answer;
  bench.asked = 0;
  painter.suggestion = answer.suggestion[0] ?? null;
  painter.extent = answer.extent;
  $("failure").hidden = true;
  judgeModel(answer.progress);
  showAnswer(answer);
  showModel(answer.progress);
  worklist.drew(answer);
  enable();
  repaint();
}

function enable() {
  const { session } = bench;
  const answer = session?.answer;
  $("undo").disabled = !answer?.can_undo;
  $("redo").disabled = !answer?.can_redo;
  const [first] = answer?.suggestion ?? [];
  $("suggest").disabled = !first;
  $("suggest").textContent = first && viewer.grid ? `Suggested: ${planeOf(first)}` : "Suggested slice";
  $("accept").disabled = !answer?.step;
  for (const id of ["accept-model", "skip", "confirm", "first", "last", "whole"]) $(id).disabled = !answer;
}

function send(drawing) {
  const { session } = bench;
  if (!session?.answer) return;
  say("");
  if (drawing.tool === "extent") return extend(drawing.box);
  session.draw(() => drawing.prompts(session.layer("drawn")), drawing.shown).then(() => {
    if (session === bench.session && session.answer) say(`Answered in ${Math.round(session.answer.latency_ms.total)} ms. The draft is saved.`);
  });
}

/** Say where the object is; it is shown at once, and as it was where the workbench refuses it. */
function extend(extent) {
  const { session } = bench;
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
function end(last) {
  if (!bench.session?.answer || !painter.cursor) return;
  const { grid, active: plane } = viewer;
  extend(withEnd(grid, painter.extent, plane, grid.toTurned(painter.cursor)[plane.d], last));
}

const wholeImage = () => painter.extent && extend({ lower: [0, 0, 0], upper: viewer.grid.shape.map((side) => side - 1) });

function confirmSlice() {
  const { session } = bench;
  if (!session?.answer || !painter.cursor) return;
  if (hand.penDown) return hand.pen();
  const { grid, active: plane } = viewer;
  const depth = grid.toTurned(painter.cursor)[plane.d];
  const shown = { plane, depth, values: new Uint8Array(0), what: "drawn", label: 0, trace: [] };
  session.draw(() => {
    const proxy = session.layer("proxy");
    const under = proxy && proxy.values.length ? proxy : session.layer("prediction");
    return [complete(grid, plane, depth, session.layer("drawn"), null, under)];
  }, shown).then(() => say("The slice counts as drawn."));
}

function suggested() {
  const all = bench.answer?.suggestion ?? [];
  if (!all.length || !viewer.grid) return;
  // Asked again where one already is, it goes on to the one that helps next.
  const on = ({ axis, index }) => painter.cursor[axis] === index && viewer.grid.cut(viewer.active) === axis;
  if (on(all[bench.asked])) bench.asked = (bench.asked + 1) % all.length;
  const first = all[bench.asked];
  painter.suggestion = first;
  const plane = viewer.grid.planeOf(first.axis);
  activate(plane);
  go(middleOfLabel().with(first.axis, first.index));
  say(`Suggested: ${planeOf(first)}.`);
}

/** The middle of the label, so that the cursor is where there is something to see. */
function middleOfLabel() {
  const proxy = painter.layers.get("proxy");
  return middleOf(proxy?.values.length ? proxy : painter.layers.get("prediction")) ?? painter.cursor;
}

async function finish(act, done) {
  const { session } = bench;
  if (!session?.answer) return;
  await session.queue.idle();
  const outcome = await session.finish(act, () => worklist.next());
  session.closed = true;
  say(done);
  if (outcome.next) {
    await openCase(outcome.next);
    say(done);
  } else {
    bench.session = null;
    bench.answer = null;
    viewer.clear();
    painter.forget();
    painter.paint();
    showAnswer(null);
    $("empty").hidden = false;
    history.replaceState(null, "", " ");
    worklist.mark(null);
    await worklist.load();
    enable();
  }
  if (about.export && session.id) offerSending(session.id);
}

function offerSending(id) {
  bench.accepted = id;
  $("send").hidden = false;
}

async function accept(source) {
  // A prediction may change while it is looked at; the label so far changes by the person's own hand alone.
  const seen = source === "prediction" && panel.shows(source) ? painter.layers.get(source)?.version : undefined;
  if (source === "prediction" && seen === undefined) {
    say("Show the prediction first (M), and look at it.");
    return;
  }
  await finish((session) => api.accept(session.id, source, seen), "Accepted. The label is stored.");
}
const skip = () => finish((session) => api.skip(session.id, $("reason").value), "Skipped.");

async function next() {
  const id = await worklist.next();
  if (id) await openCase(id);
}

async function showOthers(author, bytes) {
  if (!bytes) {
    painter.layers.delete("reviewed");
  } else {
    const image = await globalThis.niivue.NVImage.loadFromUrl({ url: "label.nii.gz", name: "label.nii.gz", buffer: bytes });
    const [i, j, k] = viewer.grid.shape;
    painter.layers.set("reviewed", { version: 0, box: [0, i, 0, j, 0, k], values: Uint8Array.from(image.img) });
  }
  panel.offer("reviewed", Boolean(bytes));
  repaint();
}

async function refreshed(progress) {
  showModel(progress);
  const { session } = bench;
  if (!session?.answer || !bench.ready) return;
  session.answer.progress = progress;
  judgeModel(progress);
  showAnswer(session.answer);
  await session.refresh();
}

function layout() {
  viewer.arrange(!viewer.large, viewer.active);
  painter.paint();
}

async function sendToArchive() {
  say("Sending the label to the archive …");
  const { archive } = await api.send(bench.accepted);
  $("send").hidden = true;
  say(`The label of ${bench.accepted} was sent to ${archive}.`);
}

async function leave() {
  if (connection.lost && connection.strokes) return say("Drawings wait here to be sent: wait for the workbench first.");
  await bench.session?.queue.idle();
  await api.logout();
  location.replace("login.html");
}

async function begin() {
  about = await api.site();
  tellSite(about);
  connection = new Connection(about.user.name, () => Boolean(hand?.drag));
  new Account(about.user);
  colours = about.labels.map((one) => rgb(one.colour));
  panel = new Panel(about.labels, refreshPanel);
  viewer = new Viewer($("images"), () => repaint());
  painter = new Painter($("marks"), viewer);
  painter.colours = colours;
  painter.overlays = panel.visible;
  windowing = new Windowing(viewer);
  worklist = new Worklist(guarded(openCase), failed);
  review = new Review(about.user, about.reasons, about.export, { show: guarded(showOthers), judged: () => worklist.load(), failed });
  hand = new Hand($("view"), { viewer, painter, panel, windowing, go, send, repaint, activate, hint: say, under: tellWhere });
  const acts = { activate, layout, next, suggested, confirmSlice, end, wholeImage, accept, skip, sendToArchive, leave };
  bindKeys({ bench, viewer, painter, panel, windowing, hand, acts, guarded });
  bindButtons({ bench, viewer, acts, guarded });
  showModel(about.progress);
  showAnswer(null);
  enable();
  await Promise.all([viewer.start(), worklist.load()]);
  connection.listen(guarded(refreshed), guarded(() => bench.session?.resume()));
  // For those who look into the page from outside, such as its tests.
  Object.assign(bench, { viewer, painter, panel, go, connection });
  globalThis.workbench = bench;
  const asked = decodeURIComponent(location.hash.slice(1));
  const resumed = worklist.shown.some((one) => one.id === asked) ? asked : worklist.draft();
  if (resumed) await openCase(resumed);
  document.body.dataset.state = "ready";
}

begin().catch(failed);
