"""The catalogue: strategies by name, set up for a few hospitals and the records of our contract.

The arithmetic of most is Flower's. What is ours is the defaults, the refusal of options that cannot work, the part of a
strategy that must survive a restart, and what some ask of the sites: fields of the plan (:func:`plan_fields`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.serverapp.strategy import (
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    Strategy,
)

from wardround.errors import PlanError, UsageError
from wardround.strategies.buffered import FedBuff
from wardround.strategies.central_privacy import DPFedAvg
from wardround.strategies.contract import ARRAYS, NUM_EXAMPLES, PLAN, Weights
from wardround.strategies.local_keys import HEAD, NORMALISATION
from wardround.strategies.nova import FedNova
from wardround.strategies.options import Option, chosen
from wardround.strategies.scaffold import Scaffold

_COMMON: Mapping[str, Any] = {
    "fraction_train": 1.0,
    "fraction_evaluate": 1.0,
    "min_train_nodes": 1,
    "min_evaluate_nodes": 1,
    "min_available_nodes": 1,
    "weighted_by_key": NUM_EXAMPLES,
    "arrayrecord_key": ARRAYS,
    "configrecord_key": PLAN,
}


@dataclass(frozen=True)
class _Entry:
    """How a strategy is built, with its options; and what it asks of the sites, as fields of the plan.

    `asked` are options as well: each has the name of the field that it sets.
    """

    build: Callable[..., Strategy]
    options: Mapping[str, Option] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)
    asked: Mapping[str, Option] = field(default_factory=dict)


_OPTIMISER = {
    "eta": Option(1e-2, 1e-8, 10.0),
    "beta_1": Option(0.9, 0.0, 0.9999),
    "beta_2": Option(0.99, 0.0, 0.9999),
    "tau": Option(1e-3, 1e-12, 10.0),
}

_CATALOGUE: Mapping[str, _Entry] = {
    "fedavg": _Entry(FedAvg),
    "fedprox": _Entry(FedProx, {"proximal_mu": Option(0.01, 0.0, 1e4)}),
    "fedavgm": _Entry(
        FedAvgM,
        {"server_learning_rate": Option(0.5, 1e-8, 10.0), "server_momentum": Option(0.5, 0.0, 0.9999)},
    ),
    "fedadam": _Entry(FedAdam, _OPTIMISER),
    "fedyogi": _Entry(FedYogi, _OPTIMISER),
    "fedmedian": _Entry(FedMedian),
    "fedtrimmedavg": _Entry(FedTrimmedAvg, {"beta": Option(0.34, 0.0, 0.4999)}),
    "krum": _Entry(Krum, {"num_malicious_nodes": Option(1, 0, 1000)}),
    "dpfedavg": _Entry(
        DPFedAvg,
        {
            "noise_multiplier": Option(1.0, 1e-9, 1e4),
            "clip_norm": Option(1.0, 1e-9, 1e4),
            "sites": Option(0, 0, 100_000),
            "examples_cap": Option(0.0, 0.0, 1e9),
            "delta": Option(1e-5, 1e-12, 0.1),
        },
    ),
    "fedbuff": _Entry(
        FedBuff,
        {
            "buffer": Option(0, 0, 10_000),
            "concurrency": Option(0, 0, 10_000),
            "server_learning_rate": Option(1.0, 1e-8, 10.0),
            "staleness_exponent": Option(0.5, 0.0, 10.0),
            "max_staleness": Option(50, 1, 1_000_000),
        },
    ),
    "fedbn": _Entry(FedAvg, plan={"local_keys": NORMALISATION}),
    "fedper": _Entry(FedAvg, plan={"local_keys": HEAD}),
    "fedrep": _Entry(FedAvg, plan={"local_keys": HEAD}, asked={"head_share": Option(0.5, 0.01, 0.99)}),
    "scaffold": _Entry(Scaffold, {"server_learning_rate": Option(1.0, 1e-8, 10.0)}, {"control_variates": True}),
    "fednova": _Entry(
        FedNova,
        {"most_steps": Option(10.0, 1e-3, 1e3)},
        asked={"normalised_steps": Option(100, 1, 1_000_000)},
    ),
    "moon": _Entry(
        FedAvg, asked={"moon_weight": Option(1.0, 0.0, 1000.0), "moon_temperature": Option(0.5, 0.01, 100.0)}
    ),
    "ditto": _Entry(FedAvg, plan={"personal": "ditto"}, asked={"personal_weight": Option(0.1, 0.0, 1e4)}),
    "apfl": _Entry(FedAvg, plan={"personal": "apfl"}, asked={"personal_share": Option(0.5, 0.0, 1.0)}),
}


def names() -> tuple[str, ...]:
    """Every name that :func:`make_strategy` knows."""
    return tuple(_CATALOGUE)


def make_strategy(name: str, **options: float | int) -> Strategy:
    """Set up a strategy.

    ================ ============================================================================================
    name             options with their defaults
    ================ ============================================================================================
    fedavg           (none) McMahan et al. 2017, algorithm 1: the mean weighted by ``num-examples``
    fedprox          ``proximal_mu=0.01``: Li et al. 2020; travels to the sites, which add the term to their loss
    fedavgm          ``server_learning_rate=0.5, server_momentum=0.5``: Hsu et al. 2019; the long-run step is
                     rate / (1 − momentum) = that of fedavg
    fedadam, fedyogi ``eta=0.01, beta_1=0.9, beta_2=0.99, tau=0.001``: Reddi et al. 2021, algorithm 2
    fedmedian        (none) Yin et al. 2018: per weight the median; sites count the same
    fedtrimmedavg    ``beta=0.34``: Yin et al. 2018: per weight the mean without the ⌊beta · sites⌋ lowest and highest;
                     sites count the same
    krum             ``num_malicious_nodes=1``: Blanchard et al. 2017: the one update that is nearest to the others
    dpfedavg         ``noise_multiplier=1, clip_norm=1, sites=0, examples_cap=0, delta=1e-5``: McMahan et al. 2018:
                     sites are private as a whole; :mod:`wardround.strategies.central_privacy`
    fedbuff          ``buffer=0, concurrency=0, server_learning_rate=1, staleness_exponent=0.5, max_staleness=50``:
                     Nguyen et al. 2022: nobody waits for the slowest; :mod:`wardround.strategies.buffered`
    fedbn, fedper    (none) fedavg of what travels; normalisation, or the last stage, stays at each site:
                     :mod:`wardround.strategies.local_keys`
    fedrep           ``head_share=0.5``: Collins et al. 2021, algorithm 1: as fedper, and of the updates in a row that
                     share moves the last stage alone, the others the rest alone
    scaffold         ``server_learning_rate=1``: Karimireddy et al. 2020: :mod:`wardround.strategies.scaffold`
    fednova          ``normalised_steps=100, most_steps=10``: Wang et al. 2020: :mod:`wardround.strategies.nova`
    moon             ``moon_weight=1, moon_temperature=0.5``: Li, He and Song 2021, eq. 5; sites add the term
    ditto            ``personal_weight=0.1``: Li, Hu, Beirami and Smith 2021, algorithm 1, λ; fedavg of what travels
    apfl             ``personal_share=0.5``: Deng et al. 2020, algorithm 1, the first α; fedavg of what travels
    ================ ============================================================================================

    Two defaults differ from Flower's, for a reason. With ``eta=0.1`` one round of fedadam may move every weight by some
    0.1, as much as many weights of a segmentation network are large; sites that train with small steps change a weight
    by some 0.001 … 0.01 a round, which ``eta=0.01`` answers with a step of the same order. With ``beta=0.2`` nothing is
    trimmed at fewer than five sites; 0.34 drops one at either end from three sites on.

    Returns
    -------
    flwr.serverapp.strategy.Strategy
        All sites take part, the plan travels in the record ``plan``.

    Raises
    ------
    UsageError
        If there is no such strategy or option, or its value cannot work.
    """
    entry, values = _chosen(name, options)
    return entry.build(**_COMMON, **{key: values[key] for key in entry.options})


def plan_fields(name: str, **options: float | int) -> dict[str, Any]:
    """The fields of a plan that a strategy asks of the sites; what somebody says of a single field goes before them.

    Raises
    ------
    UsageError
        As :func:`make_strategy`.
    """
    entry, values = _chosen(name, options)
    return {**entry.plan, **{key: values[key] for key in entry.asked}}


def options_of(name: str) -> Mapping[str, Option]:
    """The options that a strategy has, at the coordinator and as fields of the plan.

    Raises
    ------
    UsageError
        If there is no such strategy.
    """
    entry = _entry(name)
    return {**entry.options, **entry.asked}


def _chosen(name: str, options: Mapping[str, object]) -> tuple[_Entry, dict[str, float | int]]:
    """A strategy's entry, and every option of it, as given or by default."""
    return _entry(name), chosen(name, options_of(name), options)


def _entry(name: str) -> _Entry:
    try:
        return _CATALOGUE[name]
    except KeyError:
        raise UsageError(
            f"there is no strategy called {name!r}",
            "the catalogue does not hold it",
            f"choose one of {', '.join(names())}",
        ) from None


def describe(strategy: Strategy) -> dict[str, bool | int | float | str]:
    """Class and plain settings of a strategy: what must be equal where a run is resumed."""
    settings = {
        name: value
        for name, value in sorted(vars(strategy).items())
        if not name.startswith("_") and isinstance(value, (bool, int, float, str))
    }
    return {"class": type(strategy).__name__, **settings}


def strategy_state(strategy: Strategy) -> Weights:
    """What a strategy carries from one round into the next, as named arrays, its own; empty for most.

    ``m_t/<array>`` and ``v_t/<array>`` for fedadam and fedyogi; for fedavgm ``momentum/00000`` … in the arrays' order;
    for scaffold ``most/sites``.
    """
    state: Weights = {}
    for moment in ("m_t", "v_t"):
        for name, array in (getattr(strategy, moment, None) or {}).items():
            state[f"{moment}/{name}"] = np.asarray(array)
    for number, array in enumerate(getattr(strategy, "momentum_vector", None) or ()):
        state[f"momentum/{number:05d}"] = np.asarray(array)
    if isinstance(strategy, Scaffold) and strategy.most:
        state["most/sites"] = np.array(strategy.most, np.int64)
    return state


def load_strategy_state(strategy: Strategy, state: Mapping[str, npt.NDArray[Any]]) -> None:
    """Put back what :func:`strategy_state` took out.

    Raises
    ------
    PlanError
        If the state was taken out of another kind of strategy.
    """
    groups: dict[str, Weights] = {}
    for name, array in state.items():
        group, _, key = name.partition("/")
        groups.setdefault(group, {})[key] = np.array(array)
    values: dict[str, object] = {moment: groups.pop(moment) for moment in ("m_t", "v_t") if moment in groups}
    if "momentum" in groups:
        values["momentum_vector"] = [array for _, array in sorted(groups.pop("momentum").items())]
    if "most" in groups:
        values["most"] = int(groups.pop("most")["sites"])
    if groups or not all(hasattr(strategy, name) for name in values):
        raise PlanError(
            f"the stored state does not belong to {type(strategy).__name__}",
            "the run was started with another strategy",
            "resume with the strategy of the run, or start a new one",
        )
    for name, value in values.items():
        setattr(strategy, name, value)


def forget_arrays(strategy: Strategy) -> None:
    """Let the strategy start its next round from the weights that it is then given.

    Flower's FedAvgM otherwise goes on from its own last result, which differs from the global weights where these were
    cast back to the network's dtypes.
    """
    if hasattr(strategy, "current_arrays"):
        strategy.current_arrays = None
