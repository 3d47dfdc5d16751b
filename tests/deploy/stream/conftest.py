"""A made-up stream with known numbers, in the shape that an experiment writes."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from wardround.deploy.report.results import Results, parse_results

GROUPS = ("north", "south", "west")


def cases(dice: Sequence[float], sites: Sequence[str] = GROUPS) -> list[dict[str, Any]]:
    """Test cases in turn of each site."""
    return [
        {"case": f"test_{number}", "sites": [sites[number % len(sites)]], "dice": {"1": value, "2": value}}
        for number, value in enumerate(dice)
    ]


def run(  # noqa: PLR0917
    family: str, budget: int, effort: float, dice: Sequence[float], seed: int = 0, updates: int = 100
) -> dict[str, Any]:
    """One finished run: ten streamed cases, on each of which the model starts a point better than on the last."""
    stream = [
        {
            "site": "stream",
            "case": f"case_{number}",
            "round": 1 + number // 5,
            "step": step,
            "effort": effort * step / 2,
            "strict_effort": effort * step / 2,
            "proxy_dice": None if step == 0 else 0.8 + 0.05 * step,
            "model_dice": 0.5 + 0.01 * number,
        }
        for number in range(10)
        for step in range(3)
    ]
    return {
        "arm": f"{family}-{budget}",
        "family": family,
        "budget": budget,
        "seed": seed,
        "strategy": "fedavg",
        "models": {"global": {"cases": cases(dice)}},
        "effort": {"contour": effort, "strict": effort * 1.3},
        "updates": updates,
        "interactions": stream,
    }


def results(arms: Sequence[Mapping[str, Any]], **more: Any) -> Results:
    """A whole record of such runs."""
    return parse_results(
        {
            "kind": "stream",
            "command": "wardround stream",
            "seed_list": sorted({arm["seed"] for arm in arms}),
            "dataset": {"name": "made up", "labels": ["background", "head", "body"]},
            "sites": {site: {"stream": 4, "tests": 2} for site in GROUPS},
            "arms": arms,
            **more,
        }
    )


@pytest.fixture
def curve() -> Results:
    """Two budgets of each arm beside dense labels: 0.80 on every case, so that 99 % of it is 0.792."""
    dense = [0.75, 0.85, 0.80]
    arms = [
        run(family, budget, effort, [value + gain for value in dense], seed)
        for seed in (0, 1)
        for family, budget, effort, gain in (
            ("proxy", 4, 0.1, -0.03),
            ("proxy", 8, 0.3, 0.01),
            ("dense", 8, 1.0, 0.0),
            ("slices-only", 4, 0.1, -0.1),
            ("slices-only", 8, 0.3, -0.05),
        )
    ]
    return results(arms)


@pytest.fixture
def ordered() -> Results:
    """Three groups of two test cases each, with the matrix of `MATRIX` on both."""
    return results([ordered_run("proxy", MATRIX), ordered_run("no-replay", FORGOTTEN)], groups=GROUPS)


MATRIX = ((0.70, 0.50, 0.40), (0.74, 0.80, 0.50), (0.72, 0.83, 0.90))
FORGOTTEN = ((0.70, 0.50, 0.40), (0.50, 0.80, 0.50), (0.40, 0.60, 0.90))


def ordered_run(family: str, matrix: Sequence[Sequence[float]]) -> dict[str, Any]:
    """A run that passed the three groups, two chunks each."""
    rows = [[value + sign * 0.02 for sign in (-1, 1) for value in row] for row in matrix]
    checkpoints = [{"round": 2 * (number + 1), "cases": cases(row)} for number, row in enumerate(rows)]
    return run(family, 8, 0.3, rows[-1]) | {"checkpoints": checkpoints}


@pytest.fixture
def made_up() -> SimpleNamespace:
    """What streams are made of, for tests that make their own."""
    return SimpleNamespace(run=run, results=results, matrix=MATRIX)
