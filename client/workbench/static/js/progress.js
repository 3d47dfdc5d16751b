// What is known without ground truth: what was drawn, what changed, and what the model behind does.

import { $, el, fill } from "./dom.js";

const percent = (share) => `${(share * 100).toFixed(share < 0.1 ? 1 : 0)} %`;

/** The line at the top: which model, of which round, and whether it learns. */
export function showModel({ model, run, round, learning, updates_left, federation }) {
  const words = { idle: "", train: "training for the federation", evaluate: "being evaluated for the federation" };
  const doing = learning ? (updates_left ? `learning · ${updates_left} to go` : "learning") : words[federation] || "ready";
  fill(
    $("model"),
    el("span", { class: learning ? "dot busy" : "dot", "aria-hidden": "true" }),
    el("span", {}, run ? `Round ${round} of ${run}` : "No federated round yet"),
    el("span", { class: "quiet" }, `model ${model || "untrained"}`),
    el("span", { class: "doing" }, doing),
  );
}

/** The list in the panel. */
export function showAnswer(answer) {
  if (!answer) return fill($("progress"), el("dt", {}, "Nothing is open"));
  const { effort_contour, effort_strict, effort_share, changed, step, progress } = answer;
  const meter = el("meter", { min: 0, max: 1, value: Math.min(1, effort_share), "aria-label": "Share of drawing every slice" });
  const lines = [
    ["Drawn", `${step} ${step === 1 ? "step" : "steps"}, ${Math.round(effort_contour)} px`],
    ["Strict count", `${Math.round(effort_strict)} px`],
    ["Of all slices", meter, effort_share ? percent(effort_share) : "–"],
    ["Label changed", step ? percent(changed) : "–"],
    ["Model learnt", `${progress.updates_done} updates`],
  ];
  fill($("progress"), ...lines.flatMap(([name, text, more]) => [el("dt", {}, name), el("dd", {}, text, more)]));
}
