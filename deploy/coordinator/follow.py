"""Watches a run from outside, by what lies on disk, and says what happens."""

import time
from collections.abc import Callable

from rich.console import Console
from rich.text import Text

from wardround import errors
from wardround.deploy.coordinator.runs import Run, find
from wardround.errors import ConnectionFailed, Interrupted, RoundError, WardroundError
from wardround.server.home import CoordinatorHome
from wardround.server.journal import RoundRecord
from wardround.strategies.contract import DICE, NUM_EXAMPLES

_LOOK_S = 0.5


def follow(
    home: CoordinatorHome,
    name: str,
    terminal: Console,
    *,
    wait: Callable[[float], None] = time.sleep,
    seen: int = 0,
) -> None:
    """Say a line for every closed round, until the run is over.

    Parameters
    ----------
    home
        The coordinator's.
    name
        Of the run.
    terminal
        Where to say it.
    wait
        Lets so many seconds pass.
    seen
        So many rounds are known already.

    Raises
    ------
    ConnectionFailed
        If nobody serves any more.
    Interrupted
        If the operator stopped the run, or does not want to watch any more.
    WardroundError
        The error by which the run ended.
    """
    said = ""
    try:
        while True:
            run = find(home, name)
            phase, rounds = run.phase, run.rounds()
            for record in rounds[seen:]:
                terminal.print(round_line(record, run.request.rounds))
            seen = len(rounds)
            if phase == "queued" and run.state.reason != said:
                said = run.state.reason
                terminal.print(Text.assemble(("again", "yellow"), f"     {said}"))
            if phase in ("finished", "failed", "stopped"):
                _tell_end(run, terminal)
                return
            if not home.is_serving():
                raise _nobody_serves(name)
            wait(_LOOK_S)
    except KeyboardInterrupt:
        raise Interrupted(
            f"run {name} is not watched any more",
            "Ctrl-C",
            f"it goes on; stop it with `wardround coordinator stop {name}`",
        ) from None


def round_line(record: RoundRecord, rounds: int) -> str:
    """One line about a closed round."""
    parts = [f"{len(record.sites)} sites", f"{sum(record.seconds.values()):.0f} s"]
    parts += [f"refused {site} ({why})" for site, why in record.refused.items()]
    parts += [f"missing {site} ({why})" for site, why in record.missing.items()]
    if (dice := mean_dice(record)) is not None:
        parts.append(f"Dice {dice:.3f}")
    return f"round {record.round:>3} of {rounds}  {', '.join(parts)}"


def mean_dice(record: RoundRecord) -> float | None:
    """Mean Dice over all test cases of all sites, or None where the round was not evaluated."""
    if record.evaluation is None:
        return None
    found = [
        (float(metrics[NUM_EXAMPLES]), float(metrics[DICE]))  # type: ignore[arg-type]  # both are single numbers
        for metrics in record.evaluation.sites.values()
        if DICE in metrics
    ]
    cases = sum(number for number, _ in found)
    return sum(number * dice for number, dice in found) / cases if cases else None


def _tell_end(run: Run, terminal: Console) -> None:
    if run.state.phase == "finished":
        terminal.print(Text.assemble(("finished", "green"), f"  run {run.name} in {run.folder}"))
        return
    if run.state.phase == "stopped":
        raise Interrupted(
            f"run {run.name} was stopped",
            run.state.reason,
            f"go on with `wardround coordinator run {run.name} --resume`",
        )
    raise own_error(run)


def own_error(run: Run) -> WardroundError:
    """The error that ended a failed run, to be raised: its exit code is that of the kind it had."""
    found = run.own_error()
    again = f"then go on with `wardround coordinator run {run.name} --resume`"
    if found is None:
        return RoundError(f"run {run.name} failed", run.state.reason, f"look into logs/superexec.log; {again}")
    kind = getattr(errors, found.kind, None)
    if isinstance(kind, type) and issubclass(kind, WardroundError):
        problem = f"run {run.name} failed: {found.problem}"
        return kind(problem, found.cause, f"{found.fix}; {again}" if found.fix else again)
    return RoundError(f"run {run.name} failed: {found.problem}", found.cause, again)


def _nobody_serves(name: str) -> ConnectionFailed:
    return ConnectionFailed(
        f"run {name} does not go on",
        "no coordinator serves this folder",
        "start `wardround coordinator serve`; the run goes on by itself",
    )
