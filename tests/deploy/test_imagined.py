"""What sites keep of their generators' images gets into the folder that the report is made of."""

import json
from pathlib import Path

import numpy as np
import pytest

from wardround.client import dreaming
from wardround.client.learning.replay import Reservoir
from wardround.client.learning.state import SiteState, Snapshots
from wardround.client.synthesis.shown import Shown
from wardround.deploy.imagined import keep_imagined
from wardround.deploy.preparation import INDEX, claim
from wardround.deploy.report.examples import IMAGINED, Example, load_examples
from wardround.deploy.settings import PhantomSettings, SimulationSettings

LABELS = np.zeros((6, 8, 5), dtype=np.uint8)
LABELS[1:3, 2:6, 1] = 1
LABELS[1:4, 2:6, 3] = 1
LABELS[4, 2:6, 3] = 2


def experiment(out: Path) -> Path:
    claim(out, SimulationSettings(phantoms=PhantomSettings(), seeds=(4, 5)), "wardround simulate")
    runs = [
        {"folder": f"{arm}-seed{seed}", "arm": arm, "seed": seed, "sites": ["west", "east"]}
        for arm in ("federated", "dense")
        for seed in (4, 5)
    ]
    (out / INDEX).write_text(json.dumps({"runs": runs}))
    return out


def made(count: int, labels: np.ndarray = LABELS) -> Shown:
    images = [labels + np.float32(10 * number) for number in range(count)]
    return Shown.among(images, [labels] * count, [(1.0, 2.0, 3.0)[: labels.ndim]] * count)


def snapshot(out: Path, run: str, site: str, shown: Shown | None, round_: int = 1) -> None:
    arrays = {} if shown is None else {f"{dreaming._KEPT}shown/{name}": array for name, array in shown.arrays().items()}
    local = {"head.weight": np.ones(3, dtype=np.float32), **arrays}
    Snapshots(out / "arms" / run / "sites" / site / "state").save(SiteState(round_, Reservoir(4), local=local))


def kept(out: Path) -> list[Example]:
    keep_imagined(out)
    return load_examples(out, IMAGINED)


def test_the_slice_that_shows_most_of_each_made_volume_is_kept_by_site(tmp_path: Path) -> None:
    out = experiment(tmp_path / "out")
    snapshot(out, "federated-seed4", "east", made(2))
    snapshot(out, "federated-seed4", "west", made(9))
    found = kept(out)
    assert [example.title for example in found] == ["west"] * 4 + ["east"] * 2, "in the order of the run"
    for example, number in zip(found, (0, 3, 5, 8, 0, 1), strict=True):
        assert example.truth is not None
        assert np.array_equal(example.truth, LABELS[:, :, 3].T)
        assert np.array_equal(example.image, LABELS[:, :, 3].T + 10 * number)
        assert example.spacing == (2.0, 1.0)
        assert example.proxy is example.prediction is example.residual is None


def test_made_slices_are_kept_as_they_are(tmp_path: Path) -> None:
    out = experiment(tmp_path / "out")
    snapshot(out, "federated-seed4", "west", made(1, LABELS[:, :, 1]))
    (example,) = kept(out)
    assert np.array_equal(example.image, LABELS[:, :, 1].T)
    assert example.spacing == (2.0, 1.0)


def test_the_newest_snapshot_of_the_main_arm_under_the_first_seed_is_looked_at(tmp_path: Path) -> None:
    out = experiment(tmp_path / "out")
    for run in ("federated-seed5", "dense-seed4"):
        snapshot(out, run, "west", made(2))
    assert kept(out) == []
    assert not (out / IMAGINED).exists()
    snapshot(out, "federated-seed4", "west", made(3))
    assert len(kept(out)) == 3
    names = {path: path.read_bytes() for path in (out / IMAGINED).iterdir()}
    keep_imagined(out)
    assert {path: path.read_bytes() for path in (out / IMAGINED).iterdir()} == names, "written again, the same bytes"
    snapshot(out, "federated-seed4", "west", made(1), round_=2)
    assert len(kept(out)) == 1
    snapshot(out, "federated-seed4", "west", None, round_=3)
    assert kept(out) == []
    assert not (out / IMAGINED).exists()


def test_a_snapshot_that_cannot_be_read_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = experiment(tmp_path / "out")
    for site in ("west", "east"):
        snapshot(out, "federated-seed4", site, made(2))
    (damaged,) = (out / "arms" / "federated-seed4" / "sites" / "west").rglob("local.safetensors")
    damaged.write_bytes(b"nothing")
    assert {example.title for example in kept(out)} == {"east"}
    assert "made images of west are left out" in caplog.text
