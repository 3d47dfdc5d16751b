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
from wardround.client.annotation.point_sets import PointSets, point_sets
from wardround.client.annotation.prompts import (
    Annotations,
    ExtentPrompt,
    Prompt,
    SliceRequest,
    check_prompt,
    looked_at,
)
from wardround.client.annotation.propagation import ProxyMask
from wardround.client.annotation.seeds import drawn_labels
from wardround.client.cases.drawings import Drawing, Source, State
from wardround.client.learning.session import CaseSession
from wardround.client.workbench.layers import (
    Bytes3D,
    Layer,
    LayerName,
    checked_name,
    drawn_bytes,
    make_layer,
    share_bytes,
)
from wardround.client.workbench.surroundings import Surroundings
from wardround.client.workbench.window import Window
from wardround.errors import UsageError

Steps = tuple[tuple[Prompt, ...], ...]
Former = tuple[Steps, ExtentPrompt | None, Steps]
# So many drawn voxels, evenly spread, tell how far the prediction can be believed as well as all of them do.
_TELLING = 20_000


@dataclass(eq=False)
class _Slot:
    """A layer that is made when somebody asks for it."""

    version: int
    make: Callable[[], Bytes3D]
    window: Window
    layer: Layer | None = None

    def made(self, name: LayerName) -> Layer:
        if self.layer is None:
            self.layer = make_layer(name, self.version, self.make(), self.window.origin, self.window.image)
        return self.layer


class Desk:
    """One open case of one annotator.

    The one who draws calls :meth:`draw`, :meth:`undo` and :meth:`redo`, one at a time. Meanwhile others may ask for
    layers, and the worker may hand in predictions.

    What is said and shown is in voxels of the image; the session knows the window alone.

    Parameters
    ----------
    session
        Of what lies in the window; has predicted, and nothing is drawn.
    window
        Where it works on the image.
    user
        Whose desk it is.
    versions
        Gives every layer a number that is used once.
    model
        Digest of the weights that the bench stands on.
    learns
        Whether the case is one to learn from.
    surroundings
        What the model sees of the whole image; None where the window is the image.

    Attributes
    ----------
    annotations
        All that is drawn, as it stands.
    steps
        What was drawn between two answers, undone steps left out.
    trained
        Whether a rehearsal ran while the case was open, which must not be taken back with it.
    anew
        Whether a step was taken back whose updates still are in the model.
    changed
        Share of the label voxels that the last answer changed.
    """

    def __init__(
        self,
        session: CaseSession,
        window: Window,
        user: str,
        versions: Iterator[int],
        *,
        model: str,
        learns: bool,
        surroundings: Surroundings | None = None,
    ) -> None:
        self.session = session
        self.window = window
        self.surroundings = surroundings
        self.annotations = Annotations()
        self.steps: Steps = ()
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
        i, j, k = window.image
        self._image = Window(window.image, (0, i, 0, j, 0, k))
        self._publish_prediction()
        self._publish_drawn()

    @property
    def case_id(self) -> str:
        """Which case."""
        return self.session.case_id

    @property
    def stands(self) -> bool:
        """Whether anything that was drawn is neither undone nor erased."""
        known = self.annotations
        return bool(known.slices or known.scribbles or known.points)

    @property
    def can_undo(self) -> bool:
        """Whether there is a step to take back."""
        return bool(self.steps)

    @property
    def can_redo(self) -> bool:
        """Whether there is a step that was taken back."""
        return bool(self._undone)

    @property
    def point_sets(self) -> PointSets:
        """How the points are read, where the plan asks for them."""
        if self.session.plan.asked_for != "points":
            return PointSets()
        return point_sets(self.annotations.points, self.window.image)

    @property
    def predicted(self) -> bool:
        """Whether the layer of the prediction shows the whole image."""
        with self._lock:
            return self._slots["prediction"].window.is_whole

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
        if drawing.drawn or drawing.extent is not None:
            self._go_to(drawing.drawn, drawing.extent)

    def after(self, prompts: Sequence[Prompt], extent: ExtentPrompt | None) -> Annotations:
        """What would be drawn after :meth:`draw`.

        Raises
        ------
        UsageError
            If a prompt or the extent does not fit the case.
        """
        shape, labels = self.window.image, self.session.plan.labels
        for prompt in prompts:
            check_prompt(prompt, shape, labels)
        known = self.annotations if extent is None else replace(self.annotations, extent=extent)
        Annotations(extent=extent).checked(shape, labels)
        return known.adding(*prompts)

    def draw(self, prompts: Sequence[Prompt], extent: ExtentPrompt | None) -> None:
        """Take a drawing and propagate; :meth:`publish` comes after.

        Raises
        ------
        UsageError
            If a prompt or the extent does not fit the case; nothing is then changed.
        """
        self.annotations = self.after(prompts, extent)
        session = self.session
        local = self.window.local_extent(self.annotations.extent)
        if local != session.extent:
            if not prompts:
                session.resume(session.steps, local)
            session.extent = local
            session.annotations = replace(session.annotations, extent=local)
        if prompts:
            self._undone.clear()
            self._answer(prompts)

    def undo(self) -> None:
        """Take the last step back.

        Raises
        ------
        UsageError
            If there is none.
        """
        if not self.steps:
            raise UsageError("there is nothing to undo", "nothing was drawn on this case yet", "draw a slice first")
        self._undone.append(self.steps[-1])
        self._go_to(self.steps[:-1], self.annotations.extent)

    def redo(self) -> None:
        """Draw the step again that was taken back last.

        Raises
        ------
        UsageError
            If there is none, or it does not fit the case any more.
        """
        if not self._undone:
            raise UsageError("there is nothing to redo", "no step was taken back since the last drawing", "")
        self.annotations = self.after(self._undone[-1], None)
        self._answer(self._undone.pop())

    @property
    def undone(self) -> Steps:
        """Steps that were taken back, the last one at the end."""
        return tuple(self._undone)

    def kept(self) -> Former:
        """What :meth:`restore` comes back to."""
        return self.steps, self.annotations.extent, tuple(self._undone)

    def restore(self, kept: Former) -> None:
        """Be as before, where what was done since failed: it is drawn again, or not, but never twice."""
        steps, extent, undone = kept
        if self.steps is steps and self.annotations.extent is extent and len(self._undone) == len(undone):
            return
        self._go_to(steps, extent)
        self._undone = list(undone)
        self.publish()

    def _answer(self, prompts: Sequence[Prompt]) -> None:
        """Propagate one more step, of which :attr:`annotations` know already."""
        self.steps = (*self.steps, tuple(prompts))
        local = self.window.locals(*prompts)
        if local:
            self.session.answer(*local)

    def _go_to(self, steps: Steps, extent: ExtentPrompt | None) -> None:
        """Come to where `steps` lead."""
        known = Annotations(extent=extent)
        for step in steps:
            known = known.adding(*step)
        inside = [self.session.step_of(*local) for step in steps if (local := self.window.locals(*step))]
        self.session.resume(inside, self.window.local_extent(extent))
        self.steps, self.annotations = tuple(steps), known

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
            self._full = full_effort(_labels_of(session.prediction))
            return
        labels = self._labels = proxy.labels
        self._full = full_effort(labels)
        either = np.count_nonzero(labels if before is None else labels | before)
        self.changed = 0.0 if before is None or not either else np.count_nonzero(labels != before) / either
        self._put("proxy", lambda: labels).made("proxy")
        self._put("confidence", lambda: share_bytes(proxy.confidence))
        self._publish_residual(proxy, session.prediction)

    def take_prediction(self, prediction: npt.NDArray[np.float32]) -> None:
        """The model has learnt and predicted anew."""
        self.session.prediction = prediction
        self._publish_prediction()

    def take_surroundings(self) -> None:
        """The prediction of the whole image is known."""
        self._publish_prediction()

    def suggest(self) -> tuple[SliceRequest, ...]:
        """The slice, or the slice of each plane, that tells most."""
        session, plan = self.session, self.session.plan
        seen = _answered(session.annotations) if plan.asked_for == "scribbles" else session.annotations
        total, counts = max(1, plan.slices_per_case - len(seen.slices)), plan.allocation
        if counts is not None:
            i, j, k = (max(0, n - len(seen.on_axis(axis))) for axis, n in enumerate(counts))
            counts = (i, j, k) if i or j or k else (int(counts[0] > 0), int(counts[1] > 0), int(counts[2] > 0))
        found = next_slices(
            seen,
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
            rng=np.random.default_rng(len(self.steps)),
        )
        return tuple(self.window.outside(request) for request in found)

    def layer(self, name: str, newer_than: int) -> Layer | None:
        """A layer, or None if there is none with a version above `newer_than`."""
        known = checked_name(name)
        with self._lock:
            slot = self._slots.get(known)
        if slot is None or slot.version <= newer_than:
            return None
        return slot.made(known)

    def drawing(self, state: State, source: Source = "proxy", reason: str = "") -> Drawing:
        """What the store keeps of this case."""
        annotations = self.annotations
        return Drawing(
            self.case_id,
            self.user,
            self.steps,
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
        annotations, shape = self.session.annotations, self.session.image.shape
        self._put("drawn", lambda: drawn_bytes(drawn_labels(annotations, shape)))

    def _publish_prediction(self) -> None:
        session, prediction = self.session, self.session.prediction
        if self.surroundings is None or self.surroundings.left:
            self._put("prediction", lambda: _labels_of(prediction))
        else:
            self._put("prediction", lambda: self._composed(prediction), self._image)
        if session.proxy is not None:
            self._publish_residual(session.proxy, prediction)

    def _composed(self, prediction: npt.NDArray[np.float32]) -> Bytes3D:
        """Labels of the whole image: in the window as predicted now, outside as they were when the case was opened."""
        assert self.surroundings is not None
        labels = self.surroundings.labels.copy()
        labels[self.window.slices] = _labels_of(prediction)
        return labels

    def _publish_residual(self, proxy: ProxyMask, prediction: npt.NDArray[np.float32]) -> None:
        self._put("residual", lambda: share_bytes(residual_map(proxy, prediction)))

    def _put(self, name: LayerName, make: Callable[[], Bytes3D], window: Window | None = None) -> _Slot:
        with self._lock:
            slot = self._slots[name] = _Slot(next(self._versions), make, window or self.window)
        return slot


def _answered(annotations: Annotations) -> Annotations:
    """The same with each slice that has a stroke of background as a drawn one: that stroke is asked for last."""
    done = {(one.axis, one.index) for one in annotations.scribbles if (one.labels == 0).any()}
    strokes = tuple(one for one in annotations.scribbles if (one.axis, one.index) in done)
    return looked_at(replace(annotations, scribbles=strokes))


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
