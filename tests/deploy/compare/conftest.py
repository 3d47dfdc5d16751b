"""A made-up comparison with known numbers, in the shape that an experiment writes."""

from collections.abc import Mapping
from typing import Any

import pytest

from wardround.deploy.report.results import Results, parse_results

SITES = ("north", "south")


def scored(dice: Mapping[str, float]) -> dict[str, Any]:
    """A model with one test case a site, called after it."""
    return {"cases": [{"case": f"test-{site}", "sites": [site], "dice": {"1": value}} for site, value in dice.items()]}


def arm(name: str, seed: int, models: Mapping[str, Mapping[str, float]], up: int = 0) -> dict[str, Any]:
    """A finished arm under one seed: model → site → Dice on its test case."""
    return {
        "arm": name,
        "seed": seed,
        "models": {model: scored(dice) for model, dice in models.items()},
        "bytes": {"up": up, "down": up},
        "seconds": {"total": 60.0 + seed},
    }


@pytest.fixture
def comparison() -> Results:
    """Two strategies over three seeds, and two hospitals that learn alone."""
    arms = []
    for seed, shift in enumerate((-0.02, 0.0, 0.02)):
        arms += [
            arm("plain", seed, {"global": {"north": 0.8 + shift, "south": 0.6}}, up=2_000_000),
            # In the last seed its worst site is another one.
            arm("fair", seed, {"global": {"north": 0.75 if seed < 2 else 0.65, "south": 0.7}}, up=1_000_000),
            arm(
                "local",
                seed,
                {"north": {"north": 0.7 + shift, "south": 0.3}, "south": {"north": 0.74 + shift, "south": 0.5}},
            ),
        ]
    return parse_results(
        {
            "kind": "compare",
            "command": "wardround compare",
            "seed_list": [0, 1, 2],
            "dataset": {"name": "made up", "labels": ["background", "head"]},
            "sites": {site: {"stream": 4, "tests": 1} for site in SITES},
            "settings": {"arms.plain": "fedavg", "arms.fair": "fedavg, weighting=qffl, q=2", "rounds": 2},
            "arms": arms,
        }
    )
