"""SCAFFOLD and FedNova are half at the sites: a plan and a strategy that do not belong together are refused."""

from typing import Any

import pytest

from wardround.errors import PlanError, UsageError
from wardround.strategies.catalogue import make_strategy, names, plan_fields
from wardround.strategies.fit import check_asked
from wardround.strategies.plan import RoundPlan


def plan(**fields: Any) -> RoundPlan:
    return RoundPlan(run="r", round=1, rounds=1, seed=0, model="unet3d-small", labels=2, **fields)


@pytest.mark.parametrize("name", names())
def test_what_a_strategy_asks_for_itself_fits(name: str) -> None:
    check_asked(make_strategy(name), plan(**plan_fields(name)))


@pytest.mark.parametrize(
    ("strategy", "fields", "named"),
    [
        ("fednova", {}, "normalised-steps"),
        ("scaffold", {}, "control-variates"),
        ("scaffold", {"control_variates": True, "normalised_steps": 5}, "normalised-steps"),
        ("fednova", {"control_variates": True, "normalised_steps": 5}, "control-variates"),
        ("fedavg", {"normalised_steps": 5}, "fednova"),
        ("fedadam", {"control_variates": True}, "scaffold"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_field(strategy: str, fields: dict[str, Any], named: str) -> None:
    with pytest.raises(PlanError, match=named):
        check_asked(make_strategy(strategy), plan(**fields))


@pytest.mark.parametrize("name", names())
def test_only_a_mean_of_whole_weights_may_hold_late_ones(name: str) -> None:
    asked = plan(**plan_fields(name))
    if name not in ("scaffold", "fednova"):
        check_asked(make_strategy(name), asked, late="use")
        return
    with pytest.raises(UsageError, match="late"):
        check_asked(make_strategy(name), asked, late="use")
