"""The list of reasons: closed, readable, and shut against any text."""

import re
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardround import errors
from wardround.client.gate.codes import CODES, OTHER, describe, safe_code
from wardround.strategies import validation


def test_every_code_can_stand_in_a_line() -> None:
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", code) and len(code) <= 64 for code in CODES)


def test_a_code_on_the_list_stays_as_it_is() -> None:
    assert {safe_code(code) for code in CODES} == CODES
    assert all(describe(code) for code in CODES)


def test_the_name_of_an_error_class_becomes_a_code() -> None:
    assert safe_code("DataError") == "data-error"
    assert safe_code("OSError") == "os-error"
    assert safe_code("MemoryError") == "memory-error"
    assert {safe_code(name) for name, kind in vars(errors).items() if isinstance(kind, type)} <= CODES - {OTHER}


def test_every_check_of_a_reply_has_its_code() -> None:
    assert set(get_args(validation.Code)) <= CODES


@pytest.mark.parametrize(
    "text",
    [
        "",
        "john-doe",
        "cannot read /data/patients/DOE_JOHN/ct.nii.gz",
        "DoeJohnError",
        "paused\n",
        "Paused",
        None,
        7,
        b"paused",
        ["paused"],
    ],
)
def test_anything_else_says_nothing(text: object) -> None:
    assert safe_code(text) == OTHER


@given(st.text())
def test_no_text_passes(text: str) -> None:
    assert safe_code(text) in CODES
