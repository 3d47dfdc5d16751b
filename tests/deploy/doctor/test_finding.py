"""Findings are told one by one, and end in an exit code."""

import io

import pytest
from rich.console import Console

from wardround.deploy.doctor.finding import Finding, bad, good, show
from wardround.errors import DoctorFailed


def told(*findings: Finding) -> str:
    stream = io.StringIO()
    show(findings, Console(file=stream, width=200, soft_wrap=True))
    return stream.getvalue()


def test_all_is_well() -> None:
    assert told(good("disk", "2 GB free")) == "✓ disk  2 GB free\n"


def test_a_failure_ends_in_the_exit_code_of_doctor() -> None:
    stream = io.StringIO()
    findings = [good("disk"), bad("clock", "it is off", "no NTP", "set it")]
    with pytest.raises(DoctorFailed) as found:
        show(findings, Console(file=stream, width=200))
    assert found.value.exit_code == 11
    assert "1 check of 2 failed" in found.value.problem
    assert stream.getvalue().splitlines()[1:] == ["✗ clock  it is off", "    cause no NTP", "    fix   set it"]


def test_what_a_peer_says_commands_no_terminal() -> None:
    assert told(good("TLS", "[red]\x1b[31m\u202eissuer")) == "✓ TLS  [red]\ufffd[31m\ufffdissuer\n"
