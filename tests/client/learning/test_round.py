"""One case after the other: drawn in steps, undone, accepted; and what a bad one cannot do."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wardround.client.annotation.annotator import SimulatedAnnotator, Truth
from wardround.client.annotation.prompts import Prompt
from wardround.client.cases.volume import Volume
from wardround.client.learning.inference import normalise
from wardround.client.learning.interactions import Interaction
from wardround.client.learning.learner import LearningSettings, OnlineLearner
from wardround.client.learning.lessons import learn_with
from wardround.client.learning.replay import ReplayMemory, Reservoir, Sample
from wardround.client.learning.round import OnlineRound
from wardround.client.learning.safeguard import Safeguard, stored_dice
from wardround.client.learning.session import CaseSession
from wardround.client.learning.state import Standing
from wardround.client.learning.stored_logits import centred_logits
from wardround.client.learning.teachers import Distillation, Distiller
from wardround.errors import UsageError
from wardround.strategies.plan import RoundPlan

SHAPE = (18, 22, 14)
CPU = torch.device("cpu")


def ball(seed: int) -> tuple[Volume, Volume]:
    rng = np.random.default_rng(seed)
    centre = np.array(SHAPE) / 2 + rng.uniform(-1, 1, 3)
    distance = np.sqrt(sum((g - c) ** 2 for g, c in zip(np.indices(SHAPE), centre, strict=True)))
    labels = (distance < 5).astype(np.uint8)
    image = labels * 2.0 + rng.normal(0, 0.5, SHAPE)
    return Volume(image.astype(np.float32), np.eye(4)), Volume(labels, np.eye(4))


def answering(labels: Volume) -> SimulatedAnnotator:
    """Who draws these labels, whatever the case is called."""
    return SimulatedAnnotator(lambda _: Truth(labels))


def remembered(seed: int) -> Sample:
    image, labels = ball(seed)
    target = np.stack([1 - labels.array, labels.array]).astype(np.float16)
    return Sample(f"old {seed}", normalise(image.array), target, np.ones(SHAPE, np.float16))


OLD = [remembered(seed) for seed in range(3)]


def plan(**fields: object) -> RoundPlan:
    settings: dict[str, object] = {
        "run": "test", "round": 2, "rounds": 4, "seed": 3, "model": "unet3d-small", "labels": 2,
        "updates_per_case": 6, "slices_per_case": 6, "rehearsal": 0.0, "annotation_rounds": 3, "validation_cases": 3,
    }  # fmt: skip
    return RoundPlan.model_validate(settings | fields)


@pytest.fixture(scope="module")
def trained() -> Mapping[str, np.ndarray]:
    """Weights of a model that finds balls."""
    learner = OnlineLearner(LearningSettings("unet3d-small", 2, 0), CPU)
    rng = np.random.default_rng(0)
    learner.update(lambda: [OLD[int(rng.integers(3))] for _ in range(2)], 40, 4e-3, rng)
    return learner.weights()


class Scene:
    """A round in the middle of a stream: a model that works and three remembered cases."""

    def __init__(self, folder: Path, weights: Mapping[str, np.ndarray], **fields: object) -> None:
        self.plan = plan(**fields)
        taught = {"distillation": Distillation.of(self.plan), "stored_logits": self.plan.stored_logits}
        self.learner = OnlineLearner(LearningSettings("unet3d-small", 2, 0, **taught), CPU)  # type: ignore[arg-type]
        self.learner.load(weights)
        memory = ReplayMemory(folder, Reservoir(8), self.plan.replay)
        for sample in OLD:
            memory.offer(sample, np.random.default_rng(0))
        rngs = np.random.default_rng(1), np.random.default_rng(2)
        self.round = OnlineRound("north", self.plan, self.learner, memory, *rngs, None, Standing(0.5, 0.1))

    def session(self, seed: int = 9) -> CaseSession:
        image, labels = ball(seed)
        extent = Truth(labels).extent()
        rng = np.random.default_rng(seed)
        return CaseSession(f"case {seed}", image, self.learner, self.plan, rng, extent, progress=0.5)

    def draw(self, session: CaseSession, labels: Volume | None = None) -> list[Prompt]:
        truth = Truth(labels or ball(9)[1])
        return [truth.slice(request) for request in session.suggest(len(session.steps))]

    def taught(self) -> dict[str, np.ndarray]:
        """Weights of the teachers."""
        return {
            f"{number} {name}": tensor.numpy()
            for term in self.learner.terms
            if isinstance(term, Distiller)
            for number, teacher in enumerate(term.teachers)
            for name, tensor in teacher.network.state_dict().items()
        }

    def state(self, session: CaseSession) -> dict[str, Any]:
        """All that a further step depends on."""
        assert session.proxy is not None
        return {
            **{f"weight {name}": array for name, array in self.learner.weights().items()},
            **{f"moment {name}": array for name, array in self.learner.optimiser_state().items()},
            **{f"local {name}": array for name, array in self.learner.local().items()},
            **{f"taught by {name}": array for name, array in self.taught().items()},
            "rng": self.round.rng.bit_generator.state,
            "check": self.round.check_rng.bit_generator.state,
            "case rng": session.rng.bit_generator.state,
            "chosen": session.chosen,
            "proxy": session.proxy.probabilities,
            "confidence": session.proxy.confidence,
            "prediction": session.prediction,
            "target": session.sample().target,
            "disagreement": session.disagreement,
            "updates": self.round.updates,
            "losses": repr(self.round.losses),
            "history": self.round.history,
        }


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    both = one.keys() & other.keys()
    return sorted((one.keys() ^ other.keys()) | {name for name in both if not np.array_equal(one[name], other[name])})


DISTILLED: dict[str, object] = {
    "distill_weight": 0.4, "distill_head": True, "contrast_weight": 0.1, "teachers": "both", "stored_logits": 0.5,
}  # fmt: skip
OPTIONS: list[dict[str, object]] = [
    {},
    {
        "suggestion": "residual-sampled",
        "model_vote": 1.0,
        "fusion_schedule": "trust",
        "adaptivity": 1.0,
        "updates_per_case": 12,
    },
    {"suggestion": "random", "uncertainty": 2, "replay": "most-interfered"},
    DISTILLED,
]


@pytest.mark.parametrize("fields", OPTIONS)
def test_an_undone_step_was_never_drawn(
    tmp_path: Path, trained: Mapping[str, np.ndarray], fields: dict[str, object]
) -> None:
    plain, undone = (Scene(tmp_path / name, trained, **fields) for name in ("plain", "undone"))
    one, other = plain.session(), undone.session()
    for scene, session in ((plain, one), (undone, other)):
        scene.round.open(session)
        scene.round.step(session, scene.draw(session))
    before = undone.state(other)
    undone.round.step(other, undone.draw(other, Volume(np.ones(SHAPE, np.uint8), np.eye(4))))
    assert differing(before, undone.state(other))
    undone.round.undo(other)
    assert differing(plain.state(one), undone.state(other)) == []
    for scene, session in ((plain, one), (undone, other)):
        scene.round.step(session, scene.draw(session))
        assert scene.round.accept(session)
    assert differing(plain.state(one), undone.state(other)) == []
    assert plain.round.effort == undone.round.effort
    assert plain.round.standing == undone.round.standing


def test_undoing_every_step_comes_back_to_the_last_accepted_state(
    tmp_path: Path, trained: Mapping[str, np.ndarray]
) -> None:
    scene = Scene(tmp_path, trained)
    session = scene.session()
    scene.round.open(session)
    for _ in range(2):
        scene.round.step(session, scene.draw(session))
    for _ in range(2):
        scene.round.undo(session)
    assert differing(trained, scene.learner.weights()) == []
    assert scene.learner.optimiser_state() == {}
    assert session.proxy is None
    assert np.array_equal(session.prediction, session.before)
    assert [row["step"] for row in scene.round.history] == [0]
    with pytest.raises(UsageError, match="nothing to undo"):
        scene.round.undo(session)


def test_a_case_is_opened_once_and_accepted_once(tmp_path: Path, trained: Mapping[str, np.ndarray]) -> None:
    scene = Scene(tmp_path, trained, validation_cases=0, updates_per_case=1)
    session = scene.session()
    with pytest.raises(UsageError, match="not open"):
        scene.round.step(session, [])
    scene.round.open(session)
    with pytest.raises(UsageError, match="another case is open"):
        scene.round.open(scene.session(8))
    with pytest.raises(UsageError, match="nothing to accept"):
        scene.round.accept(session)
    scene.round.step(session, scene.draw(session))
    scene.round.accept(session)
    with pytest.raises(UsageError, match="not open"):
        scene.round.undo(session)
    assert scene.round.history[-1]["accepted"] is True


@pytest.mark.parametrize("fields", [{}, DISTILLED])
def test_an_abandoned_case_was_never_opened(
    tmp_path: Path, trained: Mapping[str, np.ndarray], fields: dict[str, object]
) -> None:
    plain, scene = (Scene(tmp_path / name, trained, **fields) for name in ("plain", "abandoned"))
    looked_at = scene.session(8)
    scene.round.open(looked_at)
    scene.round.abandon(looked_at)
    drawn_on = scene.session(7)
    scene.round.open(drawn_on)
    scene.round.step(drawn_on, scene.draw(drawn_on))
    scene.round.abandon(drawn_on)
    assert drawn_on.proxy is None
    sessions = [one.session() for one in (plain, scene)]
    for one, session in zip((plain, scene), sessions, strict=True):
        learn_with(one.round, session, answering(ball(9)[1]))
    assert differing(plain.state(sessions[0]), scene.state(sessions[1])) == []
    assert plain.round.effort == scene.round.effort
    assert len(scene.round.memory) == 4


def test_the_steps_in_order_are_what_learn_does(tmp_path: Path, trained: Mapping[str, np.ndarray]) -> None:
    whole, stepwise = (Scene(tmp_path / name, trained) for name in ("whole", "stepwise"))
    one, other = whole.session(), stepwise.session()
    assert learn_with(whole.round, one, answering(ball(9)[1]))
    stepwise.round.open(other)
    for _ in range(3):
        stepwise.round.step(other, stepwise.draw(other))
    stepwise.round.accept(other)
    assert differing(whole.state(one), stepwise.state(other)) == []
    assert whole.round.memory.reservoir == stepwise.round.memory.reservoir


def test_a_check_that_finds_nothing_leaves_no_trace(tmp_path: Path, trained: Mapping[str, np.ndarray]) -> None:
    checked, free = Scene(tmp_path / "checked", trained), Scene(tmp_path / "free", trained, validation_cases=0)
    states = []
    for scene in (checked, free):
        for seed in (7, 8, 9):
            session = scene.session(seed)
            assert learn_with(scene.round, session, answering(ball(seed)[1]))
        states.append(scene.state(session))
    assert differing(states[0], states[1]) == ["check"]
    assert checked.round.rejected == 0


def poisoned(scene: Scene) -> CaseSession:
    """A case whose drawings call the object background and the background an object."""
    session = scene.session()
    wrong = Volume((1 - ball(9)[1].array).astype(np.uint8), np.eye(4))
    session.extent = None
    session.rewind()
    learn_with(scene.round, session, answering(wrong))
    return session


def test_a_bad_case_poisons_a_model_without_the_check_and_not_with_it(
    tmp_path: Path, trained: Mapping[str, np.ndarray]
) -> None:
    harsh = {"learning_rate": 2e-2, "learning_rate_end": 2e-2, "updates_per_case": 12}
    free = Scene(tmp_path / "free", trained, validation_cases=0, **harsh)
    checked = Scene(tmp_path / "checked", trained, validation_cases=3, **harsh)
    before = stored_dice(free.learner, OLD, 2).mean()
    poisoned(free)
    assert stored_dice(free.learner, OLD, 2).mean() < before - 0.3
    assert len(free.round.memory) == 4
    session = poisoned(checked)
    assert differing(trained, checked.learner.weights()) == []
    assert checked.learner.optimiser_state() == {}
    assert len(checked.round.memory) == 3
    assert checked.round.rejected == 1
    assert checked.round.standing == Standing(0.5, 0.1, refused=1)
    assert [row.get("accepted") for row in checked.round.history] == [None, None, None, False]
    assert checked.round.effort["contour"] == session.cost > 0
    assert checked.round.updates == free.round.updates


def judged(scene: Scene, monkeypatch: pytest.MonkeyPatch, verdicts: str) -> str:
    """What becomes of one case after the other, where the judges find each bad (``b``) or good (``g``)."""
    found = ""
    for number, verdict in enumerate(verdicts):
        monkeypatch.setattr(Safeguard, "fall", lambda guard, learner, between, verdict=verdict: float(verdict == "b"))
        session = scene.session(20 + number)
        scene.round.open(session)
        scene.round.step(session, scene.draw(session, ball(20 + number)[1]))
        found += "+" if scene.round.accept(session) else "-"
    return found


def test_a_third_bad_case_in_a_row_is_a_change_of_the_world(
    tmp_path: Path, trained: Mapping[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path, trained, updates_per_case=1, slices_per_case=3)
    assert judged(scene, monkeypatch, "bb") == "--"
    assert scene.round.standing == Standing(0.5, 0.1, refused=2)
    assert differing(trained, scene.learner.weights()) == []
    assert judged(scene, monkeypatch, "bbb") == "+--"
    assert scene.round.rejected == 4
    assert len(scene.round.memory) == 4


def test_a_good_case_in_between_starts_the_count_again(
    tmp_path: Path, trained: Mapping[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path, trained, updates_per_case=1, slices_per_case=3)
    assert judged(scene, monkeypatch, "bgbb") == "-+--"
    assert scene.round.standing.refused == 2


def test_trust_and_usual_disagreement_follow_the_accepted_cases(
    tmp_path: Path, trained: Mapping[str, np.ndarray]
) -> None:
    scene = Scene(tmp_path, trained)
    session = scene.session()
    learn_with(scene.round, session, answering(ball(9)[1]))
    assert session.trust == 0.5
    assert session.agreement > 0.8
    assert session.disagreement is not None
    assert scene.round.standing == Standing(0.5, 0.1).accepting(session.agreement, session.disagreement)
    assert scene.round.standing.trust > 0.5
    assert {row["trust"] for row in scene.round.history} == {0.5}
    assert [row["disagreement"] for row in scene.round.history] == [None] + 3 * [session.disagreement]


def test_a_case_that_disagrees_more_than_usual_gets_more_updates(
    tmp_path: Path, trained: Mapping[str, np.ndarray]
) -> None:
    spent = []
    for usual in (1e-3, 1.0):
        scene = Scene(tmp_path / str(usual), trained, adaptivity=1.0, updates_per_case=12)
        scene.round.standing = Standing(0.0, usual)
        learn_with(scene.round, scene.session(), answering(ball(9)[1]))
        spent.append(scene.round.updates)
    assert spent[0] == 24
    assert spent[1] < 9


def test_a_person_may_draw_more_often_than_the_plan_foresees(tmp_path: Path, trained: Mapping[str, np.ndarray]) -> None:
    scene = Scene(tmp_path, trained, annotation_rounds=1, updates_per_case=2)
    session = scene.session()
    scene.round.open(session)
    truth = Truth(ball(9)[1])
    scene.round.step(session, [truth.slice(request) for request in session.suggest(0)[:1]])
    scene.round.step(session, [truth.slice(request) for request in session.chosen[1:2]])
    assert scene.round.updates == 4


def test_where_nothing_is_remembered_nothing_is_rehearsed(tmp_path: Path, trained: Mapping[str, np.ndarray]) -> None:
    scene = Scene(tmp_path, trained, rehearsal=0.5)
    kept = scene.round.memory
    scene.round.memory = ReplayMemory(tmp_path / "empty", Reservoir(8), scene.plan.replay)
    session = scene.session()
    scene.round.open(session)
    scene.round.step(session, scene.draw(session))
    scene.round.abandon(session)
    scene.round.rehearse(2)
    assert (scene.round.updates, scene.round.losses, scene.round.loss) == (0, [], 0.0)
    assert differing(trained, scene.learner.weights()) == []
    scene.round.memory = kept
    scene.round.rehearse(2)
    assert scene.round.updates == 6
    assert differing(trained, scene.learner.weights()) != []


class Peeking:
    """Looks into memory at every step."""

    def __init__(self) -> None:
        self.round: OnlineRound | None = None
        self.held: list[tuple[str, tuple[str, ...]]] = []

    def observe(self, interaction: Interaction) -> dict[str, float]:
        assert self.round is not None
        self.held.append((interaction.case_id, self.round.memory.reservoir.kept))
        return {}


def test_the_case_at_hand_is_not_in_memory_before_it_is_accepted(
    tmp_path: Path, trained: Mapping[str, np.ndarray]
) -> None:
    scene, peeking = Scene(tmp_path, trained, updates_per_case=3), Peeking()
    scene.round.observer, peeking.round = peeking, scene.round
    for seed in (8, 9):
        learn_with(scene.round, scene.session(seed), answering(ball(seed)[1]))
    assert len(peeking.held) == 8
    assert all(case not in kept for case, kept in peeking.held)
    assert "case 8" in peeking.held[-1][1]


def test_a_case_is_taught_by_the_model_before_it_and_rehearsed_with_the_same_teacher(
    tmp_path: Path, trained: Mapping[str, np.ndarray]
) -> None:
    scene = Scene(tmp_path, trained, distill_weight=0.4, rehearsal=0.5)
    assert scene.taught() == {}
    for seed in (8, 9):
        before = {f"0 {name}": array for name, array in scene.learner.weights().items()}
        learn_with(scene.round, scene.session(seed), answering(ball(seed)[1]))
        assert differing(before, scene.taught()) == []
    scene.round.rehearse(2)
    assert differing(before, scene.taught()) == []


def test_a_case_that_is_taken_back_takes_its_teacher_along(
    tmp_path: Path, trained: Mapping[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, plain = (Scene(tmp_path / name, trained, updates_per_case=2, **DISTILLED) for name in ("refused", "plain"))
    assert judged(scene, monkeypatch, "gb") == "+-"
    assert judged(plain, monkeypatch, "g") == "+"
    assert scene.taught().keys() == plain.taught().keys() != set()
    assert differing(scene.taught(), plain.taught()) == []
    assert differing(scene.learner.local(), plain.learner.local()) == []


def test_a_taken_back_case_is_begun_with_the_same_teacher(tmp_path: Path, trained: Mapping[str, np.ndarray]) -> None:
    plain, forgetful = (Scene(tmp_path / name, trained, **DISTILLED) for name in ("plain", "forgetful"))
    sessions = [scene.session() for scene in (plain, forgetful)]
    for scene, session in zip((plain, forgetful), sessions, strict=True):
        scene.round.open(session)
    forgetful.round.step(sessions[1], drawn := forgetful.draw(sessions[1]))
    forgetful.round.forget(sessions[1])
    plain.round.step(sessions[0], drawn)
    forgetful.round.catch_up(sessions[1], forgetful.round.updates_after(sessions[1]))
    assert differing(plain.learner.weights(), forgetful.learner.weights()) == []
    assert differing(plain.taught(), forgetful.taught()) == []


def test_where_nothing_was_learnt_yet_nobody_teaches(tmp_path: Path, trained: Mapping[str, np.ndarray]) -> None:
    plain, taught = Scene(tmp_path / "plain", trained), Scene(tmp_path / "taught", trained, distill_weight=0.4)
    for scene, folder in ((plain, "a"), (taught, "b")):
        scene.round.memory = ReplayMemory(tmp_path / folder, Reservoir(8), scene.plan.replay)
        learn_with(scene.round, scene.session(8), answering(ball(8)[1]))
    assert taught.taught() == {}
    assert plain.round.losses == taught.round.losses
    assert differing(plain.learner.weights(), taught.learner.weights()) == []
    taught.round.open(taught.session(9))
    assert taught.taught()


def test_an_accepted_case_is_remembered_with_what_the_model_answers_then(
    tmp_path: Path, trained: Mapping[str, np.ndarray]
) -> None:
    scene = Scene(tmp_path, trained, stored_logits=0.5, updates_per_case=4)
    session = scene.session()
    learn_with(scene.round, session, answering(ball(9)[1]))
    logits = scene.round.memory.sample("case 9").logits
    assert logits is not None
    assert np.array_equal(logits, centred_logits(scene.learner.predict(session.normalised)))
    assert not np.array_equal(logits, centred_logits(session.before))
    other = Scene(tmp_path / "other", trained)
    learn_with(other.round, other.session(), answering(ball(9)[1]))
    assert other.round.memory.sample("case 9").logits is None
