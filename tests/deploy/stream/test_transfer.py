"""Forgetting, against values worked by hand."""

from types import SimpleNamespace

import pytest

from wardround.deploy.report.results import Results
from wardround.deploy.stream.transfer import forgetting


def test_backward_transfer_and_forgetting_are_those_of_the_papers(ordered: Results, made_up: SimpleNamespace) -> None:
    kept, lost = forgetting(ordered)
    assert [list(row) for row in kept.matrix] == [pytest.approx(row) for row in made_up.matrix]
    assert kept.average.mean == pytest.approx((0.72 + 0.83 + 0.90) / 3)
    assert kept.backward.mean == pytest.approx((0.02 + 0.03) / 2)
    # The best of the earlier rows: 0.74 for the first group, 0.80 for the second.
    assert kept.forgotten.mean == pytest.approx((0.74 - 0.72 + 0.80 - 0.83) / 2)
    assert lost.backward.mean == pytest.approx((-0.3 - 0.2) / 2)
    assert lost.forgotten.mean == pytest.approx((0.3 + 0.2) / 2)
    assert kept.average.low < kept.average.mean < kept.average.high
    # Both cases of a group moved alike: whichever is drawn, the transfer is the same.
    assert (lost.backward.low, lost.backward.high) == pytest.approx((-0.25, -0.25))


def test_a_run_that_has_not_passed_every_group_has_no_matrix(ordered: Results) -> None:
    arm = ordered.arms[0].model_copy(update={"checkpoints": ordered.arms[0].checkpoints[:2]})
    assert [item.name for item in forgetting(ordered.model_copy(update={"arms": (arm, ordered.arms[1])}))] == [
        "no-replay-8"
    ]


def test_a_shuffled_stream_has_no_forgetting(curve: Results) -> None:
    assert forgetting(curve) == []
