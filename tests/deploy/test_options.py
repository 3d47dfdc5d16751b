"""What the options of several commands mean."""

from pathlib import Path

import pytest

from wardround.deploy import options
from wardround.errors import UsageError


def test_cases_are_those_of_a_data_set_or_phantoms(tmp_path: Path) -> None:
    drawn = options.dealt_cases(None, "4", (8, None), 0.25, (3.0, "32x40x32"))
    assert drawn == {"phantoms": {"sites": 4, "cases": 8, "shift": 3.0, "shape": (32, 40, 32)}}
    found = options.dealt_cases(tmp_path, None, (8, None), 0.3, (3.0, "no shape"))
    limits = {"cases_per_site": 8, "tests_per_site": None}
    assert found == {"data": tmp_path.resolve(), "sites": "natural", "test_fraction": 0.3, **limits}
    (tmp_path / "split.json").write_text("{}")
    assert options.dealt_cases(tmp_path, None, (None, None), 0.3, (3.0, ""))["sites"] == "split.json"
    with pytest.raises(UsageError, match="--data"):
        options.dealt_cases(None, "natural", (None, None), 0.3, (3.0, "8,8,8"))
