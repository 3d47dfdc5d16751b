// What an answer of the workbench changes on the page.

import { bench, repaint } from "./bench.js";
import { $ } from "./dom.js";
import { planeOf } from "./moving.js";
import { showAnswer, showModel } from "./progress.js";

export function answered(answer) {
  bench.answer = answer;
  bench.asked = 0;
  bench.painter.suggestion = answer.suggestion[0] ?? null;
  bench.painter.extent = answer.extent;
  $("failure").hidden = true;
  judgeModel(answer.progress);
  showAnswer(answer);
  bench.guide.show(answer);
  showModel(answer.progress);
  bench.worklist.drew(answer);
  enable();
  repaint();
}

/** Which buttons there is something to do for. */
export function enable() {
  const { session, viewer } = bench;
  const answer = session?.answer;
  $("undo").disabled = !answer?.can_undo;
  $("redo").disabled = !answer?.can_redo;
  const [first] = answer?.suggestion ?? [];
  $("suggest").disabled = !first;
  $("suggest").textContent = first && viewer.grid ? `Suggested: ${planeOf(first)}` : "Suggested slice";
  $("accept").disabled = !answer?.step;
  for (const id of ["accept-model", "skip", "confirm", "first", "last", "whole"]) $(id).disabled = !answer;
}

/** The prediction of a model that has learnt nothing is noise, and not shown unless somebody asks. */
function judgeModel({ run, updates_done }) {
  bench.panel.suggest("prediction", Boolean(run) || updates_done > 0);
}

/** The model behind has changed, and maybe what it predicts. */
export async function refreshed(progress) {
  showModel(progress);
  const { session } = bench;
  if (!session?.answer || !bench.ready) return;
  session.answer.progress = progress;
  judgeModel(progress);
  showAnswer(session.answer);
  await session.refresh();
}

/** Put the label into the rendering, when the hand rests: without a graphics card a rendering takes long. */
export function showInRendering() {
  clearTimeout(bench.rendering);
  const { viewer, painter, panel } = bench;
  bench.rendering = setTimeout(() => {
    if (!bench.ready) return;
    if (bench.hand.drawing || bench.session?.strokes.length) return showInRendering();
    const proxy = painter.layers.get("proxy");
    const prediction = panel.shows("prediction") ? painter.layers.get("prediction") : null;
    viewer.renderLabels(proxy && proxy.values.length ? proxy : prediction);
  }, Math.min(5000, Math.max(350, 4 * viewer.cost)));
}
