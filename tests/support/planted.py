"""The names that tests plant where hospitals have patients, and a watch over every log line of a run of the tests.

A test that gives a case, a file, a person or an account a name to be looked for takes it from here or adds it here;
``tests/test_canaries.py`` sees to that. :class:`Watch` then looks for all of them in whatever any test causes to be
logged: records of loggers, what processes write to standard error, and log files of homes. A line with one fails the
run and names the test; the line itself is not shown.
"""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

WORDS: Mapping[str, str] = {
    "name of the home's folder": "H-DOE-JANE-1951",
    "name of a folder of images": "Ward7-ERIKA-MUSTER",
    "name of a file": "SMITH-JOHN-19510203",
    "name of a label's file": "GARCIA-ANA-MARIA-seg",
    "descrip": "descrip:KOWALSKI^JAN",
    "aux_file": "aux:ROSSI^MARIA^1951",
    "intent_name": "NOVAKOVA^EVA^ANN",
    "db_name": "IVANOV^PJOTR^ILJ",
    "a header's extension": "PatientName=YAMADA^TARO",
}
"""What :mod:`canaries` plants in NIfTI. Each stands in one place only, so that what is found says where it was."""

IN_DICOM: Mapping[str, str] = {
    "PatientName": "FERRARI^GIULIA",
    "PatientID": "PID-FERRARI-0815",
    "PatientAddress": "Gasse 7, BJORKLUND",
    "PatientComments": "neighbour of HAUGEN^NILS",
    "ReferringPhysicianName": "LECLERC^ANNE",
    "InstitutionName": "Hospital TANAKA-EAST",
    "StudyDescription": "knee of SORENSEN",
    "AccessionNumber": "ACC-OKONKWO-77",
    "DeviceSerialNumber": "SN-PETROVA-4711",
}
"""What :mod:`canaries` plants in the headers of DICOM: keyword → word."""

OTHERS = (
    "KOWALSKA^EWA", "KOWALCZYK", "DOE^JOHN", "DOE_JOHN", "JOHN_DOE", "DOE^JANE", "Phantom^Paul", "Canary^Carla",
    "QZXMUSTERQZX", "1.2.3.777.4711", "garcia.ana", "rossi.maria", "KOWALSKI-JAN", "IVANOV-PJOTR", "NOVAKOVA-EVA",
    "YAMADA-TARO", "DUBOIS^PAUL", "MUSTER-ERIKA", "a word of LINDQVIST", "OKAFOR-CHIDI", "correct horse of",
)  # fmt: skip
"""Patients of DICOM, people, and what is secret about them."""

# Where a site lies is told to its own people; nothing in a path below it is anybody's.
_NAMES = [word for place, word in WORDS.items() if not place.startswith("name of the home")] + list(OTHERS)
_NAMES += IN_DICOM.values()
_NAME = re.compile("|".join(re.escape(name) for name in sorted(_NAMES, key=len, reverse=True)), re.IGNORECASE)
_UID = re.compile(r"(?<![0-9.])[0-2](?:\.[0-9]+){5,}")
# Of superexec.log not: it holds what the process of an app prints, which is the app's and was approved with it.
_LOGS = re.compile(r"(?!superexec\.).*\.log(\.[0-9]+)?|audit\.jsonl|ledger\.jsonl")
_LARGEST = 16 << 20


def is_canary(word: str) -> bool:
    """Whether a word would be found in a log."""
    return _NAME.search(word) is not None


def what_is_in(text: str, *, uids: bool = False) -> str:
    """The first planted name in a text, its letters in the middle left out; empty where there is none.

    Parameters
    ----------
    uids
        Whether a UID of DICOM counts as one, whoever made it.
    """
    found = _NAME.search(text) or (_UID.search(text) if uids else None)
    return f"{found[0][:2]}…{found[0][-2:]}" if found else ""


def lines_of_logs(folder: Path) -> Iterator[tuple[Path, str]]:
    """Every log file below a folder, and its text."""
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            if _LOGS.fullmatch(name) and path.is_file() and path.stat().st_size < _LARGEST:
                yield path, path.read_text(encoding="utf-8", errors="replace")


class Watch(logging.Handler):
    """A plug-in of pytest that looks for planted names in all that is logged. Also for each worker of pytest-xdist.

    Parameters
    ----------
    config
        Of the run.
    """

    def __init__(self, config: pytest.Config) -> None:
        super().__init__(logging.NOTSET)
        self._config = config
        self._test = "before the first test"
        self._caught: list[str] = []
        self._in_files: list[str] = []
        self._looking = False

    def emit(self, record: logging.LogRecord) -> None:
        """Look at one record as a site would write it, its traceback included."""
        if self._looking:  # What is formatted may itself log.
            return
        self._looking = True
        try:
            ours = record.name.startswith("wardround")
            if found := what_is_in(self.format(record), uids=ours):
                self._caught.append(f"{found} in a line of {record.name} ({record.filename}:{record.lineno})")
        except Exception:  # noqa: BLE001 - the line is wrong, which whoever logs it hears from its own handler
            return
        finally:
            self._looking = False

    def pytest_sessionstart(self) -> None:
        """From here on, in every logger; ours from the level that a site writes down."""
        logging.getLogger().addHandler(self)
        logging.getLogger("wardround").setLevel(logging.INFO)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """What is caught from now on is this test's."""
        self._test = nodeid

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[Any]:
        """After a test and all that it used: fail it if something was caught."""
        report: pytest.TestReport = yield
        if report.when != "teardown":
            return report
        for title, text in report.sections:
            if title.startswith("Captured stderr") and (found := what_is_in(text)):
                self._caught.append(f"{found} in {title.lower()}")
        if self._caught:
            report.outcome = "failed"
            report.longrepr = "\n".join([f"{item.nodeid}: a planted name was logged", *self._caught])
            self._caught.clear()
        return report

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Look through the log files that the tests' homes are left with."""
        logging.getLogger().removeHandler(self)
        for line in self._caught:
            self._in_files.append(f"{line}, after {self._test}")
        factory = getattr(self._config, "_tmp_path_factory", None)
        if factory is not None and getattr(factory, "_basetemp", None) is not None:
            base = factory.getbasetemp()
            for path, text in lines_of_logs(base):
                if path.relative_to(base).parts[0].startswith("popen-gw"):
                    continue  # A worker has looked at its own.
                if found := what_is_in(text):
                    self._in_files.append(f"{found} in {path.relative_to(base).parts[0]}/…/{path.name}")
        if (told := getattr(self._config, "workeroutput", None)) is not None:
            told["canaries"] = self._in_files
        elif self._in_files:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """A worker of pytest-xdist has ended: what it found counts here."""
        self._in_files += getattr(node, "workeroutput", {}).get("canaries", [])

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Say which log files hold one."""
        for line in self._in_files:
            terminalreporter.write_line(f"a planted name was logged: {line}", red=True)
