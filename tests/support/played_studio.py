"""A workbench with a studio that is played: it computes next to nothing, and says what it was asked.

Cases and labels lie in a real store, and the server is the real one. What was clicked becomes a cube, what was drawn
stays as drawn: whoever tests a protocol sees in the mask which voxel and which label arrived.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from workbench import FakeStudio, Workbench, workbench

from wardround.client.annotation.prompts import (
    UNLABELLED,
    ExtentPrompt,
    Labels3D,
    PointPrompt,
    Prompt,
    ScribblePrompt,
)
from wardround.client.cases.store import CaseStore
from wardround.client.cases.volume import Volume
from wardround.client.home import SiteHome
from wardround.client.intake import STORE
from wardround.client.workbench.layers import Layer, make_layer
from wardround.client.workbench.views import Inference, TrainView

REACH = 2
SHAPE = (12, 10, 8)
TASK = TrainView("6f1f9f4e-0000-4000-8000-000000000000", "RUNNING", 1.0e9, None, ("began",))


class PlayedStudio(FakeStudio):
    """Answers clicks with cubes, and rehearses until it is stopped."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.inferred: list[tuple[tuple[Prompt, ...], ExtentPrompt | None]] = []
        self.tasks: dict[str, TrainView] = {}

    def infer(
        self,
        image: Volume | str,
        user: str,
        prompts: Sequence[Prompt] = (),
        extent: ExtentPrompt | None = None,
        **_: Any,
    ) -> Inference:
        self.inferred.append((tuple(prompts), extent))
        shape = self.image(image).shape if isinstance(image, str) else image.shape
        return Inference(painted(shape, prompts), {"load": 1.0, "total": 2.0}, self.progress(user))

    def layer(self, case_id: str, user: str, name: str, newer_than: int = -1) -> Layer | None:
        drawn = self.drawn.get((case_id, user), ())
        return make_layer(name, self.version, painted(self.image(case_id).shape, drawn))  # type: ignore[arg-type]

    def train(self, user: str) -> str:
        self.tasks[user] = TASK
        return TASK.id

    def stop_training(self, user: str) -> None:
        self.tasks[user] = replace(TASK, status="STOPPED", ended=1.0e9 + 5)

    def training(self, user: str) -> TrainView | None:
        return self.tasks.get(user)

    def wait(self, user: str, timeout_s: float) -> bool:
        if user in self.tasks:
            self.tasks[user] = replace(TASK, status="DONE", ended=1.0e9 + 5)
        return True


def painted(shape: tuple[int, int, int], prompts: Sequence[Prompt]) -> Labels3D:
    """A cube round every click, strokes as they are, zero elsewhere."""
    mask = np.zeros(shape, dtype=np.uint8)
    for prompt in prompts:
        match prompt:
            case PointPrompt(index=index, label=label):
                mask[tuple(slice(max(at - REACH, 0), at + REACH + 1) for at in index)] = label
            case ScribblePrompt(axis=axis, index=at, labels=labels):
                cut = (slice(None),) * axis + (at,)
                mask[cut] = np.where(labels == UNLABELLED, mask[cut], labels)
    return mask


def oblique(number: int) -> Volume:
    """An image on an oblique, left-handed grid with a spacing of 1.5, 2 and 3 mm."""
    turn = np.array([[0.8, 0.6, 0], [-0.6, 0.8, 0], [0, 0, -1]])
    affine = np.eye(4)
    affine[:3] = np.column_stack((turn * [1.5, 2, 3], [3, -7, number]))
    return Volume(np.random.default_rng(number).normal(size=SHAPE).astype(np.float32), affine)


@contextmanager
def played_workbench(
    path: Path, *, prepare: Callable[[SiteHome], None] = lambda home: None, studio: Any = PlayedStudio, **more: Any
) -> Iterator[Workbench]:
    """A workbench with two oblique cases, ``case0`` and ``case1``, and whatever `prepare` brings."""

    def arrive(home: SiteHome) -> None:
        with CaseStore(home.site / STORE) as store:
            for number in range(2):
                store.add_case(f"case{number}", oblique(number))
        prepare(home)

    with workbench(path, cases=0, prepare=arrive, studio=studio, **more) as bench:
        yield bench
