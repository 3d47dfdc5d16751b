"""The ServerApp: its configuration, and a whole run through Flower's own entry point."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp.strategy import FedAdam

from wardround.errors import Interrupted, PlanError, UsageError
from wardround.server.app import app, initial_weights, is_wanted, read_settings, site_names
from wardround.server.journal import Journal, read_rounds
from wardround.strategies.buffered import FedBuff
from wardround.strategies.contract import Weights

CONFIG: dict[str, Any] = {"model": "unet3d-small", "labels": 3, "rounds": 4, "output": "journal"}


def test_defaults() -> None:
    settings = read_settings(CONFIG)
    assert settings.plan_of(3).round == 3
    assert settings.plan_of(3).labels == 3
    assert (settings.loop.rounds, settings.loop.quorum, settings.loop.evaluate_every) == (4, 1, 0)
    assert settings.loop.deadline_s == settings.plan.deadline_s == 3600
    assert type(settings.strategy).__name__ == "FedAvg"
    assert settings.output == Path("journal")


def test_everything_can_be_set() -> None:
    settings = read_settings(
        {
            **CONFIG,
            "strategy": "fedadam",
            "strategy-options.eta": 0.5,
            "strategy-options.beta-1": 0.8,
            "quorum": 3,
            "evaluate-every": 2,
            "deadline-s": 60,
            "fusion": 0.5,
            "run": "night",
            "seed": 5,
            "site-folder": "x",
        }
    )
    assert isinstance(settings.strategy, FedAdam)
    assert (settings.strategy.eta, settings.strategy.beta_1) == (0.5, 0.8)
    assert (settings.loop.quorum, settings.loop.evaluate_every, settings.loop.deadline_s) == (3, 2, 60.0)
    assert (settings.plan.run, settings.plan.seed, settings.plan.fusion) == ("night", 5, 0.5)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"colour": "red"}, "colour"),
        ({"labels": "3"}, "labels"),
        ({"quorum": "3"}, "quorum"),
        ({"quorum": True}, "quorum"),
        ({"quorum": 0}, "quorum"),
        ({"output": ""}, "output"),
        ({"round": 2}, "round"),
        ({"strategy": "best"}, "best"),
        ({"strategy-options.eta": 1.0}, "eta"),
        ({"strategy": "fednova", "normalised-steps": 0}, "normalised-steps"),
        ({"control-variates": True}, "scaffold"),
        ({"strategy": "scaffold", "late": "use"}, "late"),
        ({"strategy": "fednova", "late": "use"}, "late"),
        ({"strategy": "fedbuff", "late": "refuse"}, "late contradicts fedbuff"),
        ({"strategy": "fedbuff", "staleness-exponent": 2}, "staleness-exponent contradicts fedbuff"),
        ({"strategy": "fedbuff", "max-staleness": 8, "strategy-options.max-staleness": 9}, "option max_staleness: 9"),
    ],
)
def test_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises((PlanError, UsageError), match=named):
        read_settings({**CONFIG, **change})


@pytest.mark.parametrize(
    "given", [{}, {"late": "use"}, {"max-staleness": 50}, {"staleness-exponent": 0.5, "strategy-options.buffer": 3}]
)
def test_fedbuff_takes_what_says_the_same(given: dict[str, Any]) -> None:
    settings = read_settings({**CONFIG, "strategy": "fedbuff", **given})
    assert isinstance(settings.strategy, FedBuff)
    assert settings.strategy.max_staleness == 50


def test_missing_fields_are_named() -> None:
    with pytest.raises(PlanError, match="labels"):
        read_settings({name: value for name, value in CONFIG.items() if name != "labels"})


def test_names_of_nodes(toy_grid: Any) -> None:
    grid = toy_grid({})
    grid.get_nodes = lambda: [NodeInfo(node_id=7, name="north"), NodeInfo(node_id=9)]
    assert site_names(grid) == {7: "north", 9: "9"}


def test_initial_weights_are_those_of_the_seed() -> None:
    plan = read_settings({**CONFIG, "seed": 3}).plan
    first, again = initial_weights(plan), initial_weights(plan)
    other = initial_weights(plan.model_copy(update={"seed": 4}))
    assert all(np.array_equal(first[name], array) for name, array in again.items())
    assert not all(np.array_equal(first[name], array) for name, array in other.items())


def test_a_run_through_the_entry_point(
    toy_grid: Any, learner: Any, initial: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wardround.server.app.initial_weights", lambda plan: initial)
    grid = toy_grid({"south": learner(1.0), "north": learner(2.0)})
    grid.get_nodes = lambda: [NodeInfo(node_id=grid.id_of(name), name=name) for name in grid.sites]
    config = {**CONFIG, "output": str(tmp_path / "journal"), "quorum": 2}
    app(grid, Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=config))
    records = read_rounds(tmp_path / "journal")
    assert [set(record.sites) for record in records] == [{"south", "north"}] * 4
    with Journal(tmp_path / "journal") as journal:
        assert not np.array_equal(journal.weights(4)["w"], initial["w"])


def test_how_a_round_forgives_can_be_set_and_has_defaults() -> None:
    usual = read_settings(CONFIG)
    assert (usual.loop.late, usual.loop.quarantine_after, usual.loop.retries, usual.keep) == ("refuse", 3, 3, 5)
    strict = read_settings(
        {
            **CONFIG,
            "late": "use",
            "staleness-exponent": 1,
            "max-staleness": 2,
            "quarantine-after": 0,
            "quarantine-rounds": 4,
            "retries": 0,
            "retry-wait-s": 5,
            "keep-rounds": 9,
        }
    )
    assert (strict.loop.late, strict.loop.staleness_exponent, strict.loop.max_staleness) == ("use", 1.0, 2)
    assert (strict.loop.quarantine_after, strict.loop.quarantine_rounds) == (0, 4)
    assert (strict.loop.retries, strict.loop.retry_wait_s, strict.keep) == (0, 5.0, 9)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("late", "maybe"),
        ("staleness-exponent", -1.0),
        ("max-staleness", 0),
        ("quarantine-after", -1),
        ("quarantine-rounds", 0),
        ("retries", -1),
        ("retry-wait-s", float("inf")),
        ("keep-rounds", 0),
        ("retries", 1.5),
    ],
)
def test_settings_of_the_loop_that_cannot_work(name: str, value: object) -> None:
    with pytest.raises(PlanError, match=name):
        read_settings({**CONFIG, name: value})


def run_from_folder(grid: Any, folder: Path) -> None:
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={"run-folder": str(folder)})
    app(grid, context)


def test_a_run_may_have_its_settings_in_a_folder(
    toy_grid: Any, learner: Any, initial: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wardround.server.app.initial_weights", lambda plan: initial)
    grid = toy_grid({"south": learner(1.0)})
    grid.get_nodes = lambda: [NodeInfo(node_id=grid.id_of(name), name=name) for name in grid.sites]
    settings = {"model": "unet3d-small", "labels": 3, "rounds": 2, "strategy-options.eta": 0.5, "strategy": "fedadam"}
    (tmp_path / "request.json").write_text(json.dumps({"format": 1, "name": "night", "settings": settings}))
    (tmp_path / "error.json").write_text("{}")
    run_from_folder(grid, tmp_path)
    assert [record.round for record in read_rounds(tmp_path)] == [1, 2]
    assert not (tmp_path / "error.json").exists()


def test_an_error_of_ours_is_left_in_the_folder(toy_grid: Any, tmp_path: Path) -> None:
    settings = {"model": "unet3d-small", "labels": 3, "rounds": 2, "quorum": 0}
    (tmp_path / "request.json").write_text(json.dumps({"format": 1, "name": "night", "settings": settings}))
    with pytest.raises(PlanError):
        run_from_folder(toy_grid({}), tmp_path)
    left = json.loads((tmp_path / "error.json").read_text())
    assert (left["error"], left["exit-code"]) == ("PlanError", 5)
    assert "quorum" in left["problem"] + left["cause"]
    with pytest.raises(PlanError, match=r"request\.json"):
        run_from_folder(toy_grid({}), tmp_path / "elsewhere")


@pytest.mark.parametrize("content", ['{"wanted": true}', "{}", "[]", "", "{"])
def test_only_a_request_that_says_so_stops_a_run(tmp_path: Path, content: str) -> None:
    assert is_wanted(tmp_path)
    (tmp_path / "request.json").write_text(content)
    assert is_wanted(tmp_path)


def test_a_run_that_is_not_wanted_any_more_stops(toy_grid: Any, tmp_path: Path) -> None:
    request = {"wanted": False, "settings": {name: value for name, value in CONFIG.items() if name != "output"}}
    (tmp_path / "request.json").write_text(json.dumps(request))
    with pytest.raises(Interrupted):
        run_from_folder(toy_grid, tmp_path)
    assert json.loads((tmp_path / "error.json").read_text())["error"] == "Interrupted"
    assert read_rounds(tmp_path) == []


def test_a_fault_leaves_no_error(
    toy_grid: Any, initial: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(message: Message) -> Message:
        raise ConnectionError("the server is gone")

    monkeypatch.setattr("wardround.server.app.initial_weights", lambda plan: initial)
    settings = {"model": "unet3d-small", "labels": 3, "rounds": 2}
    (tmp_path / "request.json").write_text(json.dumps({"format": 1, "name": "night", "settings": settings}))
    grid = toy_grid({"south": offline})
    grid.get_nodes = lambda: [NodeInfo(node_id=grid.id_of(name), name=name) for name in grid.sites]
    with pytest.raises(ConnectionError):
        run_from_folder(grid, tmp_path)
    assert not (tmp_path / "error.json").exists()


def test_settings_are_read_without_torch() -> None:
    code = (
        "import sys; from wardround.server.app import read_settings; "
        f"read_settings({CONFIG!r}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
