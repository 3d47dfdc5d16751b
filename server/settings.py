"""How the round loop runs: what may differ between a start and a resume of one run."""

import math
from dataclasses import dataclass, field
from typing import Literal

from wardround.errors import PlanError
from wardround.strategies.validation import ReplyLimits

Late = Literal["refuse", "use"]


@dataclass(frozen=True)
class LoopSettings:
    """How the loop runs.

    Parameters
    ----------
    rounds
        Of the run; every plan must say the same.
    quorum
        So many sites must be online to begin a round, and so many good replies must arrive to close it.
    deadline_s
        Seconds to wait for the quorum, and again for the replies.
    evaluate_every
        Evaluate after every so many rounds; 0 means only after the last, which is always evaluated.
    limits
        How far a reply may go.
    late
        What becomes of a reply that comes after its round was closed. ``refuse``: nobody looks for it, and its site is
        asked anew in the next round. ``use``: its site is left alone until it has answered, and the update then counts
        in the round that is open, with less weight.
    staleness_exponent
        *a* of the weight (1 + τ)⁻ᵃ of an update that is τ rounds late (Xie et al. 2019, "Asynchronous federated
        optimization", section 5.2, the polynomial s_a(t − τ)); it multiplies ``num-examples``. 0 weighs it in full.
    max_staleness
        τ up to which a reply is waited for; behind it, its site is asked anew.
    quarantine_after
        So many refused replies of a site in a row put it in quarantine; 0 for never.
    quarantine_rounds
        So many rounds it is then not asked. It comes back on probation: the next refused reply counts at once.
    retries
        How often a round is tried again for which too few sites were there or answered. What was accepted stays.
    retry_wait_s
        Seconds between two attempts.
    exchange_s
        Seconds to wait in each of the short exchanges that follow learning under secure aggregation.
    """

    rounds: int
    quorum: int = 1
    deadline_s: float = 3600.0
    evaluate_every: int = 0
    limits: ReplyLimits = field(default_factory=ReplyLimits)
    late: Late = "refuse"
    staleness_exponent: float = 0.5
    max_staleness: int = 8
    quarantine_after: int = 0
    quarantine_rounds: int = 2
    retries: int = 0
    retry_wait_s: float = 30.0
    exchange_s: float = 300.0

    def __post_init__(self) -> None:
        patience = min(self.deadline_s, self.exchange_s)
        if self.rounds < 1 or self.quorum < 1 or self.evaluate_every < 0 or not patience > 0:
            raise PlanError(
                "the round loop cannot run like this",
                f"rounds={self.rounds}, quorum={self.quorum}, deadline-s={self.deadline_s}",
                "rounds, quorum and deadlines must be positive, evaluate-every at least 0",
            )
        least = {"max-staleness": 1, "quarantine-after": 0, "quarantine-rounds": 1, "retries": 0}
        for name, lowest in least.items():
            if getattr(self, name.replace("-", "_")) < lowest:
                raise PlanError(f"{name} cannot be used", f"it is below {lowest}", "give a larger number")
        for name in ("staleness-exponent", "retry-wait-s"):
            value = getattr(self, name.replace("-", "_"))
            if not (math.isfinite(value) and value >= 0):
                raise PlanError(f"{name} cannot be used", f"it is {value!r}", "give a number from 0 up")
        if self.late not in ("refuse", "use"):
            raise PlanError("late cannot be used", f"it is {self.late!r}", "give refuse or use")

    def evaluates(self, round: int) -> bool:
        """Whether the sites evaluate the weights after this round."""
        return round == self.rounds or (self.evaluate_every > 0 and round % self.evaluate_every == 0)

    def staleness_weight(self, rounds_late: int) -> float:
        """(1 + τ)⁻ᵃ: 1 for an update of the open round."""
        return float((1 + rounds_late) ** -self.staleness_exponent)
