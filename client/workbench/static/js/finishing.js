// A case is finished: its label is accepted or the case put aside, and the next one comes.

import * as api from "./api.js";
import { enable } from "./answering.js";
import { bench } from "./bench.js";
import { $, say } from "./dom.js";
import { openCase } from "./opening.js";
import { showAnswer } from "./progress.js";

async function finish(act, done) {
  const { session } = bench;
  if (!session?.answer) return;
  await session.queue.idle();
  const outcome = await session.finish(act, () => bench.worklist.next());
  session.closed = true;
  say(done);
  if (outcome.next) {
    await openCase(outcome.next);
    say(done);
  } else {
    await closeCase();
  }
  if (bench.about.export && session.id) offerSending(session.id);
}

async function closeCase() {
  bench.session = null;
  bench.answer = null;
  bench.viewer.clear();
  bench.painter.forget();
  bench.guide.forget();
  bench.painter.paint();
  showAnswer(null);
  $("empty").hidden = false;
  history.replaceState(null, "", " ");
  bench.worklist.mark(null);
  await bench.worklist.load();
  enable();
}

function offerSending(id) {
  bench.accepted = id;
  $("send").hidden = false;
}

export async function accept(source) {
  // A prediction may change while it is looked at; the label so far changes by the person's own hand alone.
  const seen = source === "prediction" && bench.panel.shows(source) ? bench.painter.layers.get(source)?.version : undefined;
  if (source === "prediction" && seen === undefined) {
    say("Show the prediction first (M), and look at it.");
    return;
  }
  await finish((session) => api.accept(session.id, source, seen), "Accepted. The label is stored.");
}

export const skip = () => finish((session) => api.skip(session.id, $("reason").value), "Skipped.");

export async function next() {
  const id = await bench.worklist.next();
  if (id) await openCase(id);
}

export async function sendToArchive() {
  say("Sending the label to the archive …");
  const { archive } = await api.send(bench.accepted);
  $("send").hidden = true;
  say(`The label of ${bench.accepted} was sent to ${archive}.`);
}
