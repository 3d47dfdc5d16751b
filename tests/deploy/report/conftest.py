"""A made-up run of three hospitals with known numbers, in the shape that a simulation writes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wardround.deploy.report.examples import Example, save_example
from wardround.deploy.report.page import write_report
from wardround.deploy.report.results import save_results

SITES = ("Nordstadt", "Südufer", "Westend")
LEVELS = {"federated": 0.86, "dense": 0.872, "pooled": 0.868, "local": 0.815, "proxy": 0.79}
EFFORTS = {"federated": 0.33, "dense": 1.0, "pooled": 0.34, "local": 0.33, "proxy": 0.32}


def _case(rng: np.random.Generator, number: int, level: float, sites: list[str]) -> dict[str, Any]:
    one, two = np.clip(level + rng.normal(0, 0.02, 2) + (0.015, -0.015), 0, 1)
    return {
        "case": f"case_{number:03d}",
        "sites": sites,
        "dice": {"1": float(one), "2": float(two)},
        "hd95_mm": {"1": float(6 * (1 - one) + 1), "2": float(6 * (1 - two) + 1)},
        "assd_mm": {"1": float(2 * (1 - one) + 0.3), "2": float(2 * (1 - two) + 0.3)},
    }


def _arm(arm: str, seed: int, rounds: int) -> dict[str, Any]:
    rng = np.random.default_rng([seed, sorted(LEVELS).index(arm)])
    level = LEVELS[arm] + rng.normal(0, 0.004)
    tests = [(number, [SITES[number % 3]]) for number in range(18)]
    if arm == "local":
        models = {
            owner: {
                "cases": [
                    _case(
                        rng, number, level - 0.01 * SITES.index(sites[0]) - (0.05 if sites[0] != owner else 0.0), sites
                    )
                    for number, sites in tests
                ]
            }
            for owner in SITES
        }
    else:
        cases = [_case(rng, number, level - 0.01 * SITES.index(sites[0]), sites) for number, sites in tests]
        models = {"global": {"cases": cases}}
    interactions = []
    for index, site in enumerate(SITES):
        for number in range(1, rounds + 1):
            start = level - 0.35 * np.exp(-number / 2) - 0.02 * index + rng.normal(0, 0.01)
            for case in range(3):
                for step, (effort, gain) in enumerate([(0.0, 0.0), (0.18, 0.5), (EFFORTS[arm], 0.75)]):
                    interactions.append(
                        {
                            "site": site,
                            "case": f"{site}-{number}-{case}",
                            "round": number,
                            "step": step,
                            "effort": effort,
                            "strict_effort": effort * 1.2,
                            "proxy_dice": None if step == 0 else 0.84 + 0.07 * (step - 1) + rng.normal(0, 0.005),
                            "model_dice": float(start + gain * (0.9 - start)),
                        }
                    )
    traffic = 0 if arm in ("local", "pooled") else 560_000
    return {
        "arm": arm,
        "seed": seed,
        "strategy": "fedavg",
        "models": models,
        "effort": {"contour": EFFORTS[arm], "strict": min(1.0, EFFORTS[arm] * 1.22)},
        "updates": 24 * 9 * rounds,
        "rounds": [
            {
                "round": number,
                "seconds": 20.0 + number,
                "refused": {},
                "sites": {
                    site: {
                        "loss": 1.0 / number,
                        "effort": EFFORTS[arm],
                        "bytes_up": traffic,
                        "bytes_down": traffic,
                        "cases": 3,
                    }
                    for site in SITES
                },
            }
            for number in range(1, rounds + 1)
        ],
        "interactions": interactions,
        "seconds": {
            "predict": 9.0,
            "annotate": 2.0,
            "propagate": 14.0 if arm != "dense" else 0.0,
            "update": 70.0,
            "aggregate": 0.6,
            "evaluate": 18.0,
            "total": 120.0,
        },
        "bytes": {"up": traffic * 3 * rounds, "down": traffic * 3 * rounds},
        "peak_memory_mb": 812.0,
    }


def make_record(arms: tuple[str, ...] = tuple(LEVELS), seeds: tuple[int, ...] = (0, 1, 2), rounds: int = 6) -> Any:
    return {
        "version": "0.1.0",
        "created": "2031-05-04 10:11 UTC",
        "command": "wardround simulate --phantoms --sites 3 --rounds 6 --seeds 3 --compare dense,local,pooled",
        "seed_list": list(seeds),
        "machine": {"cores": 2, "memory_gb": 3.0, "python": "3.11.2", "torch": "2.13.0", "load": 0.4},
        "settings": {"rounds": rounds, "strategy": "fedavg", "slices_per_case": 8, "model": "unet3d-small"},
        "dataset": {"name": "phantoms", "labels": ["background", "anterior", "posterior"]},
        "sites": {site: {"stream": 18, "tests": 6} for site in SITES},
        "arms": [_arm(arm, seed, rounds) for seed in seeds for arm in arms],
    }


def make_example(index: int = 0, size: int = 72) -> Example:
    rng = np.random.default_rng(index)
    row, column = np.mgrid[:size, :size] / size - 0.5

    def head_and_body(wobble: float) -> np.ndarray:
        bend = column - 1.6 * row**2 + wobble * np.sin(9 * row + index)
        labels = np.where((bend / 0.10) ** 2 + (row / 0.30) ** 2 < 1, 1, 0)
        labels[(labels == 1) & (row > 0.02 + wobble)] = 2
        return labels.astype(np.uint8)

    truth, proxy, prediction = head_and_body(0.0), head_and_body(0.012), head_and_body(-0.02)
    image = 300 + 90 * (truth > 0) + 60 * np.cos(8 * row + index) * np.sin(7 * column) + rng.normal(0, 22, truth.shape)
    residual = np.clip(0.85 * (proxy != prediction) + rng.random(truth.shape) * 0.08, 0, 1)
    return Example(
        image.astype(np.float32),
        truth,
        proxy,
        prediction,
        residual.astype(np.float32),
        f"{SITES[index % 3]}, case {index}, sagittal slice {20 + index}",
        ("axial 12", "axial 20", "sagittal 31"),
    )


@pytest.fixture
def record() -> Callable[..., Any]:
    """Maker of a results record; arguments choose arms, seeds and rounds."""
    return make_record


@pytest.fixture
def example() -> Callable[..., Example]:
    """Maker of an example slice."""
    return make_example


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run with its report: every arm, two seeds, two examples. Read it only."""
    folder = tmp_path_factory.mktemp("run")
    save_results(make_record(seeds=(0, 1), rounds=3), folder)
    for index in range(2):
        save_example(folder / "examples" / f"{index}.npz", make_example(index))
    write_report(folder)
    return folder
