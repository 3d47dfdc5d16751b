"""The studio: every annotator's bench at a site, and the cases that lie on them.

Whoever serves people (the page, the MONAI Label protocol) talks to this module and to nothing below it. Every method
may be called from any thread.
"""

import itertools
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import get_args

import numpy as np

from wardround.client.annotation.effort import full_effort, strict_full_effort
from wardround.client.annotation.prompts import Annotations, ExtentPrompt, Prompt, check_prompt
from wardround.client.annotation.propagation import LIVE, propagate
from wardround.client.cases.drawings import Drawing
from wardround.client.cases.nifti import check_classes, check_same_grid
from wardround.client.cases.store import CaseStore
from wardround.client.cases.volume import Volume
from wardround.client.device import Device
from wardround.client.home import SiteHome
from wardround.client.learning.latest import LatestModel
from wardround.client.learning.learner import resolve_device
from wardround.client.workbench.bench import Bench
from wardround.client.workbench.benches import Benches
from wardround.client.workbench.desk import Clock, Desk
from wardround.client.workbench.layers import Layer
from wardround.client.workbench.news import News
from wardround.client.workbench.views import (
    Answer,
    CaseState,
    CaseView,
    Federation,
    Inference,
    Outcome,
    Progress,
    Source,
    Strategy,
    TrainView,
)
from wardround.client.workbench.warmup import warm_up
from wardround.client.workbench.worklist import WorkList
from wardround.errors import DataError, LabelError, StorageError, UsageError, WardroundError
from wardround.strategies.plan import RoundPlan

__all__ = [
    "Answer",
    "CaseView",
    "Inference",
    "Outcome",
    "Progress",
    "Studio",
    "TrainView",
]

_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Studio:
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

    def __init__(
        self,
        home: SiteHome,
        store: CaseStore,
        device: Device,
        *,
        torch_device: str = "auto",
        federation: Callable[[], Federation] = lambda: "idle",
        look_ahead: bool = True,
    ) -> None:
        self._home = home
        self._store = store
        self._device = device
        self._torch_device = resolve_device(torch_device)
        self._federation = federation
        self._look_ahead = look_ahead
        self._latest = LatestModel(home.site / "model")
        settings = home.workbench
        self._names = settings.labels
        self._fallback = RoundPlan(
            run="local", round=1, rounds=1, seed=0, model=settings.model, labels=max(2, len(settings.labels) + 1)
        )
        self.benches = Benches(self._build)
        self._list = WorkList(store)
        self._verdicts: dict[tuple[str, str], bool] = {}
        self._known: tuple[str, RoundPlan] = ("", self._fallback)
        # Whoever kept a layer from before a restart must not take it for a newer one.
        self._versions = itertools.count(time.time_ns() // 1_000_000)
        warm_up()

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of labels 1, 2, …, as the plan counts them."""
        count = self._plan().labels - 1
        return tuple(self._names[n] if n < len(self._names) else str(n + 1) for n in range(count))

    def progress(self, user: str) -> Progress:
        """What the model behind `user`'s drawing is and does."""
        bench = self.benches.peek(user)
        if bench is None:
            digest, plan = self._latest_plan()
            run, round_ = (plan.run, plan.round) if digest else ("", 0)
            return Progress(digest[:12], run, round_, False, 0, 0, self._federation())
        return self._progress(bench)

    def changes(self, user: str) -> int:
        """A number that rises whenever a layer, the progress or a state that `user` sees has changed."""
        return self.benches.news(_checked(user)).changes

    def wait_for_change(self, user: str, seen: int, timeout_s: float) -> int:
        """Wait until :meth:`changes` is above `seen`, at most `timeout_s` seconds, and return it."""
        return self.benches.news(_checked(user)).wait(seen, timeout_s)

    def cases(self, user: str) -> tuple[CaseView, ...]:
        """All cases, in the order in which they arrived."""
        return self._list.cases(user)

    def case(self, case_id: str, user: str) -> CaseView:
        """One case.

        Raises
        ------
        DataError
            If there is no such case.
        """
        return self._list.case(case_id, user)

    def image(self, case_id: str) -> Volume:
        """Intensities of a case, float32; the last few are kept at hand."""
        return self._list.image(case_id)

    def next_case(self, user: str, strategy: Strategy = "disagreement") -> str | None:
        """A case that `user` has not closed yet, None where none is left."""
        bench = self.benches.peek(user)
        return self._list.next_case(user, strategy, _on_desk(bench), None if bench is None else dict(bench.scores))

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
        with self._at(user) as bench:
            clock.lap("wait")
            desk = bench.desk
            if desk is None or desk.case_id != case_id:
                desk = self._lay(bench, case_id, clock)
            return self._answer(bench, desk, clock)

    def draw(self, case_id: str, user: str, prompts: Sequence[Prompt], extent: ExtentPrompt | None = None) -> Answer:
        """Answer a drawing with the new proxy; the model learns behind.

        Raises
        ------
        UsageError
            If the case does not lie on the user's bench, or a prompt does not fit it.
        """
        if not prompts and extent is None:
            with self._at(user) as bench:
                return self._answer(bench, self._desk(bench, case_id), Clock())
        return self._act(case_id, user, lambda desk: desk.draw(prompts, extent), tuple(prompts), extent)

    def undo(self, case_id: str, user: str) -> Answer:
        """Take the last step back."""
        return self._act(case_id, user, Desk.undo, anew=True)

    def redo(self, case_id: str, user: str) -> Answer:
        """Draw the step again that was taken back last."""
        return self._act(case_id, user, Desk.redo, redo=True)

    def layer(self, case_id: str, user: str, name: str, newer_than: int = -1) -> Layer | None:
        """A layer of an open case; None if there is none, or none with a version above `newer_than`."""
        with self.benches.of(_checked(user)) as bench:
            desk = bench.desk
            if desk is None or desk.case_id != case_id:
                with bench.hands:
                    desk = self._desk(bench, case_id)
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
        with self._at(user) as bench:
            desk = self._desk(bench, case_id)
            layer = desk.layer(source, -1) if source == "prediction" or desk.stands else None
            if layer is None:
                raise UsageError(
                    "there is nothing to accept", "nothing is drawn on this case", "draw, or accept the prediction"
                )
            if source == "prediction" and not desk.predicted:
                raise UsageError(
                    "the prediction is not complete yet", "the image is large", "wait a moment, and accept it then"
                )
            if shown is not None and layer.version != shown:
                raise UsageError(
                    "this label is another one by now", "the model went on learning", "look at it again, and accept it"
                )
            label = self._list.grid(case_id).with_array(layer.whole())
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
        with self._at(user) as bench:
            desk = self._desk(bench, case_id)
            self._store.save_drawing(desk.drawing("skipped", reason=reason))
            bench.leave()
            bench.note()
        return self._outcome(case_id, user, "skipped")

    def close(self, case_id: str, user: str) -> None:
        """Take a case off the bench; what was drawn stays a draft."""
        with self._at(user) as bench:
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
        grid = self._list.grid(case_id)
        check_same_grid(grid, labels, "the label")
        with self._at(user) as bench:
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
            if self._list.learns(case_id):
                bench.accept_whole(case_id, self.image(case_id), array, lambda kept: self._judged(bench, case_id, kept))
            bench.note()
        return self._outcome(case_id, user, "accepted")

    def label(self, case_id: str, author: str) -> Volume | None:
        """What `author` has saved of a case."""
        self._list.grid(case_id)
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
        with self.benches.of(_checked(user)) as bench:
            for prompt in prompts:
                check_prompt(prompt, volume.shape, bench.plan.labels)
            clock.lap("load")
            if prompts:
                known = Annotations(extent=extent).adding(*prompts)
                with self._device.beside():
                    found = propagate(volume, known, bench.plan.labels, settings=LIVE).labels
                clock.lap("propagate")
            else:
                found = bench.predict(volume)
                clock.lap("predict")
            return Inference(found, clock.spent, self._progress(bench))

    def train(self, user: str) -> str:
        """Rehearse from memory, behind; the id of the task."""
        with self._at(user) as bench:
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
        with self.benches.of(_checked(user)) as bench:
            return bench.wait(timeout_s)

    def close_all(self) -> None:
        """End all benches; drafts stay."""
        self.benches.close()

    def kept(self, case_id: str, user: str) -> bool | None:
        """Whether what was learnt from a case that `user` accepted stayed; None while nobody knows."""
        return self._verdicts.get((case_id, user))

    def _act(
        self,
        case_id: str,
        user: str,
        act: Callable[[Desk], None],
        prompts: tuple[Prompt, ...] = (),
        extent: ExtentPrompt | None = None,
        *,
        anew: bool = False,
        redo: bool = False,
    ) -> Answer:
        clock = Clock()
        with self._at(user) as bench:
            desk = self._desk(bench, case_id)
            clock.lap("wait")
            if redo and desk.undone:
                prompts = desk.undone[-1]
            before = desk
            if prompts or extent is not None:
                desk = bench.reach(desk, self.image(case_id), prompts, extent)
                if desk is not before:
                    clock.lap("move")
            kept = desk.kept()
            with self._device.beside():
                act(desk)
                clock.lap("propagate")
                desk.publish()
                clock.lap("encode")
                try:
                    self._store.save_drawing(desk.drawing("open"))
                except WardroundError:
                    desk.restore(kept)
                    raise
                clock.lap("persist")
                answer = self._answer(bench, desk, clock)
            bench.learn(desk, anew=anew or desk is not before)
        return answer

    def _answer(self, bench: Bench, desk: Desk, clock: Clock) -> Answer:
        suggestion = desk.suggest()
        clock.lap("suggest")
        drawing = desk.drawing("open")
        bench.note()
        return Answer(
            desk.case_id,
            len(desk.steps),
            desk.can_undo,
            desk.can_redo,
            suggestion,
            drawing.effort_contour,
            drawing.effort_strict,
            desk.effort_share,
            float(desk.changed),
            desk.versions,
            clock.spent,
            self._progress(bench),
            desk.annotations,
        )

    def _progress(self, bench: Bench) -> Progress:
        return Progress(
            bench.apprentice.base[:12],
            bench.apprentice.run,
            bench.plan.round if bench.apprentice.run else 0,
            bench.learning,
            bench.updates_done,
            bench.updates_left,
            self._federation(),
        )

    @contextmanager
    def _at(self, user: str) -> Iterator[Bench]:
        """The bench of `user`, and both hands on it."""
        with self.benches.of(_checked(user)) as bench, bench.hands:
            yield bench

    def _build(self, user: str, news: News) -> Bench:
        folder = self._home.site / "benches" / user
        bench = Bench(
            user, folder, self._latest, self._fallback, self._device, self._torch_device, self._versions, news
        )
        if self._look_ahead:
            bench.candidate = lambda: self._list.to_look_at(user, _on_desk(bench), bench.looked_at)
        return bench

    def _desk(self, bench: Bench, case_id: str) -> Desk:
        """The desk with an open case on it; hands must be on the bench."""
        if bench.desk is None and self.benches.take_left_open(bench.user) == case_id:
            return self._lay(bench, case_id, Clock())  # It was freed meanwhile.
        desk = bench.desk
        if desk is None or desk.case_id != case_id:
            raise UsageError("the case is not open", "it was closed, accepted or never opened", "open it first")
        try:
            self._list.grid(case_id)
        except DataError:
            bench.leave()  # It was removed from the store.
            raise
        return desk

    def _lay(self, bench: Bench, case_id: str, clock: Clock) -> Desk:
        image, drawing = self.image(case_id), self._store.drawing(case_id, bench.user)
        clock.lap("load")
        bench.leave()
        bench.rebase()
        self.benches.take_left_open(bench.user)
        most = bench.plan.labels - 1
        if drawing is not None and drawing.classes - 1 > most:
            raise LabelError(
                f"what is drawn on this case goes up to {drawing.classes - 1}, and the model knows 0 to {most}",
                "it was drawn for a run with more structures",
                "wait for such a run: what you drew is kept",
            )
        desk = bench.lay(case_id, image, drawing, learns=self._list.learns(case_id))
        clock.lap("predict")
        desk.publish()
        clock.lap("encode")
        return desk

    def _judged(self, bench: Bench, case_id: str, kept: bool) -> None:
        self._verdicts[case_id, bench.user] = kept
        bench.note()

    def _outcome(self, case_id: str, user: str, state: CaseState) -> Outcome:
        return Outcome(case_id, state, self._verdicts.get((case_id, user)), self.next_case(user))

    def _plan(self) -> RoundPlan:
        return self._latest_plan()[1]

    def _latest_plan(self) -> tuple[str, RoundPlan]:
        """Digest of the latest global weights and the plan that came with them."""
        try:
            digest = self._latest.digest()
            if digest != self._known[0]:
                found = self._latest.read()
                self._known = ("", self._fallback) if found is None else (digest, found[0])
        except StorageError:
            self._known = ("", self._fallback)
        return self._known


def _checked(user: str) -> str:
    if not _USER.fullmatch(user):
        raise UsageError("this name cannot have a bench", "it is not that of an account", "")
    return user


def _on_desk(bench: Bench | None) -> str | None:
    desk = None if bench is None else bench.desk
    return None if desk is None else desk.case_id
