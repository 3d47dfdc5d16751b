"""What `wardround simulate --secure` takes and refuses, before anything is drawn."""

import pytest

from wardround.deploy.settings import settings_from
from wardround.errors import PlanError, UsageError


def values(**more: object) -> dict[str, object]:
    return {"phantoms": {}, "plan": {"secure": True}, **more}


@pytest.mark.parametrize("strategy", ["fedmedian", "fedtrimmedavg", "krum"])
def test_what_compares_single_updates_is_refused(strategy: str) -> None:
    with pytest.raises(PlanError) as caught:
        settings_from(values(strategy=strategy))
    assert caught.value.problem.endswith("does not go with secure aggregation")
    assert "fedavg" in caught.value.fix


def test_other_weightings_are_refused() -> None:
    with pytest.raises(PlanError, match="weight by examples"):
        settings_from(values(weighting="trust"))


def test_ray_is_refused() -> None:
    with pytest.raises(UsageError, match="forgets"):
        settings_from(values(engine="ray"))


def test_whoever_learns_alone_has_nothing_to_add_up() -> None:
    settings = settings_from(values(arms=("federated", "local", "pooled", "dense")))

    def is_secure(arm: str) -> bool:
        return settings.round_plan(arm, 0, run="r", round=1, labels=2).secure

    assert [is_secure(arm) for arm in ("federated", "dense", "local", "pooled")] == [True, True, False, False]
