"""The options that several commands have, and what their texts mean: numbers, names and plain values."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from wardround.errors import UsageError

Data = Annotated[
    Path | None, typer.Option(help="Folder of a data set with dataset.json. Without it, phantoms are drawn.")
]
Sites = Annotated[
    str | None,
    typer.Option(
        help="Who has which case: a .json file, 'natural', 'even:K' or 'dirichlet:K:alpha'. For phantoms: how many."
    ),
]
Cases = Annotated[int | None, typer.Option(help="At most so many streamed cases a site (phantoms: 10).")]
Tests = Annotated[int | None, typer.Option(help="At most so many test cases a site (phantoms: 4).")]
TestFraction = Annotated[float, typer.Option(help="Share of subjects to test on if the split names none.")]
Shift = Annotated[float, typer.Option(help="Phantoms: how far the sites' scanners differ.")]
Shape = Annotated[str, typer.Option(help="Phantoms: voxels along each axis.")]
Seeds = Annotated[str, typer.Option(help="Every arm is run once for each of these.")]
Model = Annotated[str | None, typer.Option(help="Network, by its name in the catalogue.")]
Plan = Annotated[list[str] | None, typer.Option(help="Any field of the round's plan, as name=value. May be repeated.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Strokes = Annotated[
    str,
    typer.Option(help="'expert': strokes that the data set names, where it names any; 'simulated': made from labels."),
]
Slow = Annotated[
    str | None,
    typer.Option(help="Simulated clock: sites that take longer than the one second of all others, as north=10."),
]
Jobs = Annotated[int | None, typer.Option(help="Runs at once; by default one a core, if memory allows.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the experiment; must be new or empty.")]
Resume = Annotated[Path | None, typer.Option(help="Go on with the experiment in this folder.")]


def names(text: str) -> list[str]:
    """Names between commas."""
    return [name for part in text.split(",") if (name := part.strip())]


def numbers(text: str, option: str) -> tuple[int, ...]:
    """Whole numbers between commas.

    Raises
    ------
    UsageError
        If they are none.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} {text} is not understood", "numbers with commas are", "for example 0,1,2") from None


def shape(text: str) -> tuple[int, ...]:
    """Three whole numbers between commas, or with an x.

    Raises
    ------
    UsageError
        If they are none.
    """
    sides = numbers(text.replace("x", ","), "--shape")
    if len(sides) != 3:
        raise UsageError(f"--shape {text} is not understood", "a volume has three sides", "for example 40,48,40")
    return sides


def pairs(items: Sequence[str] | None, option: str, *, names: bool = False) -> dict[str, Any]:
    """Parse ``name=value``: a number where it looks like one, true and false, three numbers, else text.

    Parameters
    ----------
    names
        Whether what stands on the left is a name of its own, to be taken as it is, and not one of our fields.

    Raises
    ------
    UsageError
        If an item is written otherwise.
    """
    found: dict[str, Any] = {}
    for item in items or ():
        name, equals, value = item.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise UsageError(f"{option} {item} is not understood", "it has no name and value", "write name=value")
        found[name.strip() if names else name.strip().replace("-", "_")] = _value(value.strip())
    return found


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    parts = text.split(",")
    for kind in (int, float):
        try:
            numbers = tuple(kind(part) for part in parts)
        except ValueError:
            continue
        return numbers if len(numbers) > 1 else numbers[0]
    return text


def phantoms(sites: str | None, cases: int | None, tests: int | None, shift: float, sides: str) -> dict[str, Any]:
    """Settings of drawn cases; what is None keeps its default.

    Raises
    ------
    UsageError
        If `sites` is no number, or `sides` no shape.
    """
    if sites is not None and not sites.isdecimal():
        raise UsageError(
            f"--sites {sites} needs --data", "phantoms are drawn for a number of sites", "give --data, or a number"
        )
    given = {"sites": sites, "cases": cases, "tests": tests}
    return {"shift": shift, "shape": shape(sides)} | {k: int(v) for k, v in given.items() if v is not None}


def data_set(folder: Path, sites: str | None, test_fraction: float) -> dict[str, Any]:
    """Settings of a data set; its own split where it has one and no other is asked for."""
    if sites is None:
        sites = "split.json" if (folder / "split.json").is_file() else "natural"
    return {"data": folder.resolve(), "sites": sites, "test_fraction": test_fraction}


def dealt_cases(
    folder: Path | None,
    sites: str | None,
    most: tuple[int | None, int | None],
    test_fraction: float,
    drawn: tuple[float, str],
) -> dict[str, Any]:
    """Settings of a federation's cases: those of a data set, or phantoms where there is no `folder`.

    Parameters
    ----------
    most
        Streamed cases and test cases of a site at most.
    drawn
        Of phantoms: how far scanners differ, and voxels along each axis.

    Raises
    ------
    UsageError
        As :func:`phantoms`.
    """
    if folder is None:
        return {"phantoms": phantoms(sites, *most, *drawn)}
    cases, tests = most
    return data_set(folder, sites, test_fraction) | {"cases_per_site": cases, "tests_per_site": tests}
