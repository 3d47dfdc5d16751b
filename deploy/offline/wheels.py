"""What a wheel says of itself, read from the file without installing it."""

import email.parser
import hashlib
import re
import zipfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from wardround.errors import DataError

_CLASSIFIER = "License :: OSI Approved :: "
_LONGEST_NAME = 120
_EXPRESSION = re.compile(r"[A-Za-z0-9.+ ()-]+")


@dataclass(frozen=True)
class Wheel:
    """One wheel.

    Parameters
    ----------
    path
        The file.
    name, version
        Canonical name of the distribution, and its version.
    sha256
        Of the file.
    licence
        An SPDX expression where the wheel gives one, else a name; empty where it says nothing.
    is_expression
        Whether `licence` is an SPDX expression.
    requires
        Canonical names of what it needs on this machine, without extras.
    """

    path: Path
    name: str
    version: str
    sha256: str
    licence: str
    is_expression: bool
    requires: tuple[str, ...]


def read_wheels(folder: Path) -> list[Wheel]:
    """Every wheel in a folder, by name.

    Raises
    ------
    DataError
        If a file is no wheel, or one distribution is there twice.
    """
    wheels = sorted((_read(path) for path in folder.iterdir() if path.is_file()), key=lambda wheel: wheel.name)
    for first, second in pairwise(wheels):
        if first.name == second.name:
            raise DataError(
                f"{first.name} is in the bundle twice",
                f"as {first.path.name} and {second.path.name}",
                "begin with an empty folder",
            )
    return wheels


def _read(path: Path) -> Wheel:
    try:
        with zipfile.ZipFile(path) as archive:
            (member,) = [name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)]
            metadata = email.parser.BytesParser().parsebytes(archive.read(member))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path.name} is no wheel",
            "a package that has to be built on the machine cannot be checked by its hash",
            "find a wheel of that package for this platform",
        ) from error
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    expression = metadata.get("License-Expression", "").strip()
    named = [line.removeprefix(_CLASSIFIER) for line in metadata.get_all("Classifier", []) if _CLASSIFIER in line]
    free = metadata.get("License", "").strip()
    is_expression = bool(_EXPRESSION.fullmatch(expression))
    licence = expression if is_expression else named[0] if named else free if _is_name(free) else ""
    return Wheel(
        path,
        canonicalize_name(metadata["Name"]),
        metadata["Version"],
        digest,
        licence,
        is_expression,
        tuple(sorted(_requirements(metadata.get_all("Requires-Dist", [])))),
    )


def _is_name(text: str) -> bool:
    """Some wheels put the whole text of their licence there."""
    return "\n" not in text and 0 < len(text) <= _LONGEST_NAME and text.upper() != "UNKNOWN"


def _requirements(lines: list[str]) -> set[str]:
    found: set[str] = set()
    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            found.add(canonicalize_name(requirement.name))
    return found
