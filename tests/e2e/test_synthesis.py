"""`benchmarks/synthesis.py` on phantoms: equal budgets, who is in which stage, and what is left of it at γ = 0."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wardround.client.cases.dataset import CaseFiles, Dataset
from wardround.client.synthesis.pairs import Pair
from wardround.models.weights import save_arrays

CHECKOUT = Path(__file__).parents[2]
SCRIPT = CHECKOUT / "benchmarks" / "synthesis.py"
CLASSES = 3


@pytest.fixture(autouse=True)
def beside_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))


def tried(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), "phantoms", "--out", str(out), *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)


def test_arms_have_equal_updates_and_nobody_serves_two_stages(tmp_path: Path) -> None:
    arms = ("strong", "medsad", "genseg")
    options = ("--arms", *arms, "--seeds", "0")
    done = tried(tmp_path, *options)
    assert done.returncode == 0, done.stderr + "".join(log.read_text() for log in tmp_path.rglob("*.log"))
    folder = tmp_path / "phantoms"
    results = json.loads((folder / "results.json").read_text())
    found = {arm: results["arms"][f"{arm}-k5"][0] for arm in arms}
    recipe = found["strong"]["recipe"]
    for arm, result in found.items():
        assert result["used"]["updates"] == recipe["iterations"]
        assert result["used"]["real"] + result["used"]["made"] == recipe["iterations"] * recipe["batch"]
        assert (result["used"]["made"] > 0) == (arm != "strong")
        stages = {stage: set(cases) for stage, cases in result["manifest"].items()}
        assert len(stages["segmenter"] | stages["validation"]) == 5
        assert len(stages["validation"]) == (1 if arm == "genseg" else 0)
        assert stages["generator"] == (set() if arm == "strong" else stages["segmenter"])
        apart = [stages[name] for name in ("segmenter", "validation", "judge", "held out", "test")]
        assert len(set.union(*apart)) == sum(map(len, apart))
        assert set(result["scores"]) == stages["test"]
    moved = np.abs(np.subtract(*found["genseg"]["architecture"].values()))
    assert moved.max() > 1e-4
    tables = (folder / "tables.md").read_text()
    assert "| + searched generator, coupled |" in tables
    assert "goal ≥ 0.8" in tables
    assert (folder / "picture.png").stat().st_size > 1000
    assert "0 runs to go" in tried(tmp_path, *options).stdout
    refused = tried(tmp_path, *options, "--set", "share=0.5")
    assert "holds a run under other settings" in refused.stderr


def slices(cases: int, seed: int) -> list[Pair]:
    """Bright boxes of two labels; every third slice shows none."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(6 * cases):
        labels = np.zeros((24, 24), dtype=np.uint8)
        if number % 3:
            row, column = rng.integers(3, 10, 2)
            labels[row : row + 8, column : column + 5] = 1
            labels[row : row + 8, column + 5 : column + 10] = 2
        image = (labels + rng.normal(0, 0.3, labels.shape)).astype(np.float32)
        found.append(Pair(f"{seed}/{number // 6}", image, labels, number % 6))
    return found


def learnt(tmp_path: Path, name: str, validation: list[Pair] | None = None, **changed: Any) -> Any:
    """The weights that an arm ends with, on few updates from the same slices, and its source."""
    from imagined.arms import ARMS, TASKS
    from imagined.runs import train
    from weak.runs import digest

    recipe = replace(TASKS["phantoms"].cpu, iterations=8, **changed)
    arm, training = ARMS[name], slices(3, seed=1)
    rest = (recipe, training, validation or slices(1, seed=2), CLASSES, 0, "cpu")
    learner, source, _, counts = train(arm, *rest, generator(tmp_path, arm.source, recipe, training))
    return digest(learner), source, counts


def generator(folder: Path, kind: str, recipe: Any, training: list[Pair]) -> Path | None:
    """Files of a generator, as its own run leaves them; of a diffusion model what it made is enough."""
    import torch
    from imagined.generators import search_of

    files = folder / kind
    if kind == "searched":
        search = search_of(recipe, CLASSES, 0, torch.device("cpu"), frozen=True)
        search.pretrain(training, 4, np.random.default_rng(0))
        save_arrays(files.with_suffix(".safetensors"), search.arrays())
        return files
    made = slices(2, seed=3)
    images, labels = (
        np.stack([getattr(pair, part) for pair in made if pair.labels.any()]) for part in ("image", "labels")
    )
    np.savez(files.with_suffix(".npz"), images=images, labels=labels)
    return files if kind == "medsad" else None


@pytest.mark.parametrize(
    ("made", "baseline"),
    [("medsad", "strong"), ("deformed", "strong"), ("separate", "strong-train-only"), ("genseg", "strong-train-only")],
)
def test_without_weight_made_pairs_change_no_bit(tmp_path: Path, made: str, baseline: str) -> None:
    """Trap 9 of 6.1. A search looks at the network all the while."""
    plain, _, _ = learnt(tmp_path, baseline)
    without, _, counts = learnt(tmp_path, made, gamma=0.0)
    assert without == plain
    assert counts["made"] == 0
    with_them, _, counts = learnt(tmp_path, made)
    assert with_them != plain
    assert counts["made"] > 0


def test_validation_reaches_what_it_steers_and_nothing_else(tmp_path: Path) -> None:
    """Traps 4 and 6 of 6.1: other validation cases, other operators; the arms without feedback do not notice."""
    swapped = [replace(pair, labels=np.roll(pair.labels, 9, axis=0)) for pair in slices(1, seed=2)]
    for name in ("strong-train-only", "separate"):
        assert learnt(tmp_path, name)[0] == learnt(tmp_path, name, swapped)[0]
    one, other = (learnt(tmp_path, "genseg", validation)[1].search for validation in (None, swapped))
    assert not np.array_equal(one.architecture, other.architecture)
    assert one.judged_by == {"2/0"}
    one, other = (learnt(tmp_path, "genseg-knobs", validation)[1].noted() for validation in (None, swapped))
    assert one != other


def test_slices_that_show_nothing_stay_real(tmp_path: Path) -> None:
    from imagined.arms import TASKS
    from imagined.cases import learnable
    from imagined.runs import Batches
    from imagined.sources import Source

    recipe = replace(TASKS["phantoms"].cpu, batch=8, share=0.5)
    source = Source(1.0)
    given = [learnable(pair, CLASSES) for pair in slices(3, seed=1)]
    without = Batches(given, source, recipe, seed=0)()
    source.filled((np.zeros((2, 24, 24), dtype=np.float32), np.ones((2, 24, 24), dtype=np.uint8)), CLASSES)
    batch = Batches(given, source, recipe, seed=0)()
    empty = [not (sample.target[1:] > 0.5).any() for sample in without]
    assert 0 < sum(empty[:4]) < 4
    for place, (sample, real) in enumerate(zip(batch, without, strict=True)):
        assert (sample is real) == (empty[place] or place >= 4)


def people(count: int) -> Dataset:
    """Two cases each, of which nothing is read."""
    cases = [f"case_{number:03d}" for number in range(2 * count)]
    files = {case: CaseFiles(case, Path(case), Path(case)) for case in cases}
    return Dataset(
        "", Path(), files, ("background", "one"), {case: case[:-1] + str(int(case[-1]) // 2) for case in cases}
    )


def test_fewer_labelled_cases_are_a_part_of_more(monkeypatch: pytest.MonkeyPatch) -> None:
    from imagined import cases
    from imagined.arms import TASKS
    from weak.labels import Split

    dataset, recipe = people(60), replace(TASKS["hippocampus"].cpu, judge_cases=24, held_out=10)
    names = tuple(dataset.cases)
    monkeypatch.setattr(cases, "split_of", lambda *_, **__: Split(names[:110], names[110:]))
    dealt = {k: cases.deal(dataset, recipe, k, 3, apart=True, inner=False) for k in (5, 10, 20)}
    assert [len(found.validation) for found in dealt.values()] == [1, 2, 4]
    assert set(dealt[5].labelled) < set(dealt[10].labelled) < set(dealt[20].labelled)
    assert set(dealt[5].validation) < set(dealt[10].validation) < set(dealt[20].validation)
    for found in dealt.values():
        assert len({dataset.subjects[case] for case in found.labelled}) == len(found.labelled)
        assert found.judge == dealt[5].judge
        assert found.test == names[110:]
    inner = cases.deal(dataset, replace(recipe, tests=8, judge_cases=12, held_out=8), 5, 3, apart=True, inner=True)
    assert not set(inner.test) & set(names[110:])
    # A case of the test, once more among those of the judge.
    again = (*inner.judge, inner.test[0])
    with pytest.raises(AssertionError, match="two stages"):
        cases.assert_apart(dataset, replace(inner, judge=again))


def test_a_generator_that_has_learnt_by_heart_is_not_used(tmp_path: Path) -> None:
    from imagined.arms import ARMS
    from synthesis import usable

    for passed in (True, False):
        result = {"quality": {"memorisation": {"passed": passed}}}
        (tmp_path / "generator-medsad-k5-0.json").write_text(json.dumps(result))
        assert (usable(tmp_path, ARMS["medsad"], 5, 0) is not None) == passed
    assert usable(tmp_path, ARMS["deformed"], 5, 0) is None


def test_real_pairs_are_bent_and_recoloured_as_one() -> None:
    from imagined.sources import bent_pairs, recoloured

    pairs = slices(3, seed=1)
    images, labels = bent_pairs(pairs, 16, np.random.default_rng(0))
    assert not any(np.array_equal(mask, pair.labels) for mask in labels for pair in pairs if pair.labels.any())
    for image, mask in zip(images, labels, strict=True):
        assert image[mask == 2].mean() > image[mask == 1].mean() + 0.5 > image[mask == 0].mean() + 1
    one, levels = pairs[1].image, np.linspace(-1, 4, 101)
    np.testing.assert_allclose(recoloured(one, levels, 3 * levels + 1), 3 * one.clip(-1, 4) + 1, rtol=1e-5, atol=1e-5)
