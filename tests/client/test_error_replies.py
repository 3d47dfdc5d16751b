"""What a site tells in place of an answer."""

import pytest

from wardround.client.error_replies import INCOMPLETE, NOT_RECEIVED, RESTARTED, UNREACHABLE, WITHHELD
from wardround.client.gate import codes
from wardround.strategies.codes import SITE_CODES


@pytest.mark.parametrize("code", [RESTARTED, NOT_RECEIVED, INCOMPLETE, UNREACHABLE, WITHHELD])
def test_a_reason_is_one_that_the_ledger_and_the_journal_know(code: str) -> None:
    assert codes.safe_code(code) == code
    assert code in SITE_CODES
