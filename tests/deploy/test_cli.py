"""The command line: every mistake ends in problem, cause and fix, with the exit code of its kind and no traceback."""

import errno
import re
import shutil
from pathlib import Path

import pytest

from wardround import __version__, files
from wardround.deploy import cli
from wardround.errors import PlanError
from wardround.strategies.catalogue import names

TINY = ["--sites", "2", "--cases", "2", "--tests", "1", "--shape", "24,24,24", "--rounds", "2"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def phantom_data(folder: Path) -> Path:
    options = ["--sites", "2", "--cases", "2", "--tests", "1", "--shape", "24,24,24"]
    assert cli.run(["phantoms", str(folder), *options]) == 0
    return folder


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, *words: str) -> str:
    assert cli.run(arguments) == code
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    assert "fix" in shown
    for word in words:
        assert word in shown
    return shown


def test_the_help_names_every_strategy(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["simulate"], ["coordinator", "run"]):
        assert cli.run([*command, "--help"]) == 0
        words = set(re.findall(r"\w+", capsys.readouterr().out))
        assert set(names()) <= words


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--strategy", "fedper", "--plan", "local_keys=decoder.*"], "no array"),
        (["--strategy", "ditto", "--plan", "local_keys=model.2.*"], "choose one"),
    ],
)
def test_fields_of_a_plan_that_do_not_fit(capsys: pytest.CaptureFixture[str], options: list[str], word: str) -> None:
    refused(capsys, ["simulate", *options], PlanError.exit_code, word)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--rounds", "0"], "rounds"),
        (["--rounds", "many"], "rounds"),
        (["--seeds", "a,b"], "seeds"),
        (["--seeds", "1,1"], "seeds"),
        (["--seeds", "-1"], "seed"),
        (["--compare", "magic"], "arms"),
        (["--strategy", "fedmagic"], "fedmagic"),
        (["--strategy", "fedprox", "--strategy-option", "speed=3"], "speed"),
        (["--strategy", "ditto", "--strategy-option", "personal_weight=-1"], "personal_weight"),
        (["--strategy-option", "eta"], "name=value"),
        (["--weighting", "fairest"], "fairest"),
        (["--weighting", "qffl", "--weighting-option", "rate=3"], "rate"),
        (["--weighting", "qffl", "--strategy", "krum"], "Krum"),
        (["--engine", "warp"], "engine"),
        (["--device", "tpu"], "device"),
        (["--jobs", "0"], "jobs"),
        (["--sites", "0"], "sites"),
        (["--sites", "split.json"], "--data"),
        (["--shape", "24,24"], "shape"),
        (["--shape", "2,2,2"], "shape"),
        (["--shift", "-1"], "shift"),
        (["--model", "unet9d"], "unet9d"),
        (["--plan", "attentive_weight=0.1"], "attention"),
        (["--prompts", "points", "--strokes", "mine"], "strokes"),
        (["--site-prompts", "site_1=guesses"], "site-prompts.site"),
        (["--site-prompts", "site_1"], "name=value"),
        (["--site-prompts", "site_1=points", "--compare", "pooled"], "pooled"),
        (["--plan", "rounds=3"], "rounds"),
        (["--resume", "somewhere", "--out", "elsewhere"], "exclude"),
        (["--resume", "nowhere"], "no experiment"),
        (["--no-such-option"], "No such option"),
    ],
)
def test_bad_options(capsys: pytest.CaptureFixture[str], tmp_path: Path, options: list[str], word: str) -> None:
    refused(capsys, ["simulate", *options], 2, word)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--effort", "0"], "slices-per-case"),
        (["--plan", "learning_rate=-1"], "learning-rate"),
        (["--plan", "learnin_rate=1"], "learnin-rate"),
        (["--plan", "extent=perhaps"], "extent"),
        (["--plan", "annotation_rounds=99"], "annotation-rounds"),
        (["--prompts", "dense"], "prompts"),
        (["--plan", "crf_weight=-1"], "crf-weight"),
        (["--plan", "expansion=euclidean"], "expansion"),
    ],
)
def test_a_bad_plan(capsys: pytest.CaptureFixture[str], tmp_path: Path, options: list[str], word: str) -> None:
    refused(capsys, ["simulate", *options], 5, word)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sites", ["naturally", "even:", "even:0", "dirichlet:3", "dirichlet:3:-1", "dirichlet:3:1e"])
def test_a_bad_split(capsys: pytest.CaptureFixture[str], sites: str) -> None:
    phantom_data(Path("data"))
    refused(capsys, ["simulate", "--data", "data", "--sites", sites], 2, "sites")
    assert not Path("wardround-run").exists()


def test_an_empty_folder(capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    refused(capsys, ["simulate", "--data", "empty"], 3, "empty")
    refused(capsys, ["simulate", "--data", "missing"], 3, "missing")
    assert not Path("wardround-run").exists()


def test_a_split_that_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    phantom_data(Path("data"))
    Path("mine.json").write_text('{"sites": {"a": ["no_such_case"]}, "test": []}')
    refused(capsys, ["simulate", "--data", "data", "--sites", "mine.json"], 3, "no_such_case")
    refused(capsys, ["simulate", "--data", "data", "--sites", "file:lost.json"], 3, "lost.json")
    assert not Path("wardround-run").exists()


def test_a_label_that_does_not_match_its_image(capsys: pytest.CaptureFixture[str]) -> None:
    phantom_data(Path("data"))
    phantom_data_of_another_shape = Path("other")
    options = ["--sites", "2", "--cases", "2", "--tests", "1", "--shape", "24,24,32"]
    assert cli.run(["phantoms", str(phantom_data_of_another_shape), *options]) == 0
    victim = sorted(Path("data/labelsTr").iterdir())[0]
    shutil.copy(phantom_data_of_another_shape / "labelsTr" / victim.name, victim)
    refused(capsys, ["simulate", "--data", "data"], 3, victim.name)
    assert not Path("wardround-run").exists()


def test_a_folder_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    Path("out/notes.txt").write_text("mine")
    refused(capsys, ["simulate", "--out", "out", *TINY], 2, "not empty")
    Path("out/experiment.json").write_text("{}")
    refused(capsys, ["simulate", "--out", "out", *TINY], 2, "--resume out")


def test_resuming_with_other_settings(capsys: pytest.CaptureFixture[str]) -> None:
    from wardround.deploy.preparation import claim
    from wardround.deploy.settings import settings_from

    phantoms = {"sites": 2, "cases": 2, "tests": 1, "shape": (24, 24, 24)}
    claim(Path("out"), settings_from({"phantoms": phantoms, "rounds": 2}), "")
    refused(capsys, ["simulate", "--resume", "out", *TINY, "--strategy", "fedprox"], 2, "strategy")


def test_a_full_disk(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise files.storage_error(OSError(errno.ENOSPC, "No space left on device"), path)

    monkeypatch.setattr(files, "write_bytes", full)
    refused(capsys, ["simulate", "--out", "out", *TINY], 4, "disk is full")


def test_a_full_disk_that_nobody_expected(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "somewhere")

    monkeypatch.setattr("wardround.deploy.preparation.claim", full)
    refused(capsys, ["simulate", "--out", "out", *TINY], 4, "disk is full", "somewhere")


def test_ctrl_c(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("wardround.deploy.experiment.prepare", interrupt)
    refused(capsys, ["simulate", "--out", "out", *TINY], 130, "--resume out")


def test_a_report_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, ["report", "nowhere"], 2, "no experiment")


def test_without_ray(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wardround.deploy.ray_engine.importlib.util.find_spec", lambda name: None)
    refused(capsys, ["simulate", "--engine", "ray"], 2, "pip install 'wardround[ray]'")
    assert not Path("wardround-run").exists()


def test_phantoms_are_never_written_over_something(capsys: pytest.CaptureFixture[str]) -> None:
    Path("data").mkdir()
    Path("data/a").write_text("")
    refused(capsys, ["phantoms", "data"], 2, "not empty")
    refused(capsys, ["phantoms", "new", "--sites", "0"], 2, "sites")
    assert not Path("new").exists()
