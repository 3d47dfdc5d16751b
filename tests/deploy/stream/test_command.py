"""`wardround stream`: every mistake ends in problem, cause and fix, with the exit code of its kind."""

from pathlib import Path

import pytest

from wardround.deploy import cli
from wardround.deploy.preparation import claim, stored_settings
from wardround.deploy.settings import settings_from
from wardround.deploy.stream.settings import StreamSettings

TINY = ["--cases", "4", "--tests", "2", "--shape", "24,24,24"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing here may run for long: what should be refused and is not ends as a success."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("wardround.deploy.experiment._run_all", lambda *_, **__: [])
    monkeypatch.setattr("wardround.deploy.experiment.show", lambda *_, **__: None)


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, *words: str) -> None:
    assert cli.run(["stream", *arguments]) == code
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    assert "fix" in shown
    for word in words:
        assert word in shown


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--arms", "magic"], "magic"),
        (["--arms", ""], "arm"),
        (["--arm", "mine"], "--arm"),
        (["--arm", "mine:fusion"], "name=value"),
        (["--arm", "mine:rounds=3"], "rounds"),
        (["--arm", "mine:updates_per_case=3"], "updates_per_case"),
        (["--arm", "mine:model=unet3d"], "model"),
        (["--budgets", "0"], "budget"),
        (["--budgets", "4,4"], "budgets"),
        (["--budgets", "few"], "budgets"),
        (["--order", "backwards"], "order"),
        (["--order", "by-site", "--evaluate-every", "1"], "evaluate-every"),
        (["--chunks", "0"], "chunks"),
        (["--cases", "0"], "cases"),
        (["--seeds", "0,0"], "seeds"),
        (["--plan", "slices_per_case=3"], "budgets"),
        (["--plan", "supervision=dense"], "supervision"),
        (["--model", "unet9d"], "unet9d"),
        (["--jobs", "0"], "jobs"),
        (["--resume", "a", "--out", "b"], "exclude"),
        (["--resume", "nowhere"], "no experiment"),
    ],
)
def test_bad_options(capsys: pytest.CaptureFixture[str], tmp_path: Path, options: list[str], word: str) -> None:
    refused(capsys, options, 2, word)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--arm", "mine:fusion=7"], "fusion"),
        (["--arm", "mine:magic=7"], "magic"),
        (["--plan", "learning_rate=-1"], "learning-rate"),
    ],
)
def test_a_bad_plan(capsys: pytest.CaptureFixture[str], tmp_path: Path, options: list[str], word: str) -> None:
    refused(capsys, options, 5, word)
    assert list(tmp_path.iterdir()) == []


def test_bad_data(capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, ["--data", "missing"], 3, "missing")


def test_each_command_goes_on_with_its_own_experiments(capsys: pytest.CaptureFixture[str]) -> None:
    claim(Path("federation"), settings_from({"phantoms": {}}), "")
    refused(capsys, ["--resume", "federation"], 2, "wardround simulate --resume federation")
    claim(Path("stream"), StreamSettings.model_validate({"phantoms": {}}), "")
    assert cli.run(["simulate", "--resume", "stream"]) == 2
    assert "wardround stream --resume stream" in capsys.readouterr().err


def test_resuming_with_other_settings(capsys: pytest.CaptureFixture[str]) -> None:
    claim(Path("out"), StreamSettings.model_validate({"phantoms": {}}), "")
    refused(capsys, ["--resume", "out", "--chunks", "3"], 2, "other settings", "chunks")


def test_options_become_settings() -> None:
    options = ["--arms", "proxy,even", "--arm", "mine:allocation=1,2,3,fusion=0.5", "--budgets", "3", "--sites", "2"]
    assert cli.run(["stream", "--out", "out", *TINY, *options]) == 0
    found = stored_settings(Path("out"))
    assert isinstance(found, StreamSettings)
    assert found.arms["mine"] == {"allocation": (1, 2, 3), "fusion": 0.5}
    assert [name for name, _, _ in found.runs()] == ["proxy-3", "even-3", "mine-3"]
    assert found.phantoms is not None
    assert (found.phantoms.sites, found.phantoms.cases, found.phantoms.tests) == (2, 2, 1)


def test_arms_of_ones_own_stand_alone() -> None:
    assert cli.run(["stream", "--out", "out", *TINY, "--arm", "mine:fusion=0.5"]) == 0
    found = stored_settings(Path("out"))
    assert isinstance(found, StreamSettings)
    assert list(found.arms) == ["mine"]


def test_ctrl_c(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("wardround.deploy.experiment.prepare", interrupt)
    refused(capsys, ["--out", "out", *TINY], 130, "wardround stream --resume out")
