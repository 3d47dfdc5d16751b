"""What every act of a person at a workbench goes through: their bench, the case on it, and the answer.

The lower half of :mod:`wardround.client.workbench.studio`.
"""

import itertools
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from wardround.client.annotation.prompts import ExtentPrompt, Prompt
from wardround.client.cases.store import CaseStore
from wardround.client.device import Device
from wardround.client.home import SiteHome
from wardround.client.learning.latest import LatestModel
from wardround.client.learning.learner import resolve_device
from wardround.client.workbench.bench import Bench
from wardround.client.workbench.benches import Benches
from wardround.client.workbench.desk import Desk, Former
from wardround.client.workbench.news import News
from wardround.client.workbench.stopwatch import Clock
from wardround.client.workbench.views import (
    Answer,
    Federation,
    Progress,
)
from wardround.client.workbench.warmup import warm_up
from wardround.client.workbench.worklist import WorkList
from wardround.errors import DataError, LabelError, StorageError, UsageError
from wardround.strategies.plan import RoundPlan

log = logging.getLogger(__name__)

_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Benchwork:
    """The benches of a site, and how cases get on them; parameters as of the studio."""

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
        self.worklist = WorkList(store)
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
        return self.progress_of(bench)

    def act(
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
        """Do something to the open case, answer it, write it down, and learn from it behind."""
        clock = Clock()
        with self.at(user) as bench:
            desk = self.desk(bench, case_id)
            clock.lap("wait")
            if redo and desk.undone:
                prompts = desk.undone[-1]
            before = desk
            if prompts or extent is not None:
                desk = bench.reach(desk, self.worklist.image(case_id), prompts, extent)
                if desk is not before:
                    clock.lap("move")
            kept = desk.kept()
            with self._device.beside():
                try:
                    act(desk)
                    clock.lap("propagate")
                    desk.publish()
                    clock.lap("encode")
                    self._store.save_drawing(desk.drawing("open"))
                except Exception:
                    self._take_back(bench, desk, kept)
                    raise
                clock.lap("persist")
                answer = self.answer(bench, desk, clock)
            bench.learn(desk, anew=anew or desk is not before)
        return answer

    @staticmethod
    def _take_back(bench: Bench, desk: Desk, kept: Former) -> None:
        """The desk as it was; where even that fails it is emptied, and the store says how far the case was."""
        try:
            desk.restore(kept)
        except Exception as error:  # noqa: BLE001 - memory is short, say; what happened before is raised
            log.error("a drawing could not be taken back: %s", type(error).__name__)
            bench.leave()

    def answer(self, bench: Bench, desk: Desk, clock: Clock) -> Answer:
        """What the person sees now."""
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
            self.progress_of(bench),
            desk.annotations,
            bench.plan.asked_for,
            desk.point_sets,
        )

    def progress_of(self, bench: Bench) -> Progress:
        """What the model of a bench is and does."""
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
    def at(self, user: str) -> Iterator[Bench]:
        """The bench of `user`, and both hands on it."""
        with self.benches.of(checked_user(user)) as bench, bench.hands:
            yield bench

    def _build(self, user: str, news: News) -> Bench:
        folder = self._home.site / "benches" / user
        bench = Bench(
            user, folder, self._latest, self._fallback, self._device, self._torch_device, self._versions, news
        )
        if self._look_ahead:
            bench.candidate = lambda: self.worklist.to_look_at(user, on_desk(bench), bench.looked_at)
        return bench

    def desk(self, bench: Bench, case_id: str) -> Desk:
        """The desk with an open case on it; hands must be on the bench."""
        if bench.desk is None and self.benches.left_open(bench.user) == case_id:
            return self.lay(bench, case_id, Clock())  # It was freed meanwhile.
        desk = bench.desk
        if desk is None or desk.case_id != case_id:
            raise UsageError("the case is not open", "it was closed, accepted or never opened", "open it first")
        try:
            same = self.worklist.content(case_id) == bench.content
        except DataError:
            bench.leave()  # It was removed from the store.
            raise
        if not same:
            bench.leave()
            raise UsageError("this case is another one by now", "it was removed and added again", "open it again")
        return desk

    def lay(self, bench: Bench, case_id: str, clock: Clock) -> Desk:
        """Lay a case on the bench in place of what lies there; hands must be on it."""
        content, image = self.worklist.content(case_id), self.worklist.image(case_id)
        drawing = self._store.drawing(case_id, bench.user)
        clock.lap("load")
        bench.leave()
        bench.rebase()
        self.benches.forget_left_open(bench.user)
        most = bench.plan.labels - 1
        if drawing is not None and drawing.classes - 1 > most:
            raise LabelError(
                f"what is drawn on this case goes up to {drawing.classes - 1}, and the model knows 0 to {most}",
                "it was drawn for a run with more structures",
                "wait for such a run: what you drew is kept",
            )
        bench.content = content
        desk = bench.lay(case_id, image, drawing, learns=self.worklist.learns(case_id))
        clock.lap("predict")
        desk.publish()
        clock.lap("encode")
        return desk

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


def checked_user(user: str) -> str:
    """`user`, if it may have a bench."""
    if not _USER.fullmatch(user):
        raise UsageError("this name cannot have a bench", "it is not that of an account", "")
    return user


def on_desk(bench: Bench | None) -> str | None:
    """The case that is open on a bench."""
    desk = None if bench is None else bench.desk
    return None if desk is None else desk.case_id
