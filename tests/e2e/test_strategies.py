"""Every strategy of ours through a whole federation of simulated sites: two rounds, here and by the command."""

from pathlib import Path

import numpy as np
import pytest

from wardround.client.cases.phantoms import write_phantom_dataset
from wardround.deploy.preparation import prepare
from wardround.deploy.settings import settings_from
from wardround.deploy.simulation import run_arm
from wardround.models.catalogue import build
from wardround.models.weights import CONTROL, STEPS, load_arrays, network_weights
from wardround.server.journal import read_rounds
from wardround.strategies.contract import Weights
from wardround.strategies.local_keys import HEAD, NORMALISATION, matches

OURS = ("fedbn", "fedper", "fedrep", "scaffold", "fednova", "moon", "ditto", "apfl")
ROUNDS = 2


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sites with two cases each, and one to test on."""
    folder = tmp_path_factory.mktemp("phantoms") / "data"
    sizes = {"sites": 2, "cases_per_site": 2, "test_cases_per_site": 1}
    write_phantom_dataset(folder, **sizes, seed=0, shift_strength=1.0, shape=(16, 24, 16))
    return folder


class Run:
    """A federation that has run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.rounds = read_rounds(folder / "journal")

    def weights(self, round_: int = ROUNDS) -> Weights:
        """The global ones."""
        return dict(load_arrays(self._folder / "journal" / "rounds" / f"{round_:05d}" / "global.safetensors"))

    def kept(self, site: str) -> Weights:
        """What a site kept for itself after the last round."""
        path = self._folder / "sites" / site / "state" / f"round-{ROUNDS:05d}" / "local.safetensors"
        return dict(load_arrays(path)) if path.exists() else {}

    def dice(self) -> dict[str, float]:
        """Of each site."""
        evaluation = self.rounds[-1].evaluation
        assert evaluation is not None
        return {site: float(scores["dice"]) for site, scores in evaluation.sites.items()}  # type: ignore[arg-type]


def simulate(data: Path, out: Path, strategy: str) -> Run:
    settings = settings_from(
        {
            "data": data,
            "sites": "split.json",
            "rounds": ROUNDS,
            "strategy": strategy,
            "plan": {"model": "unet2d-small-affine", "updates_per_case": 6, "slices_per_case": 4},
            "device": "cpu",
        }
    )
    (run,) = prepare(out, settings)
    run_arm(run.folder)
    return Run(run.folder)


@pytest.fixture(scope="module")
def usual(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """FedAvg."""
    return simulate(data, tmp_path_factory.mktemp("fedavg") / "out", "fedavg")


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(array, other[name]) for name, array in one.items())


@pytest.mark.parametrize("strategy", OURS)
def test_a_federation_runs_under_every_strategy(data: Path, usual: Run, tmp_path: Path, strategy: str) -> None:
    run = simulate(data, tmp_path / "out", strategy)
    assert [len(record.sites) for record in run.rounds] == [2, 2]
    assert not any(record.refused or record.missing for record in run.rounds)
    found, names = run.weights(), set(usual.weights())
    assert all(np.isfinite(array).all() for array in found.values())
    assert all(0 <= dice <= 1 for dice in run.dice().values())
    own = run.kept("site_1"), run.kept("site_2")
    match strategy:
        case "fedbn" | "fedper" | "fedrep":
            patterns = NORMALISATION if strategy == "fedbn" else HEAD
            staying = {name for name in names if matches(name, patterns)}
            assert set(found) == names - staying
            assert all({name.removeprefix("personal/") for name in kept} == staying for kept in own)
            assert not same(*own), "each has its own"
        case "scaffold":
            control = {name for name in found if name.startswith(CONTROL)}
            parameters = dict(build("unet2d-small-affine", 3, 0).named_parameters())
            assert {name.removeprefix(CONTROL) for name in control} == set(parameters)
            # c is the mean over the sites, who weigh the same here.
            for name in control:
                mean = np.mean([kept[f"control/{name.removeprefix(CONTROL)}"] for kept in own], axis=0)
                np.testing.assert_allclose(found[name], mean, atol=1e-5)
            # Nothing is corrected before anything is known; then it is.
            assert same(network_weights(run.weights(1)), usual.weights(1))
            assert not same(network_weights(found), usual.weights())
        case "fednova":
            # Sites that take the same steps: what FedAvg does.
            assert found[STEPS].tolist() == pytest.approx([6 / 100])
            for name, array in usual.weights().items():
                np.testing.assert_allclose(found[name], array, atol=1e-3)
        case "moon":
            assert same(run.weights(1), usual.weights(1))
            assert not same(found, usual.weights())
        case _:
            assert same(found, usual.weights()), "what travels learns as if nothing else did"
            assert run.dice() != usual.dice(), "what is evaluated is each site's own"


@pytest.mark.long
@pytest.mark.parametrize("strategy", OURS)
def test_the_command_runs_every_strategy(tmp_path: Path, command_line: object, strategy: str) -> None:
    out = tmp_path / "out"
    shown = command_line.run(  # type: ignore[attr-defined]
        *("simulate", "--out", str(out), "--sites", "2", "--cases", "2", "--tests", "1", "--shape", "16,24,16"),
        *("--rounds", "2", "--compare", "", "--effort", "4", "--plan", "updates_per_case=4", "--strategy", strategy),
    )
    assert "federated" in shown
    assert strategy in (out / "report.html").read_text()
