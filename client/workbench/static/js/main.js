// The page: it joins the parts, and holds which case is open.

import * as api from "./api.js";
import { $, el, fill, oncePerFrame, rgb, say } from "./dom.js";
import { PLANES } from "./geometry.js";
import { Hand } from "./hand.js";
import { Keyboard } from "./keyboard.js";
import { Painter } from "./painter.js";
import { Panel } from "./panel.js";
import { listen, showAnswer, showModel } from "./progress.js";
import { Review } from "./review.js";
import { Session } from "./session.js";
import { TOOLS, complete } from "./tools.js";
import { Viewer } from "./viewer.js";
import { Windowing } from "./windowing.js";
import { Worklist } from "./worklist.js";

const bench = { session: null };
let panel, viewer, painter, windowing, hand, worklist, review, colours, about;

function failed(error) {
  if (error.name === "AbortError") return;
  if (error.code === "not-signed-in") return location.replace(`login.html${location.hash}`);
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
    wanted: () => ["drawn", "proxy", ...["prediction", "residual", "confidence"].filter((name) => panel.shows(name))],
    waiting: (strokes) => {
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
    const bytes = await api.image(id, (got, total) => busy("Loading the image", total ? got / total : null));
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
    const proxy = painter.layers.get("proxy");
    const prediction = panel.shows("prediction") ? painter.layers.get("prediction") : null;
    viewer.renderLabels(proxy && proxy.values.length ? proxy : prediction);
  }, 350);
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
  for (const id of ["accept-model", "skip", "confirm"]) $(id).disabled = !answer;
}

function send(drawing) {
  const { session } = bench;
  if (!session?.answer) return;
  say("");
  session.draw(() => drawing.prompts(session.layer("drawn")), drawing.shown).then(() => {
    if (session === bench.session && session.answer) say(`Answered in ${Math.round(session.answer.latency_ms.total)} ms. The draft is saved.`);
  });
}

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
  const voxel = [...painter.cursor];
  voxel[first.axis] = first.index;
  const plane = viewer.grid.planeOf(first.axis);
  activate(plane);
  go(middleOfLabel(first, voxel));
  say(`Suggested: ${planeOf(first)}.`);
}

/** The middle of the label within a slice, so that the cursor is where there is something to see. */
function middleOfLabel({ axis, index }, otherwise) {
  const proxy = painter.layers.get("proxy");
  const layer = proxy?.values.length ? proxy : painter.layers.get("prediction");
  if (!layer?.values.length) return otherwise;
  const { box } = layer;
  const middle = [0, 1, 2].map((n) => Math.floor((box[2 * n] + box[2 * n + 1] - 1) / 2));
  middle[axis] = index;
  return middle;
}

async function finish(act, done) {
  const { session } = bench;
  if (!session?.answer) return;
  await session.queue.idle();
  const outcome = await act(session);
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

function bindKeys() {
  const keyboard = new Keyboard();
  keyboard.add("Draw", [
    ...TOOLS.map(({ name, title, key }) => [[key], title, () => panel.choose(name)]),
    [["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"], "Label of that number", (event) => panel.take(Number(event.key))],
    [["["], "Smaller brush", () => panel.resize(-1)],
    [["]"], "Larger brush", () => panel.resize(1)],
    [[" "], "Pen down; again: send", () => hand.pen()],
    [["Enter"], "This slice is right as it is shown", confirmSlice],
    [["Escape"], "Leave a stroke", () => hand.cancel()],
    [["z", "Ctrl+Z"], "Undo", () => bench.session?.undo()],
    [["y", "Ctrl+Y", "Ctrl+Shift+Z"], "Redo", () => bench.session?.redo()],
  ]);
  keyboard.add("Move", [
    [["ArrowLeft"], "Cursor to the left", () => hand.step(-1, 0)],
    [["ArrowRight"], "Cursor to the right", () => hand.step(1, 0)],
    [["ArrowUp"], "Cursor up", () => hand.step(0, 1)],
    [["ArrowDown"], "Cursor down", () => hand.step(0, -1)],
    [["Shift+ArrowLeft"], "Five to the left", () => hand.step(-5, 0)],
    [["Shift+ArrowRight"], "Five to the right", () => hand.step(5, 0)],
    [["Shift+ArrowUp"], "Five up", () => hand.step(0, 5)],
    [["Shift+ArrowDown"], "Five down", () => hand.step(0, -5)],
    [["PageUp", "."], "Next slice", () => hand.scroll(viewer.active, 1)],
    [["PageDown", ","], "Slice before", () => hand.scroll(viewer.active, -1)],
    [["n"], "Suggested slice", suggested],
  ]);
  keyboard.add("View", [
    [["a"], "Axial plane", () => activate(PLANES[0])],
    [["f"], "Coronal plane (frontal)", () => activate(PLANES[1])],
    [["l"], "Sagittal plane (lateral)", () => activate(PLANES[2])],
    [["g"], "One large, or four equal views", () => layout()],
    [["Plus", "="], "Enlarge", () => viewer.grid && viewer.zoom(1.2, painter.cursor)],
    [["-"], "Reduce", () => viewer.grid && viewer.zoom(1 / 1.2, painter.cursor)],
    [["Home"], "Fit to the window", () => viewer.fit()],
    [["w"], "Next window", () => windowing.next()],
    [["x"], "Label so far", () => panel.toggle("proxy")],
    [["m"], "Prediction", () => panel.toggle("prediction")],
    [["d"], "What was drawn", () => panel.toggle("drawn")],
    [["r"], "Disagreement", () => panel.toggle("residual")],
    [["k"], "Confidence", () => panel.toggle("confidence")],
    [["h"], "The image alone", () => panel.hideAll()],
  ]);
  keyboard.add("Case", [
    [["Shift+N"], "Next case", guarded(next)],
    [["Shift+A"], "Accept", () => $("accept").click()],
    [["Shift+P"], "Accept the prediction", () => $("accept-model").click()],
    [["Shift+S"], "Skip", () => $("skip").click()],
    [["?"], "This list", () => keyboard.help()],
  ]);
  $("help").addEventListener("click", () => keyboard.help());
}

function layout() {
  viewer.arrange(!viewer.large, viewer.active);
  painter.paint();
}

function bindButtons() {
  const on = (id, act) => $(id).addEventListener("click", guarded(act));
  on("layout", layout);
  on("fit", () => viewer.fit());
  on("undo", () => bench.session?.undo());
  on("redo", () => bench.session?.redo());
  on("suggest", suggested);
  on("confirm", confirmSlice);
  on("accept", () => accept("proxy"));
  on("accept-model", () => accept("prediction"));
  on("skip", skip);
  on("next", next);
  on("send", async () => {
    say("Sending the label to the archive …");
    const { archive } = await api.send(bench.accepted);
    $("send").hidden = true;
    say(`The label of ${bench.accepted} was sent to ${archive}.`);
  });
  on("failure-close", () => ($("failure").hidden = true));
  on("leave", async () => {
    await bench.session?.queue.idle();
    await api.logout();
    location.replace("login.html");
  });
}

async function begin() {
  about = await api.site();
  $("site").textContent = about.site;
  $("person").textContent = `${about.user.name} · ${about.user.roles.includes("admin") ? "administrator" : about.user.roles.includes("reviewer") ? "reviewer" : "annotator"}`;
  colours = about.labels.map((one) => rgb(one.colour));
  fill($("reason"), ...about.reasons.map((one) => el("option", { value: one }, one.replaceAll("-", " "))));
  $("reason").value = "image-quality";
  panel = new Panel(about.labels, refreshPanel);
  viewer = new Viewer($("images"), () => repaint());
  painter = new Painter($("marks"), viewer);
  painter.colours = colours;
  painter.overlays = panel.visible;
  windowing = new Windowing(viewer);
  worklist = new Worklist(guarded(openCase), failed);
  review = new Review(about.user, about.reasons, about.export, { show: guarded(showOthers), judged: () => worklist.load(), failed });
  hand = new Hand($("view"), { viewer, painter, panel, windowing, go, send, repaint, activate, hint: say, under: tellWhere });
  bindKeys();
  bindButtons();
  showModel(about.progress);
  showAnswer(null);
  enable();
  await Promise.all([viewer.start(), worklist.load()]);
  bench.events = listen(guarded(refreshed));
  // For those who look into the page from outside, such as its tests.
  Object.assign(bench, { viewer, painter, panel, go });
  globalThis.workbench = bench;
  const asked = decodeURIComponent(location.hash.slice(1));
  const resumed = worklist.shown.some((one) => one.id === asked) ? asked : worklist.draft();
  if (resumed) await openCase(resumed);
  document.body.dataset.state = "ready";
}

begin().catch(failed);
