"""How long a person waits: from a drawn slice to the new proxy mask, and on to the model's new prediction.

One thread. A case is drawn one slice at a time, evenly: each slice is a prompt, and the proxy is made anew with what
the cache holds of the slices before. Two sizes: crops of about 35 x 50 x 35 voxels and of 128 x 128 x 128 voxels.

* **prompt → proxy**: one new slice, with the cache.
* **whole propagation**: all slices at once, without a cache.
* **prompt → proxy → update → prediction**: the same with a model that learns from the new proxy and predicts again.
* **engines**: the whole propagation with every registration backend, on the same slices; Dice of the whole object.

Times are CPU seconds of the process as well as wall time: on a machine that is busy with other things only the first
mean something, and on a GPU only the second. Memory is the largest resident set of a process that does nothing else.

Small cases are the first training cases of a data set, if its folder is given, else phantoms; large ones are phantoms::

    OMP_NUM_THREADS=1 python benchmarks/latency.py [--data DATA/hippocampus] [--device cuda] [--cases 4]
"""

import argparse
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from sizes import LARGE, SEED, SMALL, load_cases

from wardround.client.annotation.allocation import allocate
from wardround.client.annotation.annotator import SimulatedAnnotator, Truth
from wardround.client.annotation.guidance import suggest
from wardround.client.annotation.prompts import Annotations, SlicePrompt
from wardround.client.annotation.propagation import PropagationCache, PropagationSettings, propagate
from wardround.client.cases.phantoms import draw_phantom
from wardround.client.cases.volume import Volume
from wardround.client.learning.inference import normalise
from wardround.client.learning.learner import LearningSettings, OnlineLearner
from wardround.client.learning.replay import Sample

GOALS = {SMALL: 0.5, LARGE: 2.0}
SPEEDUP = 5.0
MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Options:
    """What one size is measured with."""

    shape: tuple[int, int, int]
    data: Path | None
    device: str
    cases: int
    slices: int
    learning: int
    updates: int
    backends: tuple[str, ...]
    extent: bool


@dataclass(frozen=True)
class Spent:
    """CPU and wall seconds of one call."""

    cpu: float
    wall: float


def timed(call: Callable[[], None], device: str) -> Spent:
    """Run `call` and wait for the device."""
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return Spent(time.process_time() - cpu, time.perf_counter() - wall)


def prompts_of(
    image: Volume, labels: Volume, total: int, known_extent: bool = True
) -> tuple[Annotations, list[SlicePrompt]]:
    """The extent, if it is known, and slices in the order in which an even spacing asks for them."""
    annotator = SimulatedAnnotator({"": Truth(labels)})
    extent = annotator.extent("")
    assert extent is not None
    start = known = Annotations(extent=extent)
    i, j, k = (high - low + 1 for low, high in zip(extent.lower, extent.upper, strict=True))
    counts = allocate(total, (i, j, k), image.spacing, image.shape)
    axis = int(np.argmax(counts))
    drawn: list[SlicePrompt] = []
    for _ in range(counts[axis]):
        one = (int(axis == 0), int(axis == 1), int(axis == 2))
        requests = suggest(known, image.shape, one, rule="even", residual=None, rng=np.random.default_rng(SEED))
        drawn.append(annotator.draw("", requests[0]))
        known = known.adding(drawn[-1])
    return start if known_extent else Annotations(), drawn


def measure(options: Options) -> list[str]:
    """All lines of the report for one size."""
    torch.set_num_threads(1)
    settings = PropagationSettings(device=options.device)
    cases = [
        (image, labels, *prompts_of(image, labels, options.slices, options.extent))
        for image, labels in load_cases(options.data, options.shape, options.cases)
    ]
    warm_image, warm_labels = draw_phantom(np.random.default_rng(SEED), (24, 24, 24))
    begin, drawn = prompts_of(warm_image, warm_labels, 3)
    propagate(warm_image, begin.adding(*drawn), 3, settings=settings)
    prompts: list[Spent] = []
    for image, _, begin, drawn in cases:
        cache, known = PropagationCache(), begin
        for prompt in drawn:
            known = known.adding(prompt)
            prompts.append(
                timed(lambda: proxy_of(image, known, settings, cache), options.device)  # noqa: B023
            )
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MEGABYTE
    goal = GOALS[options.shape]
    wall = options.device == "cuda"
    p95 = float(np.quantile([spent.wall if wall else spent.cpu for spent in prompts], 0.95))
    lines = [
        f"{' x '.join(map(str, options.shape))}: {len(cases)} cases, {options.device}, "
        f"extent {'known' if options.extent else 'unknown'}, seed {SEED}",
        quantiles("prompt → proxy", prompts)
        + f"; goal p95 ≤ {goal:g} s {'reached' if p95 <= goal else 'MISSED'} ({'wall' if wall else 'CPU'})",
        f"  peak memory up to here: {memory:.0f} MiB",
    ]
    lines += engines(cases, options)
    if options.learning:
        lines += learning(cases[0], settings, options)
    return lines


def proxy_of(image: Volume, known: Annotations, settings: PropagationSettings, cache: PropagationCache | None) -> None:
    """Propagate and drop the result."""
    propagate(image, known, 3, settings=settings, cache=cache)


def engines(cases: list[tuple[Volume, Volume, Annotations, list[SlicePrompt]]], options: Options) -> list[str]:
    """Whole propagations with every backend, on the same slices."""
    lines: list[str] = []
    reference: float | None = None
    for backend in options.backends:
        spent: list[Spent] = []
        scores: list[float] = []
        settings = PropagationSettings(registration=backend, device=options.device)
        for image, labels, begin, drawn in cases:
            known = begin.adding(*drawn)
            found = np.zeros(0)

            def whole() -> None:
                nonlocal found
                found = propagate(image, known, 3, settings=settings).labels  # noqa: B023

            spent.append(timed(whole, options.device))
            one, other = found > 0, labels.array > 0
            scores.append(2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other)))
        mean = float(np.mean([one.wall if options.device == "cuda" else one.cpu for one in spent]))
        line = quantiles(f"whole propagation, {backend}", spent) + f"; Dice {np.mean(scores):.4f}"
        if reference is None:
            reference = mean
        else:
            line += f"; {backend} takes {mean / reference:.1f} x the time of {options.backends[0]}"
            if backend == "sitk":
                line += f", goal ≥ {SPEEDUP:g} {'reached' if mean >= SPEEDUP * reference else 'MISSED'}"
        lines.append(line)
    return lines


def learning(
    case: tuple[Volume, Volume, Annotations, list[SlicePrompt]], settings: PropagationSettings, options: Options
) -> list[str]:
    """Prompts with everything that follows them."""
    image, _, known, drawn = case
    device = torch.device(options.device)
    learner = OnlineLearner(LearningSettings("unet3d-small", 3, SEED), device)
    normalised, cache = normalise(image.array), PropagationCache()
    rng = np.random.default_rng(SEED)

    def step(known: Annotations) -> None:
        proxy = propagate(image, known, 3, settings=settings, cache=cache)
        weight = np.where(proxy.annotated, 2, 1).astype(np.float16)
        sample = Sample("", normalised, proxy.probabilities.astype(np.float16), weight)
        learner.update(lambda: [sample], options.updates, 1e-3, rng)
        learner.predict(normalised)

    spent = []
    for prompt in drawn[: options.learning]:
        known = known.adding(prompt)
        spent.append(timed(lambda: step(known), options.device))  # noqa: B023
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MEGABYTE
    lines = [quantiles(f"prompt → proxy → {options.updates} updates → prediction", spent)]
    lines.append(f"  peak memory in all: {memory:.0f} MiB")
    if options.device == "cuda":
        lines.append(f"  peak memory on the GPU: {torch.cuda.max_memory_allocated() / MEGABYTE:.0f} MiB")
    return lines


def quantiles(name: str, spent: list[Spent]) -> str:
    """One line of the report."""
    cpu, wall = ([getattr(one, clock) for one in spent] for clock in ("cpu", "wall"))
    figures = [
        f"{clock} p50 {np.quantile(values, 0.5):.3f} s, p95 {np.quantile(values, 0.95):.3f} s"
        for clock, values in (("CPU", cpu), ("wall", wall))
    ]
    return f"  {name}: {'; '.join(figures)} (n = {len(spent)})"


def main() -> None:
    """Measure both sizes, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of a data set with a split.json")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--cases", type=int, default=4, help="of each size")
    parser.add_argument("--slices", type=int, default=12, help="prompts of a case")
    parser.add_argument("--updates", type=int, default=8, help="of the model after each prompt")
    parser.add_argument("--learning", type=int, nargs=2, default=(6, 1), help="prompts with updates, small and large")
    parser.add_argument("--backends", nargs="+", default=["demons", "sitk"], help="the first one is the reference")
    parser.add_argument("--without-extent", action="store_true", help="nobody says where the object lies")
    parser.add_argument("--size", choices=("small", "large"), help="only this one")
    arguments = parser.parse_args()
    shapes = {"small": (SMALL,), "large": (LARGE,)}.get(arguments.size, (SMALL, LARGE))
    for shape, steps in zip((SMALL, LARGE), arguments.learning, strict=True):
        if shape not in shapes:
            continue
        options = Options(
            shape,
            arguments.data,
            arguments.device,
            arguments.cases,
            arguments.slices,
            steps,
            arguments.updates,
            tuple(arguments.backends),
            not arguments.without_extent,
        )
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            print("\n".join(pool.submit(measure, options).result()), flush=True)


if __name__ == "__main__":
    main()
