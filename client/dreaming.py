"""What a site's generator does in a round, from its awakening to what is kept of it; of a plan without one, nothing."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from wardround.client.learning.round import OnlineRound
from wardround.client.learning.schedule import rehearsal_updates
from wardround.models.weights import OPERATORS, Arrays
from wardround.strategies.contract import Weights
from wardround.strategies.plan import RoundPlan

if TYPE_CHECKING:
    from wardround.client.synthesis.imagination import Imagination

# Begins the names of what is kept of it, beside what a learner keeps.
_KEPT = "dreams/"


class Dreaming:
    """A site's generator through one round.

    Parameters
    ----------
    plan
        Of the round.
    device
        Where the generator is.
    weights
        What the coordinator sent; operators are among them where the plan has them shared.
    local
        What the site kept of the round before.
    seed
        Of all that is drawn at random for it; it is spawned from only where there is a generator.

    Raises
    ------
    PlanError
        If the plan has operators shared, and none that fit came.
    """

    def __init__(
        self,
        plan: RoundPlan,
        device: torch.device,
        weights: Weights,
        local: Mapping[str, npt.NDArray[np.generic]],
        seed: np.random.SeedSequence,
    ) -> None:
        self._plan = plan
        # What another round goes on from is not lost in one that has no generator.
        self._kept = {name: np.asarray(array) for name, array in local.items() if name.startswith(_KEPT)}
        self._imagination: Imagination | None = None
        if plan.synthesis == "off" and plan.memory == "reservoir":
            return
        # Imported here: where there is no generator, nobody waits for what diffusion needs.
        from wardround.client.synthesis import imagination

        kept = {name.removeprefix(_KEPT): array for name, array in self._kept.items()}
        self._imagination = imagination.Imagination(plan, device, kept, np.random.default_rng(seed.spawn(1)[0]))
        if plan.share_knobs:
            self._imagination.take_operators(weights)

    @property
    def remembers(self) -> bool:
        """Whether there is something to rehearse without a case: pairs that stand for old ones."""
        return self._imagination is not None and self._imagination.stands_for_cases

    def begin(self, work: OnlineRound, between: Callable[[], None]) -> None:
        """Have `work` rehearse what the generator makes by what it learnt in earlier rounds."""
        if self._imagination is not None:
            with work.phase("update"):
                self._imagination.wake(work.memory, between)
            work.dreams = self._imagination

    def rehearse(self, work: OnlineRound, cases: int, between: Callable[[], None]) -> None:
        """As :meth:`OnlineRound.rehearse`, after the generator has learnt and been tested."""
        if self._imagination is None:
            work.rehearse(cases)
            return
        with work.phase("update"):
            self._imagination.learn(work.memory, between)
        updates = rehearsal_updates(self._plan, cases)
        self._imagination.rehearse(
            work.learner, work.memory, updates, work.recall, between, lambda: work.phase("update")
        )

    def local(self) -> Arrays:
        """What the site keeps of it and never lets go."""
        if self._imagination is None:
            return dict(self._kept)
        arrays = self._imagination.arrays()
        return {f"{_KEPT}{name}": array for name, array in arrays.items()}

    def weights(self) -> Weights:
        """What travels beside the network's weights: operators where the plan has them shared, else nothing."""
        if self._imagination is None or not self._plan.share_knobs:
            return {}
        return {OPERATORS: self._imagination.operators}

    def metrics(self) -> dict[str, float | list[float]]:
        """What may be told of a generator that was tested in this round."""
        verdict = None if self._imagination is None else self._imagination.verdict
        if verdict is None:
            return {}
        assert self._imagination is not None
        made = float(len(self._imagination.pool)) if verdict.passed else 0.0
        return {"made": made, "made-nearer": verdict.copies.nearer, "made-faithful": verdict.faithful.dice}
