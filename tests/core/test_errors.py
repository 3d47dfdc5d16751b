"""The error tree: every class says what to do, and its exit code is the documented one."""

import re
from itertools import combinations

import pytest

from wardround import errors


def subclasses(root: type[errors.WardroundError]) -> list[type[errors.WardroundError]]:
    return [root, *(found for child in root.__subclasses__() for found in subclasses(child))]


OURS = [c for c in subclasses(errors.WardroundError) if c.__module__ == errors.__name__]
DOCUMENTED = {
    name: int(code) for name, code in re.findall(r"^[\s│├└─]*([A-Z]\w+) +(\d+) ", errors.__doc__ or "", re.MULTILINE)
}


def test_the_documented_tree_is_the_real_one() -> None:
    assert {c.__name__: c.exit_code for c in OURS} == DOCUMENTED


@pytest.mark.parametrize(("one", "other"), list(combinations(OURS, 2)))
def test_exit_codes_differ_unless_one_error_is_a_kind_of_the_other(
    one: type[errors.WardroundError], other: type[errors.WardroundError]
) -> None:
    # Every kind of DataError is a DataError to a script, and nothing else is shared.
    assert (one.exit_code == other.exit_code) == all(issubclass(c, errors.DataError) for c in (one, other))


def test_exit_codes_are_ones_that_a_shell_can_tell_from_success_and_signals() -> None:
    assert all(0 < c.exit_code < 126 or c is errors.Interrupted for c in OURS)
    assert errors.Interrupted.exit_code == 128 + 2


@pytest.mark.parametrize("kind", OURS)
def test_an_error_carries_problem_cause_and_fix(kind: type[errors.WardroundError]) -> None:
    error = kind("it broke", "it was thin", "take a thicker one")
    assert (error.problem, error.cause, error.fix) == ("it broke", "it was thin", "take a thicker one")
    assert str(error) == "it broke → it was thin → take a thicker one"
    assert kind.__doc__


def test_an_error_without_a_cause_has_no_dangling_arrow() -> None:
    assert str(errors.WardroundError("it broke", fix="mend it")) == "it broke → mend it"


def test_what_the_gate_refuses_has_a_code_and_the_code_is_not_in_the_text() -> None:
    error = errors.GateRefused("refused", "not approved", "approve it", code="bundle-not-approved")
    assert error.code == "bundle-not-approved"
    assert str(error) == "refused → not approved → approve it"


def test_a_log_hears_what_failed_where_and_no_text_of_others() -> None:
    def fails() -> None:
        try:
            {}["DOE^JOHN"]
        except KeyError as error:
            raise type("DOE^JOHN", (ValueError,), {})("DOE^JOHN") from error

    with pytest.raises(ValueError, match="DOE") as caught:
        fails()
    told = errors.for_log(caught.value)
    assert re.fullmatch(r"an error in .*, fails \(test_errors.py:[0-9]+\), after KeyError", told)
    assert errors.for_log(OSError("DOE^JOHN")) == "OSError in nowhere"
    assert errors.for_log(errors.DataError("it broke", "it was thin")) == "it broke → it was thin"
