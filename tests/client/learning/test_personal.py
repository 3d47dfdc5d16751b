"""What a site keeps of the network for itself."""

import numpy as np

from wardround.client.learning.personal import kept_own, with_own, without_own
from wardround.strategies.plan import RoundPlan


def test_own_arrays_come_back_and_never_leave() -> None:
    plan = RoundPlan(run="r", round=1, rounds=2, seed=0, model="m", labels=2, local_keys=("head.*",))
    fresh = {"body": np.zeros(2), "head.a": np.full(2, 1.0), "head.b": np.full(2, 2.0)}
    local = {"personal/head.a": np.full(2, 5.0), "control/body": np.ones(2)}
    # Whatever is sent in the name of what stays here is not taken.
    given = with_own(plan, {"body": np.full(2, 9.0), "head.b": np.full(2, 7.0)}, lambda: fresh, local)  # type: ignore[arg-type]
    assert {name: array[0] for name, array in given.items()} == {"body": 9.0, "head.a": 5.0, "head.b": 2.0}
    assert set(kept_own(plan, lambda: given)) == {"personal/head.a", "personal/head.b"}
    assert set(without_own(plan, given)) == {"body"}
    usual = plan.model_copy(update={"local_keys": ()})
    assert with_own(usual, given, lambda: fresh, local) == given == without_own(usual, given)  # type: ignore[arg-type]
    assert kept_own(usual, lambda: given) == {}
