"""The round loop: order, quorum, deadline, quarantine, resume."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg
from safetensors import SafetensorError

from wardround.errors import Interrupted, PlanError, RoundError, StorageError, UsageError
from wardround.server import journal as journals
from wardround.server.journal import Journal, read_rounds
from wardround.server.rounds import Event, LoopSettings, RunResult, run_rounds
from wardround.strategies.catalogue import make_strategy, names, plan_fields
from wardround.strategies.contract import ARRAYS, METRICS, PLAN, Weights
from wardround.strategies.plan import RoundPlan
from wardround.strategies.validation import ReplyLimits

Plans = Callable[[int], RoundPlan]


class Scene:
    """Everything a run needs, to be changed by a test before it starts."""

    def __init__(  # noqa: PLR0917
        self, toy_grid: Any, learner: Any, clock: Any, initial: Weights, plans: Plans, folder: Path
    ) -> None:
        self.learners = {"south": learner(1.0, 1), "north": learner(-2.0, 3), "east": learner(5.0, 2)}
        self.grid = toy_grid(self.learners)
        self.clock, self.initial, self.plans = clock, initial, plans
        self.folder = folder / "journal"
        self.settings = LoopSettings(rounds=4, quorum=2, deadline_s=60.0)
        self.events: list[Event] = []

    def run(self, strategy: str | FedAvg = "fedavg", **changes: Any) -> RunResult:
        with Journal(self.folder) as journal:
            return run_rounds(
                self.grid,
                make_strategy(strategy) if isinstance(strategy, str) else strategy,
                self.plans,
                self.initial,
                journal,
                changes.pop("settings", self.settings),
                site_name=self.grid.name_of,
                on_event=self.events.append,
                pace=self.clock.pace(),
                **changes,
            )

    def replace_site(self, name: str, act: Callable[[Message], Message | None]) -> None:
        self.grid.sites[name] = act


@pytest.fixture
def scene(  # noqa: PLR0917
    toy_grid: Any, learner: Any, clock: Any, initial: Weights, plans: Plans, tmp_path: Path
) -> Scene:
    return Scene(toy_grid, learner, clock, initial, plans, tmp_path)


def same(one: Weights, other: Weights) -> bool:
    return list(one) == list(other) and all(
        one[n].dtype == other[n].dtype and one[n].tobytes() == other[n].tobytes() for n in one
    )


def test_a_run_to_its_end(scene: Scene) -> None:
    result = scene.run()
    # The fixed point of everybody's pull is the mean target weighted by examples: (1·1 − 3·2 + 2·5) / 6.
    before, after = np.abs(scene.initial["w"] - 5 / 6).mean(), np.abs(result.weights["w"] - 5 / 6).mean()
    assert after < before / 2
    assert [record.round for record in result.rounds] == [1, 2, 3, 4]
    assert set(result.evaluation) == {"south", "north", "east"}
    assert result.evaluation["north"]["num-examples"] == 3
    assert [record.evaluation is not None for record in result.rounds] == [False, False, False, True]
    assert read_rounds(scene.folder) == result.rounds
    assert scene.clock.seconds == 0


def test_one_round_by_hand(scene: Scene) -> None:
    scene.grid.online = ["south", "north"]
    scene.initial = {"w": np.array([1.0, 4.0], np.float32), "b": np.zeros(1, np.float32), "steps": np.array(0)}
    scene.plans = lambda n: RoundPlan(run="toy", round=n, rounds=1, seed=0, model="toy", labels=2)
    result = scene.run(settings=LoopSettings(rounds=1, quorum=2))
    # Round 1 moves a third of the way: south (1, 3), north (0, 2); weighted 1 to 3: (0.25, 2.25).
    assert result.weights["w"] == pytest.approx([0.25, 2.25])


def test_sites_see_the_plan_of_the_round_and_the_strategys_additions(scene: Scene) -> None:
    strategy = make_strategy("fedprox", proximal_mu=0.5)
    scene.run(strategy)  # type: ignore[arg-type]
    seen = scene.learners["south"].plans
    assert [plan.round for plan in seen] == [1, 2, 3, 4, 4]
    assert [plan.proximal_mu for plan in seen[:4]] == [0.5] * 4
    assert {message.metadata.group_id for message in scene.grid.sent} == {"1", "2", "3", "4"}
    assert all(message.metadata.ttl >= 60 for message in scene.grid.sent)


def test_events(scene: Scene) -> None:
    scene.run()
    kinds = [event.kind for event in scene.events]
    assert kinds == ["round-start", "reply", "reply", "reply", "round-end"] * 4 + ["evaluate"] * 3
    assert [event.site for event in scene.events[:5]] == ["", "east", "north", "south", ""]
    assert scene.events[1].metrics["num-examples"] == 2
    assert scene.events[0].metrics == {"sites": 3}
    assert scene.events[4].metrics["refused"] == 0


def test_bytes_are_those_of_the_payload(scene: Scene) -> None:
    report = scene.run().rounds[0].sites["south"]
    raw = sum(array.nbytes for array in scene.initial.values())
    assert raw < report.bytes_up < raw + 1500
    assert raw < report.bytes_down < raw + 3000


@pytest.mark.parametrize("strategy", [name for name in names() if name != "dpfedavg"])
def test_stopped_anywhere_and_resumed_gives_the_same_bits(scene: Scene, strategy: str) -> None:
    usual, asked = scene.plans, plan_fields(strategy)
    scene.plans = lambda number: usual(number).model_copy(update=asked)
    whole = scene.run(strategy)
    messages = len(scene.grid.sent)
    for after in range(1, messages, 3):
        scene.folder = scene.folder.with_name(f"stopped-{after}")
        sent = len(scene.grid.sent)
        with pytest.raises(Interrupted):
            scene.run(strategy, stop=lambda sent=sent, after=after: len(scene.grid.sent) >= sent + after)
        # A site that registers again gets another node id, and another place among the others.
        scene.grid.renumber(900 - 10 * after)
        scene.grid.online.reverse()
        resumed = scene.run(strategy)
        assert same(resumed.weights, whole.weights)
        assert resumed.evaluation == whole.evaluation
        assert [record.round for record in resumed.rounds] == [1, 2, 3, 4]


def test_a_finished_run_asks_nobody(scene: Scene) -> None:
    first = scene.run("fedadam")
    sent = len(scene.grid.sent)
    again = scene.run("fedadam")
    assert len(scene.grid.sent) == sent
    assert same(again.weights, first.weights)
    assert again.evaluation == first.evaluation


def test_an_evaluation_that_was_missed_is_made_up_for(scene: Scene) -> None:
    whole = scene.run()
    (scene.folder / "rounds" / "00004" / "evaluation.json").unlink()
    sent = len(scene.grid.sent)
    again = scene.run()
    assert [message.metadata.message_type for message in scene.grid.sent[sent:]] == ["evaluate"] * 3
    assert again.evaluation == whole.evaluation


def test_resume_with_other_settings_is_refused_by_name(scene: Scene) -> None:
    scene.run("fedadam")
    with pytest.raises(PlanError, match=r"strategy\.class was 'FedAdam', is 'FedAvg'"):
        scene.run("fedavg")
    plans = scene.plans
    scene.plans = lambda n: plans(n).model_copy(update={"fusion": 0.5})
    with pytest.raises(PlanError, match=r"plan\.fusion was 0\.9, is 0\.5"):
        scene.run("fedadam")
    scene.plans = plans
    scene.initial = {**scene.initial, "b": scene.initial["b"] + 1}
    with pytest.raises(PlanError, match="initial-weights"):
        scene.run("fedadam")


def test_a_run_of_an_earlier_version_goes_on(scene: Scene) -> None:
    """Its plan lacks the fields that came later: codec and local keys are as if nobody had asked for them."""
    plans = scene.plans
    scene.plans = lambda n: plans(n).model_copy(update={"supervision": "partial"})
    whole = scene.run()
    stored_anew(scene, lambda settings: [settings.pop(f"plan.{name}") for name in ("codec", "local_keys", "patch")])
    stored_anew(scene, lambda settings: settings.update({"plan.supervision": "slices"}))
    assert same(scene.run().weights, whole.weights)
    scene.plans = lambda n: plans(n).model_copy(update={"supervision": "partial", "codec": "int8"})
    with pytest.raises(PlanError, match=r"plan\.codec was 'none', is 'int8'"):
        scene.run()


def test_a_run_of_a_later_version_does_not(scene: Scene) -> None:
    scene.run()
    stored_anew(scene, lambda settings: settings.update({"plan.horizon": None}))
    with pytest.raises(PlanError, match="horizon cannot be used"):
        scene.run()


def stored_anew(scene: Scene, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the settings in a journal, as if another version had written them."""
    path = scene.folder / "run.json"
    stored = json.loads(path.read_text())
    change(stored["settings"])
    path.write_text(json.dumps({**stored, "digest": "of other settings"}))


def test_quorum_and_deadline_may_differ_on_resume(scene: Scene) -> None:
    scene.run()
    scene.run(settings=replace(scene.settings, quorum=1, deadline_s=5.0))


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda w, m: w.update(w=np.full_like(w["w"], np.nan)), "not-finite"),
        (lambda w, m: w.update(w=w["w"][:1]), "shape"),
        (lambda w, m: w.update(w=w["w"].astype(np.float64)), "dtype"),
        (lambda w, m: w.pop("b"), "names"),
        (lambda w, m: w.update(w=w["w"] + 1e6), "norm"),
        (lambda w, m: m.update({"num-examples": 1e12}), "num-examples"),
        (lambda w, m: m.update({"num-examples": -3.0}), "num-examples"),
        (lambda w, m: m.update({"loss": float("nan")}), "metric"),
        (lambda w, m: m.update({"secret": 1.0}), "metric"),
    ],
)
def test_a_bad_reply_is_dropped_and_named(scene: Scene, learner: Any, spoil: Any, code: str) -> None:
    scene.grid.online = ["south", "north"]
    clean = scene.run().weights

    def spoilt(message: Message) -> Message:
        reply = learner(5.0)(message)
        if message.metadata.message_type == "evaluate":
            return reply  # type: ignore[no-any-return]
        weights = {n: a.numpy() for n, a in reply.content.array_records[ARRAYS].items()}
        metrics = dict(reply.content.metric_records[METRICS])
        spoil(weights, metrics)
        return learner.answer(message, weights, metrics)  # type: ignore[no-any-return]

    scene.folder = scene.folder.with_name("spoilt")
    scene.grid.online = ["south", "north", "east"]
    scene.replace_site("east", spoilt)
    result = scene.run()
    assert same(result.weights, clean)
    assert all(record.refused == {"east": code} for record in result.rounds)
    assert all(set(record.sites) == {"south", "north"} for record in result.rounds)
    # In quarantine for the rest of the round: not asked to evaluate.
    assert set(result.evaluation) == {"south", "north"}
    assert [event.reason for event in scene.events if event.kind == "refused"] == [code] * 4


def test_an_error_is_attributed_by_the_message_it_answers(scene: Scene) -> None:
    def fail(message: Message) -> Message:
        reply = Message(Error(3, "made by the SuperLink"), reply_to=message)
        reply.metadata.__dict__["_src_node_id"] = 1
        return reply

    scene.replace_site("north", fail)
    assert [record.refused for record in scene.run().rounds] == [{"north": "error-reply"}] * 4


def test_a_reply_that_is_no_message_is_the_matter_of_one_site(scene: Scene) -> None:
    def broken(message: Message) -> Message:
        raise ValueError("cannot inflate")

    scene.replace_site("south", broken)
    result = scene.run()
    assert result.rounds[0].refused == {"south": "undecodable"}
    assert set(result.rounds[0].sites) == {"north", "east"}


def test_a_silent_site_is_missed_after_the_deadline_and_asked_again(scene: Scene, learner: Any) -> None:
    silent_rounds = {1, 2}
    act = learner(5.0)

    def sometimes(message: Message) -> Message | None:
        number = RoundPlan.from_record(message.content.config_records[PLAN]).round
        return None if number in silent_rounds else act(message)

    scene.replace_site("east", sometimes)
    result = scene.run()
    assert [dict(record.missing) for record in result.rounds] == [{"east": "late"}, {"east": "late"}, {}, {}]
    assert scene.clock.seconds == pytest.approx(120.0)


def test_who_answers_first_does_not_change_a_bit(scene: Scene) -> None:
    whole = scene.run()
    scene.folder = scene.folder.with_name("slow")
    for name, patience in (("east", 30), ("north", 10)):
        act, asked = scene.learners[name], {}

        def slowly(message: Message, act: Any = act, asked: Any = asked, patience: int = patience) -> Message | None:
            since = asked.setdefault(message.metadata.message_id, scene.clock.seconds)
            return act(message) if scene.clock.seconds - since > patience else None

        scene.replace_site(name, slowly)
    scene.events.clear()
    result = scene.run()
    assert [event.site for event in scene.events if event.kind == "reply"][:3] == ["south", "north", "east"]
    assert same(result.weights, whole.weights)


def test_below_quorum_nothing_happens_to_the_journal(scene: Scene) -> None:
    def fail_later(message: Message) -> Message:
        number = RoundPlan.from_record(message.content.config_records[PLAN]).round
        return Message(Error(2, "x"), reply_to=message) if number == 3 else scene.learners["south"](message)

    for name in ("south", "east"):
        scene.replace_site(name, fail_later)
    with pytest.raises(RoundError, match="1 of 3 replies") as refused:
        scene.run()
    assert "east: error-reply" in refused.value.cause
    assert [record.round for record in read_rounds(scene.folder)] == [1, 2]
    assert not list(scene.folder.rglob(".tmp-*"))


def test_a_round_in_which_all_fail_is_not_closed(scene: Scene) -> None:
    for name in scene.grid.sites:
        scene.replace_site(name, lambda message: Message(Error(2, "x"), reply_to=message))
    with pytest.raises(RoundError):
        scene.run(settings=replace(scene.settings, quorum=1))
    assert read_rounds(scene.folder) == []


def test_too_few_sites_online(scene: Scene) -> None:
    scene.grid.online = ["south"]
    with pytest.raises(RoundError, match="1 of 2 sites are online"):
        scene.run()
    assert scene.clock.seconds == pytest.approx(60.0)
    assert scene.grid.sent == []


def test_a_site_that_connects_in_time(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.grid.online = ["south"]
    ids = scene.grid.get_node_ids

    def later() -> list[int]:
        if scene.clock.seconds > 20:
            scene.grid.online = ["south", "north"]
        return ids()  # type: ignore[no-any-return]

    monkeypatch.setattr(scene.grid, "get_node_ids", later)
    assert set(scene.run().rounds[0].sites) == {"south", "north"}
    assert 20 < scene.clock.seconds < 25


def test_a_strategy_that_wants_more_sites_does_not_hang(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    # Flower pauses between two looks.
    monkeypatch.setattr("flwr.serverapp.strategy.strategy_utils.sleep", lambda seconds: None)
    hungry = FedAvg(min_available_nodes=9, configrecord_key=PLAN)
    with pytest.raises(RoundError, match="waits for more sites"):
        scene.run(hungry)


def test_sampling_is_fixed_by_the_plan_and_leaves_the_global_random_state_alone(scene: Scene) -> None:
    def chosen(folder: str, first_id: int) -> list[set[str]]:
        scene.folder = scene.folder.with_name(folder)
        scene.grid.renumber(first_id)
        half = FedAvg(fraction_train=0.7, min_train_nodes=2, min_available_nodes=2, configrecord_key=PLAN)
        return [set(record.sites) for record in scene.run(half).rounds]

    random.seed(1)
    state = random.getstate()
    first = chosen("a", 100)
    assert random.getstate() == state
    random.seed(2)
    assert chosen("b", 500) == first
    assert all(len(sites) == 2 for sites in first)


@pytest.mark.parametrize("strategy", ["fedadam", "fedyogi", "fedavgm", "fedavg"])
def test_dtypes_stay_through_rounds(scene: Scene, strategy: str) -> None:
    weights = scene.run(strategy).weights
    assert {n: (a.dtype, a.shape) for n, a in weights.items()} == {
        n: (a.dtype, a.shape) for n, a in scene.initial.items()
    }


def test_weights_that_overflow_end_the_run_before_the_journal(scene: Scene) -> None:
    scene.initial = {**scene.initial, "w": np.full((17, 3), 3.4e38, np.float32)}
    limits = ReplyLimits(max_norm=float("inf"))
    with pytest.raises(RoundError, match="combined weights"):
        scene.run(make_strategy("fedavgm", server_learning_rate=10.0), settings=replace(scene.settings, limits=limits))  # type: ignore[arg-type]
    assert read_rounds(scene.folder) == []


def test_evaluate_every(scene: Scene) -> None:
    result = scene.run(settings=replace(scene.settings, evaluate_every=3))
    assert [record.round for record in result.rounds if record.evaluation] == [3, 4]


def test_a_site_without_test_cases_has_no_score(scene: Scene, learner: Any) -> None:
    def without(message: Message) -> Message:
        if message.metadata.message_type == "evaluate":
            return learner.answer(message, None, {"num-examples": 0.0, "dice": 0.0})  # type: ignore[no-any-return]
        return scene.learners["east"](message)  # type: ignore[no-any-return]

    scene.replace_site("east", without)
    result = scene.run()
    assert set(result.evaluation) == {"south", "north"}
    assert result.rounds[-1].evaluation is not None
    assert result.rounds[-1].evaluation.missing == {"east": "no-cases"}


def test_an_evaluation_in_which_all_fail(scene: Scene) -> None:
    for name, act in list(scene.grid.sites.items()):

        def no_scores(message: Message, act: Any = act) -> Message:
            if message.metadata.message_type == "evaluate":
                return Message(Error(2, "x"), reply_to=message)
            return act(message)  # type: ignore[no-any-return]

        scene.replace_site(name, no_scores)
    with pytest.raises(RoundError, match="no site could evaluate round 4"):
        scene.run(settings=replace(scene.settings, evaluate_every=1))
    assert [record.round for record in read_rounds(scene.folder)] == [1, 2, 3, 4]
    for name, act in scene.learners.items():
        scene.replace_site(name, act)
    assert set(scene.run().evaluation) == {"south", "north", "east"}


def test_two_nodes_with_one_name_are_told_apart(scene: Scene) -> None:
    def run() -> RunResult:
        with Journal(scene.folder) as journal:
            return run_rounds(
                scene.grid,
                make_strategy("fedavg"),
                scene.plans,
                scene.initial,
                journal,
                scene.settings,
                site_name=lambda node: "ward" if node < 102 else "icu",
                pace=scene.clock.pace(),
            )

    assert set(run().rounds[0].sites) == {"icu", "ward-100", "ward-101"}


def test_a_full_disk_leaves_the_last_round(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = scene.run()
    scene.folder = scene.folder.with_name("full")
    write = journals.save_file
    written = []

    def full(arrays: Weights, path: Path) -> None:
        written.append(path)
        if len(written) == 3:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        write(arrays, path)

    monkeypatch.setattr(journals, "save_file", full)
    with pytest.raises(StorageError, match="disk is full"):
        scene.run()
    assert [record.round for record in read_rounds(scene.folder)] == [1, 2]
    assert not list(scene.folder.rglob(".tmp-*"))
    assert same(scene.run().weights, whole.weights)


def test_plans_and_settings_must_agree(scene: Scene) -> None:
    with pytest.raises(PlanError, match="round 1 of 5"):
        scene.run(settings=replace(scene.settings, rounds=5))


def test_plan_and_strategy_must_agree(scene: Scene) -> None:
    with pytest.raises(PlanError, match="normalised-steps"):
        scene.run("fednova")
    usual = scene.plans
    scene.plans = lambda number: usual(number).model_copy(update={"normalised_steps": 5})
    with pytest.raises(UsageError, match="late"):
        scene.run("fednova", settings=replace(scene.settings, late="use"))


@pytest.mark.parametrize("change", [{"rounds": 0}, {"quorum": 0}, {"deadline_s": 0.0}, {"evaluate_every": -1}])
def test_loop_settings_that_cannot_work(change: dict[str, Any]) -> None:
    with pytest.raises(PlanError):
        LoopSettings(**{"rounds": 1, **change})


def test_metrics_are_kept_by_site(scene: Scene, learner: Any) -> None:
    def talkative(message: Message) -> Message:
        reply = scene.learners["east"](message)
        if message.metadata.message_type == "train":
            reply.content[METRICS] = MetricRecord({"num-examples": 2, "loss": [0.5, 0.25], "updates": 7})
        return reply  # type: ignore[no-any-return]

    scene.replace_site("east", talkative)
    sites = scene.run().rounds[0].sites
    assert sites["east"].metrics == {"num-examples": 2.0, "loss": [0.5, 0.25], "updates": 7.0}
    assert sites["north"].metrics == {"num-examples": 3.0, "loss": 0.25}
