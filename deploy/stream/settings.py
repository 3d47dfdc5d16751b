"""What a stream experiment is, as one frozen value."""

import re
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from wardround.deploy.settings import (
    SET_BY_EXPERIMENT,
    ExperimentSettings,
    check_what_torch_knows,
    each_once,
    validated,
)
from wardround.deploy.stream.arms import DENSE, KNOWN, SHARED
from wardround.strategies.plan import RoundPlan

ArmFields = dict[str, bool | int | float | str | tuple[int, int, int] | None]

_DEFAULT_ARMS: dict[str, ArmFields] = {name: dict(KNOWN[name]) for name in ("proxy", DENSE, "slices-only")}


class StreamSettings(ExperimentSettings):
    """One stream under several arms: everything that its numbers depend on, and nothing else.

    Parameters
    ----------
    arms
        Name → the fields of the plan in which the arm differs.
    budgets
        Slices drawn on a case: every arm is run with each. An arm that learns from dense labels is run with the
        largest only, which decides its voxel weights, and so is one that is asked for points, which draws no slice; one
        that names ``slices_per_case`` itself is run with that.
    order
        ``shuffled``, by the seed; or ``by-site``: one site after the other, in the order of the split, the cases of
        each shuffled. Test cases are then scored after every site, else by the final model only.
    chunks
        The stream is learnt in so many rounds; memory is rehearsed at the end of each. Ordered by site, every site has
        the same number of them, at least one.
    cases, tests
        At most so many streamed cases and test cases, spread over the sites.
    evaluate_every
        Score test cases after every so many chunks as well, where the order is ``shuffled``; 0 for the end only.
    """

    command: ClassVar[str] = "stream"

    arms: dict[str, ArmFields] = Field(default_factory=lambda: dict(_DEFAULT_ARMS))
    budgets: tuple[int, ...] = (4, 8)
    order: Literal["shuffled", "by-site"] = "shuffled"
    chunks: int = Field(8, ge=1, le=100_000)
    cases: int | None = Field(None, ge=1)
    tests: int | None = Field(None, ge=1)
    evaluate_every: int = Field(0, ge=0)

    @field_validator("budgets")
    @classmethod
    def _some_budgets(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        if not all(1 <= budget <= 4096 for budget in each_once(values)):
            raise ValueError("a budget is a number of slices, from 1 up")
        return values

    @model_validator(mode="after")
    def _arms_fit(self) -> "StreamSettings":
        if not self.arms:
            raise ValueError("name at least one arm")
        for name, fields in self.arms.items():
            if taken := sorted(SET_BY_EXPERIMENT & fields.keys()):
                raise ValueError(f"arm {name}: {', '.join(taken)} follows from the experiment")
            if shared := sorted(SHARED & fields.keys()):
                raise ValueError(f"arm {name}: {', '.join(shared)} is the same in all arms; give it with --plan")
        if "slices_per_case" in self.plan:
            raise ValueError("the plan's slices_per_case follows from the budgets")
        if "supervision" in self.plan:
            raise ValueError("the plan's supervision follows from the arms")
        if self.order == "by-site" and self.evaluate_every:
            raise ValueError("a stream that is ordered by site is scored after every site; leave out evaluate-every")
        return self

    def runs(self) -> Iterator[tuple[str, str, int]]:
        """Name, arm and budget of every run that each seed has."""
        for arm, fields in self.arms.items():
            own = fields.get("slices_per_case")
            if isinstance(own, int):
                budgets: tuple[int, ...] = (own,)
            elif fields.get("supervision") == DENSE or fields.get("prompts", self.plan.get("prompts")) == "points":
                budgets = (max(self.budgets),)
            else:
                budgets = self.budgets
            for budget in budgets:
                yield f"{arm}-{budget}", arm, budget

    def round_plan(self, arm: str, budget: int, seed: int, *, run: str, rounds: int, labels: int) -> RoundPlan:
        """The plan of a run, with round 0.

        Raises
        ------
        PlanError
            If its fields do not fit together.
        """
        own = {"slices_per_case": budget, **self.arms[arm]}
        return self.plan_with(own, run=run, round=0, rounds=rounds, seed=seed, labels=labels)

    def flat(self) -> dict[str, bool | int | float | str | None]:
        """As the base has it, with one line an arm."""
        flat = super().flat()
        for arm, fields in self.arms.items():
            flat[f"arms.{arm}"] = ", ".join(f"{name}={value}" for name, value in fields.items())
        return flat


def told_plan_field(flat: Mapping[str, object], arm: str, name: str) -> str:
    """A field of the plan of an arm, read from what :meth:`StreamSettings.flat` told; its default where it is not.

    Parameters
    ----------
    flat
        Settings as the results of a stream hold them.
    arm
        Without its budget.
    name
        Of a field that holds one value.

    Returns
    -------
    str
        The value as text.
    """
    own = re.search(rf"(?:^|, ){re.escape(name)}=([^,]*)", str(flat.get(f"arms.{arm}", "")))
    return own[1] if own else str(flat.get(f"plan.{name}", RoundPlan.model_fields[name].default))


def stream_settings_from(values: Mapping[str, object]) -> StreamSettings:
    """Validate settings of a stream and the plan of every arm.

    Raises
    ------
    UsageError
        Naming the option, what is wrong with it and what is allowed.
    PlanError
        If the fields of an arm's plan do not fit together.
    """
    settings = validated(StreamSettings, values)
    plans = [
        settings.round_plan(arm, budget, settings.seeds[0], run="check", rounds=1, labels=2)
        for _, arm, budget in settings.runs()
    ]
    check_what_torch_knows(settings, plans)
    return settings
