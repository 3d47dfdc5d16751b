"""One case on an annotator's desk: what was drawn, what can be taken back, and the layers that the page shows."""

import copy
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from wardround.client.annotation.effort import contour_effort, full_effort, strict_effort
from wardround.client.annotation.guidance import next_slices, residual_map
from wardround.client.annotation.prompts import Annotations, ExtentPrompt, Prompt, SliceRequest, check_prompt
from wardround.client.annotation.propagation import ProxyMask
from wardround.client.annotation.seeds import drawn_labels
from wardround.client.cases.drawings import Drawing, Source, State
from wardround.client.learning.session import CaseSession, Step
from wardround.client.workbench.layers import (
    Bytes3D,
    Layer,
    LayerName,
    checked_name,
    drawn_bytes,
    make_layer,
    share_bytes,
)
from wardround.errors import UsageError

# So many drawn voxels, evenly spread, tell how far the prediction can be believed as well as all of them do.
_TELLING = 20_000


class Clock:
    """Milliseconds of an answer by phase.

    Phases follow each other: :meth:`lap` charges the time since the last one.
    """

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._spent: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        """The time since the last lap was spent on `phase`."""
        now = time.perf_counter()
        self._spent[phase] = self._spent.get(phase, 0.0) + 1e3 * (now - self._last)
        self._last = now

    @property
    def spent(self) -> dict[str, float]:
        """By phase, and ``total``."""
        return {**self._spent, "total": 1e3 * (time.perf_counter() - self._start)}


@dataclass(eq=False)
class _Slot:
    """A layer that is made when somebody asks for it."""

    version: int
    make: Callable[[], Bytes3D]
    layer: Layer | None = None


class Desk:
    """One open case of one annotator.

    The one who draws calls :meth:`draw`, :meth:`undo` and :meth:`redo`, one at a time. Meanwhile others may ask for
    layers, and the worker may hand in predictions.

    Parameters
    ----------
    session
        Has predicted, and nothing is drawn.
    user
        Whose desk it is.
    versions
        Gives every layer a number that is used once.
    model
        Digest of the weights that the bench stands on.
    learns
        Whether the case is one to learn from.

    Attributes
    ----------
    trained
        Whether a rehearsal ran while the case was open, which must not be taken back with it.
    anew
        Whether a step was taken back whose updates still are in the model.
    changed
        Share of the label voxels that the last answer changed.
    """

    def __init__(self, session: CaseSession, user: str, versions: Iterator[int], *, model: str, learns: bool) -> None:
        self.session = session
        self.user = user
        self.learns = learns
        self.trained = False
        self.anew = False
        self._versions = versions
        self._model = model
        self._undone: list[tuple[Prompt, ...]] = []
        self._opened = time.monotonic()
        self._earlier = 0.0
        self._lock = threading.Lock()
        self._slots: dict[LayerName, _Slot] = {}
        self._labels: Bytes3D | None = None
        self._full = 0
        self.changed = 0.0
        self._publish_prediction()
        self._publish_drawn()

    @property
    def case_id(self) -> str:
        """Which case."""
        return self.session.case_id

    @property
    def annotations(self) -> Annotations:
        """All that is drawn, as it stands."""
        return self.session.annotations

    @property
    def stands(self) -> bool:
        """Whether anything that was drawn is neither undone nor erased."""
        known = self.annotations
        return bool(known.slices or known.scribbles or known.points)

    @property
    def can_undo(self) -> bool:
        """Whether there is a step to take back."""
        return bool(self.session.steps)

    @property
    def can_redo(self) -> bool:
        """Whether there is a step that was taken back."""
        return bool(self._undone)

    @property
    def labels(self) -> Bytes3D | None:
        """``[I, J, K]``: labels of the proxy, None before anything was drawn."""
        return self._labels

    @property
    def predicted(self) -> Bytes3D:
        """``[I, J, K]``: labels of the prediction."""
        return _labels_of(self.session.prediction)

    @property
    def effort_share(self) -> float:
        """What was drawn over what drawing every axial slice of the object would cost."""
        return contour_effort(self.annotations) / self._full if self._full else 0.0

    @property
    def versions(self) -> dict[str, int]:
        """Of every layer that there is."""
        with self._lock:
            return {name: slot.version for name, slot in self._slots.items()}

    def frozen(self) -> CaseSession:
        """The session as it stands: a copy that nobody changes."""
        return copy.copy(self.session)

    def resume(self, drawing: Drawing) -> None:
        """Go on with what was drawn on another day."""
        self._earlier = drawing.seconds
        self._undone = list(drawing.undone)
        steps = [self.session.step_of(*step) for step in drawing.drawn]
        if steps or drawing.extent is not None:
            self.session.resume(steps, drawing.extent)

    def draw(self, prompts: Sequence[Prompt], extent: ExtentPrompt | None) -> None:
        """Take a drawing and propagate; :meth:`publish` comes after.

        Raises
        ------
        UsageError
            If a prompt or the extent does not fit the case; nothing is then changed.
        """
        session = self.session
        for prompt in prompts:
            check_prompt(prompt, session.image.shape, session.plan.labels)
        if extent is not None:
            Annotations(extent=extent).checked(session.image.shape, session.plan.labels)
            if extent != session.extent:
                if not prompts:
                    session.resume(session.steps, extent)
                session.extent = extent
                session.annotations = replace(session.annotations, extent=extent)
        if prompts:
            self._undone.clear()
            session.answer(*prompts)

    def undo(self) -> None:
        """Take the last step back.

        Raises
        ------
        UsageError
            If there is none.
        """
        steps = self.session.steps
        if not steps:
            raise UsageError("there is nothing to undo", "nothing was drawn on this case yet", "draw a slice first")
        self._undone.append(steps[-1].drawn)
        self.session.resume(steps[:-1], self.session.extent)

    def redo(self) -> None:
        """Draw the step again that was taken back last.

        Raises
        ------
        UsageError
            If there is none.
        """
        if not self._undone:
            raise UsageError("there is nothing to redo", "no step was taken back since the last drawing", "")
        self.session.answer(*self._undone.pop())

    def kept(self) -> tuple[Sequence[Step], ExtentPrompt | None, Sequence[tuple[Prompt, ...]]]:
        """What :meth:`restore` comes back to."""
        return self.session.steps, self.session.extent, tuple(self._undone)

    def restore(self, kept: tuple[Sequence[Step], ExtentPrompt | None, Sequence[tuple[Prompt, ...]]]) -> None:
        """Be as before, where what was done since could not be stored: it is drawn again, or not, but never twice."""
        steps, extent, undone = kept
        self.session.resume(steps, extent)
        self._undone = list(undone)
        self.publish()

    def publish(self) -> None:
        """Make the layers of the new proxy known, the proxy itself ready to be sent."""
        session = self.session
        proxy, before = session.proxy, self._labels
        self._publish_drawn()
        if proxy is None:
            if before is not None:
                self._labels, self.changed = None, 0.0
                empty = np.zeros(session.image.shape, dtype=np.uint8)
                for name in ("proxy", "residual", "confidence"):
                    self._put(name, lambda: empty)
            self._full = full_effort(self.predicted)
            return
        labels = self._labels = proxy.labels
        self._full = full_effort(labels)
        either = np.count_nonzero(labels if before is None else labels | before)
        self.changed = 0.0 if before is None or not either else np.count_nonzero(labels != before) / either
        layer = self._put("proxy", lambda: labels)
        layer.layer = make_layer("proxy", layer.version, labels)
        self._put("confidence", lambda: share_bytes(proxy.confidence))
        self._publish_residual(proxy, session.prediction)

    def take_prediction(self, prediction: npt.NDArray[np.float32]) -> None:
        """The model has learnt and predicted anew."""
        self.session.prediction = prediction
        self._publish_prediction()

    def suggest(self) -> tuple[SliceRequest, ...]:
        """The slice, or the slice of each plane, that tells most."""
        session, plan = self.session, self.session.plan
        drawn = session.annotations.slices
        total, counts = max(1, plan.slices_per_case - len(drawn)), plan.allocation
        if counts is not None:
            i, j, k = (max(0, n - len(session.annotations.on_axis(axis))) for axis, n in enumerate(counts))
            counts = (i, j, k) if i or j or k else (int(counts[0] > 0), int(counts[1] > 0), int(counts[2] > 0))
        return next_slices(
            session.annotations,
            session.image.shape,
            session.image.spacing,
            rule=plan.suggestion,
            total=total,
            allocation=counts,
            rounds=total if counts is None else max(counts),
            step=0,
            proxy=None if session.proxy is None else _thinned(session.proxy),
            prediction=session.prediction,
            uncertainty=None,
            rng=np.random.default_rng(len(session.steps)),
        )

    def layer(self, name: str, newer_than: int) -> Layer | None:
        """A layer, or None if there is none with a version above `newer_than`."""
        known = checked_name(name)
        with self._lock:
            slot = self._slots.get(known)
        if slot is None or slot.version <= newer_than:
            return None
        if slot.layer is None:
            slot.layer = make_layer(known, slot.version, slot.make())
        return slot.layer

    def drawing(self, state: State, source: Source = "proxy", reason: str = "") -> Drawing:
        """What the store keeps of this case."""
        annotations = self.annotations
        return Drawing(
            self.case_id,
            self.user,
            tuple(step.drawn for step in self.session.steps),
            annotations.extent,
            tuple(self._undone),
            state,
            source,
            float(contour_effort(annotations)),
            float(strict_effort(annotations)),
            self.session.plan.round,
            self._model,
            self._earlier + time.monotonic() - self._opened,
            reason,
        )

    def _publish_drawn(self) -> None:
        annotations, shape = self.annotations, self.session.image.shape
        self._put("drawn", lambda: drawn_bytes(drawn_labels(annotations, shape)))

    def _publish_prediction(self) -> None:
        session, prediction = self.session, self.session.prediction
        self._put("prediction", lambda: _labels_of(prediction))
        if session.proxy is not None:
            self._publish_residual(session.proxy, prediction)

    def _publish_residual(self, proxy: ProxyMask, prediction: npt.NDArray[np.float32]) -> None:
        self._put("residual", lambda: share_bytes(residual_map(proxy, prediction)))

    def _put(self, name: LayerName, make: Callable[[], Bytes3D]) -> _Slot:
        with self._lock:
            slot = self._slots[name] = _Slot(next(self._versions), make)
        return slot


def _labels_of(probabilities: npt.NDArray[np.float32]) -> Bytes3D:
    return np.asarray(probabilities.argmax(axis=0), dtype=np.uint8)


def _thinned(proxy: ProxyMask) -> ProxyMask:
    """The same proxy with fewer drawn voxels for the prediction to be judged by."""
    drawn = np.flatnonzero(proxy.annotated)
    if drawn.size <= _TELLING:
        return proxy
    few = np.zeros(proxy.annotated.shape, dtype=bool)
    few.reshape(-1)[drawn[:: -(-drawn.size // _TELLING)]] = True
    return replace(proxy, annotated=few)
