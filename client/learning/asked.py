"""What a strategy of the federation asks of a site's learning, as one value, and the terms that do it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from wardround.client.learning.apart import Apfl, Ditto
from wardround.client.learning.control import Control
from wardround.client.learning.moon import Moon
from wardround.client.learning.normalised import Normalised
from wardround.client.learning.terms import Term
from wardround.strategies.local_keys import matches
from wardround.strategies.plan import Personal, RoundPlan

if TYPE_CHECKING:
    from wardround.client.learning.settings import LearningSettings


@dataclass(frozen=True)
class Asked:
    """What is asked; see the fields of these names in :class:`~wardround.strategies.plan.RoundPlan`.

    Parameters
    ----------
    learning_rate
        Of the round: a step of it counts as one.
    """

    control_variates: bool = False
    normalised_steps: int = 0
    learning_rate: float = 1.0
    moon_weight: float = 0.0
    moon_temperature: float = 0.5
    personal: Personal = "none"
    personal_weight: float = 0.0
    personal_share: float = 0.5
    personal_adaptive: bool = False

    @classmethod
    def of(cls, plan: RoundPlan, learning_rate: float) -> "Asked":
        """What a plan says of it."""
        return cls(
            plan.control_variates,
            plan.normalised_steps,
            learning_rate,
            plan.moon_weight,
            plan.moon_temperature,
            plan.personal,
            plan.personal_weight,
            plan.personal_share,
            plan.personal_adaptive,
        )


def asked_terms(settings: "LearningSettings", network: nn.Module) -> list[Term]:
    """The terms that do what is asked, for a learner of `network`; none for most strategies."""
    asked = settings.asked
    terms: list[Term] = []
    # Before the others: what they have travel beside the weights is not to be normalised.
    if asked.normalised_steps:
        terms.append(Normalised(asked.normalised_steps, asked.learning_rate))
    if asked.control_variates:
        names = [name for name, _ in network.named_parameters() if not matches(name, settings.local_keys)]
        terms.append(Control(network, names))
    if asked.moon_weight:
        terms.append(Moon(network, asked.moon_weight, asked.moon_temperature))
    if asked.personal == "ditto":
        terms.append(Ditto(network, asked.personal_weight, settings.dice))
    elif asked.personal == "apfl":
        terms.append(Apfl(network, asked.personal_share, asked.personal_adaptive, settings.dice))
    return terms
