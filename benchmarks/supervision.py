"""What losses between neighbours cost: ours, in shifted views, against the forms they were published in.

The gated CRF is measured against the unfolded window of Obukhov et al. 2019, attentive similarity in a window against
the released form over all pairs of tokens (Yang et al. 2023). Every form runs forward and backward in a process of its
own::

    OMP_NUM_THREADS=1 python benchmarks/supervision.py
    OMP_NUM_THREADS=1 python benchmarks/supervision.py --repeat 1 --small

Memory is the peak of the process over what it held before the first pass, which Linux alone tells; seconds are its CPU
time of one pass, the least of several. The ratio is the published form over ours: trust it above the figures
themselves. The last column is the largest relative difference between gradients of the two forms, where they compute
the same.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from wardround.client.supervision.attentive import (
    WindowSettings,
    attentive_similarity,
    released_affinity,
    windowed_affinity,
)
from wardround.client.supervision.crf import CrfSettings, gated_crf

SEED = 0
Form = Callable[[], tuple[Tensor, Tensor]]
"""Gives a loss and the tensor whose gradient is compared."""


def unfolded_crf(probability: Tensor, image: Tensor, receivers: Tensor, settings: CrfSettings) -> Tensor:
    """The gated CRF of a 2D batch with every neighbour of every pixel laid out at once."""
    radius = int(settings.radius)
    side = 2 * radius + 1
    count, _, *sides = probability.shape

    def unfolded(part: Tensor) -> Tensor:
        return F.unfold(part, side, padding=radius).reshape(count, part.shape[1], side**2, *sides)

    steps = torch.arange(-radius, radius + 1, dtype=probability.dtype)
    away = (steps[:, None].square() + steps.square()).flatten()
    inside = unfolded(torch.ones_like(image))[:, 0]
    alike = (unfolded(image)[:, 0] - image) / settings.intensity
    kernel = torch.exp(-0.5 * (away[None, :, None, None] / settings.position**2 + alike.square())) * inside
    kernel[:, side**2 // 2] = 0
    agreement = (unfolded(probability) * probability[:, :, None]).sum(dim=1)
    return (receivers[:, None] * kernel * (1 - agreement)).sum() / receivers.sum()


def all_pairs(queries: Tensor, keys: Tensor, probability: Tensor, settings: WindowSettings, released: bool) -> Tensor:
    """Attentive similarity of tokens on a grid with n × n affinities, of either kernel."""
    sides = probability.shape[2:]
    places = torch.cartesian_prod(*(torch.arange(side) for side in sides)).to(probability.dtype)
    away = places[:, None] - places
    near = torch.exp(-0.5 * away.square().sum(dim=2) / settings.position**2)
    near = near * (away.abs().amax(dim=2) <= settings.radius) * (1 - torch.eye(len(places)))
    scores = queries @ keys.transpose(1, 2)
    if released:
        attention = torch.softmax(scores, dim=2)
        kernel = near * torch.sigmoid(attention + attention.transpose(1, 2))
    else:
        both = 0.5 * (scores + scores.transpose(1, 2)) / math.sqrt(queries.shape[2])
        kernel = torch.softmax(both + near.log(), dim=2)
    flat = probability.flatten(2)
    return (kernel * (1 - flat.transpose(1, 2) @ flat)).sum() / (len(queries) * len(places))


def crf_forms(batch: int, side: int) -> dict[str, Form]:
    """The gated CRF on `batch` images of four classes."""
    generator = torch.Generator().manual_seed(SEED)
    probability = torch.softmax(torch.randn(batch, 4, side, side, generator=generator), 1).requires_grad_()
    image = torch.randn(batch, 1, side, side, generator=generator)
    receivers = (torch.rand(batch, side, side, generator=generator) < 0.95).float()
    settings = CrfSettings()
    return {
        "ours": lambda: (gated_crf(probability, image, receivers, settings=settings), probability),
        "unfolded": lambda: (unfolded_crf(probability, image, receivers, settings), probability),
    }


def volume_forms(side: int) -> dict[str, Form]:
    """The gated CRF on the axial stack of one volume; slices are the batch of the unfolded form."""
    forms = crf_forms(side, side)
    generator = torch.Generator().manual_seed(SEED)
    stack = torch.softmax(torch.randn(side, 4, side, side, generator=generator), 1)
    volume = stack.permute(1, 2, 3, 0)[None].contiguous().requires_grad_()
    image = torch.randn(side, 1, side, side, generator=generator).permute(1, 2, 3, 0)[None].contiguous()
    return {
        "ours": lambda: (gated_crf(volume, image, flat=2), volume),
        "unfolded": forms["unfolded"],
    }


def attentive_forms(batch: int, side: int) -> dict[str, Form]:
    """Attentive similarity on a grid of tokens of 32 channels."""
    generator = torch.Generator().manual_seed(SEED)
    queries, keys = (torch.randn(batch, side**2, 32, generator=generator).requires_grad_() for _ in range(2))
    probability = torch.softmax(torch.randn(batch, 4, side, side, generator=generator), 1)
    grid, settings, one = (side, side), WindowSettings(), torch.ones(1)

    def ours() -> tuple[Tensor, Tensor]:
        return attentive_similarity(probability, windowed_affinity(queries, keys, grid, settings)), queries

    def released() -> tuple[Tensor, Tensor]:
        affinity = released_affinity(queries, keys, grid, one, 0 * one, settings)
        return attentive_similarity(probability, affinity), queries

    return {
        "ours": ours,
        "all pairs": lambda: (all_pairs(queries, keys, probability, settings, released=False), queries),
        "released, in views": released,
        "released, all pairs": lambda: (all_pairs(queries, keys, probability, settings, released=True), queries),
    }


def tasks(small: bool) -> dict[str, tuple[Callable[[], dict[str, Form]], dict[str, str]]]:
    """By name: how the forms are made, and which published form computes the same as which of ours."""
    pixels, cube, tokens = (32, 16, 16) if small else (128, 64, 64)
    batch = 2 if small else 8
    crf, attentive = {"unfolded": "ours"}, {"all pairs": "ours", "released, all pairs": "released, in views"}
    return {
        f"gated CRF, {batch} × {pixels}²": (lambda: crf_forms(batch, pixels), crf),
        f"gated CRF, {cube}³, one view": (lambda: volume_forms(cube), {}),
        f"attentive similarity, {batch // 2} × {tokens}² tokens": (
            lambda: attentive_forms(batch // 2, tokens),
            attentive,
        ),
    }


def held(field: str) -> float:
    """Memory of this process in MiB: ``VmRSS`` now, ``VmHWM`` at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def measure(task: str, form: str, repeat: int, small: bool) -> dict[str, float | list[float]]:
    """Memory, seconds and some of the gradient of one form; to be run in a process of its own."""
    run = tasks(small)[task][0]()[form]
    # The peak of importing must not hide that of the loss: Linux forgets it when told so.
    Path("/proc/self/clear_refs").write_text("5")
    before, seconds, gradient = held("VmRSS"), [], torch.zeros(1)
    for _ in range(repeat):
        start = time.process_time()
        loss, wanted = run()
        (gradient,) = torch.autograd.grad(loss, wanted)
        seconds.append(time.process_time() - start)
    sample = gradient.flatten()[:: max(1, gradient.numel() // 500)].tolist()
    return {
        "memory": max(0.0, held("VmHWM") - before),
        "seconds": min(seconds),
        "gradient": sample,
        "loss": loss.item(),
    }


def difference(one: list[float], other: list[float]) -> float:
    """Largest difference over the largest entry."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) / max(map(abs, other))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="passes of each form")
    parser.add_argument("--small", action="store_true", help="small sides: seconds, to see that it runs")
    parser.add_argument("--one", nargs=2, metavar=("TASK", "FORM"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one, options.repeat, options.small)))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, seed {SEED}\n")
    print("| loss | form | peak MiB | CPU seconds | memory, ratio | time, ratio | gradients differ by |")
    print("|---|---|---|---|---|---|---|")
    for task, (make, same) in tasks(options.small).items():
        found = {}
        for form in make():
            command = [sys.executable, str(Path(__file__)), "--repeat", str(options.repeat), "--one", task, form]
            command += ["--small"] if options.small else []
            found[form] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        for form, row in found.items():
            memory, seconds = (row[name] / max(found["ours"][name], 1e-3) for name in ("memory", "seconds"))
            apart = f"{difference(row['gradient'], found[same[form]]['gradient']):.0e}" if form in same else ""
            figures = f"{row['memory']:.0f} | {row['seconds']:.2f} | {memory:.1f} | {seconds:.1f} | {apart}"
            print(f"| {task} | {form} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
