"""What goes with secure aggregation, and what does not: all that a strategy may know is a weighted mean."""

from flwr.serverapp.strategy import Strategy

from wardround.errors import PlanError
from wardround.strategies.plan import RoundPlan
from wardround.strategies.streaming import needs
from wardround.strategies.weighting import Weighting


def check_summable(plan: RoundPlan, strategy: Strategy, weighting: Weighting, late: str = "refuse") -> None:
    """Refuse what needs more than the mean, where the plan has the coordinator learn no more.

    Raises
    ------
    PlanError
        Naming what does not go with secure aggregation.
    """
    if not plan.secure:
        return
    if needs(strategy) != "one":
        raise PlanError(
            f"{type(strategy).__name__} does not go with secure aggregation",
            "it compares the updates of single sites, and the coordinator learns their sum only",
            "choose one that goes on from a mean, such as fedavg, fedprox, fedavgm or fedadam, or leave out secure",
        )
    if not weighting.plain:
        raise PlanError(
            "this weighting does not go with secure aggregation",
            "it looks at what single sites tell, and the coordinator learns sums only",
            "weight by examples, or leave out secure",
        )
    if late != "refuse":
        raise PlanError(
            "late=use does not go with secure aggregation",
            "an update that comes late is under masks that nobody takes away any more",
            "set late to refuse, or leave out secure",
        )
