import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wardround import files
from wardround.deploy.report.results import Results, load_results, parse_results, save_results
from wardround.errors import DataError, StorageError


def test_a_run_survives_the_file_unchanged(tmp_path: Path, record: Callable[..., Any]) -> None:
    results = parse_results(record(seeds=(0,), rounds=2))
    path = save_results(results, tmp_path)
    assert path == tmp_path / "results.json"
    again = load_results(path)
    assert again.model_dump_json() == results.model_dump_json()
    assert load_results(tmp_path).arms[0].models["global"].cases[0].dice == again.arms[0].models["global"].cases[0].dice


def test_what_was_not_measured_is_null_in_the_file(tmp_path: Path, record: Callable[..., Any]) -> None:
    raw = record(arms=("federated",), seeds=(0,), rounds=1)
    raw["arms"][0]["models"]["global"]["cases"][0]["dice"]["1"] = math.nan
    raw["arms"][0]["seconds"]["total"] = math.inf
    raw["settings"]["threshold"] = np.float32("nan")
    raw["settings"]["counts"] = (np.int64(2), 6, 0)
    path = save_results(raw, tmp_path)
    text = path.read_text()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    stored = json.loads(text, parse_constant=refuse)
    assert stored["arms"][0]["models"]["global"]["cases"][0]["dice"]["1"] is None
    assert stored["settings"]["threshold"] is None
    assert stored["settings"]["counts"] == [2, 6, 0]
    loaded = load_results(path)
    assert math.isnan(loaded.arms[0].models["global"].cases[0].dice["1"])
    assert math.isnan(loaded.arms[0].seconds.total)
    assert math.isnan(loaded.arms[0].interactions[0].proxy_dice)


def test_an_empty_run_is_a_run(tmp_path: Path) -> None:
    assert load_results(save_results({}, tmp_path)).arms == ()


@pytest.mark.parametrize("content", ["", "{", "[]", '"text"', "\x00\xff"])
def test_a_file_that_is_no_results_says_so(tmp_path: Path, content: str) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(DataError) as caught:
        load_results(tmp_path)
    assert caught.value.fix


def test_a_missing_file_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no results yet"):
        load_results(tmp_path)


def test_a_wrong_field_is_named_but_its_content_is_not(record: Callable[..., Any]) -> None:
    raw = record(arms=("federated",), seeds=(0,), rounds=1)
    raw["arms"][0]["updates"] = "Jane Doe"
    with pytest.raises(DataError, match=r"arms\.0\.updates") as caught:
        parse_results(raw)
    assert "Jane" not in str(caught.value)


def test_a_failed_write_keeps_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_results(Results(version="old"), tmp_path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(StorageError):
        save_results(Results(version="new"), tmp_path)
    assert load_results(path).version == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["results.json"]


def test_a_later_version_with_more_fields_is_still_read(record: Callable[..., Any]) -> None:
    raw = record(arms=("federated",), seeds=(0,), rounds=1)
    raw["something new"] = 1
    raw["arms"][0]["something new"] = {"a": 2}
    assert parse_results(raw).arms[0].arm == "federated"
