"""What ``docs/gate.md`` tells an administrator, held against the code."""

import re
import tomllib
from pathlib import Path
from typing import get_args

import pytest

from wardround.client.gate.bundle import MAX_FILE, MAX_FILES, MAX_TOTAL, Flag
from wardround.client.gate.chain import LedgerEntry
from wardround.client.gate.codes import MEANING
from wardround.client.gate.policy import Policy


@pytest.fixture
def rows(checkout: Path) -> list[list[str]]:
    """Cells of every row of every table of the guide."""
    lines = (checkout / "docs" / "gate.md").read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def named(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_every_limit_is_explained_with_its_value(rows: list[list[str]]) -> None:
    said = {name: cells[1].strip("`") for cells in rows if len(cells) == 3 for name in named(cells[0])}
    defaults = Policy().model_dump(by_alias=True)
    assert said.keys() >= defaults.keys()
    for name, value in defaults.items():
        if isinstance(value, frozenset):
            assert said[name] == "all that are agreed"
        else:
            read = tomllib.loads(f"value = {said[name]}")["value"]
            assert (tuple(read) if isinstance(read, list) else read) == value, name
    assert {name for name in said if "-" in name} <= defaults.keys()


def test_every_code_is_explained(rows: list[list[str]]) -> None:
    said = {named(cells[0])[0]: cells[1] for cells in rows if len(cells) == 2 and named(cells[0])}
    assert {code: said.get(code) for code in MEANING} == MEANING


def test_every_field_of_a_line_is_explained(rows: list[list[str]]) -> None:
    said = {name for cells in rows if len(cells) == 2 for name in named(cells[0])}
    assert said >= set(LedgerEntry.model_fields)


def test_everything_that_a_bundle_may_bring_is_explained(rows: list[list[str]]) -> None:
    said = {name for cells in rows if len(cells) == 2 for name in named(cells[0])}
    assert said >= set(get_args(Flag))


def test_the_caps_of_a_bundle_are_those_of_the_code(checkout: Path) -> None:
    text = (checkout / "docs" / "gate.md").read_text()
    assert f"no more than {MAX_FILES} files of {MAX_FILE // 2**20} MiB and {MAX_TOTAL // 2**20} MiB in all" in text
