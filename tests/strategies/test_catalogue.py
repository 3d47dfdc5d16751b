"""Strategies by name: options, defaults, and the state that survives a restart."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import Message
from flwr.serverapp.strategy import Strategy

from wardround.errors import PlanError, UsageError
from wardround.strategies.catalogue import (
    describe,
    forget_arrays,
    load_strategy_state,
    make_strategy,
    names,
    plan_fields,
    strategy_state,
)
from wardround.strategies.combine import combine
from wardround.strategies.contract import ARRAYS, NUM_EXAMPLES, PLAN, Weights
from wardround.strategies.plan import RoundPlan

Reply = Callable[..., Message]


@pytest.mark.parametrize("name", names())
def test_every_name_gives_a_strategy_for_our_records_and_one_site(name: str) -> None:
    strategy = make_strategy(name)
    assert isinstance(strategy, Strategy)
    settings = describe(strategy)
    assert (settings["arrayrecord_key"], settings["configrecord_key"]) == (ARRAYS, PLAN)
    assert settings["weighted_by_key"] == NUM_EXAMPLES
    assert {settings[f"min_{kind}_nodes"] for kind in ("train", "evaluate", "available")} == {1}


def test_unknown_names_and_options() -> None:
    with pytest.raises(UsageError, match="fedavg, fedprox"):
        make_strategy("fedbest")
    with pytest.raises(UsageError, match="eta, beta_1, beta_2, tau"):
        make_strategy("fedadam", beta_3=0.9)
    with pytest.raises(UsageError, match="none"):
        make_strategy("fedavg", eta=0.1)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("fedadam", "eta", 0.0),
        ("fedadam", "eta", math.nan),
        ("fedadam", "beta_1", 1.0),
        ("fedyogi", "tau", math.inf),
        ("fedprox", "proximal_mu", -0.1),
        ("fedtrimmedavg", "beta", 0.5),
        ("krum", "num_malicious_nodes", 1.5),
        ("krum", "num_malicious_nodes", True),
        ("fedavgm", "server_momentum", "0.9"),
    ],
)
def test_values_that_cannot_work(name: str, option: str, value: float) -> None:
    with pytest.raises(UsageError, match=option):
        make_strategy(name, **{option: value})


def test_options_reach_flower() -> None:
    settings = describe(make_strategy("fedadam", eta=0.5, tau=1))
    assert settings["class"] == "FedAdam"
    assert (settings["eta"], settings["tau"], settings["beta_2"]) == (0.5, 1.0, 0.99)


def test_what_a_strategy_asks_of_the_sites_is_fields_of_the_plan() -> None:
    assert plan_fields("fedavg") == plan_fields("fedadam", eta=0.5) == {}
    asked = {"local_keys": ("model.2.*",)}
    assert plan_fields("fedper") == asked
    assert plan_fields("fedrep", head_share=0.25) == {**asked, "head_share": 0.25}
    assert plan_fields("scaffold", server_learning_rate=0.5) == {"control_variates": True}
    assert describe(make_strategy("scaffold", server_learning_rate=0.5))["server_learning_rate"] == 0.5
    assert plan_fields("ditto", personal_weight=1) == {"personal": "ditto", "personal_weight": 1.0}
    assert describe(make_strategy("ditto", personal_weight=1)) == describe(make_strategy("fedavg"))
    for name in names():
        RoundPlan(run="r", round=1, rounds=1, seed=0, model="m", labels=2, **plan_fields(name))
    with pytest.raises(UsageError, match="eta"):
        plan_fields("fedper", eta=1)


def one_round(strategy: Strategy, number: int, reply: Reply, weights: Weights) -> Weights:
    forget_arrays(strategy)
    strategy.current_arrays = {name: array for name, array in weights.items()}  # type: ignore[attr-defined]
    return combine(strategy, number, [reply({n: a + a.dtype.type(1) for n, a in weights.items()})], weights)


@pytest.mark.parametrize("name", ["fedadam", "fedyogi"])
def test_moments_survive_and_change_the_next_round(name: str, reply: Reply, weights: Weights) -> None:
    whole = make_strategy(name)
    middle = one_round(whole, 1, reply, weights)
    state = strategy_state(whole)
    assert set(state) == {f"{moment}/{array}" for moment in ("m_t", "v_t") for array in weights}
    resumed, fresh = make_strategy(name), make_strategy(name)
    load_strategy_state(resumed, state)
    expected = one_round(whole, 2, reply, middle)
    assert all(np.array_equal(expected[n], a) for n, a in one_round(resumed, 2, reply, middle).items())
    assert not np.array_equal(expected["conv"], one_round(fresh, 2, reply, middle)["conv"])


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "fedmedian", "fedtrimmedavg", "krum"])
def test_most_carry_nothing(name: str, reply: Reply, weights: Weights) -> None:
    strategy = make_strategy(name)
    combine(strategy, 1, [reply()], weights)
    assert strategy_state(strategy) == {}


def test_state_of_another_strategy_is_refused() -> None:
    with pytest.raises(PlanError, match="FedAvg"):
        load_strategy_state(make_strategy("fedavg"), {"m_t/conv": np.zeros(2)})
    with pytest.raises(PlanError, match="FedAdam"):
        load_strategy_state(make_strategy("fedadam"), {"momentum/00000": np.zeros(2)})
    with pytest.raises(PlanError, match="FedAdam"):
        load_strategy_state(make_strategy("fedadam"), {"other/conv": np.zeros(2)})
