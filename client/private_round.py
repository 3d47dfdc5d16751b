"""What record-level privacy adds to a site's round: who pays for its steps, whence the noise comes, and its answer.

An answer that was paid for is kept, so that a coordinator that asks again gets the same one and learns nothing new. A
round that is worked out a second time, after a crash or a pause, has other noise and is paid for again: what became of
the first answer is not known for certain.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from wardround.client.gate.budget import Budget
from wardround.client.learning.schedule import rehearsal_updates
from wardround.client.learning.state import Arrays, SiteState
from wardround.errors import DataError
from wardround.models.weights import load_arrays, save_arrays
from wardround.strategies.contract import Metrics, Weights, record_digest, weights_to_record
from wardround.strategies.noise import Noise
from wardround.strategies.plan import RoundPlan
from wardround.strategies.record_privacy import PRIVATE_METRICS

Charging = Callable[[RoundPlan, int], float]
"""Charges so many steps of a plan's round before they are taken, or refuses; returns the ε that is spent by then."""

SPENT = "privacy.json"
"""In the folder of a simulated site: what its cases were charged. A live site's gate has such a file of its own."""

_ANSWER = "answer.safetensors"
_ONLY_PRIVATE = "private/only"
_ARRAY, _METRIC, _QUESTION = "array/", "metric/", "question"


def is_private(plan: RoundPlan) -> bool:
    """Whether what leaves is to be private for each case."""
    return plan.privacy == "record"


def steps_of(plan: RoundPlan, cases: int) -> int:
    """Steps of a round with so many new cases: the plan's for each, or those of a rehearsal where there is none."""
    return plan.updates_per_case * cases if cases else rehearsal_updates(plan, 1)


def charging_of(folder: Path, simulated: bool) -> Charging:
    """For a site that nobody gave a budget: one without a limit, where it is simulated.

    Raises
    ------
    DataError
        When a live site is to take part in a private round.
    """
    budget = Budget(folder / SPENT)

    def charge(plan: RoundPlan, steps: int) -> float:
        if not simulated:
            raise DataError(
                "the round is to be private, and nobody counts what it costs",
                "the site was opened without its gate",
                "serve the site, or ask for another plan",
            )
        budget.write(budget.with_charge(plan.run, plan.round, plan.noise_multiplier, plan.sample_rate, steps))
        return 0.0

    return charge


def noise_of(seed: np.random.SeedSequence, simulated: bool) -> Noise:
    """A round's noise: at a live site nobody can foresee it, in a simulation it follows from the seed."""
    return Noise(seed.spawn(1)[0].generate_state(8).tobytes() if simulated else None)


@dataclass(frozen=True, eq=False)
class Answered:
    """What a site answered.

    Parameters
    ----------
    weights
        Before a codec.
    metrics
        Of :data:`~wardround.strategies.record_privacy.PRIVATE_METRICS`.
    """

    weights: Weights
    metrics: Metrics


def told(metrics: Metrics) -> dict[str, float | list[float]]:
    """Those scalars of a round that follow from how many cases there are, and from nothing that they hold."""
    return {name: value for name, value in metrics.items() if name in PRIVATE_METRICS}


def keep_answer(folder: Path, plan: RoundPlan, given: Weights, answer: Answered) -> None:
    """Keep the answer to `plan` and the weights that came with it, in place of the last one."""
    arrays = {f"{_ARRAY}{name}": array for name, array in answer.weights.items()}
    metrics = {f"{_METRIC}{name}": np.asarray(value, np.float64) for name, value in answer.metrics.items()}
    save_arrays(folder / _ANSWER, arrays | metrics | {_QUESTION: _question(plan, given)})


def kept_answer(folder: Path, plan: RoundPlan, given: Weights) -> Answered | None:
    """The answer to this very question, if it was the last that was kept.

    Raises
    ------
    StorageError
        If the file is damaged.
    """
    if not (folder / _ANSWER).exists():
        return None
    kept = load_arrays(folder / _ANSWER)
    if not np.array_equal(kept[_QUESTION], _question(plan, given)):
        return None
    parts = {
        part: {name.removeprefix(part): array for name, array in kept.items() if name.startswith(part)}
        for part in (_ARRAY, _METRIC)
    }
    return Answered(parts[_ARRAY], {name: float(array) for name, array in parts[_METRIC].items()})


def begun_with(state: SiteState, plan: RoundPlan) -> SiteState:
    """The state that a round begins with: a private one takes over nothing that a round without noise left.

    Moments of the optimiser, heads and what a codec left out are free of cases only if every round before was private.

    Raises
    ------
    DataError
        If the run remembers cases of a round without noise: what is drawn on them, and the run's weights, follow from
        other cases, and no step was charged for that.
    """
    if not is_private(plan) or _ONLY_PRIVATE in state.local:
        return state
    if state.reservoir.kept:
        raise DataError(
            f"round {plan.round} of run {plan.run} is to be private, and cases are remembered that were not",
            "a round of this run was without noise",
            "begin a new run, private from its first round on",
        )
    return replace(state, optimiser={}, local={})


def mark_of(plan: RoundPlan) -> Arrays:
    """What a private round leaves in the site's state, so that the next one may go on from it."""
    return {_ONLY_PRIVATE: np.ones(1)} if is_private(plan) else {}


def _question(plan: RoundPlan, given: Weights) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
    text = f"{plan.digest()}/{record_digest(weights_to_record(given))}"
    return np.frombuffer(hashlib.sha256(text.encode()).digest(), dtype=np.uint8)
