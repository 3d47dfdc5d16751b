"""What an experiment is: data, sites, arms, seeds and the rules of a round, as one frozen value."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from wardround.errors import PlanError, UsageError
from wardround.strategies.catalogue import make_strategy, plan_fields
from wardround.strategies.central_privacy import check_central
from wardround.strategies.fit import check_asked
from wardround.strategies.local_keys import staying
from wardround.strategies.plan import LabelKind, RoundPlan
from wardround.strategies.secure.fit import check_summable
from wardround.strategies.weighting import check_weighable, make_weighting

Arm = Literal["federated", "dense", "proxy", "slices-only", "pooled", "local"]
ARMS: tuple[Arm, ...] = ("federated", "dense", "proxy", "slices-only", "pooled", "local")

# Arms in which every model has one site.
ALONE = ("pooled", "local")

# What an arm changes in the plan; an arm that is not named here changes only who trains with whom.
SUPERVISION: Mapping[str, str] = {"dense": "dense", "proxy": "proxy", "slices-only": "partial"}

# Fields of the plan that the experiment itself sets.
SET_BY_EXPERIMENT = frozenset({"run", "round", "rounds", "seed", "labels", "deadline_s"})

DEFAULT_MODEL = "unet3d-small"

# A simulated site is never late: a slow machine must give the numbers of a fast one.
_NEVER = 30 * 24 * 3600.0

_SPLIT = re.compile(r"natural|even:(?P<even>\d+)|dirichlet:(?P<dirichlet>\d+):(?P<alpha>[0-9.eE+-]+)")


class PhantomSettings(BaseModel):
    """Drawn cases instead of a data set.

    Parameters
    ----------
    sites, cases, tests
        Number of sites, and of training and test cases at each.
    shift
        How far the sites' scanners differ; 0 for one scanner everywhere.
    shape
        Voxels along i, j, k.
    seed
        Of the drawing; the seeds of an experiment all see the same phantoms.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sites: int = Field(3, ge=1, le=64)
    cases: int = Field(10, ge=1, le=10_000)
    tests: int = Field(4, ge=1, le=10_000)
    shift: float = Field(1.0, ge=0, le=4)
    shape: tuple[int, int, int] = (40, 48, 40)
    seed: int = Field(0, ge=0)

    @field_validator("shape")
    @classmethod
    def _large_enough(cls, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        if not all(16 <= side <= 512 for side in shape):
            raise ValueError("every side must be between 16 and 512 voxels")
        return shape


class ExperimentSettings(BaseModel):
    """What every kind of experiment depends on.

    Parameters
    ----------
    data
        Folder of a data set with ``dataset.json``, or None for phantoms.
    phantoms
        Used where `data` is None.
    sites
        How cases are dealt to sites: a JSON file (``file:split.json`` or a path that ends in ``.json``; looked for as
        given, then beside the data), ``natural``, ``even:K`` or ``dirichlet:K:alpha``.
    test_fraction
        Share of the subjects kept for testing, where the split does not name them.
    plan
        Fields of :class:`wardround.strategies.plan.RoundPlan` that differ from their defaults.
    seeds
        One run of every arm for each: order of the stream, initial weights, augmentation.
    strokes
        Where the data set names strokes of a person: ``expert`` has the simulated annotator answer with these where
        strokes are asked for, ``simulated`` with strokes made from the labels, as for any other case.
    device
        ``auto``, ``cpu`` or ``cuda``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: ClassVar[str] = "simulate"

    data: Path | None = None
    phantoms: PhantomSettings | None = None
    sites: str = "natural"
    test_fraction: float = Field(0.25, gt=0, lt=1)
    plan: dict[str, bool | int | float | str | tuple[int, int, int] | None] = Field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    strokes: Literal["expert", "simulated"] = "expert"
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @field_validator("sites")
    @classmethod
    def _known_split(cls, sites: str) -> str:
        if is_split_file(sites):
            return sites
        match = _SPLIT.fullmatch(sites)
        if match is None:
            raise ValueError("must be a .json file, 'natural', 'even:K' or 'dirichlet:K:alpha'")
        if match["alpha"] is not None:
            try:
                alpha = float(match["alpha"])
            except ValueError:
                alpha = 0.0
            if not 0 < alpha < 1e6:
                raise ValueError("alpha must be a positive number")
        if int(match["even"] or match["dirichlet"] or 1) < 1:
            raise ValueError("K must be at least 1")
        return sites

    @field_validator("seeds")
    @classmethod
    def _good_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if min(each_once(seeds)) < 0:
            raise ValueError("a seed is a number from 0 up")
        return seeds

    @model_validator(mode="after")
    def _consistent(self) -> "ExperimentSettings":
        if (self.data is None) == (self.phantoms is None):
            raise ValueError("give either a data folder or phantoms")
        taken = SET_BY_EXPERIMENT & self.plan.keys()
        if taken:
            raise ValueError(f"the plan's {', '.join(sorted(taken))} follows from the experiment")
        return self

    def plan_with(self, overrides: Mapping[str, object], **own: object) -> RoundPlan:
        """The plan of a round: the experiment's fields, those of an arm over them, and what the run itself decides.

        Raises
        ------
        PlanError
            If the plan's fields do not fit together.
        """
        fixed = {"model": DEFAULT_MODEL, "deadline_s": _NEVER}
        return RoundPlan.model_validate({**fixed, **self.plan, **overrides, **own})

    def flat(self) -> dict[str, bool | int | float | str | None]:
        """The settings as one level of names and plain values, for the report."""
        flat: dict[str, bool | int | float | str | None] = {}
        for name, value in self.model_dump(mode="json").items():
            inner = value if isinstance(value, dict) else {"": value}
            for key, item in inner.items():
                text = ", ".join(map(str, item)) if isinstance(item, list) else item
                flat[f"{name}.{key}" if key else name] = text
        unused = ("data", "sites", "test_fraction", "strokes") if self.data is None else ("phantoms",)
        for name in unused:
            flat.pop(name)
        return flat


Kind = TypeVar("Kind", bound=ExperimentSettings)


class FederationSettings(ExperimentSettings):
    """What every experiment with several sites depends on.

    Parameters
    ----------
    cases_per_site, tests_per_site
        At most so many; the first ones of the split.
    rounds
        Rounds of the federation; the streamed cases are dealt over them evenly.
    slow
        Site → seconds that it takes for a round under a simulated clock, on which all others take one; empty for no
        such clock.
    """

    cases_per_site: int | None = Field(None, ge=1)
    tests_per_site: int | None = Field(None, ge=1)
    rounds: int = Field(5, ge=1, le=100_000)
    slow: dict[str, float] = Field(default_factory=dict)

    @field_validator("slow")
    @classmethod
    def _some_time(cls, slow: dict[str, float]) -> dict[str, float]:
        if not all(0 < seconds <= 1e6 for seconds in slow.values()):
            raise ValueError("a site takes more than 0 seconds, at most a million")
        return slow

    def flat(self) -> dict[str, bool | int | float | str | None]:
        """As the base has it; caps on a data set's cases mean nothing for phantoms."""
        flat = super().flat()
        if self.data is None:
            del flat["cases_per_site"], flat["tests_per_site"]
        return flat


class SimulationSettings(FederationSettings):
    """One federation beside the arms that it is compared with: all that its numbers depend on, and nothing else.

    Parameters
    ----------
    strategy, strategy_options
        As in :func:`wardround.strategies.catalogue.make_strategy`.
    weighting, weighting_options
        As in :func:`wardround.strategies.weighting.make_weighting`.
    arms
        Which of :data:`ARMS` to run.
    engine
        ``inprocess`` or ``ray``.
    site_prompts
        Site → the kind of label that its people give, where it is another than the plan asks for: ``dense``, or one of
        the plan's `prompts`. In the arm *dense* every site gives dense labels all the same.

    Raises
    ------
    pydantic.ValidationError
        See :func:`settings_from`, which turns it into an error for a person.
    """

    strategy: str = "fedavg"
    strategy_options: dict[str, float | int] = Field(default_factory=dict)
    weighting: str = "examples"
    weighting_options: dict[str, float | int] = Field(default_factory=dict)
    arms: tuple[Arm, ...] = ("federated",)
    engine: Literal["inprocess", "ray"] = "inprocess"
    site_prompts: dict[str, LabelKind] = Field(default_factory=dict)

    @field_validator("arms")
    @classmethod
    def _arms_once(cls, values: tuple[Arm, ...]) -> tuple[Arm, ...]:
        return each_once(values)

    @model_validator(mode="after")
    def _time_is_simulated_here(self) -> "SimulationSettings":
        if self.slow and self.engine == "ray":
            raise ValueError("slow needs the engine inprocess: Ray has no simulated clock")
        return self

    @model_validator(mode="after")
    def _sites_stay_in_one_process(self) -> "SimulationSettings":
        if self.engine == "ray" and self.plan.get("secure"):
            raise ValueError("secure needs the engine inprocess: on Ray a site forgets from one message to the next")
        return self

    @model_validator(mode="after")
    def _sites_stay_apart(self) -> "SimulationSettings":
        if self.site_prompts and "pooled" in self.arms:
            raise ValueError("site-prompts mean nothing where all cases are pooled; leave out the arm pooled")
        return self

    def kinds(self, arm: str) -> Mapping[str, LabelKind]:
        """Site → the kind of label that it gives in an arm, where that is another than the plan asks for."""
        return {} if arm == "dense" else self.site_prompts

    def round_plan(self, arm: str, seed: int, *, run: str, round: int, labels: int) -> RoundPlan:
        """The plan of one round.

        Raises
        ------
        PlanError
            If the plan's fields do not fit together.
        """
        # Where one learns alone there is nothing to combine, and no strategy.
        asked = plan_fields(self.strategy, **self.strategy_options) if arm not in ALONE else {}
        changed = {name: value for name, value in asked.items() if name not in self.plan}
        if arm in SUPERVISION:
            changed["supervision"] = SUPERVISION[arm]
        if arm in ALONE and self.plan.get("secure"):
            # A sum of one is that one.
            changed["secure"] = False
        return self.plan_with(changed, run=run, round=round, rounds=self.rounds, seed=seed, labels=labels)


def uncombined(plan: RoundPlan) -> RoundPlan:
    """A plan without what only a strategy makes use of: what one learns alone is combined with nothing."""
    return plan.model_copy(update={"control_variates": False, "normalised_steps": 0})


def each_once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Refuse an empty list and one that names something twice."""
    if not values or len(set(values)) != len(values):
        raise ValueError("must name at least one, each once")
    return values


def is_split_file(sites: str) -> bool:
    """Whether a specification of sites names a JSON file."""
    return sites.startswith("file:") or sites.endswith(".json")


def settings_from(values: Mapping[str, object]) -> SimulationSettings:
    """Validate settings of a federation, the plan and the strategy.

    Raises
    ------
    UsageError
        Naming the option, what is wrong with it and what is allowed.
    PlanError
        If the plan's fields do not fit together.
    """
    settings = validated(SimulationSettings, values)
    plan = settings.round_plan(settings.arms[0], settings.seeds[0], run="check", round=1, labels=2)
    strategy = make_strategy(settings.strategy, **settings.strategy_options)
    weighting = make_weighting(settings.weighting, **settings.weighting_options)
    check_weighable(strategy, weighting, plan)
    for arm in settings.arms:
        if arm not in ALONE:
            check_asked(strategy, settings.round_plan(arm, settings.seeds[0], run="check", round=1, labels=2))
    check_central(strategy, plain=weighting.plain, secure=plan.secure)
    check_summable(plan, strategy, weighting)
    check_what_torch_knows(settings, [plan])
    return settings


def validated(kind: type[Kind], values: Mapping[str, object]) -> Kind:
    """Settings of this kind.

    Raises
    ------
    UsageError
        Naming the option, what is wrong with it and what is allowed.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"]) or "options"
        message = first["msg"].removeprefix("Value error, ")
        raise UsageError(
            f"{name.replace('_', '-')}: {message}", _given(first), f"see `wardround {kind.command} --help`"
        ) from error


def check_what_torch_knows(settings: ExperimentSettings, plans: Sequence[RoundPlan]) -> None:
    """Check network and device, and only where they are asked for: importing torch takes seconds.

    Parameters
    ----------
    settings
        The experiment.
    plans
        Of its arms.

    Raises
    ------
    UsageError
        If one cannot be used.
    PlanError
        If local keys do not fit the network.
    """
    attentive = any(plan.attentive_weight > 0 for plan in plans)
    if attentive or "model" in settings.plan:
        from wardround.models.catalogue import architecture, names

        name = str(settings.plan.get("model", DEFAULT_MODEL))
        if architecture(name).attention is None and attentive:
            others = ", ".join(other for other in names() if architecture(other).attention is not None)
            raise UsageError(
                f"{name} has no attention", "attentive_weight asks for attentive similarity", f"choose one of {others}"
            )
    for model, patterns in {(plan.model, plan.local_keys) for plan in plans if plan.local_keys}:
        from wardround.models.catalogue import build

        staying(build(model, 2, seed=0).state_dict(), patterns)
    if settings.device == "cuda":
        from wardround.client.learning.learner import resolve_device

        resolve_device(settings.device)


def _given(error: Mapping[str, object]) -> str:
    given = error.get("input")
    return (
        f"it was given as {given!r}" if isinstance(given, (str, int, float, list, tuple)) else "the options do not fit"
    )


def changed_settings(stored: ExperimentSettings, wanted: ExperimentSettings) -> list[str]:
    """Names of the settings in which two experiments differ."""
    old, new = stored.flat(), wanted.flat()
    return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))


def read_settings(kind: type[Kind], content: object, source: Path) -> Kind:
    """Read settings that an earlier run wrote.

    Raises
    ------
    PlanError
        If the file is not readable by this version.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise PlanError(
            f"cannot read {source}",
            "it was changed by hand or written by another version",
            "start a new run with --out",
        ) from error
