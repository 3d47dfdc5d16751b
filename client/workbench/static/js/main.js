// The page: it makes the parts, joins them, and begins.

import * as api from "./api.js";
import { Account } from "./account.js";
import { enable, refreshed, showInRendering } from "./answering.js";
import { bench, repaint } from "./bench.js";
import { bindButtons, bindKeys, tellSite } from "./bindings.js";
import { Connection } from "./connection.js";
import { $, rgb, say } from "./dom.js";
import { confirmSlice, end, send, wholeImage } from "./drawing.js";
import { accept, next, sendToArchive, skip } from "./finishing.js";
import { Guide } from "./guide.js";
import { Hand } from "./hand.js";
import { activate, go, layout, suggested, tellWhere } from "./moving.js";
import { openCase } from "./opening.js";
import { Painter } from "./painter.js";
import { Panel } from "./panel.js";
import { showAnswer, showModel } from "./progress.js";
import { Review } from "./review.js";
import { failed, guarded } from "./telling.js";
import { Viewer } from "./viewer.js";
import { Windowing } from "./windowing.js";
import { Worklist } from "./worklist.js";

/** Something else is shown or drawn with. */
function refreshPanel() {
  const { painter, panel, session } = bench;
  if (!painter) return;
  const before = painter.overlays;
  painter.overlays = panel.visible;
  bench.guide?.refresh();
  repaint();
  const more = painter.overlays.some((one, n) => one.shown && !before[n]?.shown);
  if (more && session?.answer) {
    session.refresh().catch(failed);
    showInRendering();
  }
}

/** Show the label of `author`, or hide it: then there are no `bytes`. */
async function showOthers(author, bytes) {
  const { painter } = bench;
  if (!bytes) {
    painter.layers.delete("reviewed");
  } else {
    const image = await globalThis.niivue.NVImage.loadFromUrl({ url: "label.nii.gz", name: "label.nii.gz", buffer: bytes });
    const [i, j, k] = bench.viewer.grid.shape;
    painter.layers.set("reviewed", { version: 0, box: [0, i, 0, j, 0, k], values: Uint8Array.from(image.img) });
  }
  bench.panel.offer("reviewed", Boolean(bytes));
  repaint();
}

async function leave() {
  const { connection, session } = bench;
  if (connection.lost && connection.strokes) return say("Drawings wait here to be sent: wait for the workbench first.");
  await session?.queue.idle();
  await api.logout();
  location.replace("login.html");
}

function make(about) {
  bench.about = about;
  bench.connection = new Connection(about.user.name, () => Boolean(bench.hand?.drag));
  bench.panel = new Panel(about.labels, refreshPanel);
  bench.viewer = new Viewer($("images"), () => repaint());
  bench.painter = new Painter($("marks"), bench.viewer);
  bench.painter.colours = about.labels.map((one) => rgb(one.colour));
  bench.painter.overlays = bench.panel.visible;
  bench.guide = new Guide(bench.panel);
  bench.windowing = new Windowing(bench.viewer);
  bench.worklist = new Worklist(guarded(openCase), failed);
  const told = { show: guarded(showOthers), judged: () => bench.worklist.load(), failed };
  bench.review = new Review(about.user, about.reasons, about.export, told);
  const { viewer, painter, panel, windowing } = bench;
  bench.hand = new Hand($("view"), { viewer, painter, panel, windowing, go, send, repaint, activate, hint: say, under: tellWhere });
  // For those who look into the page from outside, such as its tests.
  globalThis.workbench = Object.assign(bench, { go });
}

async function begin() {
  const about = await api.site();
  tellSite(about);
  make(about);
  new Account(about.user);
  const acts = { activate, layout, next, suggested, confirmSlice, end, wholeImage, accept, skip, sendToArchive, leave };
  bindKeys({ ...bench, bench, acts, guarded });
  bindButtons({ ...bench, bench, acts, guarded });
  showModel(about.progress);
  showAnswer(null);
  enable();
  const { viewer, worklist, connection } = bench;
  await Promise.all([viewer.start(), worklist.load()]);
  connection.listen(guarded(refreshed), guarded(() => bench.session?.resume()));
  const asked = decodeURIComponent(location.hash.slice(1));
  const resumed = worklist.shown.some((one) => one.id === asked) ? asked : worklist.draft();
  if (resumed) await openCase(resumed);
  document.body.dataset.state = "ready";
}

begin().catch(failed);
