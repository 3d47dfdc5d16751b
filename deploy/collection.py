"""From an experiment's folder to the one record that its report is made of.

Everything is read from what the runs left on disk, so that a report can be made again at any time, also of an
experiment that was stopped.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wardround import __version__
from wardround.deploy.preparation import DONE, EXPERIMENT, INDEX, stored_settings
from wardround.errors import DataError
from wardround.server.journal import RoundRecord, SiteReport, read_rounds

PHASES = ("predict", "annotate", "propagate", "update")

Record = dict[str, Any]


def collect(out: Path) -> Record:
    """All that the experiment in `out` has measured so far, in the form of :mod:`wardround.deploy.report.results`.

    Raises
    ------
    DataError
        If no run has closed a round yet.
    """
    settings = stored_settings(out)
    nothing = DataError(
        f"{out} has nothing to report yet",
        "no round is closed",
        f"go on with `wardround {settings.command} --resume {out}`",
    )
    if not (out / INDEX).exists():
        raise nothing
    index = _read(out / INDEX)
    by_arm: dict[tuple[str, int], list[_Run]] = {}
    for entry in index["runs"]:
        run = _Run.read(out / "arms" / entry["folder"], entry)
        if run.rounds:
            by_arm.setdefault((run.arm, run.seed), []).append(run)
    if not by_arm:
        raise nothing
    return {
        "version": __version__,
        "kind": settings.command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": _read(out / EXPERIMENT)["command"],
        "seed_list": list(settings.seeds),
        "machine": index["machine"],
        "settings": settings.flat(),
        "dataset": index["dataset"],
        "sites": index["sites"],
        "groups": index.get("groups", ()),
        "arms": [_arm(runs, index["tests"]) for runs in by_arm.values()],
    }


@dataclass(frozen=True)
class _Run:
    """What one run left on disk."""

    arm: str
    seed: int
    model: str
    strategy: str
    family: str
    budget: int
    rounds: Sequence[RoundRecord]
    interactions: Sequence[Record]
    scores: Mapping[str, Record]
    checkpoints: Mapping[int, Mapping[str, Record]]
    done: Mapping[str, float]

    @classmethod
    def read(cls, folder: Path, entry: Record) -> "_Run":
        has_journal = (folder / "journal" / "rounds").is_dir()
        done = _read(folder / DONE) if (folder / DONE).exists() else {}
        sites = [folder / "sites" / site for site in entry["sites"]]
        return cls(
            arm=entry["arm"],
            seed=entry["seed"],
            model=entry["model"],
            strategy=entry["strategy"],
            family=entry.get("family", ""),
            budget=entry.get("budget", 0),
            rounds=read_rounds(folder / "journal") if has_journal else (),
            interactions=[row for site in sites for row in _history(site)],
            scores={row["case"]: row for site in sites for row in _read(site / "evaluation.json")["cases"]}
            if done
            else {},
            checkpoints=_checkpoints(sites),
            done=done,
        )


def _arm(runs: Sequence[_Run], tests: Mapping[str, Sequence[str]]) -> Record:
    """One record of all runs of an arm under one seed: several only where every site has a model of its own."""
    interactions = [row for run in runs for row in run.interactions]
    final = _final_steps(interactions)
    reports = [report for run in runs for record in run.rounds for report in _reports(record).values()]
    seconds = {phase: _total(report.metrics.get(f"seconds-{phase}") for report in reports) for phase in PHASES}
    aggregate = _total(record.seconds.get("aggregate") for run in runs for record in run.rounds)
    rounds_total = _total(value for run in runs for record in run.rounds for value in record.seconds.values())
    evaluate = _total(run.done.get("evaluate_seconds") for run in runs)
    return {
        "arm": runs[0].arm,
        "seed": runs[0].seed,
        "strategy": runs[0].strategy,
        "family": runs[0].family,
        "budget": runs[0].budget,
        "models": {run.model: {"cases": _scored(run.scores, tests)} for run in runs if run.scores},
        "checkpoints": [
            {"round": number, "cases": _scored(scores, tests)} for number, scores in sorted(runs[0].checkpoints.items())
        ]
        if runs[0].family
        else [],
        "effort": {
            "contour": _mean(row["effort"] for row in final),
            "strict": _mean(row["strict_effort"] for row in final),
        },
        "updates": int(_total(report.metrics.get("updates") for report in reports)),
        "rejected": int(_total(report.metrics.get("rejected") for report in reports)),
        "rounds": _rounds(runs, final),
        "interactions": interactions,
        "seconds": seconds | {"aggregate": aggregate, "evaluate": evaluate, "total": rounds_total + evaluate},
        "bytes": {
            "up": sum(report.bytes_up for report in reports),
            "down": sum(report.bytes_down for report in reports),
        },
        "peak_memory_mb": max((run.done["peak_memory_mb"] for run in runs if run.done), default=None),
    }


def _scored(scores: Mapping[str, Record], tests: Mapping[str, Sequence[str]]) -> list[Record]:
    """The scores of one model on its test cases, with the sites that each case stands for."""
    return [
        {"case": case, "sites": list(tests[case])} | {name: row[name] for name in ("dice", "hd95_mm", "assd_mm")}
        for case, row in sorted(scores.items())
    ]


def _checkpoints(sites: Sequence[Path]) -> dict[int, dict[str, Record]]:
    """Round → test case → scores, of every round after which the sites were asked to evaluate."""
    found: dict[int, dict[str, Record]] = {}
    for site in sites:
        for file in sorted((site / "evaluations").glob("round-*.json")):
            content = _read(file)
            found.setdefault(content["round"], {}).update({row["case"]: row for row in content["cases"]})
    return found


def _rounds(runs: Sequence[_Run], final: Iterable[Record]) -> list[Record]:
    """Rounds of the same number, of runs beside each other, as one."""
    efforts: dict[tuple[int, str], list[float]] = {}
    for row in final:
        efforts.setdefault((row["round"], row["site"]), []).append(row["effort"])
    merged: dict[int, Record] = {}
    for run in runs:
        for record in run.rounds:
            target = merged.setdefault(
                record.round, {"round": record.round, "seconds": 0.0, "refused": {}, "sites": {}}
            )
            target["seconds"] += sum(record.seconds.values())
            target["refused"] |= {**record.refused, **record.missing}
            for site, report in _reports(record).items():
                target["sites"][site] = {
                    "loss": report.metrics.get("loss"),
                    "kernel_ratio": report.metrics.get("kernel-ratio"),
                    "made": report.metrics.get("made"),
                    "made_nearer": report.metrics.get("made-nearer"),
                    "made_faithful": report.metrics.get("made-faithful"),
                    "effort": _mean(efforts.get((record.round, site), ())),
                    "bytes_up": report.bytes_up,
                    "bytes_down": report.bytes_down,
                    "cases": int(_total([report.metrics.get("cases")])),
                }
    return [merged[number] for number in sorted(merged)]


def _reports(record: RoundRecord) -> dict[str, SiteReport]:
    """What was combined in a round, by site, also of an earlier one; a site that sent both is told by its newer one."""
    late = {site: one.report for site, one in record.late.items() if one.report is not None}
    return {**late, **record.sites}


def _final_steps(interactions: Iterable[Record]) -> list[Record]:
    """The last step of every case: what was paid for it in the end."""
    last: dict[tuple[str, str, int], Record] = {}
    for row in interactions:
        key = (row["site"], row["case"], row["round"])
        if key not in last or row["step"] > last[key]["step"]:
            last[key] = row
    return list(last.values())


def _history(site: Path) -> list[Record]:
    """The records of a site's newest snapshot; read as a file, since opening a site's state may repair it."""
    newest = max((site / "state").glob("round-*/state.json"), default=None)
    history: list[Record] = _read(newest)["history"] if newest is not None else []
    return history


def _read(path: Path) -> Record:
    try:
        content: Record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot read {path}", f"it is missing or damaged ({type(error).__name__})", "resume the experiment"
        ) from error
    return content


def _total(values: Iterable[float | Sequence[float] | None]) -> float:
    return sum(float(value) for value in values if isinstance(value, (int, float)) and math.isfinite(value))


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return sum(known) / len(known) if known else None
