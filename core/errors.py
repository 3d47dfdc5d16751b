"""The one tree of errors, with an exit code and a remedy each.

::

    WardroundError                     1   anything of ours that has no narrower name
    ├── UsageError                     2   an option or a combination of options that cannot work
    ├── DataError                      3   an image, a label or a folder that cannot be used as it is
    │   ├── GeometryError              3   two arrays that should share one grid do not
    │   ├── LabelError                 3   a label holds structures that the plan does not know
    │   ├── NoTrainingCases            3   a site has nothing to learn from in this round
    │   └── SeriesRefused              3   a DICOM series, or a label for one, that does not become a case as it is
    ├── StorageError                   4   the disk is full, not writable, or a stored file is damaged
    ├── PlanError                      5   a plan is invalid, or a run is resumed with another plan
    ├── RoundError                     6   a round could not be closed (no quorum, all sites failed)
    ├── ReplyRefused                   7   a site's reply does not keep the contract of the round
    ├── GateRefused                    8   a site's gate let something neither in nor out
    ├── ConnectionFailed               9   the coordinator or the agent cannot be reached
    ├── AuthRefused                   10   the other side was reached, and does not accept who asks
    ├── DoctorFailed                  11   a check of the doctor found a fault
    └── Interrupted                  130   stopped by the user; what is on disk can be resumed

Every error says what happened (``problem``), why (``cause``) and what to do (``fix``). None of the three may hold
patient text: no header value, no file content. A path that the user typed is allowed, because it goes back to them.
"""

import re
import traceback
from typing import ClassVar


class WardroundError(Exception):
    """Base of every error that Wardround raises on purpose.

    Parameters
    ----------
    problem
        What went wrong, in one sentence.
    cause
        Why, as far as it is known.
    fix
        What the reader can do about it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, problem: str, cause: str = "", fix: str = "") -> None:
        super().__init__(problem, cause, fix)
        self.problem = problem
        self.cause = cause
        self.fix = fix

    def __str__(self) -> str:
        return " → ".join(part for part in (self.problem, self.cause, self.fix) if part)


class UsageError(WardroundError):
    """An option, or a combination of options, that cannot work."""

    exit_code = 2


class DataError(WardroundError):
    """An image, a label or a folder that cannot be used as it is."""

    exit_code = 3


class GeometryError(DataError):
    """Two arrays that should lie on one grid do not."""


class LabelError(DataError):
    """A label holds structures that the plan does not know: data and plan are of two tasks."""


class NoTrainingCases(DataError):
    """A site has nothing to learn from in this round: no new case, and nothing that it remembers."""


class SeriesRefused(DataError):
    """A DICOM series, or a label for one, that does not become a case as it is.

    Parameters
    ----------
    reason
        Why, in lower case with hyphens: ``gantry-tilt``. It holds nothing of the series.
    """

    def __init__(self, problem: str, cause: str = "", fix: str = "", *, reason: str = "refused") -> None:
        super().__init__(problem, cause, fix)
        self.reason = reason


class StorageError(WardroundError):
    """The disk is full, not writable, or a stored file is damaged."""

    exit_code = 4


class PlanError(WardroundError):
    """A plan is invalid, or a run is resumed with another plan."""

    exit_code = 5


class RoundError(WardroundError):
    """A round could not be closed: no quorum before the deadline, or every site failed."""

    exit_code = 6


class ReplyRefused(WardroundError):
    """A site's reply does not keep the contract of the round."""

    exit_code = 7


class GateRefused(WardroundError):
    """A site's gate let something neither in nor out.

    Parameters
    ----------
    code
        Why, in lower case with hyphens: ``bundle-not-approved``. It is what a ledger and a coordinator may know, and
        holds no name, number or text that came with what was refused.
    """

    exit_code = 8

    def __init__(self, problem: str, cause: str = "", fix: str = "", *, code: str = "refused") -> None:
        super().__init__(problem, cause, fix)
        self.code = code


class ConnectionFailed(WardroundError):
    """The coordinator or the agent cannot be reached: name, proxy, TLS, or nobody listens."""

    exit_code = 9


class AuthRefused(WardroundError):
    """The other side was reached and does not accept who asks: key not registered, wrong token, wrong user."""

    exit_code = 10


class DoctorFailed(WardroundError):
    """A check of the doctor found a fault."""

    exit_code = 11


class Interrupted(WardroundError):
    """Stopped by the user; what lies on disk can be resumed."""

    exit_code = 130


def for_log(error: BaseException) -> str:
    """What a log may say of an error: the text of ours; of others, whose text may name a patient, class and place.

    ``ValueError in _answer (agent.py:221), train (site.py:229)``
    """
    return str(error) if isinstance(error, WardroundError) else without_text(error)


def without_text(error: BaseException) -> str:
    """Class and place alone: for a log of errors whose text may hold a path that names a patient."""
    frames = traceback.extract_tb(error.__traceback__)
    way = ", ".join(f"{frame.name} ({frame.filename.rpartition('/')[2]}:{frame.lineno})" for frame in frames)
    told = f"{_plain(type(error))} in {way or 'nowhere'}"
    before = error.__cause__ or error.__context__
    return f"{told}, after {_plain(type(before))}" if before is not None else told


def _plain(kind: type[BaseException]) -> str:
    """Its name, if it is one that a program gives: whoever makes a class can call it anything."""
    return kind.__name__ if re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", kind.__name__) else "an error"
