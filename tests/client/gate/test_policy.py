"""The limits of a site: how they are read, and what they refuse."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from wardround.client.gate.policy import POLICY_TEMPLATE, Policy, check_plan, check_usable, load_policy
from wardround.errors import GateRefused, UsageError
from wardround.strategies.contract import EVALUATE_METRICS, TRAIN_METRICS
from wardround.strategies.plan import RoundPlan


def read(folder: Path, text: str) -> Policy:
    path = folder / "policy.toml"
    path.write_text(text)
    return load_policy(path)


def plan(**changes: Any) -> RoundPlan:
    return RoundPlan(
        **{"run": "demo", "round": 1, "rounds": 3, "seed": 7, "model": "unet3d-small", "labels": 3} | changes
    )


class TestReading:
    def test_the_template_says_what_holds_without_it(self, tmp_path: Path) -> None:
        assert read(tmp_path, POLICY_TEMPLATE) == read(tmp_path, "") == Policy()

    def test_the_template_names_every_limit(self) -> None:
        assert {name.replace("-", "_") for name in tomllib.loads(POLICY_TEMPLATE)} == set(Policy.model_fields)

    def test_what_is_written_counts(self, tmp_path: Path) -> None:
        policy = read(
            tmp_path, 'models = ["*"]\nmin-cases = 1\nmax-update-norm = 3\ntrain-metrics = ["num-examples"]\n'
        )
        assert policy.models == ("*",)
        assert policy.min_cases == 1
        assert policy.max_update_norm == 3.0
        assert policy.train_metrics == {"num-examples"}
        assert policy.evaluate_metrics == EVALUATE_METRICS

    def test_whoever_insists_on_sums_says_with_whom(self, tmp_path: Path) -> None:
        """Else a coordinator makes up the other sites, and takes their updates off the sum."""
        with pytest.raises(UsageError, match="secure-peers names nobody"):
            check_usable(read(tmp_path, "require-secure = true"), tmp_path)
        named = f'require-secure = true\nsecure-peers = {{ south = "SHA256:{"a" * 43}" }}'
        check_usable(read(tmp_path, named), tmp_path)

    @pytest.mark.parametrize(
        "text",
        [
            "min-case = 1",
            "min_cases = 1",
            "min-cases = 0",
            "min-cases = 1.5",
            'min-cases = "1"',
            "min-cases = true",
            "max-update-norm = inf",
            "max-update-norm = nan",
            "max-update-norm = 0",
            "models = 3",
            'models = "unet3d"',
            'models = ["../x"]',
            'supervision = ["everything"]',
            'train-metrics = ["num-examples", "patient"]',
            'evaluate-metrics = "dice"',
            "allow-evaluate = 1",
            "approval-days = 0",
            "[policy]",
            "min-cases = ",
            "min-cases = 1\nmin-cases = 2",
        ],
    )
    def test_what_is_not_understood_is_refused(self, tmp_path: Path, text: str) -> None:
        with pytest.raises(UsageError):
            read(tmp_path, text)

    def test_a_policy_of_an_earlier_version_allows_what_it_did(self, tmp_path: Path) -> None:
        assert read(tmp_path, 'supervision = ["proxy", "slices"]').supervision == ("proxy", "partial")

    def test_a_missing_or_unreadable_file_is_no_permission(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError):
            load_policy(tmp_path / "policy.toml")
        (tmp_path / "policy.toml").write_bytes(b"min-cases = 1 # \xff")
        with pytest.raises(UsageError):
            load_policy(tmp_path / "policy.toml")

    def test_a_policy_cannot_widen_what_was_agreed(self, tmp_path: Path) -> None:
        assert Policy().train_metrics == TRAIN_METRICS
        with pytest.raises(UsageError, match="only these were agreed"):
            read(tmp_path, 'train-metrics = ["patient-name"]')


class TestPlans:
    def test_the_plan_without_settings_passes(self) -> None:
        check_plan(plan(), Policy())

    def test_synthesis_passes_but_nothing_of_it_travels_unless_the_site_says_so(self) -> None:
        check_plan(plan(synthesis="genseg", memory="both"), Policy())
        check_plan(plan(synthesis="genseg", share_knobs=True), Policy(share_knobs=True))
        # Steps of a generator that the plan does not have concern nobody.
        check_plan(plan(synthesis_updates=10_001, synthesis_side=512), Policy())

    def test_mean_gradients_travel_where_the_site_says_so(self) -> None:
        check_plan(plan(control_variates=True), Policy(share_control=True))
        check_plan(plan(updates_per_case=501), Policy())

    @pytest.mark.parametrize(
        ("changes", "code"),
        [
            ({"model": "unet2d"}, "plan-model"),
            ({"supervision": "dense"}, "plan-supervision"),
            ({"rounds": 1001}, "plan-rounds"),
            ({"updates_per_case": 1001}, "plan-updates"),
            ({"updates_per_case": 400, "adaptivity": 2.0}, "plan-updates"),
            ({"slices_per_case": 65}, "plan-slices"),
            ({"slices_per_case": 8, "allocation": (30, 30, 30)}, "plan-slices"),
            ({"annotation_rounds": 9}, "plan-annotation-rounds"),
            ({"batch_size": 17}, "plan-batch"),
            ({"replay_capacity": 5000}, "plan-replay"),
            ({"synthesis": "medsad", "synthesis_updates": 10_001}, "plan-synthesis"),
            ({"memory": "generative", "synthesis_updates": 10_001}, "plan-synthesis"),
            ({"synthesis": "medsad", "synthesis_side": 136}, "plan-synthesis-side"),
            ({"memory": "both", "synthesis_side": 129}, "plan-synthesis-side"),
            ({"synthesis": "genseg", "share_knobs": True}, "plan-knobs"),
            ({"control_variates": True}, "plan-control"),
            ({"updates_per_case": 501, "personal": "ditto"}, "plan-updates"),
            ({"deadline_s": 8 * 24 * 3600.0}, "plan-deadline"),
        ],
    )
    def test_a_plan_beyond_a_limit_is_refused(self, changes: dict[str, Any], code: str) -> None:
        with pytest.raises(GateRefused) as refused:
            check_plan(plan(**changes), Policy())
        assert refused.value.code == code

    def test_a_limit_itself_is_allowed(self) -> None:
        check_plan(
            plan(
                rounds=1000,
                updates_per_case=500,
                adaptivity=1.0,
                slices_per_case=64,
                annotation_rounds=8,
                batch_size=16,
                replay_capacity=4096,
                synthesis="medsad",
                synthesis_updates=10_000,
                synthesis_side=128,
                deadline_s=7 * 24 * 3600.0,
            ),
            Policy(),
        )

    def test_a_star_allows_any_model(self) -> None:
        check_plan(plan(model="another"), Policy(models=("*",)))

    def test_no_model_means_none(self) -> None:
        with pytest.raises(GateRefused):
            check_plan(plan(), Policy(models=()))

    def test_the_refusal_repeats_no_text_of_the_plan(self) -> None:
        with pytest.raises(GateRefused) as refused:
            check_plan(plan(model="DOE.JOHN.1970", run="DOE"), Policy())
        assert "DOE" not in str(refused.value)
