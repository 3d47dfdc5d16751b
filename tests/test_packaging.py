"""The mapping of the rooms under one import root, and what it puts into a wheel."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points, packages_distributions, requires, version
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
ROOMS = ("core", "models", "strategies", "client", "server", "deploy")
PROJECT: Mapping[str, Any] = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())


def wrong_mapping(folders: Sequence[str], packages: Sequence[str], package_dir: Mapping[str, str]) -> list[str]:
    """What is wrong with the mapping of `folders` (those that hold Python files) to packages, as sentences."""
    expected = {
        ".".join(["wardround", *Path(folder).parts]).replace("wardround.core", "wardround"): folder
        for folder in folders
    }
    wrong = [f"{folder}/ is missing from packages" for name, folder in expected.items() if name not in packages]
    wrong += [
        f"{name} must be mapped to {folder}" for name, folder in expected.items() if package_dir.get(name) != folder
    ]
    wrong += [f"{name} has no Python file" for name in {*packages, *package_dir} if name not in expected]
    return wrong


def source_folders() -> list[str]:
    """Folders of the rooms that hold Python files."""
    files = [file for room in ROOMS for file in (CHECKOUT / room).rglob("*.py")]
    return sorted({str(file.parent.relative_to(CHECKOUT)) for file in files})


def test_every_package_folder_is_mapped() -> None:
    setuptools = PROJECT["tool"]["setuptools"]
    assert wrong_mapping(source_folders(), setuptools["packages"], setuptools["package-dir"]) == []


@pytest.mark.parametrize(
    ("folders", "packages", "package_dir"),
    [
        (["core", "client"], ["wardround"], {"wardround": "core", "wardround.client": "client"}),
        (["core", "client"], ["wardround", "wardround.client"], {"wardround": "core"}),
        (["core", "client"], ["wardround", "wardround.client"], {"wardround": "core", "wardround.client": "server"}),
        (["core"], ["wardround", "wardround.gone"], {"wardround": "core", "wardround.gone": "gone"}),
    ],
)
def test_a_wrong_mapping_is_found(folders: list[str], packages: list[str], package_dir: dict[str, str]) -> None:
    assert wrong_mapping(folders, packages, package_dir)


def test_every_source_folder_is_a_package() -> None:
    missing = [folder for folder in source_folders() if not (CHECKOUT / folder / "__init__.py").exists()]
    assert missing == []


def test_the_version_is_said_once() -> None:
    import wardround

    assert wardround.__version__ == version("wardround")


def test_the_command_exists() -> None:
    (command,) = entry_points(group="console_scripts", name="wardround")
    assert callable(command.load())


def _canonical(requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name is not None
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def _imported(folders: Sequence[str]) -> set[str]:
    """Distributions, by canonical name, that the source below `folders` imports."""
    tops: set[str] = set()
    for file in (file for folder in folders for file in (CHECKOUT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                tops |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                tops.add(node.module.partition(".")[0])
    known = packages_distributions()
    return {_canonical(known[top][0]) for top in tops - set(sys.stdlib_module_names) - {"wardround"} if top in known}


def test_exactly_what_is_imported_is_declared() -> None:
    declared = {_canonical(line) for line in PROJECT["project"]["dependencies"]}
    extras = PROJECT["project"]["optional-dependencies"]
    optional = {_canonical(line) for lines in extras.values() for line in lines}
    imported = _imported(ROOMS)
    assert imported - declared - optional == set(), "imported, but not declared"
    assert declared - imported == set(), "declared, but never imported"
    assert _imported(["tests", "benchmarks"]) - declared - optional == set(), "imported by tests, but not declared"


def _constraints() -> dict[str, str]:
    lines = (CHECKOUT / "constraints.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {_canonical(name): pinned for name, pinned in pins}


def test_constraints_pin_every_requirement_of_every_extra() -> None:
    """Follows the requirements of the installed packages, so that nothing is left to the day of the installation."""
    from packaging.requirements import Requirement

    pins = _constraints()
    extras = PROJECT["project"]["optional-dependencies"]
    lines = [*PROJECT["project"]["dependencies"], *(line for group in extras.values() for line in group)]
    waiting, seen, missing = [Requirement(line) for line in lines], set(), set()
    while waiting:
        requirement = waiting.pop()
        name = _canonical(requirement.name)
        for extra in requirement.extras or {""}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            if name not in pins:
                missing.add(name)
                continue
            for line in requires(requirement.name) or []:
                needed = Requirement(line)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    waiting.append(needed)
    assert missing == set()
    assert len(seen) > len(lines)


def test_constraints_name_no_place_to_download_from() -> None:
    text = (CHECKOUT / "constraints.txt").read_text()
    assert not re.search(r"://|^-|\+|@", text, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names of the files in a wheel that is built from a copy of the sources alone."""
    import shutil

    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "sources"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, copy / name)
    for room in ROOMS:
        shutil.copytree(CHECKOUT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    # Without isolation: the test needs no network, and setuptools comes with torch.
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder / "out"), str(copy)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    # Folders of data that setuptools takes for packages it will leave out one day, as it says.
    assert "is absent from the `packages` configuration" not in answer.stdout + answer.stderr
    (built,) = (folder / "out").glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        return archive.namelist()


def test_a_wheel_holds_every_module(wheel: list[str]) -> None:
    expected = {
        str(
            Path(
                "wardround",
                *(file.relative_to(CHECKOUT / "core") if room == "core" else file.relative_to(CHECKOUT)).parts,
            )
        )
        for room in ROOMS
        for file in (CHECKOUT / room).rglob("*.py")
    }
    assert expected <= set(wheel)
    assert {"wardround/py.typed"} <= set(wheel)


def test_a_wheel_takes_one_name_only(wheel: list[str]) -> None:
    tops = {name.partition("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"wardround"}


def test_a_wheel_carries_the_licence(wheel: list[str]) -> None:
    assert any(name.endswith("licenses/LICENSE") for name in wheel)


def test_a_wheel_holds_every_file_that_is_no_module(wheel: list[str]) -> None:
    """Templates and style sheets beside the code are read at run time: they must be declared as package data."""
    files = [file for room in ROOMS for file in (CHECKOUT / room).rglob("*") if file.is_file()]
    beside = {str(file.relative_to(CHECKOUT)) for file in files if file.suffix != ".py" and not _is_cache(file)}
    packed = {name.removeprefix("wardround/") for name in wheel}
    assert {name.removeprefix("core/") for name in beside} <= packed


def _is_cache(file: Path) -> bool:
    """Python's and Numba's compiled code."""
    return "__pycache__" in file.parts
