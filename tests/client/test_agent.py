"""The agent in this process: who computes when, what is asked again, and what a coordinator hears of an error."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from deployment import eventually
from living import START, ask, lasting, make_home, plan, same
from planted import WORDS

from wardround.client import wire
from wardround.client.agent import Agent
from wardround.client.gate.gate import Gate
from wardround.client.gate.ledger import Ledger
from wardround.client.home import SiteHome, only_agent
from wardround.client.learning.latest import LatestModel, weights_digest
from wardround.client.live import open_live_site
from wardround.client.site import Site
from wardround.errors import AuthRefused, DataError, GateRefused, LabelError, NoTrainingCases
from wardround.models.catalogue import build
from wardround.models.weights import OPERATORS, network_weights, weights_of
from wardround.server.app import initial_weights
from wardround.strategies.contract import Update, Weights, weights_to_record
from wardround.strategies.plan import RoundPlan

NAME = "DOE^JANE"
HOME = WORDS["name of the home's folder"]
"""What errors of ours may say at the site, and nowhere else."""


class FakeSite:
    """Adds a little to every weight, in three batches, and tells what it did."""

    name = "north"

    def __init__(self) -> None:
        self.rounds = 0
        self.batches: list[str] = []
        self.after: Callable[[int], None] = lambda batch: None
        self.failing: Exception | None = None
        self.change = np.float32(1e-4)
        self.metrics: dict[str, float | list[float]] = {"num-examples": 2.0}

    def train(self, plan: RoundPlan, weights: Weights, between: Callable[[], None]) -> Update:
        self.rounds += 1
        for batch in range(3):
            self.batches.append(f"batch {batch}")
            self.after(batch)
            between()
        if self.failing:
            raise self.failing
        changed = {n: a + a.dtype.type(self.change) if a.dtype.kind == "f" else a for n, a in weights.items()}
        return Update(changed, self.metrics)

    def evaluate(
        self, plan: RoundPlan, weights: Weights, between: Callable[[], None]
    ) -> dict[str, float | list[float]]:
        self.rounds += 1
        return {"num-examples": 1.0, "dice": 0.5}

    def status(self) -> dict[str, float]:
        return {"cases": 3.0, "seen": 2.0, "round": 1.0}


class FakeChild:
    """A SuperNode that only remembers."""

    def __init__(self, told: list[str]) -> None:
        self.told = told

    def start(self) -> None:
        self.told.append("start")

    def stop(self) -> None:
        self.told.append("stop")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home without cases."""
    return make_home(tmp_path_factory.mktemp("template") / "home", cases=0, tests=0).path


@pytest.fixture
def home(tmp_path: Path, template: Path) -> SiteHome:
    home = SiteHome(tmp_path / "home")
    home.path.mkdir()
    for file in (template / "site.toml", template / "policy.toml"):
        (home.path / file.name).write_bytes(file.read_bytes())
    home.run.mkdir(mode=0o700)
    return home


@pytest.fixture
def site() -> FakeSite:
    return FakeSite()


@pytest.fixture
def agent(home: SiteHome, site: FakeSite) -> Iterator[Agent]:
    with ExitStack() as stack:
        agent = Agent(home, site, Gate(home.path))
        stack.callback(agent.close)
        agent.open()
        yield agent


def refusal(home: SiteHome, kind: str = "train", **fields: object) -> str:
    with pytest.raises(GateRefused) as refused:
        ask(home, kind, plan(**fields))
    return refused.value.code


def noted(home: SiteHome) -> list[tuple[str, str, str]]:
    """Direction, kind and code of every line of the ledger."""
    return [(line.direction, line.kind, line.code) for line in Ledger(home.ledger).entries()]


def test_a_person_comes_between_two_batches_and_the_round_ends(agent: Agent, home: SiteHome, site: FakeSite) -> None:
    done = threading.Event()

    def interact() -> None:
        with agent.interactive() as here:
            assert here is site
            site.batches.append("person")
        done.set()

    def after(batch: int) -> None:
        if batch == 1:
            threading.Thread(target=interact).start()
            eventually(lambda: agent.device.waiting == 1, "the person's request")

    site.after = after
    ask(home, "train", plan())
    assert done.is_set()
    assert site.batches == ["batch 0", "batch 1", "person", "batch 2"]


def test_while_a_person_holds_the_device_no_round_begins(agent: Agent, home: SiteHome, site: FakeSite) -> None:
    with agent.interactive():
        thread = threading.Thread(target=ask, args=(home, "train", plan()))
        thread.start()
        eventually(lambda: agent.device.waiting == 1, "the round's request")
        assert site.batches == []
        assert agent.info()["running"] is None
    thread.join(60)
    assert site.rounds == 1


def test_the_numbers_of_a_round_do_not_change_by_what_people_do_meanwhile(tmp_path: Path) -> None:
    """A real round; after each of its batches a person opens a case and draws on it with a learner of their own."""
    expected_home = make_home(tmp_path / "twin")
    with open_live_site(expected_home) as twin:
        expected = twin.train(plan(), START)
    home = make_home(tmp_path / "home")
    with only_agent(home), open_live_site(home) as site, ExitStack() as stack:
        agent = Agent(home, site, Gate(home.path))
        stack.callback(agent.close)
        people: list[threading.Thread] = []
        seen: list[float] = []

        def interact(here: Site) -> None:
            learner = here._learner(plan(), START)
            session = here.interact("case-1", plan(seed=9), learner)
            session.suggest(0)
            seen.append(float(session.before.max()))

        def visit() -> None:
            with agent.interactive():
                interact(site)

        inner = agent._between

        def between() -> None:
            if len(people) < 3:
                people.append(threading.Thread(target=visit))
                people[-1].start()
                eventually(lambda: agent.device.waiting == 1, "the person's request")
            inner()

        agent._between = between  # type: ignore[method-assign]
        agent.open()
        metrics, weights = ask(home, "train", plan())
        for thread in people:
            thread.join(120)
    assert len(seen) == 3
    assert same(weights, expected.weights)
    assert lasting(metrics) == lasting(expected.metrics)


def test_an_answer_that_was_lost_on_its_way_is_given_again_without_learning(
    agent: Agent, home: SiteHome, site: FakeSite
) -> None:
    first, second = ask(home, "train", plan()), ask(home, "train", plan())
    assert site.rounds == 1
    assert first[0] == second[0]
    assert same(first[1], second[1])
    assert noted(home) == [("in", "train", "admitted"), ("out", "train", "released")] * 2
    ask(home, "train", plan(seed=4))
    assert site.rounds == 2
    other = {name: array + array.dtype.type(1) for name, array in START.items()}
    ask(home, "train", plan(seed=4), other)
    assert site.rounds == 3


def test_a_question_that_comes_twice_at_once_is_answered_by_one_round(
    agent: Agent, home: SiteHome, site: FakeSite
) -> None:
    replies: list[object] = []
    second = threading.Thread(target=lambda: replies.append(ask(home, "train", plan())))

    def after(batch: int) -> None:
        if batch == 0:
            second.start()
            eventually(lambda: len(noted(home)) == 2, "the second question")

    site.after = after
    replies.append(ask(home, "train", plan()))
    second.join(60)
    assert site.rounds == 1
    assert len(replies) == 2


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError(f"cannot read {HOME}", f"{HOME}/site/store is damaged"), "data-error"),
        (LabelError(f"the imported label of case {HOME} goes up to 3"), "label-error"),
        (ValueError(f"/data/{NAME}/ct.nii.gz"), "value-error"),
        (type(NAME, (Exception,), {})(NAME), "other"),
    ],
)
def test_of_an_error_only_a_code_leaves(
    agent: Agent, home: SiteHome, site: FakeSite, error: Exception, code: str
) -> None:
    site.failing = error
    assert refusal(home) == code
    assert noted(home)[-1] == ("out", "train", code)
    assert not [word for word in (NAME, HOME) if word in home.ledger.read_text()]
    site.failing = None
    ask(home, "train", plan())


@pytest.mark.parametrize(
    "error",
    [
        DataError("cannot read a case", "its file is damaged"),
        LabelError("the imported label of a case goes up to 3"),
        NoTrainingCases("there is nothing to learn from"),
        ValueError("odd"),
        MemoryError(),
    ],
)
@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_of_a_private_round_it_is_told_that_it_failed_and_never_why(  # noqa: PLR0917
    agent: Agent, home: SiteHome, site: FakeSite, error: Exception, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Codes follow from what cases hold, as which structures are drawn on them, and cost nothing."""

    def fail(*_: object) -> Update:
        raise error

    agent._gate = Gate(home.path, accountant=lambda *_: 0.0)
    site.train = site.evaluate = fail  # type: ignore[method-assign, assignment]
    assert refusal(home, kind, privacy="record", validation_cases=0, model_vote=0.0) == "internal"
    assert noted(home)[-1] == ("out", kind, "internal")
    assert type(error).__name__ in caplog.text or str(error) in caplog.text


def test_a_label_of_another_task_is_told_to_both_sides(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is wrong stands in the site's log; the coordinator hears which kind of error it was."""
    home = make_home(tmp_path / "home")
    with only_agent(home), open_live_site(home) as site, ExitStack() as stack:
        agent = Agent(home, site, Gate(home.path))
        stack.callback(agent.close)
        agent.open()
        # The phantoms have two structures.
        weights = weights_of(build("unet3d-small", labels=2, seed=0))
        with pytest.raises(GateRefused) as refused:
            ask(home, "train", plan(labels=2), weights)
    assert refused.value.code == "label-error"
    assert noted(home)[-1] == ("out", "train", "label-error")
    (line,) = [record.getMessage() for record in caplog.records if "goes up to" in record.getMessage()]
    assert line.count(" → ") == 2
    assert "--labels 3" in line


def test_what_the_gate_does_not_let_in_never_reaches_the_site(agent: Agent, home: SiteHome, site: FakeSite) -> None:
    assert refusal(home, updates_per_case=100_000) == "plan-updates"
    assert refusal(home, model="unet3d") == "names"
    assert refusal(home, model="resnet") == "plan-model"
    with pytest.raises(GateRefused) as refused:
        ask(home, "train", plan(), {name: np.full_like(array, np.nan) for name, array in START.items()})
    assert refused.value.code == "not-finite"
    with pytest.raises(GateRefused) as refused:
        wire.ask(home.socket, {"op": "train", "plan": {"run": NAME}}, dict(weights_to_record(START)))
    assert refused.value.code == "plan-invalid"
    assert site.rounds == 0
    assert NAME not in home.ledger.read_text()


def test_what_the_gate_does_not_let_out_never_leaves(agent: Agent, home: SiteHome, site: FakeSite) -> None:
    site.change = np.float32("nan")
    assert refusal(home, seed=1) == "not-finite"
    site.change = np.float32(100)
    assert refusal(home, seed=2) == "norm"
    site.change = np.float32(0)
    site.metrics = {"num-examples": 2.0, "patients": 7.0}
    assert refusal(home, seed=3) == "metric"


def test_what_the_policy_takes_out_stays_here_and_the_update_leaves(
    agent: Agent, home: SiteHome, site: FakeSite
) -> None:
    site.metrics = {"num-examples": 2.0, "loss": 0.5, "trust": 1.0}
    assert ask(home, "train", plan(seed=1))[0] == site.metrics
    text = home.policy.read_text()
    home.policy.write_text(text.replace('  "loss",\n', "", 1))
    metrics, _ = ask(home, "train", plan(seed=1))
    assert metrics == {"num-examples": 2.0, "trust": 1.0}
    assert site.rounds == 1


def lets_operators_travel(home: SiteHome) -> dict[str, object]:
    """Have the policy of `home` allow it; what a plan then says."""
    home.policy.write_text(home.policy.read_text().replace("share-knobs = false", "share-knobs = true"))
    return {
        "synthesis": "genseg",
        "share_knobs": True,
        "synthesis_updates": 1,
        "synthesis_side": 16,
        "updates_per_case": 2,
    }


def test_operators_of_generators_travel_in_and_out_where_plan_and_policy_say_so(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", cases=3, most=3)
    fields = lets_operators_travel(home)
    given = initial_weights(plan(**fields))
    assert set(given) == {*START, OPERATORS}
    with only_agent(home), open_live_site(home) as site, ExitStack() as stack:
        agent = Agent(home, site, Gate(home.path))
        stack.callback(agent.close)
        agent.open()
        _, learnt = ask(home, "train", plan(**fields), given)
        assert {name: (array.shape, array.dtype) for name, array in learnt.items()} == {
            name: (array.shape, array.dtype) for name, array in given.items()
        }
        assert not np.array_equal(learnt[OPERATORS], given[OPERATORS]), "the search moved them"
        scores, _ = ask(home, "evaluate", plan(**fields), learnt)
        assert scores["num-examples"] == 1
        # People draw with the network alone, and what they draw with is the latest.
        latest = LatestModel(home.site / "model")
        assert latest.digest() == weights_digest(network_weights(learnt))
    assert [code for _, _, code in noted(home)] == ["admitted", "released"] * 2


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_operators_come_in_only_where_the_plan_has_them_shared(
    agent: Agent, home: SiteHome, site: FakeSite, kind: str
) -> None:
    fields = lets_operators_travel(home)
    given = initial_weights(plan(**fields))
    for settings, weights in ((plan(), given), (plan(**fields), START)):
        with pytest.raises(GateRefused) as refused:
            ask(home, kind, settings, weights)
        assert refused.value.code == "names"
    wrong = given | {OPERATORS: given[OPERATORS][:1]}, given | {OPERATORS: given[OPERATORS].astype(np.float64)}
    for weights, code in zip(wrong, ("shape", "dtype"), strict=True):
        with pytest.raises(GateRefused) as refused:
            ask(home, kind, plan(**fields), weights)
        assert refused.value.code == code
    assert site.rounds == 0
    ask(home, kind, plan(**fields), given)
    ask(home, kind, plan(), START)


def test_operators_leave_only_where_the_plan_has_them_shared(home: SiteHome) -> None:
    class Telling(FakeSite):
        def train(self, plan: RoundPlan, weights: Weights, between: Callable[[], None]) -> Update:
            update = super().train(plan, weights, between)
            return Update({**update.weights, OPERATORS: np.zeros((3, 3), np.float32)}, update.metrics)

    lets_operators_travel(home)
    with ExitStack() as stack:
        agent = Agent(home, Telling(), Gate(home.path))
        stack.callback(agent.close)
        agent.open()
        assert refusal(home) == "names"


def test_a_plan_beyond_the_policy_has_no_network_built(home: SiteHome, site: FakeSite) -> None:
    built: list[str] = []

    def reference(plan: RoundPlan) -> dict[str, tuple[tuple[int, ...], str]]:
        built.append(plan.model)
        return {name: (array.shape, str(array.dtype)) for name, array in START.items()}

    with ExitStack() as stack:
        agent = Agent(home, site, Gate(home.path), reference=reference)
        stack.callback(agent.close)
        agent.open()
        assert refusal(home, model="unet2d") == "plan-model"
        assert built == []
        ask(home, "train", plan())
        assert built == ["unet3d-small"]


def test_a_round_that_waits_for_the_device_does_not_begin_once_the_site_is_paused(
    agent: Agent, home: SiteHome, site: FakeSite
) -> None:
    codes: list[str] = []
    with agent.interactive():
        asking = threading.Thread(target=lambda: codes.append(refusal(home)))
        asking.start()
        eventually(lambda: agent.device.waiting == 1, "the round's request")
        assert wire.ask(home.socket, {"op": "pause"})[0]["settled"] is True
    asking.join(60)
    assert codes == ["paused"]
    assert site.rounds == 0


def test_pausing_ends_the_round_after_its_batch(agent: Agent, home: SiteHome, site: FakeSite) -> None:
    answers: list[dict[str, object]] = []
    pausing = threading.Thread(target=lambda: answers.append(wire.ask(home.socket, {"op": "pause"})[0]))

    def after(batch: int) -> None:
        if batch == 0:
            pausing.start()
            eventually(lambda: home.participation == "paused", "the pause")

    site.after = after
    assert refusal(home) == "paused"
    pausing.join(60)
    site.after = lambda batch: None
    assert site.batches == ["batch 0"]
    assert answers[0]["settled"] is True
    assert agent.info()["participation"] == "paused"
    assert refusal(home) == refusal(home, "evaluate") == "paused"
    wire.ask(home.socket, {"op": "resume"})
    assert not home.state.read_text().count("paused")
    ask(home, "train", plan())


def test_a_pause_is_kept_for_the_next_agent(home: SiteHome, site: FakeSite) -> None:
    home.participate("paused")
    with ExitStack() as stack:
        agent = Agent(home, site, Gate(home.path))
        stack.callback(agent.close)
        agent.open()
        assert refusal(home) == "paused"


def test_leaving_disconnects_and_stays_so(home: SiteHome, site: FakeSite) -> None:
    told: list[str] = []
    with ExitStack() as stack:
        agent = Agent(home, site, Gate(home.path), uplink=lambda: FakeChild(told))
        stack.callback(agent.close)
        agent.open()
        assert told == ["start"]
        wire.ask(home.socket, {"op": "pause"})
        assert told == ["start"]
        wire.ask(home.socket, {"op": "leave"})
        assert told == ["start", "stop"]
        assert refusal(home) == "leaving"
    assert told == ["start", "stop"]
    with ExitStack() as stack:
        agent = Agent(home, site, Gate(home.path), uplink=lambda: FakeChild(told))
        stack.callback(agent.close)
        agent.open()
        assert told == ["start", "stop"]
        wire.ask(home.socket, {"op": "resume"})
        assert told == ["start", "stop", "start"]
    assert told == ["start", "stop", "start", "stop"]


def test_a_bundle_runs_only_if_it_was_approved(agent: Agent, home: SiteHome) -> None:
    with pytest.raises(GateRefused) as refused:
        wire.ask(home.socket, {"op": "admit-app", "sha256": "0" * 64})
    assert refused.value.code == "bundle-not-approved"
    with pytest.raises(GateRefused) as refused:
        wire.ask(home.socket, {"op": "admit-app", "sha256": "0" * 64}, {"fab": wire.raw(b"another one")})
    assert refused.value.code == "bundle-hash"


def test_what_the_node_says_of_an_error_stands_in_the_ledger(agent: Agent, home: SiteHome) -> None:
    wire.ask(home.socket, {"op": "note-error", "code": "app-crashed"})
    wire.ask(home.socket, {"op": "note-error", "code": NAME})
    assert [code for _, _, code in noted(home)] == ["app-crashed", "other"]


def test_only_users_who_are_trusted_are_answered(home: SiteHome, site: FakeSite) -> None:
    with ExitStack() as stack:
        agent = Agent(home, site, Gate(home.path), trusted=frozenset())
        stack.callback(agent.close)
        agent.open()
        with pytest.raises(AuthRefused):
            wire.ask(home.socket, {"op": "info"})


def test_its_socket_is_for_its_user_alone(agent: Agent, home: SiteHome) -> None:
    assert home.socket.stat().st_mode & 0o777 == 0o600
    assert home.run.stat().st_mode & 0o777 == 0o700
