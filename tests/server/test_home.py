import subprocess
import sys
from pathlib import Path

import pytest

from wardround.errors import DataError, UsageError
from wardround.files import is_locked
from wardround.server.home import CoordinatorHome, hold

SMALL = '[coordinator]\nnames = ["fed.example.org"]\nurl = "https://fed.example.org:8443"\n'


def home(tmp_path: Path, text: str) -> CoordinatorHome:
    (tmp_path / "coordinator.toml").write_text(text)
    return CoordinatorHome(tmp_path)


def test_settings_have_sensible_defaults(tmp_path: Path) -> None:
    settings = home(tmp_path, SMALL).settings
    assert (settings.host, settings.port, settings.runtime_port) == ("0.0.0.0", 8443, 8444)
    # What is for the operator alone is not for the world.
    assert settings.status_host == "127.0.0.1"
    assert settings.quorum == 2


def test_names_are_written_with_dashes(tmp_path: Path) -> None:
    found = home(tmp_path, SMALL + "runtime-port = 9000\nstatus-port = 0\n")
    assert found.settings.runtime_port == 9000
    assert found.runtime_address == "127.0.0.1:9000"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "[coordinator]\nnames = []\nurl = 'https://a:1'\n",
        SMALL + "port = 0\n",
        SMALL + "prot = 8443\n",
        SMALL + "runtime-port = 8443\n",
        SMALL.replace("https", "http"),
        SMALL + "quorum = 0\n",
    ],
)
def test_settings_that_cannot_be_used_name_the_file(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"coordinator\.toml"):
        _ = home(tmp_path, text).settings


def test_another_folder_is_no_home(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not the home"):
        _ = CoordinatorHome(tmp_path).settings


def test_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert CoordinatorHome(Path("c")).run_folder("study") == tmp_path / "c" / "runs" / "study"


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", ".hidden", "a b", "x" * 129])
def test_a_run_has_a_name_that_is_one_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        CoordinatorHome(tmp_path).run_folder(name)


def test_a_lock_is_held_once(tmp_path: Path) -> None:
    path = tmp_path / "run" / "lock"
    assert not is_locked(path)
    with hold(path) as ours:
        assert ours
        assert is_locked(path)
        with hold(path) as theirs:
            assert not theirs
    assert not is_locked(path)


def test_a_lock_ends_with_the_process_that_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = (
        "import sys, pathlib; from wardround.server.home import hold\n"
        "with hold(pathlib.Path(sys.argv[1])) as ours: print(ours, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        assert is_locked(path)
        process.kill()
        process.wait()
    assert not is_locked(path)
