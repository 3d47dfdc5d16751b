"""How long a person waits at the workbench: from a stroke to the new overlay, ready to be sent.

Through the studio, as the page does it: cases in a store on disk, a bench that learns, drafts written at each stroke.
A case is drawn with slices where the studio suggests them, and with strokes and points where the overlay is wrong; now
and then a step is taken back. The time of a stroke ends when the layer is packed (gzip, level 1).

* **alone**: nothing else is to be done; what the model learns is waited for before the next stroke.
* **behind**: the next stroke comes when the first update of the last one is done, while the next one runs.
* **in a round**: the same while a round of the federation trains on the same device.

Three times are shown. ``own``: CPU seconds of the person's thread. ``core``: CPU seconds of all threads from the stroke
to its overlay: what one core that does nothing else needs, with the batch that was running when the stroke came.
``wall``: what a clock shows, which means nothing on a machine that is busy with other things. The goals are for
``core``, on a GPU for ``wall``. Two sizes: crops of about 35 x 50 x 35 voxels (training cases of a data set, if its
folder is given, else phantoms) and phantoms of 128 x 128 x 128 voxels. One thread::

    OMP_NUM_THREADS=1 python benchmarks/workbench.py [--data DATA/hippocampus] [--device cuda] [--cases 3]
"""

import argparse
import gzip
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from sizes import LARGE, SEED, SMALL, load_cases

from wardround.client.annotation.prompts import UNLABELLED, PointPrompt, Prompt, ScribblePrompt, SlicePrompt
from wardround.client.cases.phantoms import draw_phantom
from wardround.client.cases.store import CaseStore
from wardround.client.cases.volume import Volume
from wardround.client.device import Device, give_way
from wardround.client.home import SETTINGS_TEMPLATE, SiteHome
from wardround.client.learning.inference import normalise
from wardround.client.learning.latest import LatestModel
from wardround.client.learning.learner import LearningSettings, OnlineLearner, resolve_device
from wardround.client.learning.replay import Sample
from wardround.client.workbench.studio import Answer, Studio
from wardround.strategies.plan import RoundPlan

GOALS = {SMALL: 1.0, LARGE: 2.5}
WAYS = ("alone", "behind", "in a round")
USER = "reader"


@dataclass(frozen=True)
class Options:
    """What one size is measured with."""

    shape: tuple[int, int, int]
    data: Path | None
    device: str
    cases: int
    strokes: int
    way: str


@dataclass(eq=False)
class Found:
    """Times of all strokes."""

    own: list[float] = field(default_factory=list)
    core: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    phases: dict[str, list[float]] = field(default_factory=dict)
    kinds: dict[str, list[float]] = field(default_factory=dict)
    opening: list[float] = field(default_factory=list)
    updates: int = 0


def next_prompt(number: int, answer: Answer, shown: np.ndarray, truth: np.ndarray) -> Prompt:
    """What a person would draw: slices as suggested, then a stroke or a click where the overlay is most wrong."""
    if number % 3 == 0 and answer.suggestion:
        where = answer.suggestion[0]
        return SlicePrompt(where.axis, where.index, np.take(truth, where.index, where.axis))
    wrong = shown != truth
    axis = number % 3
    others = tuple(other for other in range(3) if other != axis)
    index = int(np.argmax(wrong.sum(axis=others)))
    cut, error = np.take(truth, index, axis), np.take(wrong, index, axis)
    if not error.any():
        error = cut > 0
    rows = np.flatnonzero(error.any(axis=1))
    row = int(rows[rows.size // 2]) if rows.size else cut.shape[0] // 2
    if number % 7 == 5:
        at = np.flatnonzero(error[row])
        point = [row, int(at[at.size // 2]) if at.size else 0]
        point.insert(axis, index)
        return PointPrompt((point[0], point[1], point[2]), int(truth[tuple(point)]))
    labels = np.full(cut.shape, UNLABELLED, dtype=np.uint8)
    labels[max(row - 1, 0) : row + 2] = np.where(error[max(row - 1, 0) : row + 2], cut[max(row - 1, 0) : row + 2], 255)
    return ScribblePrompt(axis, index, labels)


@contextmanager
def a_round(device: Device, options: Options, image: Volume, truth: Volume) -> Iterator[None]:
    """A round of the federation that trains all the while, where it is asked for."""
    if options.way != "in a round":
        yield
        return
    stop = threading.Event()
    learner = OnlineLearner(LearningSettings("unet3d-small", 3, SEED), resolve_device(options.device))
    target = np.stack([truth.array == n for n in range(3)]).astype(np.float16)
    sample = Sample("", normalise(image.array), target, np.ones(image.shape, np.float16))

    def train() -> None:
        give_way()
        rng = np.random.default_rng(SEED)
        with device.federated():
            while not stop.is_set():
                learner.update(lambda: [sample], 1, 1e-3, rng)
                device.between()

    thread = threading.Thread(target=train)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def measure(options: Options) -> list[str]:
    """All lines of the report for one size and one way."""
    torch.set_num_threads(1)
    if options.device == "cpu" and hasattr(os, "sched_setaffinity"):
        # One core for all threads of this process: they share it as they would on a machine that has no other.
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    found = Found()
    with tempfile.TemporaryDirectory() as folder:
        home = SiteHome(Path(folder))
        settings = SETTINGS_TEMPLATE.format(name="bench", coordinator="https://127.0.0.1:1")
        home.settings_file.write_text(settings)
        plan = RoundPlan(run="bench", round=1, rounds=8, seed=SEED, model="unet3d-small", labels=3)
        LatestModel(home.site / "model").save(
            plan, OnlineLearner(LearningSettings(plan.model, 3, SEED), torch.device("cpu")).weights()
        )
        cases = list(load_cases(options.data, options.shape, options.cases))
        device = Device()
        with CaseStore(home.site / "store") as store:
            for number, (image, _) in enumerate(cases):
                store.add_case(f"case-{number}", image)
            studio = Studio(home, store, device, torch_device=options.device, look_ahead=False)
            warm_up(studio, store)
            try:
                with a_round(device, options, *cases[0]):
                    for number, (_, truth) in enumerate(cases):
                        draw_case(studio, f"case-{number}", truth.array.astype(np.uint8), options, found)
                found.updates = studio.progress(USER).updates_done
            finally:
                studio.close_all()
    return report(options, found)


def warm_up(studio: Studio, store: CaseStore) -> None:
    """What is compiled or loaded at the first use is none of this benchmark's business."""
    image, truth = draw_phantom(np.random.default_rng(SEED), (24, 24, 24))
    store.add_case("warm", image)
    studio.open("warm", USER)
    labels = np.full((24, 24), UNLABELLED, dtype=np.uint8)
    labels[10:14, 12] = 1
    studio.draw("warm", USER, [SlicePrompt(2, 12, truth.array[:, :, 12].astype(np.uint8))])
    studio.draw("warm", USER, [ScribblePrompt(2, 8, labels)])
    studio.skip("warm", USER, "other")
    studio.wait(USER, 600)


def draw_case(studio: Studio, case: str, truth: np.ndarray, options: Options, found: Found) -> None:
    """Open, draw and accept one case."""
    start = time.perf_counter()
    answer = studio.open(case, USER)
    found.opening.append(time.perf_counter() - start)
    shown = np.zeros(truth.shape, dtype=np.uint8)
    for number in range(options.strokes):
        pause(studio, options)
        if number % 8 == 7:
            kind, act = "undo", lambda: studio.undo(case, USER)
        else:
            prompt = next_prompt(number, answer, shown, truth)
            kind = type(prompt).__name__.removesuffix("Prompt").lower()
            act = lambda: studio.draw(case, USER, [prompt])  # noqa: B023, E731
        answer = timed(act, studio, case, kind, found)
        layer = studio.layer(case, USER, "proxy")
        assert layer is not None
        shown = layer.whole()
    studio.accept(case, USER)
    if options.way == "alone":
        studio.wait(USER, 600)


def pause(studio: Studio, options: Options) -> None:
    """Wait for all that is learnt, or for the first update of it, or not at all."""
    if options.way == "alone":
        studio.wait(USER, 600)
    elif options.way == "behind":
        before, seen = studio.progress(USER), studio.changes(USER)
        while (now := studio.progress(USER)).learning and now.updates_done == before.updates_done:
            seen = studio.wait_for_change(USER, seen, 1.0)


def timed(act: Callable[[], Answer], studio: Studio, case: str, kind: str, found: Found) -> Answer:
    """One stroke, until its overlay is packed."""
    own, core, wall = time.thread_time(), time.process_time(), time.perf_counter()
    answer = act()
    packed = time.perf_counter()
    layer = studio.layer(case, USER, "proxy")
    assert layer is not None
    gzip.compress(layer.wire(), 1)
    end = time.perf_counter()
    found.own.append(time.thread_time() - own)
    found.core.append(time.process_time() - core)
    found.wall.append(end - wall)
    found.kinds.setdefault(kind, []).append(found.core[-1])
    for phase, spent in answer.latency_ms.items():
        if phase != "total":
            found.phases.setdefault(phase, []).append(spent / 1e3)
    found.phases.setdefault("pack", []).append(end - packed)
    return answer


def report(options: Options, found: Found) -> list[str]:
    """What was found."""
    clock = "wall" if options.device == "cuda" else "core"
    goal, values = GOALS[options.shape], found.wall if options.device == "cuda" else found.core
    p95 = float(np.quantile(values, 0.95))
    lines = [
        f"{' x '.join(map(str, options.shape))}, {options.way}: {len(found.own)} strokes on {options.cases} cases, "
        f"{found.updates} updates behind them, {options.device}, seed {SEED}",
        f"  stroke → new overlay: own {quantiles(found.own)}; core {quantiles(found.core)}; "
        f"wall {quantiles(found.wall)}; goal p95 ≤ {goal:g} s {'reached' if p95 <= goal else 'MISSED'} ({clock})",
        "  by phase, wall: " + "; ".join(f"{phase} {quantiles(spent)}" for phase, spent in found.phases.items()),
        "  by kind, core: "
        + "; ".join(f"{kind} {quantiles(spent)} (n = {len(spent)})" for kind, spent in sorted(found.kinds.items())),
        f"  opening a case, wall: {quantiles(found.opening)}",
    ]
    return lines


def quantiles(values: list[float]) -> str:
    """Median and 95th percentile in seconds."""
    return f"p50 {np.quantile(values, 0.5):.3f} s, p95 {np.quantile(values, 0.95):.3f} s"


def main() -> None:
    """Measure, each size and each way in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of a data set with a split.json")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--cases", type=int, default=3, help="of each size")
    parser.add_argument("--strokes", type=int, default=16, help="of a case")
    parser.add_argument("--size", choices=("small", "large"), help="only this one")
    parser.add_argument("--way", choices=WAYS, help="only this one")
    arguments = parser.parse_args()
    for shape in {"small": (SMALL,), "large": (LARGE,)}.get(arguments.size, (SMALL, LARGE)):
        for way in (arguments.way,) if arguments.way else WAYS:
            options = Options(shape, arguments.data, arguments.device, arguments.cases, arguments.strokes, way)
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                print("\n".join(pool.submit(measure, options).result()), flush=True)


if __name__ == "__main__":
    main()
