"""No log line of a whole run of the tests names anybody: that the watch over them sees, and that it knows all names."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from planted import Watch, is_canary, what_is_in

TESTS = Path(__file__).parent
WATCHED = """
import sys
from pathlib import Path
import pytest
sys.path.insert(0, {support!r})
from planted import Watch

def pytest_configure(config):
    config.pluginmanager.register(Watch(config), "canaries")
"""
# Each of these lets a name out where the watch has to see it.
LEAKS = {
    "test_a_record": 'logging.getLogger("wardround.x").info("import of %s", "KOWALSKA^EWA")',
    "test_a_traceback": """
    try:
        raise ValueError("kowalska^ewa")
    except ValueError:
        logging.getLogger("elsewhere").exception("failed")""",
    "test_a_uid": 'logging.getLogger("wardround.x").warning("no series 1.2.840.10008.1.2.3 there")',
    "test_a_process": "subprocess.run([sys.executable, '-c', 'import sys; sys.exit(\"KOWALSKA^EWA\")'])",
    "test_a_file": '(tmp_path / "logs").mkdir(); (tmp_path / "logs" / "node.log").write_text("of KOWALSKA^EWA")',
}
CLEAN = {
    "test_nothing": 'logging.getLogger("wardround.x").info("KOWALSKA went to 127.0.0.1, version 1.2.3")',
    "test_a_result": '(tmp_path / "out.txt").write_text("KOWALSKA^EWA")',
}


def watched(folder: Path, tests: dict[str, str], *options: str) -> "subprocess.CompletedProcess[str]":
    """Run tests under the watch, in a folder of their own."""
    folder.mkdir()
    (folder / "conftest.py").write_text(WATCHED.format(support=str(TESTS / "support")))
    bodies = "\n\n".join(f"def {name}(tmp_path):\n    {body}" for name, body in tests.items())
    (folder / "test_it.py").write_text(f"import logging, subprocess, sys\n\n{bodies}\n")
    command = [sys.executable, "-m", "pytest", "-q", "--rootdir", str(folder), "-c", "/dev/null", str(folder)]
    base = ["--basetemp", str(folder / "temporary")]
    plain = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    answer = subprocess.run([*command, *base, *options], capture_output=True, text=True, check=False, env=plain)
    shutil.rmtree(folder)  # The watch over this very run would find what lies there.
    return answer


@pytest.mark.parametrize("options", [(), ("-p", "xdist", "-n", "2")], ids=["alone", "in workers"])
def test_the_watch_names_the_test_that_lets_a_name_out(tmp_path: Path, options: tuple[str, ...]) -> None:
    answer = watched(tmp_path / "run", LEAKS | CLEAN, *options)
    assert answer.returncode == 1
    summary = answer.stdout[answer.stdout.index("short test summary") :]
    for name in LEAKS.keys() - {"test_a_file"}:
        assert f"{name}: a planted name was logged" in answer.stdout
    assert "a planted name was logged: KO…WA in test_a_file0" in answer.stdout
    assert not [name for name in CLEAN if name in summary]


@pytest.mark.parametrize("options", [(), ("-p", "xdist", "-n", "1")], ids=["alone", "in workers"])
def test_a_log_file_alone_fails_the_run(tmp_path: Path, options: tuple[str, ...]) -> None:
    """All tests pass, and the run does not."""
    answer = watched(tmp_path / "run", {"test_a_file": LEAKS["test_a_file"]}, *options)
    assert (answer.returncode, "1 passed" in answer.stdout) == (1, True)


def test_the_watch_leaves_those_alone_who_say_nothing(tmp_path: Path) -> None:
    answer = watched(tmp_path / "run", CLEAN)
    assert answer.returncode == 0, answer.stdout


def test_this_very_run_is_watched(request: pytest.FixtureRequest) -> None:
    assert isinstance(request.config.pluginmanager.get_plugin("canaries"), Watch)


def test_every_canary_is_one_that_the_watch_knows() -> None:
    """A name that only its own module knows would be looked for there only."""
    unknown = []
    for path in sorted(TESTS.rglob("*.py")):
        for name, value in _canaries(ast.parse(path.read_text())):
            if name != "folder" and not is_canary(value):
                unknown.append(f"{path.relative_to(TESTS)}: {value}")
    assert unknown == []


def _canaries(tree: ast.Module) -> list[tuple[str, str]]:
    """What a module assigns to CANARY or CANARIES; of a mapping, its keys and values."""
    found = []
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in ("CANARY", "CANARIES"):
            value = ast.literal_eval(node.value)
            found += list(value.items()) if isinstance(value, dict) else [("", value)]
    return found


def test_what_is_found_is_not_repeated() -> None:
    assert what_is_in("of KOWALSKA^EWA") == "KO…WA"
    assert what_is_in("of somebody") == ""
