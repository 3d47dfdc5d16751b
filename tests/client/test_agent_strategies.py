"""What a site's gate expects of each strategy is what the coordinator sends, and comes in where the policy lets it."""

from typing import Any

import numpy as np
import pytest

from wardround.client.expected import catalogue_reference
from wardround.client.gate.policy import Policy
from wardround.client.gate.update import check_incoming, check_outgoing
from wardround.errors import GateRefused, PlanError
from wardround.server.app import initial_weights
from wardround.strategies.catalogue import names, plan_fields
from wardround.strategies.contract import ARRAYS, METRICS, weights_to_record
from wardround.strategies.plan import RoundPlan


def plan(strategy: str, **fields: Any) -> RoundPlan:
    usual = {"run": "r", "round": 1, "rounds": 2, "seed": 5, "model": "unet2d-small-affine", "labels": 2}
    return RoundPlan.model_validate({**usual, **plan_fields(strategy), **fields})


@pytest.mark.parametrize("strategy", names())
def test_both_ends_mean_the_same_arrays(strategy: str) -> None:
    weights = initial_weights(plan(strategy))
    expected = catalogue_reference(plan(strategy))
    assert expected == {name: (array.shape, str(array.dtype)) for name, array in weights.items()}
    record = weights_to_record(weights)
    check_incoming(record, Policy(), expected)
    if strategy in ("fedbn", "fedper", "fedrep", "scaffold", "fednova"):
        with pytest.raises(GateRefused) as refused:
            check_incoming(record, Policy(), catalogue_reference(plan("fedavg")))
        assert refused.value.code == "names"


@pytest.mark.parametrize("strategy", ["scaffold", "fednova"])
def test_what_travels_beside_the_weights_is_an_update_like_any_other(strategy: str) -> None:
    from flwr.app import MetricRecord, RecordDict

    given = initial_weights(plan(strategy))
    learnt = {name: array + np.float32(0.25) for name, array in given.items()}

    def answer(arrays: dict[str, Any]) -> RecordDict:
        return RecordDict({ARRAYS: weights_to_record(arrays), METRICS: MetricRecord({"num-examples": 7.0})})

    check_outgoing("train", answer(learnt), Policy(), given, 7)
    far = {name: array * 1e6 if name.startswith("control.") else array for name, array in learnt.items()}
    with pytest.raises(GateRefused) as refused:
        check_outgoing("train", answer(far), Policy(), given, 7)
    assert refused.value.code == "norm"


def test_local_keys_that_fit_no_network_are_no_reference() -> None:
    with pytest.raises(PlanError, match="local-keys"):
        catalogue_reference(plan("fedavg", local_keys=("decoder.*",)))
