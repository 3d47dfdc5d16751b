"""The cases of a site as those see them who draw on them: what there is, how far it is, and what comes next."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from wardround.client.cases.store import CaseStore, DrawingRecord
from wardround.client.cases.volume import Volume
from wardround.client.workbench.views import STATES, STRATEGIES, CaseView, Strategy
from wardround.errors import DataError, UsageError

# Images that are kept at hand.
IMAGE_BYTES = 2**29
# Cases that a bench looks at before anybody asks, to know the next one.
AHEAD = 32


class WorkList:
    """What lies in the store, read for people. Every method may be called from any thread.

    Parameters
    ----------
    store
        Cases, labels and drawings.
    """

    def __init__(self, store: CaseStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._images: OrderedDict[str, Volume] = OrderedDict()
        self._grids: dict[str, Volume] = {}

    def cases(self, user: str) -> tuple[CaseView, ...]:
        """All cases, in the order in which they arrived."""
        tests = frozenset(self._store.cases("test"))
        drawn: dict[str, list[DrawingRecord]] = {}
        for record in self._store.drawings():
            drawn.setdefault(record.case_id, []).append(record)
        return tuple(
            self._view(case_id, user, drawn.get(case_id, []), "test" if case_id in tests else "stream")
            for case_id in self._store.cases()
        )

    def case(self, case_id: str, user: str) -> CaseView:
        """One case.

        Raises
        ------
        DataError
            If there is no such case.
        """
        self.grid(case_id)
        role = "stream" if self.learns(case_id) else "test"
        return self._view(case_id, user, list(self._store.drawings(case_id)), role)

    def learns(self, case_id: str) -> bool:
        """Whether it is a case to learn from."""
        return case_id not in self._store.cases("test")

    def image(self, case_id: str) -> Volume:
        """Intensities of a case, float32; the last few are kept at hand.

        Raises
        ------
        DataError
            If there is no such case.
        """
        # By what they hold: a case may be removed, and another image be added under its id.
        content = self.content(case_id)
        with self._lock:
            found = self._images.get(content)
            if found is not None:
                self._images.move_to_end(content)
                return found
        image = self._store.image(case_id)
        with self._lock:
            self._images[content] = image
            while len(self._images) > 1 and sum(kept.array.nbytes for kept in self._images.values()) > IMAGE_BYTES:
                self._images.popitem(last=False)
        return image

    def grid(self, case_id: str) -> Volume:
        """Shape and affine of a case.

        Raises
        ------
        DataError
            If there is no such case.
        """
        with _no_folder_named():
            grid = self._grids[case_id] = self._store.grid(case_id)
        return grid

    def content(self, case_id: str) -> str:
        """What tells the image of a case, voxels and grid, from every other.

        Raises
        ------
        DataError
            If there is no such case.
        """
        with _no_folder_named():
            return self._store.content(case_id)

    def next_case(
        self, user: str, strategy: Strategy, on_desk: str | None, scores: Mapping[str, float] | None
    ) -> str | None:
        """A case that `user` has not closed yet, None where none is left.

        Parameters
        ----------
        on_desk
            A case that is none to come.
        scores
            How little the model knows of cases; None where nobody has looked.

        Raises
        ------
        UsageError
            If there is no such strategy.
        """
        if strategy not in STRATEGIES:
            raise UsageError(f"there is no strategy called {strategy!r}", "", f"choose one of {', '.join(STRATEGIES)}")
        waiting = self._waiting(user, on_desk)
        if not waiting:
            return None
        if strategy == "random":
            return waiting[int(np.random.default_rng().integers(len(waiting)))]
        if strategy == "first" or scores is None:
            return waiting[0]
        return max(waiting, key=lambda case_id: scores.get(case_id, -1.0))

    def to_look_at(
        self, user: str, on_desk: str | None, looked_at: Collection[str]
    ) -> tuple[str, Callable[[], Volume]] | None:
        """One of the cases to come that is not among `looked_at`."""
        for case_id in self._waiting(user, on_desk)[:AHEAD]:
            if case_id not in looked_at:
                return case_id, lambda: self._store.image(case_id)  # noqa: B023 - read before the next is looked for
        return None

    def _waiting(self, user: str, on_desk: str | None) -> list[str]:
        """Cases to draw, those that nobody has begun first; none that somebody has finished or `user` has skipped."""
        untouched, begun = [], []
        for view in self.cases(user):
            if view.role != "stream" or view.id == on_desk:
                continue
            if view.state == "new":
                untouched.append(view.id)
            elif view.mine in ("new", "open", "rejected") and view.state in ("open", "skipped", "rejected"):
                begun.append(view.id)
        return untouched or begun

    def _view(self, case_id: str, user: str, drawn: Sequence[DrawingRecord], role: str) -> CaseView:
        grid = self._grids.get(case_id) or self.grid(case_id)
        own = next((record for record in drawn if record.author == user), None)
        return CaseView(
            case_id,
            grid.shape,
            grid.spacing,
            max((record.state for record in drawn), key=STATES.index, default="new"),
            "new" if own is None else own.state,
            tuple(sorted(record.author for record in drawn)),
            0.0 if own is None else own.effort_contour,
            role,
        )


@contextmanager
def _no_folder_named() -> Iterator[None]:
    """That a case is not there, in words that are the business of somebody at a viewer."""
    try:
        yield
    except DataError:
        raise DataError(
            "there is no such case", "it was never added, or it was removed", "take one of the work list"
        ) from None
