"""What the journal says about a round, and how it is written as JSON."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wardround.errors import StorageError
from wardround.strategies.contract import Metrics

ROUND = "round.json"
EVALUATION = "evaluation.json"


@dataclass(frozen=True)
class SiteReport:
    """What a site did in a round.

    Parameters
    ----------
    metrics
        The scalars that it sent.
    bytes_down, bytes_up
        Payload to and from the site.
    seconds
        From sending the plan to having the reply.
    digest
        :func:`wardround.strategies.contract.digest` of the reply: the one in the site's own ledger.
    weights_digest
        Of its arrays alone.
    """

    metrics: Metrics
    bytes_down: int
    bytes_up: int
    seconds: float
    digest: str = ""
    weights_digest: str = ""


@dataclass(frozen=True)
class LateReport:
    """A reply to an earlier round that came while this one was open.

    Parameters
    ----------
    round
        The round in which it was asked for.
    weight
        Its weight beside the ``num-examples`` of the others; 0 where it was refused.
    code
        Why it was refused, or nothing.
    report
        As of any reply; None where it was refused.
    """

    round: int
    weight: float
    code: str = ""
    report: SiteReport | None = None


@dataclass(frozen=True)
class Standing:
    """What a site has to answer for after a round; a site without one has nothing.

    Parameters
    ----------
    strikes
        Replies in a row that were refused.
    until
        Last round that it sits out; 0 if none. Behind it, it is on probation until a reply is good.
    """

    strikes: int = 0
    until: int = 0


@dataclass(frozen=True)
class Evaluation:
    """How the global weights after a round did at the sites.

    Parameters
    ----------
    sites
        The scalars of every site that held cases back.
    refused
        Sites whose reply did not keep the contract, with the code.
    missing
        Sites that did not reply, with the reason.
    """

    sites: Mapping[str, Metrics]
    refused: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RoundRecord:
    """A closed round, without its weights.

    Parameters
    ----------
    round
        1 …
    plan
        Digest of the plan.
    sites
        The sites whose weights were combined.
    refused
        Sites whose reply did not keep the contract, with the code of the check that refused it.
    missing
        Sites that were asked and did not reply, or were not asked again yet, with the reason.
    seconds
        ``roster``, ``sites``, ``aggregate``: wall-clock time by phase.
    evaluation
        None where the round was not evaluated.
    late
        Replies to earlier rounds that came during this one, by site.
    standing
        Of every site that has to answer for something, after this round.
    attempts
        How often the round was tried until it was closed.
    summed
        Under secure aggregation, ``num-examples`` of all sites together, and of every other scalar its sum and how many
        sites gave it; the reports of the sites hold none.
    shares
        Site → its share of the combined weights, 0 … 1, where a rule of weighting was asked for.
    remembered
        What that rule carries on, by site; empty for a rule without a memory.
    outstanding
        In buffered rounds: site → the round that it was still at work on when this one closed.
    epsilon
        Of central privacy, by the end of the round; None without.
    """

    round: int
    plan: str
    sites: Mapping[str, SiteReport]
    refused: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    evaluation: Evaluation | None = None
    late: Mapping[str, LateReport] = field(default_factory=dict)
    standing: Mapping[str, Standing] = field(default_factory=dict)
    attempts: int = 1
    shares: Mapping[str, float] = field(default_factory=dict)
    remembered: Mapping[str, float] = field(default_factory=dict)
    summed: Metrics = field(default_factory=dict)
    outstanding: Mapping[str, int] = field(default_factory=dict)
    epsilon: float | None = None


def read_rounds(folder: Path) -> list[RoundRecord]:
    """All closed rounds of the journal in `folder`, in order; may be called while a coordinator writes there."""
    return [read_round(folder, number) for number in numbers(folder)]


def numbers(folder: Path) -> list[int]:
    """Numbers of the closed rounds in the journal in `folder`, in order."""
    return sorted(int(path.name) for path in (folder / "rounds").iterdir() if path.name.isdigit())


def round_folder(folder: Path, number: int) -> Path:
    """Where the journal in `folder` keeps a round."""
    return folder / "rounds" / f"{number:05d}"


def read_round(folder: Path, number: int) -> RoundRecord:
    """One closed round of the journal in `folder`.

    Raises
    ------
    StorageError
        If it is damaged.
    """
    path = round_folder(folder, number)
    body = read_json(path / ROUND)
    with _blaming(path):
        evaluation = None
        if (path / EVALUATION).exists():
            scores = read_json(path / EVALUATION)
            sites = {site: _metrics(values) for site, values in scores["sites"].items()}
            evaluation = Evaluation(sites, scores["refused"], scores["missing"])
        return RoundRecord(
            body["round"],
            body["plan"],
            {site: read_report(report) for site, report in body["sites"].items()},
            body["refused"],
            body["missing"],
            body["seconds"],
            evaluation,
            {site: _late(late) for site, late in body.get("late", {}).items()},
            {site: Standing(**standing) for site, standing in body.get("standing", {}).items()},
            body.get("attempts", 1),
            body.get("shares", {}),
            body.get("remembered", {}),
            _metrics(body.get("summed", {})),
            body.get("outstanding", {}),
            body.get("epsilon"),
        )


def read_report(body: Mapping[str, Any]) -> SiteReport:
    """What was written of a :class:`SiteReport`."""
    return SiteReport(
        _metrics(body["metrics"]),
        body["bytes_down"],
        body["bytes_up"],
        body["seconds"],
        body.get("digest", ""),
        body.get("weights_digest", ""),
    )


def _late(body: Mapping[str, Any]) -> LateReport:
    report = body["report"]
    return LateReport(body["round"], body["weight"], body["code"], read_report(report) if report else None)


def read_json(path: Path) -> dict[str, Any]:
    """The object that a file of the journal holds.

    Raises
    ------
    StorageError
        If it is not there or damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise damaged(path) from error
    if not isinstance(value, dict):
        raise damaged(path)
    return value


def dumps(body: Mapping[str, Any]) -> str:
    """JSON has no NaN and no infinity: both are written as null."""
    return json.dumps(_without_nan(body), allow_nan=False)


def damaged(path: Path) -> StorageError:
    """The error for a file that is not as it was written."""
    return StorageError(
        f"{path} is damaged",
        "its content is not what was written",
        "restore it, or move this round's folder and all later ones away to go on from the round before",
    )


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise damaged(path) from error


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return value


def _metrics(values: Mapping[str, Any]) -> dict[str, float | list[float]]:
    def number(value: float | None) -> float:
        return math.nan if value is None else value

    return {
        name: [number(item) for item in value] if isinstance(value, list) else number(value)
        for name, value in values.items()
    }
