"""What a comparison of strategies is, as one frozen value; and how an arm of one's own is written."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from wardround.deploy.settings import (
    ALONE,
    SET_BY_EXPERIMENT,
    SUPERVISION,
    FederationSettings,
    check_what_torch_knows,
    each_once,
    validated,
)
from wardround.errors import UsageError
from wardround.strategies.catalogue import make_strategy, names, options_of, plan_fields
from wardround.strategies.central_privacy import check_central
from wardround.strategies.fit import check_asked
from wardround.strategies.plan import RoundPlan
from wardround.strategies.secure.fit import check_summable
from wardround.strategies.weighting import check_weighable, make_weighting, rules

PlanFields = dict[str, bool | int | float | str | tuple[int, int, int] | None]

Beside = Literal["pooled", "local", "dense"]
_PLAIN = {"strategy": "fedavg"}


class Combination(BaseModel):
    """How one arm combines what the sites send.

    Parameters
    ----------
    strategy, options
        As in :func:`wardround.strategies.catalogue.make_strategy`.
    weighting, weighting_options
        As in :func:`wardround.strategies.weighting.make_weighting`.
    plan
        Fields of the plan in which the arm differs from the others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: str = "fedavg"
    options: dict[str, float | int] = Field(default_factory=dict)
    weighting: str = "examples"
    weighting_options: dict[str, float | int] = Field(default_factory=dict)
    plan: PlanFields = Field(default_factory=dict)

    def text(self) -> str:
        """In one line, for the report."""
        weighting = () if self.weighting == "examples" else (f"weighting={self.weighting}",)
        pairs = {**self.options, **self.weighting_options, **self.plan}
        return ", ".join([self.strategy, *weighting, *(f"{name}={value}" for name, value in pairs.items())])


class CompareSettings(FederationSettings):
    """Strategies beside each other: everything that their numbers depend on, and nothing else.

    Parameters
    ----------
    arms
        Name → how this arm combines. The first is what the others are compared with.
    beside
        ``pooled``: one site with all cases. ``local``: every site by itself, from which the best single site follows.
        ``dense``: the first arm with whole labels.
    """

    command: ClassVar[str] = "compare"

    arms: dict[str, Combination] = Field(default_factory=lambda: {"fedavg": Combination()})
    beside: tuple[Beside, ...] = ("pooled", "local")

    @model_validator(mode="after")
    def _arms_fit(self) -> "CompareSettings":
        each_once((*self.arms, *self.beside))
        if not self.arms:
            raise ValueError("name at least one strategy")
        for name, arm in self.arms.items():
            if taken := sorted(SET_BY_EXPERIMENT & arm.plan.keys()):
                raise ValueError(f"arm {name}: {', '.join(taken)} follows from the experiment")
            if "model" in arm.plan:
                raise ValueError(f"arm {name}: the network is the same in all arms; give it with --model")
        return self

    def combination(self, arm: str) -> Combination:
        """How an arm combines; where there is one site only, there is nothing to combine."""
        return self.arms.get(arm, next(iter(self.arms.values())) if arm == "dense" else Combination())

    def round_plan(self, arm: str, seed: int, *, run: str, labels: int) -> RoundPlan:
        """The plan of a run, with round 0.

        Raises
        ------
        PlanError
            If its fields do not fit together.
        """
        own = self.combination(arm)
        asked = plan_fields(own.strategy, **own.options)
        # What somebody says of a single field goes before what a strategy asks.
        fields: dict[str, Any] = {name: value for name, value in asked.items() if name not in self.plan} | own.plan
        if arm in SUPERVISION:
            fields["supervision"] = SUPERVISION[arm]
        if arm in ALONE and self.plan.get("secure"):
            # A sum of one is that one.
            fields["secure"] = False
        return self.plan_with(fields, run=run, round=0, rounds=self.rounds, seed=seed, labels=labels)

    def flat(self) -> dict[str, bool | int | float | str | None]:
        """As the base has it, with one line an arm."""
        return super().flat() | {f"arms.{name}": arm.text() for name, arm in self.arms.items()}


def named_arms(strategies: Sequence[str], weightings: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Arms by the names of strategies, and fedavg under rules of weighting by the names of these.

    Raises
    ------
    UsageError
        If a name is not known.
    """
    arms: dict[str, dict[str, Any]] = {}
    for name in strategies:
        if name not in names():
            raise UsageError(
                f"strategies: there is none called {name!r}",
                f"known are {', '.join(names())}",
                "choose among them, or make an arm of your own with --arm NAME:strategy=fedadam,eta=0.1",
            )
        arms[name] = {"strategy": name}
    for rule in weightings:
        if rule not in rules():
            raise UsageError(
                f"weightings: there is none called {rule!r}", f"known are {', '.join(rules())}", "choose among them"
            )
        arms[rule] = {**_PLAIN, "weighting": rule}
    return arms


def own_arm(values: Mapping[str, Any]) -> dict[str, Any]:
    """Sort what ``--arm`` says into the strategy, the rule of weighting, their options, and fields of the plan.

    Raises
    ------
    UsageError
        If there is no such strategy or rule.
    """
    left = dict(values)
    strategy, weighting = str(left.pop("strategy", "fedavg")), str(left.pop("weighting", "examples"))
    of_strategy, of_weighting = options_of(strategy), make_weighting(weighting).options
    return {
        "strategy": strategy,
        "options": {name: left.pop(name) for name in [*left] if name in of_strategy},
        "weighting": weighting,
        "weighting_options": {name: left.pop(name) for name in [*left] if name in of_weighting},
        "plan": left,
    }


def compare_settings_from(values: Mapping[str, object]) -> CompareSettings:
    """Validate settings of a comparison, and the plan, the strategy and the weighting of every arm.

    Raises
    ------
    UsageError
        Naming the option, what is wrong with it and what is allowed.
    PlanError
        If the fields of an arm's plan do not fit together.
    """
    settings = validated(CompareSettings, values)
    plans = {
        arm: settings.round_plan(arm, settings.seeds[0], run="check", labels=2)
        for arm in (*settings.arms, *settings.beside)
    }
    for name, arm in settings.arms.items():
        strategy = make_strategy(arm.strategy, **arm.options)
        weighting = make_weighting(arm.weighting, **arm.weighting_options)
        check_weighable(strategy, weighting, plans[name])
        check_asked(strategy, plans[name])
        check_central(strategy, plain=weighting.plain, secure=plans[name].secure)
        check_summable(plans[name], strategy, weighting)
    check_what_torch_knows(settings, list(plans.values()))
    return settings
