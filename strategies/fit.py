"""What goes with SCAFFOLD and FedNova, and what does not: both are half at the coordinator, half at the sites."""

from flwr.serverapp.strategy import Strategy

from wardround.errors import PlanError, UsageError
from wardround.strategies.nova import FedNova
from wardround.strategies.plan import RoundPlan
from wardround.strategies.scaffold import Scaffold
from wardround.strategies.shaped import Shaped


def check_asked(strategy: Strategy, plan: RoundPlan, late: str = "refuse") -> None:
    """Refuse a strategy whose sites would not do their half, sites that do what no strategy expects, and late updates.

    Parameters
    ----------
    strategy, plan
        Of the run.
    late
        What becomes of replies that come after their round. Sites send a mean's worth of what they were given: of an
        older round it would count as if it had begun with the weights of this one.

    Raises
    ------
    PlanError
        If the plan does not ask of the sites what the strategy makes use of, or asks for what it does not.
    UsageError
        If late updates are to be used.
    """
    for kind, name, field, value, asks in (
        (FedNova, "fednova", "normalised-steps", "a number of steps above 0", plan.normalised_steps > 0),
        (Scaffold, "scaffold", "control-variates", "true", plan.control_variates),
    ):
        if isinstance(strategy, kind) and not asks:
            raise PlanError(
                f"{name} cannot go on from what the sites would send",
                f"the plan has no {field}, which they need to do their half",
                f"leave {field} out, so that the strategy sets it, or give {value}",
            )
        if asks and not isinstance(strategy, kind):
            raise PlanError(
                f"{field} does not go with {type(strategy).__name__}",
                f"sites would send what only {name} can combine",
                f"leave {field} out, or choose the strategy {name}",
            )
    if isinstance(strategy, Shaped) and late != "refuse":
        raise UsageError(
            f"{type(strategy).__name__} takes no late replies",
            "what a site sends is measured from the weights of the round in which it was asked",
            "set late to refuse, or choose fedavg or fedbuff",
        )
