"""The studio: every annotator's bench at a site, and the cases that lie on them.

Whoever serves people (the page, the MONAI Label protocol) talks to this module and to nothing below it. Every method
may be called from any thread.
"""

from collections.abc import Sequence
from typing import get_args

import numpy as np

from wardround.client.annotation.effort import full_effort, strict_full_effort
from wardround.client.annotation.prompts import Annotations, ExtentPrompt, Prompt, check_prompt
from wardround.client.annotation.propagation import LIVE, propagate
from wardround.client.cases.drawings import Drawing
from wardround.client.cases.nifti import check_classes, check_same_grid
from wardround.client.cases.volume import Volume
from wardround.client.workbench.bench import Bench
from wardround.client.workbench.benchwork import Benchwork, checked_user, on_desk
from wardround.client.workbench.desk import Desk
from wardround.client.workbench.layers import Layer
from wardround.client.workbench.stopwatch import Clock
from wardround.client.workbench.views import (
    Answer,
    CaseState,
    CaseView,
    Inference,
    Outcome,
    Progress,
    Source,
    Strategy,
    TrainView,
)
from wardround.client.workbench.window import window_for
from wardround.errors import UsageError

__all__ = [
    "Answer",
    "CaseView",
    "Inference",
    "Outcome",
    "Progress",
    "Studio",
    "TrainView",
]


class Studio(Benchwork):
    """All benches of a site.

    Parameters
    ----------
    home
        The site's folder; benches lie under ``site/benches``.
    store
        Cases, labels and drawings.
    device
        Who may compute; shared with the federation's rounds.
    torch_device
        ``auto``, ``cpu`` or ``cuda``.
    federation
        What the site does for the federation at this moment.
    look_ahead
        Whether benches that have nothing to do judge the cases to come, so that the one on which the model is least
        sure is the next.
    """

    def changes(self, user: str) -> int:
        """A number that rises whenever a layer, the progress or a state that `user` sees has changed."""
        return self.benches.news(checked_user(user)).changes

    def wait_for_change(self, user: str, seen: int, timeout_s: float) -> int:
        """Wait until :meth:`changes` is above `seen`, at most `timeout_s` seconds, and return it."""
        return self.benches.news(checked_user(user)).wait(seen, timeout_s)

    def cases(self, user: str) -> tuple[CaseView, ...]:
        """All cases, in the order in which they arrived."""
        return self.worklist.cases(user)

    def case(self, case_id: str, user: str) -> CaseView:
        """One case.

        Raises
        ------
        DataError
            If there is no such case.
        """
        return self.worklist.case(case_id, user)

    def image(self, case_id: str) -> Volume:
        """Intensities of a case, float32; the last few are kept at hand."""
        return self.worklist.image(case_id)

    def next_case(self, user: str, strategy: Strategy = "disagreement") -> str | None:
        """A case that `user` has not closed yet, None where none is left."""
        bench = self.benches.peek(user)
        return self.worklist.next_case(user, strategy, on_desk(bench), None if bench is None else dict(bench.scores))

    def open(self, case_id: str, user: str) -> Answer:
        """Lay a case on the user's bench; a draft is resumed, also after a restart. Another open case stays a draft.

        Raises
        ------
        DataError
            If there is no such case.
        LabelError
            If structures are drawn on it that the model does not know. The draft stays as it is.
        """
        clock = Clock()
        with self.at(user) as bench:
            clock.lap("wait")
            desk = bench.desk
            if desk is None or desk.case_id != case_id:
                desk = self.lay(bench, case_id, clock)
            return self.answer(bench, desk, clock)

    def draw(self, case_id: str, user: str, prompts: Sequence[Prompt], extent: ExtentPrompt | None = None) -> Answer:
        """Answer a drawing with the new proxy; the model learns behind.

        Raises
        ------
        UsageError
            If the case does not lie on the user's bench, or a prompt does not fit it.
        """
        if not prompts and extent is None:
            with self.at(user) as bench:
                return self.answer(bench, self.desk(bench, case_id), Clock())
        return self.act(case_id, user, lambda desk: desk.draw(prompts, extent), tuple(prompts), extent)

    def undo(self, case_id: str, user: str) -> Answer:
        """Take the last step back."""
        return self.act(case_id, user, Desk.undo, anew=True)

    def redo(self, case_id: str, user: str) -> Answer:
        """Draw the step again that was taken back last."""
        return self.act(case_id, user, Desk.redo, redo=True)

    def layer(self, case_id: str, user: str, name: str, newer_than: int = -1) -> Layer | None:
        """A layer of an open case; None if there is none, or none with a version above `newer_than`."""
        with self.benches.of(checked_user(user)) as bench:
            desk = bench.desk
            if desk is None or desk.case_id != case_id:
                with bench.hands:
                    desk = self.desk(bench, case_id)
            return desk.layer(name, newer_than)

    def accept(self, case_id: str, user: str, source: Source = "proxy", shown: int | None = None) -> Outcome:
        """Store what was drawn and the label durably, then learn from the case.

        Parameters
        ----------
        shown
            Version of the layer of that name which the person looked at; None for whatever it is now.

        Raises
        ------
        UsageError
            If nothing is drawn, or the layer is not that version any more: nobody accepts what they have not seen.
        """
        if source not in get_args(Source):
            raise UsageError(f"{source!r} is no label", "", f"accept one of {', '.join(get_args(Source))}")
        with self.at(user) as bench:
            desk = self.desk(bench, case_id)
            if source == "prediction" and not desk.predicted:
                raise UsageError(
                    "the prediction is not complete yet", "the image is large", "wait a moment, and accept it then"
                )
            # Only now: what is complete may have become so a moment ago.
            layer = desk.layer(source, -1) if source == "prediction" or desk.stands else None
            if layer is None:
                raise UsageError(
                    "there is nothing to accept", "nothing is drawn on this case", "draw, or accept the prediction"
                )
            if shown is not None and layer.version != shown:
                raise UsageError(
                    "this label is another one by now", "the model went on learning", "look at it again, and accept it"
                )
            label = self.worklist.grid(case_id).with_array(layer.whole())
            self._store.save_drawing(desk.drawing("accepted", source), label)
            self._verdicts.pop((case_id, user), None)
            if desk.stands:
                bench.accept(lambda kept: self._judged(bench, case_id, kept))
            else:
                bench.leave()
            bench.note()
        return self._outcome(case_id, user, "accepted")

    def skip(self, case_id: str, user: str, reason: str) -> Outcome:
        """Put a case aside; what was drawn is kept, nothing is learnt."""
        with self.at(user) as bench:
            desk = self.desk(bench, case_id)
            self._store.save_drawing(desk.drawing("skipped", reason=reason))
            bench.leave()
            bench.note()
        return self._outcome(case_id, user, "skipped")

    def close(self, case_id: str, user: str) -> None:
        """Take a case off the bench; what was drawn stays a draft."""
        with self.at(user) as bench:
            if self.benches.left_open(user) == case_id:
                self.benches.forget_left_open(user)
            if bench.desk is not None and bench.desk.case_id == case_id:
                bench.leave()
                bench.note()

    def save_label(self, case_id: str, user: str, labels: Volume) -> Outcome:
        """Accept a whole label that another viewer drew.

        Raises
        ------
        DataError, GeometryError, LabelError
            If there is no such case, or the label is none of it. What is open stays open.
        """
        grid = self.worklist.grid(case_id)
        check_same_grid(grid, labels, "the label")
        with self.at(user) as bench:
            check_classes(labels, bench.plan.labels, "the label")
            array = np.asarray(labels.array, dtype=np.uint8)
            desk = bench.desk
            on_desk = desk is not None and desk.case_id == case_id
            known = desk.drawing("open") if desk is not None and on_desk else self._store.drawing(case_id, user)
            drawing = Drawing(
                case_id,
                user,
                () if known is None else known.steps,
                None if known is None else known.extent,
                state="accepted",
                source="whole",
                effort_contour=float(full_effort(array)),
                effort_strict=strict_full_effort(array),
                round=bench.plan.round,
                model=bench.apprentice.base,
                seconds=0.0 if known is None else known.seconds,
            )
            self._store.save_drawing(drawing, grid.with_array(array))
            if on_desk:
                bench.leave()
            self._verdicts.pop((case_id, user), None)
            if self.worklist.learns(case_id):
                bench.accept_whole(case_id, self.image(case_id), array, lambda kept: self._judged(bench, case_id, kept))
            bench.note()
        return self._outcome(case_id, user, "accepted")

    def label(self, case_id: str, author: str) -> Volume | None:
        """What `author` has saved of a case."""
        self.worklist.grid(case_id)
        return self._store.label(case_id, author)

    def infer(
        self,
        image: Volume | str,
        user: str,
        prompts: Sequence[Prompt] = (),
        extent: ExtentPrompt | None = None,
    ) -> Inference:
        """Labels of an image, or of a case by its id, without a session.

        Raises
        ------
        DataError
            If there is no such case.
        UsageError
            If a prompt or the extent does not fit the image.
        """
        clock = Clock()
        volume = self.image(image) if isinstance(image, str) else image
        with self.benches.of(checked_user(user)) as bench:
            labels = bench.plan.labels
            for prompt in prompts:
                check_prompt(prompt, volume.shape, labels)
            empty = Annotations(extent=extent).checked(volume.shape, labels)
            clock.lap("load")
            if prompts:
                window = window_for(volume.shape, empty.adding(*prompts))
                known = Annotations(extent=window.local_extent(extent)).adding(*window.locals(*prompts))
                found = np.zeros(volume.shape, dtype=np.uint8)
                with self._device.beside():
                    found[window.slices] = propagate(window.crop(volume), known, labels, settings=LIVE).labels
                clock.lap("propagate")
            else:
                found = bench.predict(volume)
                clock.lap("predict")
            return Inference(found, clock.spent, self.progress_of(bench))

    def train(self, user: str) -> str:
        """Rehearse from memory, behind; the id of the task."""
        with self.at(user) as bench:
            return bench.train().id

    def stop_training(self, user: str) -> None:
        """End the user's rehearsal after its update; nothing happens where none runs."""
        bench = self.benches.peek(user)
        if bench is not None:
            bench.stop_training()

    def training(self, user: str) -> TrainView | None:
        """The user's last rehearsal, None before the first."""
        training = self.benches.training(user)
        return None if training is None else training.view

    def wait(self, user: str, timeout_s: float) -> bool:
        """Wait until nothing is left to learn; False if it took longer."""
        with self.benches.of(checked_user(user)) as bench:
            return bench.wait(timeout_s)

    def close_all(self) -> None:
        """End all benches; drafts stay."""
        self.benches.close()

    def kept(self, case_id: str, user: str) -> bool | None:
        """Whether what was learnt from a case that `user` accepted stayed; None while nobody knows."""
        return self._verdicts.get((case_id, user))

    def _judged(self, bench: Bench, case_id: str, kept: bool) -> None:
        self._verdicts[case_id, bench.user] = kept
        bench.note()

    def _outcome(self, case_id: str, user: str, state: CaseState) -> Outcome:
        return Outcome(case_id, state, self._verdicts.get((case_id, user)), self.next_case(user))
