"""Lines of the ledger and the chain that binds them: what a line holds, and what is found on reading them.

A line is JSON without spaces. Its last field, ``hash``, is the SHA-256 of the rest of the line, and the rest holds a
running number and the hash of the line before. Only one text stands for one line, so that a changed byte is found even
where it changes no value.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, BinaryIO, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Direction = Literal["in", "out", "none"]
Kind = Literal["app", "train", "evaluate", "query", "error", "ledger"]
Verdict = Literal["allowed", "refused"]

NOTHING = "0" * 64
"""The hash before the first line."""

_LONGEST_LINE = 4096

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, lt=2**63)]


class LedgerEntry(BaseModel):
    """One line. No field takes free text of a message.

    Parameters
    ----------
    number
        1, 2, 3 …
    time
        UTC, as ``2026-01-31T08:15:00.000000Z``, by the site's clock.
    direction
        ``in``, ``out``; ``none`` for what is decided at the site, or concerns the ledger itself.
    kind
        Of message: ``app`` is a bundle; ``error`` is used where the kind is not known; ``ledger`` is the ledger itself.
    run, round, plan
        What it belonged to, where known; `plan` is the SHA-256 of the round's plan.
    bytes
        Size of the content: arrays and metrics, or the bundle.
    sha256
        Of the content, where it could be read.
    cases
        How many cases stand behind what leaves.
    epsilon
        ε that the site's cases have spent by then, this round included, at the policy's δ; None where no differential
        privacy was used.
    verdict
        ``allowed`` or ``refused``.
    code
        One of :data:`wardround.client.gate.codes.CODES`.
    by
        Who let a bundle run or took that back, as that person wrote it here. Lines of messages have no such field.
    previous, hash
        The chain.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    number: Annotated[int, Field(ge=1)]
    time: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$")]
    direction: Direction
    kind: Kind
    run: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._=+:@-]{0,127}$")] | None = None
    round: Count | None = None
    plan: Digest | None = None
    bytes: Count = 0
    sha256: Digest | None = None
    cases: Count | None = None
    epsilon: Annotated[float, Field(ge=0)] | None = None
    verdict: Verdict
    code: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=64)]
    by: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    previous: Digest
    hash: Digest

    @model_validator(mode="after")
    def _of_a_decision(self) -> Self:
        if self.by is not None and not (self.direction == "none" and self.kind == "app" and self.by.isprintable()):
            raise ValueError("only who decides on a bundle is named")
        return self


@dataclass(frozen=True)
class Tail:
    """How far a ledger goes: lines, the hash of the last one, and bytes up to its end."""

    number: int = 0
    hash: str = NOTHING
    offset: int = 0


class Broken(Exception):
    """A line is not a link of the chain.

    Parameters
    ----------
    problem
        What is wrong with it, in one phrase.
    tail
        The last good line.
    torn
        Whether it is what a crash leaves of a line: nothing follows it, and it has no end, or a power cut kept parts of
        it from the disk.
    """

    def __init__(self, problem: str, tail: Tail, torn: bool) -> None:
        super().__init__(problem)
        self.problem = problem
        self.tail = tail
        self.torn = torn


@dataclass(frozen=True)
class Survey:
    """What a look at every byte found.

    Parameters
    ----------
    tail
        The last good line.
    problem
        What is wrong, in one phrase; empty if nothing is.
    torn
        Bytes of a line that a crash left unfinished; 0 if the problem is another or there is none.
    found
        Whether the line that was looked for is there.
    """

    tail: Tail
    problem: str = ""
    torn: int = 0
    found: bool = False


def timestamp(seconds: float) -> str:
    """Seconds since 1970 as the time of a line."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def next_entry(tail: Tail, seconds: float, fields: Mapping[str, Any]) -> LedgerEntry:
    """The line behind `tail`.

    Raises
    ------
    ValueError
        If a value is not of its field's form. The value is not repeated.
    """
    chained = {**fields, "number": tail.number + 1, "time": timestamp(seconds), "previous": tail.hash}
    try:
        entry = LedgerEntry.model_validate({**chained, "hash": NOTHING})
    except ValueError:
        raise ValueError("a value is not of the form that a line of the ledger has") from None
    return entry.model_copy(update={"hash": _hash_of(line_of(entry))})


def line_of(entry: LedgerEntry) -> bytes:
    """The line as it stands in the file, with its end."""
    values = entry.model_dump(exclude={"by"} if entry.by is None else None)
    return json.dumps(values, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def _hash_of(line: bytes) -> str:
    """SHA-256 of a line's JSON as it is without its last field."""
    return hashlib.sha256(line[: -len(f',"hash":"{NOTHING}"}}\n')] + b"}").hexdigest()


def read_lines(stream: BinaryIO, size: int) -> Iterator[tuple[LedgerEntry, Tail]]:
    """Every line of the first `size` bytes, checked, and how far the chain goes with it.

    Raises
    ------
    Broken
        At the first line that is not a link of the chain.
    """
    tail = Tail()
    while tail.offset < size:
        line = stream.readline(min(_LONGEST_LINE, size - tail.offset))
        try:
            entry = _link(line, tail)
        except ValueError as error:
            last = tail.offset + len(line) >= size
            raise Broken(str(error), tail, last and (line[-1:] != b"\n" or b"\0" in line)) from None
        tail = Tail(entry.number, entry.hash, tail.offset + len(line))
        yield entry, tail


def _link(line: bytes, tail: Tail) -> LedgerEntry:
    """Read one line; a ValueError says why it is not the one behind `tail`."""
    if not line.endswith(b"\n"):
        raise ValueError("it has no end")
    try:
        entry = LedgerEntry.model_validate_json(line)
    except ValueError:
        raise ValueError("it cannot be read") from None
    if line_of(entry) != line or _hash_of(line) != entry.hash:
        raise ValueError("it was changed")
    if entry.number != tail.number + 1 or entry.previous != tail.hash:
        raise ValueError("it does not follow the line before it")
    return entry


def head_text(tail: Tail) -> str:
    """How far the ledger goes, as it stands in the file beside it: always of one length, to be written in place."""
    return f'{{"number": {tail.number:>20}, "hash": "{tail.hash}"}}\n'


def survey(stream: BinaryIO, size: int, head: str | None, wanted: str | None = None) -> Survey:
    """Look at every byte of a ledger.

    Parameters
    ----------
    stream, size
        The ledger and how many bytes of it count.
    head
        What the file beside it says; None if there is none.
    wanted
        Hash of a line to look for.
    """
    noted = _noted(head)
    if noted is None and (head is not None or size > 0):
        return Survey(Tail(), "the file beside it, which says how far it went, is missing or cannot be read")
    number, expected = noted or (0, NOTHING)
    tail, at_head, found, broken = Tail(), NOTHING, wanted == NOTHING, None
    try:
        for entry, after in read_lines(stream, size):
            tail = after
            found = found or entry.hash == wanted
            if entry.number == number:
                at_head = entry.hash
    except Broken as error:
        broken = error
    if broken is not None and not broken.torn:
        return Survey(tail, broken.problem, found=found)
    if tail.number < number:
        return Survey(tail, f"lines are missing: it went to line {number}", found=found)
    if at_head != expected:
        return Survey(Tail(), f"line {number} is not the one that was written", found=found)
    if broken is not None:
        return Survey(tail, "it was torn by a crash; the next writer drops it and says so", size - tail.offset, found)
    return Survey(tail, found=found)


def _noted(head: str | None) -> tuple[int, str] | None:
    """Number and hash of the line up to which the ledger is known to go; None if they cannot be read."""
    try:
        values = json.loads(head or "")
        number, digest = values["number"], values["hash"]
    except (ValueError, RecursionError, TypeError, KeyError):
        return None
    whole = type(number) is int and number >= 0 and isinstance(digest, str) and (number > 0 or digest == NOTHING)
    return (number, digest) if whole else None
