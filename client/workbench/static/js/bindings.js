// Which key and which button does what. One table of keys: what is listed is what works.

import { $, el, fill } from "./dom.js";
import { PLANES } from "./geometry.js";
import { Keyboard } from "./keyboard.js";
import { TOOLS } from "./tools.js";

/** `acts`: what main.js can do; `guarded` makes of an act a listener that shows what goes wrong. */
export function bindKeys({ bench, viewer, painter, panel, windowing, hand, acts, guarded }) {
  const keyboard = new Keyboard();
  keyboard.add("Draw", [
    ...TOOLS.map(({ name, title, key }) => [[key], title, () => panel.choose(name)]),
    [["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"], "Label of that number", (event) => panel.take(Number(event.key))],
    [["["], "Smaller brush", () => panel.resize(-1)],
    [["]"], "Larger brush", () => panel.resize(1)],
    [[" "], "Pen down; again: send", () => hand.pen()],
    [["Enter"], "This slice is right as it is shown", acts.confirmSlice],
    [["i"], "The object's first slice", () => acts.end(false)],
    [["o"], "The object's last slice", () => acts.end(true)],
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
    [["n"], "Suggested slice", acts.suggested],
  ]);
  keyboard.add("View", [
    [["a"], "Axial plane", () => acts.activate(PLANES[0])],
    [["f"], "Coronal plane (frontal)", () => acts.activate(PLANES[1])],
    [["l"], "Sagittal plane (lateral)", () => acts.activate(PLANES[2])],
    [["g"], "One large, or four equal views", acts.layout],
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
    [["Shift+N"], "Next case", guarded(acts.next)],
    [["Shift+A"], "Accept", () => $("accept").click()],
    [["Shift+P"], "Accept the prediction", () => $("accept-model").click()],
    [["Shift+S"], "Skip", () => $("skip").click()],
    [["?"], "This list", () => keyboard.help()],
  ]);
  $("help").addEventListener("click", () => keyboard.help());
}

export function bindButtons({ bench, viewer, acts, guarded }) {
  const bound = {
    layout: acts.layout,
    fit: () => viewer.fit(),
    undo: () => bench.session?.undo(),
    redo: () => bench.session?.redo(),
    suggest: acts.suggested,
    confirm: acts.confirmSlice,
    first: () => acts.end(false),
    last: () => acts.end(true),
    whole: acts.wholeImage,
    accept: () => acts.accept("proxy"),
    "accept-model": () => acts.accept("prediction"),
    skip: acts.skip,
    next: acts.next,
    send: acts.sendToArchive,
    leave: acts.leave,
    "failure-close": () => ($("failure").hidden = true),
  };
  for (const [id, act] of Object.entries(bound)) $(id).addEventListener("click", guarded(act));
}

/** What the site says of itself and of who is signed in. */
export function tellSite({ site, user, reasons, ohif }) {
  const role = ["admin", "reviewer"].find((one) => user.roles.includes(one)) ?? "annotator";
  $("site").textContent = site;
  $("person").textContent = `${user.name} · ${role === "admin" ? "administrator" : role}`;
  $("ohif").hidden = !ohif;
  fill($("reason"), ...reasons.map((one) => el("option", { value: one }, one.replaceAll("-", " "))));
  $("reason").value = "image-quality";
}
