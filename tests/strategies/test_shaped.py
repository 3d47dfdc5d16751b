"""SCAFFOLD and FedNova at the coordinator: by hand, with numbers of the papers' equations."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from wardround.errors import PlanError
from wardround.models import weights as names_of_models
from wardround.strategies import nova, scaffold
from wardround.strategies.catalogue import load_strategy_state, make_strategy, strategy_state
from wardround.strategies.contract import Weights
from wardround.strategies.streaming import combine_streaming


class Sent:
    """An update."""

    def __init__(self, examples: float, **weights: Any) -> None:
        self.examples = examples
        self._weights = {name.replace("__", "."): np.array(array, np.float32) for name, array in weights.items()}

    def arrays(self, names: Iterable[str]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        for name in names:
            yield name, self._weights[name]


def floats(**weights: Any) -> Weights:
    return {name.replace("__", "."): np.array(array, np.float32) for name, array in weights.items()}


def test_names_are_those_of_the_other_room() -> None:
    assert (scaffold.CONTROL, nova.STEPS) == (names_of_models.CONTROL, names_of_models.STEPS)


def test_scaffold_by_hand() -> None:
    # Algorithm 1 with N = |S| = 2, η_g = 0.5: x = 1, y = (3, 5); c = 0.2, Δc = (0.4, −0.2).
    start = floats(w=[1.0], control__w=[0.2])
    sent = [Sent(4, w=[3.0], control__w=[0.6]), Sent(4, w=[5.0], control__w=[0.0])]
    found = combine_streaming(make_strategy("scaffold", server_learning_rate=0.5), 1, sent, start)
    # x + 0.5 · (2 + 4) / 2 = 2.5 ; c + (0.4 − 0.2) / 2 = 0.3
    assert found["w"].tolist() == [2.5]
    assert found["control.w"] == pytest.approx(0.3)


def test_of_absent_sites_scaffold_keeps_what_it_knows() -> None:
    strategy = make_strategy("scaffold")
    start = floats(w=[1.0], control__w=[0.2])
    both = [Sent(1, w=[3.0], control__w=[0.6]), Sent(1, w=[5.0], control__w=[0.6])]
    combine_streaming(strategy, 1, both, start)
    # Now one of two: |S| / N = 1/2, so that c = 0.2 + 1/2 · 0.4; x is the mean of who is there.
    resumed = make_strategy("scaffold")
    load_strategy_state(resumed, strategy_state(strategy))
    for one in (strategy, resumed):
        found = combine_streaming(one, 2, both[:1], start)
        assert found["w"].tolist() == [3.0]
        assert found["control.w"] == pytest.approx(0.4)
    with pytest.raises(PlanError, match="FedAvg"):
        load_strategy_state(make_strategy("fedavg"), strategy_state(strategy))
    assert strategy_state(make_strategy("scaffold")) == {}


def test_fednova_by_hand() -> None:
    # x = 1; p = (1/4, 3/4); τ = (10, 2) steps went to y = (11, 5); R = 4.
    # τ_eff = 1/4 · 10 + 3/4 · 2 = 4; η·d = (−1, −2); x − 4 · (1/4 · (−1) + 3/4 · (−2)) = 1 + 4 · 1.75 = 8.
    start = floats(w=[1.0], control__steps=[0.0])
    sent = [
        Sent(1, w=[1.0 + 10.0 * 4 / 10], control__steps=[10 / 4]),
        Sent(3, w=[1.0 + 4.0 * 4 / 2], control__steps=[2 / 4]),
    ]
    found = combine_streaming(make_strategy("fednova"), 1, sent, start)
    assert found["w"] == pytest.approx(8.0)
    assert found["control.steps"] == pytest.approx(4 / 4)
    # FedAvg's mean is 6.5: the site with most steps has more of a say than its quarter.
    assert 0.25 * 11 + 0.75 * 5 == 6.5


def test_with_equal_steps_fednova_is_fedavg() -> None:
    start = floats(w=[0.0, 1.0], control__steps=[0.0])
    sent = [Sent(1, w=[2.0, 3.0], control__steps=[0.5]), Sent(3, w=[6.0, 1.0], control__steps=[0.5])]
    found = combine_streaming(make_strategy("fednova"), 1, sent, start)
    mean = np.array([5.0, 1.5])
    assert found["w"] == pytest.approx(start["w"] + 0.5 * (mean - start["w"]))


@pytest.mark.parametrize(("told", "believed"), [(1e6, 3.0), (-5.0, 0.0)])
def test_what_sites_say_of_their_steps_is_believed_up_to_a_bound(told: float, believed: float) -> None:
    start = floats(w=[1.0], control__steps=[0.0])
    sent = [Sent(1, w=[2.0], control__steps=[told])]
    found = combine_streaming(make_strategy("fednova", most_steps=3.0), 1, sent, start)
    assert found["w"].tolist() == [1.0 + believed]
    # Nor is more sent on: honest sites, whose few steps are far from it, would be refused for how much they changed.
    assert found["control.steps"].tolist() == [believed]
