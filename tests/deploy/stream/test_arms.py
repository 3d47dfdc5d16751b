"""Arms by name and by definition."""

import pytest

from wardround.deploy.stream.arms import KNOWN, named_arms, split_definition
from wardround.deploy.stream.settings import StreamSettings, stream_settings_from
from wardround.errors import UsageError
from wardround.strategies.plan import RoundPlan


def test_every_known_arm_changes_fields_of_the_plan() -> None:
    for name, fields in KNOWN.items():
        assert fields.keys() <= RoundPlan.model_fields.keys(), name
        settings = StreamSettings.model_validate({"phantoms": {}, "arms": {name: fields}})
        for run, arm, budget in settings.runs():
            plan = settings.round_plan(arm, budget, 0, run=run, rounds=1, labels=3)
            assert {field: getattr(plan, field) for field in fields} == dict(fields)


def test_a_name_that_is_not_known_is_told_with_those_that_are() -> None:
    with pytest.raises(UsageError, match="magic") as error:
        named_arms(["proxy", "magic"])
    assert "slices-only" in error.value.cause


@pytest.mark.parametrize(
    ("text", "name", "fields"),
    [
        ("small:replay_capacity=8", "small", ["replay_capacity=8"]),
        ("a:allocation=2,6,0,fusion=0.5", "a", ["allocation=2,6,0", "fusion=0.5"]),
        ("b:learning-rate=0.1, fusion=1", "b", ["learning-rate=0.1", " fusion=1"]),
    ],
)
def test_a_definition_keeps_the_commas_of_a_value(text: str, name: str, fields: list[str]) -> None:
    assert split_definition(text) == (name, fields)


@pytest.mark.parametrize("text", ["", "small", "small:", ":fusion=1", "../up:fusion=1", "a b:fusion=1"])
def test_a_definition_without_name_or_fields_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--arm"):
        split_definition(text)


def test_attentive_similarity_needs_a_network_with_attention() -> None:
    values = {"phantoms": {}, "arms": {"attentive": dict(KNOWN["attentive"])}}
    with pytest.raises(UsageError, match="unet3d-small has no attention") as error:
        stream_settings_from(values)
    assert "unet2d-small-attention" in error.value.fix
    stream_settings_from(values | {"plan": {"model": "unet3d-small-attention"}})
