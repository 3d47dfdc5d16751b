"""The plan of a round."""

from typing import Any

import pytest
from flwr.app import ConfigRecord
from hypothesis import given
from hypothesis import strategies as st

from wardround.errors import PlanError
from wardround.strategies.plan import RoundPlan, plan_from_flat

MINIMAL: dict[str, Any] = {"run": "r", "round": 1, "rounds": 3, "seed": 0, "model": "unet3d-small", "labels": 3}

plans = st.builds(
    RoundPlan,
    run=st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._=+:@-]{0,20}\Z"),
    round=st.integers(0, 5),
    rounds=st.integers(5, 100),
    seed=st.integers(0, 2**63 - 1),
    model=st.just("unet3d"),
    labels=st.integers(2, 64),
    supervision=st.sampled_from(["proxy", "dense", "partial"]),
    prompts=st.sampled_from(["slices", "scribbles", "points"]),
    expansion=st.sampled_from(["geodesic", "contrasted"]),
    crf_weight=st.floats(0, 100),
    attentive_kernel=st.sampled_from(["windowed", "released"]),
    regularisation_ramp=st.floats(0, 1),
    augmentation=st.sampled_from(["light", "strong"]),
    allocation=st.none() | st.tuples(st.integers(1, 9), st.integers(0, 9), st.integers(0, 9)),
    patch=st.none() | st.tuples(*[st.integers(8, 64)] * 3),
    fusion=st.floats(0, 1),
    learning_rate=st.floats(1e-3, 1),
    extent=st.booleans(),
)


@given(plans)
def test_survives_the_wire(plan: RoundPlan) -> None:
    arrived = ConfigRecord.inflate(plan.to_record().deflate())
    assert RoundPlan.from_record(arrived) == plan
    assert RoundPlan.from_record(arrived).digest() == plan.digest()


def test_accepts_what_flower_adds_and_fedprox_overrides(plan: RoundPlan) -> None:
    record = plan.to_record()
    record["server-round"] = 1
    record["proximal-mu"] = 0.3
    assert RoundPlan.from_record(record) == plan.model_copy(update={"proximal_mu": 0.3})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("round", 4),
        ("round", -1),
        ("rounds", 0),
        ("labels", 1),
        ("labels", 65),
        ("labels", True),
        ("labels", "3"),
        ("labels", 3.0),
        ("seed", -1),
        ("run", "../elsewhere"),
        ("run", ""),
        ("supervision", "guess"),
        ("suggestion", "best"),
        ("prompts", "dense"),
        ("expansion", "euclidean"),
        ("crf_weight", -0.1),
        ("crf_weight", True),
        ("variance_weight", 101.0),
        ("attentive_weight", float("nan")),
        ("attentive_kernel", "theirs"),
        ("regularisation_side", 4),
        ("regularisation_side", 64.0),
        ("regularisation_ramp", 1.5),
        ("augmentation", "weak"),
        ("distill_weight", -0.1),
        ("distill_temperature", 0.0),
        ("distill_head", 1),
        ("teachers", "parents"),
        ("contrast_weight", float("inf")),
        ("contrast_temperature", 0.0),
        ("contrast_scales", ("encoder", "encoder")),
        ("contrast_scales", ("head",)),
        ("contrast_edges", "head"),
        ("stored_logits", -1.0),
        ("memory", "photographic"),
        ("synthesis", "gan"),
        ("synthesis_weight", -1.0),
        ("synthesis_share", 1.1),
        ("synthesis_updates", 0),
        ("synthesis_side", 8),
        ("share_knobs", True),
        ("local_keys", ("model.[12]",)),
        ("local_keys", ("a", "a")),
        ("codec", "zip"),
        ("codec_down", "int8"),
        ("codec_share", 0.0),
        ("codec_share", 1.1),
        ("head_share", 0.5),
        ("head_share", 1.0),
        ("control_variates", 1),
        ("normalised_steps", -1),
        ("moon_weight", -0.1),
        ("moon_temperature", 0.0),
        ("personal", "mine"),
        ("personal_weight", -1.0),
        ("personal_share", 1.1),
        ("annotation_rounds", 17),
        ("allocation", (0, 0, 0)),
        ("allocation", (1, -1, 3)),
        ("allocation", (1, 2)),
        ("patch", (4, 8, 8)),
        ("fusion", 1.1),
        ("fusion", float("nan")),
        ("learning_rate", float("inf")),
        ("learning_rate", 1e-5),
        ("secure_threshold", 0.5),
        ("deadline_s", 0.0),
        ("extent", 1),
        ("colour", "red"),
    ],
)
def test_refuses_and_names_the_field(field: str, value: object) -> None:
    with pytest.raises(PlanError) as refused:
        RoundPlan(**{**MINIMAL, field: value})
    # Two rules join fields: their message names both.
    assert field.replace("_", "-").split("-")[0] in str(refused.value)
    assert refused.value.fix


def test_refuses_what_is_missing_in_a_record(plan: RoundPlan) -> None:
    record = plan.to_record()
    del record["labels"]
    with pytest.raises(PlanError, match="labels"):
        RoundPlan.from_record(record)


def test_names_travel_with_dashes_only() -> None:
    with pytest.raises(PlanError, match="learning_rate"):
        plan_from_flat({**MINIMAL, "learning_rate": 0.1})


def test_is_frozen_and_hashable(plan: RoundPlan) -> None:
    with pytest.raises(ValueError, match="frozen"):
        plan.round = 2  # type: ignore[misc]
    assert hash(plan) == hash(plan.model_copy())


def test_a_plan_of_an_earlier_version_means_what_it_did(plan: RoundPlan) -> None:
    """It knew none of these fields, and called learning from what was drawn alone ``slices``."""
    new = {"prompts", "crf_weight", "variance_weight", "attentive_weight", "attentive_kernel", "regularisation_side"}
    new |= {"regularisation_ramp", "augmentation", "expansion", "distill_weight", "distill_temperature", "memory"}
    new |= {"distill_certainty", "distill_head", "teachers", "contrast_weight", "contrast_temperature", "share_knobs"}
    new |= {"contrast_scales", "contrast_edges", "stored_logits", "synthesis", "synthesis_weight", "synthesis_share"}
    new |= {"synthesis_updates", "synthesis_side", "codec", "codec_down", "codec_share"}
    new |= {"local_keys", "head_share", "control_variates", "normalised_steps", "moon_weight", "moon_temperature"}
    new |= {"personal", "personal_weight", "personal_share", "personal_adaptive"}
    record = plan.to_record()
    for name in new:
        del record[name.replace("_", "-")]
    assert RoundPlan.from_record(record) == plan
    record["supervision"] = "slices"
    assert RoundPlan.from_record(record).supervision == "partial"


@pytest.mark.parametrize("scales", [(), ("decoder",), ("encoder", "decoder")])
def test_scales_travel_also_none(scales: tuple[str, ...]) -> None:
    plan = RoundPlan(**{**MINIMAL, "contrast_scales": scales, "contrast_edges": scales[:1]})
    assert RoundPlan.from_record(plan.to_record()) == plan
    assert plan.contrast_scales == scales


def test_edges_are_of_scales_that_are_contrasted() -> None:
    with pytest.raises(PlanError, match="contrast-edges"):
        RoundPlan(**{**MINIMAL, "contrast_scales": ("encoder",), "contrast_edges": ("decoder",)})
    assert RoundPlan(**{**MINIMAL, "contrast_edges": "decoder"}).contrast_edges == ("decoder",)


def test_scales_are_written_with_commas() -> None:
    assert RoundPlan(**{**MINIMAL, "contrast_scales": "encoder, decoder"}).contrast_scales == ("encoder", "decoder")
    assert RoundPlan(**{**MINIMAL, "contrast_scales": "none"}).contrast_scales == ()


def test_local_keys_are_written_with_commas_and_travel() -> None:
    plan = RoundPlan(**{**MINIMAL, "local_keys": "model.2.*, *.adn.*"})
    assert plan.local_keys == ("model.2.*", "*.adn.*")
    assert RoundPlan.from_record(plan.to_record()) == plan


def test_a_site_has_one_way_to_a_model_of_its_own() -> None:
    with pytest.raises(PlanError, match="choose one"):
        RoundPlan(**{**MINIMAL, "local_keys": "model.2.*", "personal": "ditto"})
    assert RoundPlan(**{**MINIMAL, "local_keys": "model.2.*", "head_share": 0.5}).keeps_a_model
    assert RoundPlan(**{**MINIMAL, "personal": "apfl"}).keeps_a_model
    assert not RoundPlan(**MINIMAL).keeps_a_model


def test_a_site_with_another_kind_of_label_takes_part_in_the_same_plan(plan: RoundPlan) -> None:
    assert plan.for_labels(None) is plan
    assert plan.for_labels("points") == plan.model_copy(update={"prompts": "points"})
    assert plan.for_labels("slices") == plan
    assert plan.for_labels("dense") == plan.model_copy(update={"supervision": "dense"})


def test_digest_tells_plans_apart(plan: RoundPlan) -> None:
    assert plan.digest() != plan.model_copy(update={"seed": 8}).digest()
