"""Makes and checks a bundle.

::

    BUNDLE/
        packages/            every wheel that an installation needs, ours among them
        requirements.txt     each with its version and its SHA-256: pip installs nothing else
        sbom.cdx.json        what is in it (CycloneDX)
        deploy/              units, Compose files, charts, Dockerfile
        install.sh           checks everything, then installs
        SHA256SUMS           of all of these

The machine that makes it must be of the kind that it is for: same system, processor and Python.
"""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from wardround.deploy.offline.sbom import bill_of_materials
from wardround.deploy.offline.wheels import read_wheels
from wardround.errors import DataError, StorageError, UsageError
from wardround.files import write_text

SUMS = "SHA256SUMS"
_DEPLOYMENT = ("compose", "docker", "helm", "systemd")


def build(out: Path, project: Path, constraints: Path, pip_options: Sequence[str] = ()) -> None:
    """Fetch every wheel and make the bundle.

    Parameters
    ----------
    out
        A folder that is empty or not there.
    project
        A checkout of Wardround, or a wheel of it.
    constraints
        The tested versions.
    pip_options
        For ``pip download``: where to look, such as ``--index-url``.

    Raises
    ------
    UsageError
        If `out` holds something.
    DataError
        If something cannot be had as a wheel.
    """
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty", "a bundle holds nothing but what was fetched for it", "choose another")
    packages = out / "packages"
    packages.mkdir(parents=True)
    if project.is_dir():
        _pip(["wheel", "--no-deps", "--wheel-dir", str(packages), str(project)])
    else:
        shutil.copy(project, packages / project.name)
    (ours,) = packages.glob("*.whl")
    fetch = ["download", "--only-binary", ":all:", "--constraint", str(constraints), "--dest", str(packages)]
    _pip([*fetch, *pip_options, str(ours)])
    finish(out)


def finish(out: Path) -> None:
    """Write everything else of a bundle whose wheels are in ``packages/``."""
    wheels = read_wheels(out / "packages")
    lines = [f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}" for wheel in wheels]
    write_text(out / "requirements.txt", "\n".join(lines) + "\n")
    write_text(out / "sbom.cdx.json", bill_of_materials(wheels))
    here = Path(__file__).parent
    for name in _DEPLOYMENT:
        shutil.copytree(here.parent / name, out / "deploy" / name, dirs_exist_ok=True)
    shutil.copy(here / "install.sh", out / "install.sh")
    (out / "install.sh").chmod(0o755)
    sums = [f"{_sha256(path)}  {path.relative_to(out)}" for path in _files(out)]
    write_text(out / SUMS, "\n".join(sums) + "\n")


def verify(bundle: Path) -> str:
    """Check that every file is there, is the one that was put in, and that there is no other.

    Returns
    -------
    str
        SHA-256 of ``SHA256SUMS``: who has it from the maker of the bundle knows that all of it is theirs.

    Raises
    ------
    DataError
        Naming the first file that is wrong.
    StorageError
        If the folder holds no bundle.
    """
    try:
        lines = (bundle / SUMS).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise StorageError(f"{bundle} is no bundle", f"it has no {SUMS}", "check the folder") from error
    expected = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    found = {str(path.relative_to(bundle)): path for path in _files(bundle)}
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            cause = "it is missing"
        elif name not in expected:
            cause = "nobody put it there"
        elif _sha256(found[name]) != expected[name]:
            cause = "its content has changed"
        else:
            continue
        raise DataError(
            f"{name} is not as it was put into the bundle", cause, "fetch the bundle again; install nothing"
        )
    return _sha256(bundle / SUMS)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if (path.is_file() or path.is_symlink()) and path != folder / SUMS)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _pip(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    answer = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603 - our own arguments
    if answer.returncode:
        raise DataError(
            "pip could not fetch everything",
            (answer.stderr.strip().splitlines() or ["it said nothing"])[-1],
            "a package must be there as a wheel for this platform; check the network and --index-url",
        )
