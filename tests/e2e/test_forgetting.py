"""`benchmarks/forgetting.py` as a user starts it, on phantoms: that fine-tuning forgets, and what makes arms equal.

The margins are wide: another processor rounds differently, and training carries that on.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wardround.client.annotation.prompts import UNLABELLED
from wardround.client.cases.dataset import Dataset, load_dataset
from wardround.client.learning.learner import OnlineLearner
from wardround.client.learning.replay import Sample

CHECKOUT = Path(__file__).parents[2]
SCRIPT = CHECKOUT / "benchmarks" / "forgetting.py"


@pytest.fixture(autouse=True)
def beside_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))


def tried(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), "phantoms", "--out", str(out), "--seeds", "0", *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)


def run(out: Path, *options: str) -> str:
    done = tried(out, *options)
    assert done.returncode == 0, done.stderr + "".join(log.read_text() for log in out.rglob("*.log"))
    return done.stdout


def results(out: Path) -> dict[str, Any]:
    return {arm: runs[0] for arm, runs in json.loads((out / "phantoms" / "results.json").read_text()).items()}


def test_fine_tuning_forgets_a_scanner_and_a_memory_does_not(tmp_path: Path) -> None:
    from memory.tables import backward, final, matrix

    text = run(tmp_path, "--arms", "fine-tune", "memory-4", "joint")
    found = results(tmp_path)
    assert backward(found["fine-tune"]) < -0.1
    assert backward(found["memory-4"]) > backward(found["fine-tune"]) + 0.1
    assert final(found["memory-4"]) > final(found["fine-tune"]) + 0.05
    assert final(found["joint"]) > final(found["fine-tune"]) + 0.05
    # Until the first regime ends nothing can be forgotten; both arms began with the same weights.
    assert np.array_equal(matrix(found["fine-tune"])[0], matrix(found["memory-4"])[0])
    assert "| fine-tuning |" in text
    assert (tmp_path / "phantoms" / "picture.png").stat().st_size > 1000


@pytest.mark.long
def test_every_row_runs_and_no_case_outlives_its_regime_in_generative_replay(tmp_path: Path) -> None:
    from memory.arms import ARMS

    text = run(tmp_path, "--set", "updates=2", "steps=4")
    assert set(results(tmp_path)) == set(ARMS)
    (made,) = results(tmp_path)["generative"]["made"]
    # Either the generator has passed its test and stands for the cases, or they stay and no pair is made.
    assert (made["kept"] == 0) == (made["made"] > 0)
    assert "| generative replay |" in text


def test_what_is_finished_is_not_run_again_and_not_taken_for_something_else(tmp_path: Path) -> None:
    options = ("--arms", "ewc", "--jobs", "1")
    run(tmp_path, *options, "--set", "updates=1")
    assert "0 runs to go" in run(tmp_path, *options, "--set", "updates=1")
    for other in (["updates=2"], ["updates=1", "ewc=0.5"]):
        refused = tried(tmp_path, *options, "--set", *other)
        assert refused.returncode == 1
        assert "holds a run under other settings" in refused.stderr
    assert "neither arms nor recipes know of nothing" in tried(tmp_path, "--set", "nothing=1").stderr


class Seen(OnlineLearner):
    """Notes what every update learns from, and learns nothing."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.batches: list[list[str]] = []

    def update(self, batch: Any, updates: int, *_: Any) -> float:
        self.batches += [[sample.case_id for sample in batch()] for _ in range(updates)]
        return 0.0


class NoTests:
    """In the place of the test cases."""

    def of(self, _: OnlineLearner) -> dict[str, dict[str, float]]:
        return {}


def drawn(tmp_path: Path) -> tuple[Any, Dataset]:
    from memory.arms import TASKS

    task = TASKS["phantoms"]
    return task, load_dataset(task.phantoms.write(tmp_path / "data"))


def learnt(tmp_path: Path, arm: str, monkeypatch: pytest.MonkeyPatch, **changed: Any) -> tuple[list[list[str]], Any]:
    """Case ids of every batch of an arm, and the regimes."""
    from memory import runs
    from memory.arms import picked
    from memory.streams import dealt, regimes_of, samples_of

    task, dataset = drawn(tmp_path)
    recipe = replace(task.recipe, updates=3, blocks=1, **changed)
    regimes = dealt(regimes_of(dataset, {}, recipe.tests, inner=False), recipe.cases, 0, free=True)
    stream = [samples_of(dataset, part, "unknown", 1, 1) for part in regimes]
    monkeypatch.setattr(runs, "OnlineLearner", Seen)
    chosen = picked([arm], {})[arm]
    learner = runs.learner_of(chosen, recipe, 3, 0, torch.device("cpu"))
    folder = tmp_path / arm
    folder.mkdir()
    runs.learn(chosen, recipe, learner, stream, NoTests(), 0, folder)
    return learner.batches, regimes


@pytest.mark.parametrize("arm", ["fine-tune", "memory-2", "memory-4", "joint"])
def test_all_arms_take_as_many_updates_on_as_many_samples(
    arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, regimes = learnt(tmp_path, arm, monkeypatch, batch=4)
    order = [case for part in regimes for case in part.pool]
    assert len(batches) == 3 * len(order)
    assert {len(batch) for batch in batches} == {4}
    if arm == "joint":
        return
    remembered: set[str] = set()
    for number, batch in enumerate(batches):
        case = order[number // 3]
        assert batch.count(case) >= 2
        remembered |= set(batch) - {case}
        assert set(batch) <= set(order[: number // 3 + 1])
        # Only what a memory may hold at that time is recalled.
        if arm != "fine-tune" and number % 3 == 2:
            recent = {name for one in batches[number - 2 : number + 1] for name in one} - {case}
            assert len(recent) <= int(arm[-1])
    assert bool(remembered) == (arm != "fine-tune")


def test_joint_learns_all_cases_from_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches, regimes = learnt(tmp_path, "joint", monkeypatch, batch=8)
    early = {case for batch in batches[:3] for case in batch}
    assert all(early & set(part.pool) for part in regimes)


def test_no_case_of_a_test_is_learnt_from_and_inner_tests_are_training_cases(tmp_path: Path) -> None:
    from memory.streams import regimes_of

    _, dataset = drawn(tmp_path)
    whole, inner = (regimes_of(dataset, {}, 3, inner) for inner in (False, True))
    asked = {case for part in whole for case in part.test}
    allowed = {case for part in whole for case in part.pool}
    assert not asked & allowed
    assert {case for part in inner for case in (*part.pool, *part.test)} <= allowed
    for part in inner:
        assert part.test
        assert not set(part.test) & {case for other in inner for case in other.pool}
    assert [part.name for part in whole] == sorted(dataset.natural_sites[part.pool[0]] for part in whole)


def test_three_seeds_meet_three_orders(tmp_path: Path) -> None:
    from memory.streams import Regime, dealt

    regimes = [Regime(name, tuple(f"{name}{number}" for number in range(9)), ()) for name in "abcd"]
    streams = [dealt(regimes, 5, seed, free=True) for seed in range(3)]
    assert len({tuple(part.name for part in stream) for stream in streams}) == 3
    first = {part.name: part.pool for part in streams[0]}
    assert all(len(set(pool)) == 5 for pool in first.values())
    assert all(part.pool != first[part.name] for part in streams[1])
    assert [part.name for part in dealt(regimes, 5, 1, free=False)] == list("abcd")
    assert dealt(regimes, 5, 1, free=True) == streams[1]


@pytest.mark.parametrize("unlabelled", ["unknown", "background"])
def test_a_structure_of_another_regime_is_unknown_or_background(unlabelled: Any, tmp_path: Path) -> None:
    from memory.streams import Regime, samples_of
    from weak.labels import true_labels

    _, dataset = drawn(tmp_path)
    case = next(iter(dataset.cases))
    (sample,) = samples_of(dataset, Regime("head", (case,), (), (1,)), unlabelled, 1, 1)
    truth = true_labels(dataset, case)
    assert (truth == 2).any()
    assert (sample.weight[truth == 2] == (unlabelled == "background")).all()
    assert (sample.weight[truth != 2] == 1).all()
    known = sample.target.argmax(axis=0)
    np.testing.assert_array_equal(known[truth != 2], truth[truth != 2])
    assert not (known[sample.weight > 0] == 2).any()
    assert UNLABELLED not in known


def stated(rows: Sequence[Sequence[float]], seed: int = 0, **arm: Any) -> Mapping[str, Any]:
    """A finished run with this accuracy matrix; between its regimes all Dice is 0.1."""
    names = [f"r{number}" for number in range(len(rows[0]))]
    points: list[dict[str, Any]] = []
    for number, row in enumerate(rows):
        if number:
            points.append({"cases": 4 * number - 2, "regime": None, "dice": {name: {"c": 0.1} for name in names}})
        dices = {name: {"a": value - 0.1, "b": value + 0.1} for name, value in zip(names, row, strict=True)}
        points.append({"cases": 4 * number, "regime": number, "dice": dices})
    return {"arm": {"joint": False} | arm, "seed": seed, "points": points, "regimes": [{"name": n} for n in names]}


def test_transfer_is_what_the_definitions_say() -> None:
    from memory.tables import backward, final, forward, last_third, matrix, worst

    rows = [[0.1, 0.2, 0.1], [0.8, 0.3, 0.4], [0.6, 0.7, 0.6], [0.5, 0.4, 0.9]]
    run = stated(rows)
    np.testing.assert_allclose(matrix(run), rows)
    assert final(run) == pytest.approx(0.6)
    assert worst(run) == pytest.approx(0.4)
    assert backward(run) == pytest.approx(((0.5 - 0.8) + (0.4 - 0.7)) / 2)
    assert forward(run) == pytest.approx(((0.3 - 0.2) + (0.6 - 0.1)) / 2)
    # After 8 of 12 cases: one look between, one at the end.
    assert last_third(run) == pytest.approx((0.1 + 0.6) / 2)
    assert np.isnan(backward(stated(rows, joint=True)))


def test_goals_are_paired_over_seeds() -> None:
    from memory.tables import against, goal_lines, kept_share

    def ended(dices: Mapping[int, float]) -> list[Mapping[str, Any]]:
        return [stated([[0.1], [value]], seed) | {"made": [{"kept": 0.0}]} for seed, value in dices.items()]

    runs = {
        "fine-tune": ended({0: 0.50, 1: 0.30}),
        "memory-4": ended({0: 0.60, 1: 0.50, 2: 0.9}),
        "memory-4+msmt": ended({0: 0.62, 1: 0.505}),
        "generative": ended({0: 0.57, 1: 0.44}),
    }
    assert against(runs, "memory-4+msmt", "memory-4").mean == pytest.approx(1.25)
    assert kept_share(runs, "fine-tune").mean == pytest.approx(100 * 0.105 / 0.15)
    lines = goal_lines(runs)
    assert [line.rpartition(": ")[2] for line in lines] == ["reached", "reached", "missed by 10"]
    worse = runs | {"memory-4+msmt": ended({0: 0.60, 1: 0.50})}
    assert goal_lines(worse)[0].endswith("missed by 1.0")
    still = [dict(run) | {"made": [{"kept": 5.0}]} for run in runs["generative"]]
    assert goal_lines(runs | {"generative": still})[-1].endswith("no verdict, 10 cases were not taken over")


def test_an_empty_prediction_counts_zero(tmp_path: Path) -> None:
    from memory.runs import Tests
    from memory.streams import Regime

    task, dataset = drawn(tmp_path)
    cases = tuple(dataset.cases)[:2]

    class Blind:
        def predict(self, image: np.ndarray) -> np.ndarray:
            return np.stack([np.ones_like(image), *[np.zeros_like(image)] * 2])

    class Sees:
        def predict(self, image: np.ndarray) -> np.ndarray:
            from weak.labels import true_labels

            found = true_labels(dataset, cases[0])
            return np.stack([found == label for label in range(3)]).astype(np.float32)

    tests = Tests(dataset, [Regime("one", (), cases[:1]), Regime("two", (), cases, (1,))], task.recipe)
    assert tests.of(Blind()) == {"one": {cases[0]: 0.0}, "two": dict.fromkeys(cases, 0.0)}  # type: ignore[arg-type]
    found = tests.of(Sees())  # type: ignore[arg-type]
    assert found["one"] == {cases[0]: 1.0}
    assert found["two"][cases[0]] == 1.0 > found["two"][cases[1]]


def test_stored_answers_are_kept_with_the_case_for_der_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from memory import runs

    offered: dict[str, list[Sample]] = {"der++": [], "memory-4": []}
    for arm, into in offered.items():
        original = runs.ReplayMemory.offer

        def offer(self: Any, sample: Sample, rng: Any, into: list[Sample] = into, original: Any = original) -> None:
            into.append(sample)
            original(self, sample, rng)

        with monkeypatch.context() as patch:
            patch.setattr(runs.ReplayMemory, "offer", offer)
            learnt(tmp_path, arm, patch)
    assert all(sample.logits is not None and sample.logits.shape == sample.target.shape for sample in offered["der++"])
    assert all(sample.logits is None for sample in offered["memory-4"])
