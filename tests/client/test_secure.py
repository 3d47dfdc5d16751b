"""Secure aggregation at live sites: what an agent gives, what it refuses, and what its gate and its book say of it."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from flwr.app import RecordDict
from living import make_home

from wardround.client.agent import Agent
from wardround.client.app import app
from wardround.client.door import AgentSite
from wardround.client.gate.codes import NOTED
from wardround.client.gate.gate import Gate
from wardround.client.gate.ledger import Ledger
from wardround.client.gate.policy import Policy, check_plan, load_policy
from wardround.client.home import SiteHome
from wardround.client.secure import Book, SecureSite, Terms, open_book, read_identity
from wardround.deploy.grid import InProcessGrid
from wardround.deploy.provisioning import keys
from wardround.errors import GateRefused, RoundError, StorageError
from wardround.server.journal import Journal
from wardround.server.rounds import LoopSettings, RunResult, run_rounds
from wardround.strategies.catalogue import make_strategy
from wardround.strategies.contract import ARRAYS, Update, Weights, weights_to_record
from wardround.strategies.plan import RoundPlan
from wardround.strategies.secure.identity import fingerprint, new_identity
from wardround.strategies.secure.messages import arrays_with

GIVEN: Weights = {"conv.weight": np.zeros((3, 4), np.float32), "norm.count": np.array(3, np.int64)}
NAMES = ("east", "north", "south")


def plan(number: int = 1, **fields: Any) -> RoundPlan:
    settings = {"run": "test", "rounds": 2, "seed": 3, "model": "unet3d-small", "labels": 3, "secure": True}
    return RoundPlan.model_validate(settings | fields | {"round": number})


class FakeSite:
    """Moves every weight by `change`."""

    def __init__(self, name: str, change: float, examples: float) -> None:
        self.name, self.change, self.examples, self.rounds = name, change, examples, 0

    def train(self, plan: RoundPlan, weights: Weights, between: Callable[[], None]) -> Update:
        self.rounds += 1
        moved = {"conv.weight": weights["conv.weight"] + np.float32(self.change)}
        return Update(moved | {"norm.count": weights["norm.count"] + 1}, {"num-examples": self.examples, "loss": 1.0})

    def evaluate(self, plan: RoundPlan, weights: Weights, between: Callable[[], None]) -> dict[str, Any]:
        return {"num-examples": 1.0, "dice": 0.5}

    def status(self) -> dict[str, float]:
        return {"cases": 3.0}


class Hospitals:
    """Three agents, each with its home, key, gate and socket."""

    def __init__(self, folder: Path, template: Path, stack: ExitStack) -> None:
        self.homes, self.sites, self.agents = {}, {}, {}
        for place, name in enumerate(NAMES):
            home = SiteHome(folder / name)
            home.run.mkdir(mode=0o700, parents=True)
            home.keys.mkdir()
            for file in (template / "site.toml", template / "policy.toml"):
                (home.path / file.name).write_bytes(file.read_bytes())
            key = ec.generate_private_key(ec.SECP384R1())
            home.node_key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
            self.homes[name], self.sites[name] = home, FakeSite(name, 0.5 + place, 2.0 + place)
            self.start(name, stack)
        self.folder, self.stack = folder / "journal", stack

    def start(self, name: str, stack: ExitStack) -> None:
        looks = {each: (array.shape, str(array.dtype)) for each, array in GIVEN.items()}
        home = self.homes[name]
        self.agents[name] = Agent(home, self.sites[name], Gate(home.path), reference=lambda plan: looks)
        stack.callback(self.agents[name].close)
        self.agents[name].open()

    def restart(self, name: str) -> None:
        self.agents[name].close()
        self.start(name, self.stack)

    def policy(self, name: str, *lines: str) -> None:
        path = self.homes[name].policy
        text = path.read_text()
        for line in lines:
            key = line.partition(" =")[0]
            text = "\n".join(line if row.startswith(f"{key} =") else row for row in text.splitlines()) + "\n"
        path.write_text(text)

    def run(self, names: Sequence[str] = NAMES, **fields: Any) -> RunResult:
        grid = InProcessGrid(app, names)
        for node, context in grid._contexts.items():
            context.node_config["agent"] = str(self.homes[grid.site_name(node)].socket)
        with Journal(self.folder) as journal:
            return run_rounds(
                grid,
                make_strategy("fedavg"),
                lambda number: plan(number, **fields),
                GIVEN,
                journal,
                LoopSettings(rounds=2, quorum=len(names), deadline_s=60.0),
                site_name=grid.site_name,
            )

    def codes(self, name: str) -> list[tuple[str, str, str]]:
        return [(line.direction, line.kind, line.code) for line in Ledger(self.homes[name].ledger).entries()]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("template") / "home", cases=0, tests=0).path


@pytest.fixture
def hospitals(tmp_path: Path, template: Path) -> Iterator[Hospitals]:
    with ExitStack() as stack:
        yield Hospitals(tmp_path, template, stack)


def test_two_rounds_and_what_the_ledgers_say_of_them(hospitals: Hospitals) -> None:
    result = hospitals.run()
    # 0.5, 1.5 and 2.5 further, weighted by 2, 3 and 4, twice; counters one further each time.
    assert result.weights["conv.weight"] == pytest.approx(np.full((3, 4), 2 * (1 + 4.5 + 10) / 9), abs=1e-6)
    assert result.weights["norm.count"] == 5
    for name in NAMES:
        way, noted = [("in", "train", "admitted"), ("out", "train", "released")], ("none", "train", "secure-noted")
        # Who the others are, before the shares; which sum is made known, before it is.
        assert hospitals.codes(name)[:12] == way + way[:1] + [noted] + way[1:] + 2 * way + way[:1] + [noted] + way[1:]
        assert hospitals.codes(name).count(noted) == 3
        lines = [line for line in Ledger(hospitals.homes[name].ledger).entries() if line.direction == "out"]
        assert [line.sha256 for line in lines if line.round == 1][2] == result.rounds[0].sites[name].digest
        assert all(line.cases == hospitals.sites[name].examples for line in lines if line.kind == "train")
        assert hospitals.sites[name].rounds == 2


def test_the_gate_judges_the_update_before_it_is_hidden(hospitals: Hospitals) -> None:
    hospitals.policy("north", "max-update-norm = 0.1")
    with pytest.raises(RoundError, match="north: error-reply"):
        hospitals.run()
    assert hospitals.codes("north") == [("in", "train", "admitted"), ("out", "train", "norm")]


def test_a_site_that_asks_for_more_sites(hospitals: Hospitals) -> None:
    hospitals.policy("south", "min-secure-sites = 4")
    with pytest.raises(RoundError, match="south: secure-too-few"):
        hospitals.run()
    assert ("out", "train", "secure-too-few") in hospitals.codes("south")


def test_a_site_may_insist_on_it(hospitals: Hospitals) -> None:
    policy = Policy(require_secure=True)
    check_plan(plan(), policy)
    with pytest.raises(GateRefused) as caught:
        check_plan(plan(secure=False), policy)
    assert caught.value.code == "plan-secure"
    for name in NAMES:
        hospitals.policy(name, "require-secure = true")
    with pytest.raises(RoundError, match="policy-unreadable"):
        hospitals.run()
    keys = {name: fingerprint(read_identity(home.node_key).public) for name, home in hospitals.homes.items()}
    named = ", ".join(f'{name} = "{key}"' for name, key in keys.items())
    for name in NAMES:
        hospitals.policy(name, f"secure-peers = {{ {named} }}")
    hospitals.folder = hospitals.folder.with_name("one-by-one")
    with pytest.raises(RoundError, match="plan-secure"):
        hospitals.run(secure=False)
    hospitals.folder = hospitals.folder.with_name("summed")
    assert len(hospitals.run().rounds) == 2


def test_a_restarted_site_has_dropped_out_and_a_restarted_coordinator_is_answered(hospitals: Hospitals) -> None:
    door = AgentSite(hospitals.homes["north"].socket)
    content = {"plan": plan().to_record(), ARRAYS: weights_to_record(GIVEN)}
    first = door.answer("train", RecordDict(content))
    assert list(first) == [ARRAYS]
    assert door.answer("train", RecordDict(content))[ARRAYS] == first[ARRAYS]
    hospitals.restart("north")
    with pytest.raises(GateRefused) as caught:
        door.answer("shares", RecordDict({"plan": plan().to_record(), ARRAYS: arrays_with(b"{}")}))
    assert caught.value.code == "secure-unknown"
    assert hospitals.codes("north")[-1] == ("out", "train", "secure-unknown")
    assert door.answer("train", RecordDict(content))[ARRAYS] != first[ARRAYS]


def test_a_key_that_changed_is_refused(hospitals: Hospitals) -> None:
    hospitals.run()
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    hospitals.homes["north"].node_key.write_bytes(private)
    hospitals.restart("north")
    hospitals.folder = hospitals.folder.with_name("another")
    with pytest.raises(RoundError, match="east: secure-peer"):
        hospitals.run(run="another")
    # North itself knew north by its former key.
    assert ("out", "train", "secure-peer") in hospitals.codes("north")


# The book


def test_whoever_comes_first_under_a_name_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    book = Book(tmp_path / "secure.json")
    with caplog.at_level(logging.WARNING):
        book.trust({"north": "SHA256:a", "south": "SHA256:b"}, {})
    assert "site north takes part for the first time; its key is SHA256:a" in caplog.text
    again = Book(tmp_path / "secure.json")
    again.trust({"south": "SHA256:b", "east": "SHA256:c"}, {})
    with pytest.raises(GateRefused) as caught:
        again.trust({"south": "SHA256:x"}, {})
    assert caught.value.code == "secure-peer"


def test_pinned_keys_leave_nobody_else_in() -> None:
    book, pinned = Book(), {"north": "SHA256:a", "south": "SHA256:b"}
    book.trust({"north": "SHA256:a"}, pinned)
    for stranger in ({"east": "SHA256:c"}, {"south": "SHA256:a"}):
        with pytest.raises(GateRefused) as caught:
            book.trust({"north": "SHA256:a", **stranger}, pinned)
        assert caught.value.code == "secure-peer"


def test_one_sum_of_a_round_and_no_other(tmp_path: Path) -> None:
    book, given = Book(tmp_path / "secure.json"), b"weights"
    book.allow(plan(2), given, ("a", "b", "c"))
    book.reveal(plan(2), given, ("a", "b", "c"))
    book = Book(tmp_path / "secure.json")
    book.allow(plan(2), given, ("a", "b", "c"))
    book.allow(plan(2, rounds=3), given, ("a", "b", "c"))
    for survivors in (("a", "b"), ("a", "b", "c", "d")):
        for other in (given, b"other weights"):
            with pytest.raises(GateRefused) as caught:
                book.allow(plan(2), other, survivors)
            assert caught.value.code == "secure-set"
    book.allow(plan(1), given, ("a", "b"))


def test_the_same_question_in_another_run(tmp_path: Path) -> None:
    """A site's answer does not hang on the run's name: two sums over sites that differ by one would tell its update."""
    Book(tmp_path / "secure.json").reveal(plan(), b"weights", ("a", "b", "c"))
    book = Book(tmp_path / "secure.json")
    for other in (plan(run="another"), plan(run="another", deadline_s=7.0), plan(run="another", moon_temperature=0.6)):
        with pytest.raises(GateRefused) as caught:
            book.allow(other, b"weights", ("a", "b"))
        assert caught.value.code == "secure-set"
        book.allow(other, b"weights", ("a", "b", "c"))
    book.allow(plan(run="another"), b"other weights", ("a", "b"))
    book.allow(plan(run="another", seed=4), b"weights", ("a", "b"))
    book.allow(plan(2, run="another"), b"weights", ("a", "b"))


def test_a_run_of_another_name_over_fewer_sites(hospitals: Hospitals) -> None:
    hospitals.run()
    hospitals.folder = hospitals.folder.with_name("another")
    for name in NAMES[:2]:
        hospitals.policy(name, "min-secure-sites = 2")
    with pytest.raises(RoundError, match="secure-set"):
        hospitals.run(NAMES[:2], run="another")


def test_a_book_of_an_earlier_version(tmp_path: Path) -> None:
    path = tmp_path / "secure.json"
    path.write_text('{"sites": {"north": "SHA256:a"}, "revealed": {}}')
    Book(path).reveal(plan(), b"weights", ("a", "b"))
    with pytest.raises(GateRefused):
        Book(path).trust({"north": "SHA256:b"}, {})


def test_a_ledger_that_missed_a_change_of_the_book_learns_of_it(tmp_path: Path) -> None:
    """A kill between file and line; without the line, a copy from just before could be put back unseen."""
    path, ledger = tmp_path / "secure.json", Ledger(tmp_path / "ledger.jsonl")

    def note() -> None:
        ledger.append(direction="none", kind="train", verdict="allowed", code=NOTED)

    def killed() -> None:
        raise KeyboardInterrupt

    before = Book(path, 0, note)
    before.reveal(plan(), b"weights", ("a", "b"))
    with pytest.raises(KeyboardInterrupt):
        Book(path, 1, killed).reveal(plan(2), b"others", ("a", "b"))
    old = path.read_text()
    assert ledger.count(NOTED) == 1
    book = open_book(path, ledger, note)
    assert ledger.count(NOTED) == 2
    book.reveal(plan(2, seed=4), b"third", ("a", "b"))
    assert ledger.count(NOTED) == 3
    path.write_text(old)
    with pytest.raises(StorageError):
        open_book(path, ledger, note)


def test_a_book_of_an_earlier_version_is_known_to_the_ledger_as_soon_as_it_is_opened(tmp_path: Path) -> None:
    path, ledger = tmp_path / "secure.json", Ledger(tmp_path / "ledger.jsonl")
    path.write_text('{"sites": {"north": "SHA256:a"}, "revealed": {}}')

    def note() -> None:
        ledger.append(direction="none", kind="train", verdict="allowed", code=NOTED)

    open_book(path, ledger)  # As the doctor does it, which writes nothing.
    assert not ledger.count(NOTED)
    open_book(path, ledger, note)
    path.unlink()
    with pytest.raises(StorageError):
        open_book(path, ledger, note)


@pytest.mark.parametrize("noted", ["1e400", '"two"', "null"])
def test_a_book_whose_number_is_none(tmp_path: Path, noted: str) -> None:
    path = tmp_path / "secure.json"
    path.write_text(f'{{"noted": {noted}}}')
    with pytest.raises(StorageError, match="damaged"):
        Book(path)


def test_a_book_that_went_missing_is_no_new_one(hospitals: Hospitals) -> None:
    """It holds which sums were made known: who takes it away could have the same sum over other sites."""
    book = hospitals.homes["north"].secure
    hospitals.run()
    whole = book.read_text()
    for number, kept in enumerate((None, "{}", whole.replace('"noted": 3', '"noted": 2'))):
        book.unlink() if kept is None else book.write_text(kept)
        hospitals.restart("north")
        hospitals.folder = hospitals.folder.with_name(f"again-{number}")
        taught = hospitals.sites["north"].rounds
        with pytest.raises(RoundError, match="north: secure-forgotten"):
            hospitals.run(run="another", seed=4)
        assert hospitals.codes("north")[-2:] == [("in", "train", "admitted"), ("out", "train", "secure-forgotten")]
        assert hospitals.sites["north"].rounds == taught
    book.write_text(whole)
    hospitals.restart("north")
    hospitals.folder = hospitals.folder.with_name("restored")
    assert len(hospitals.run(run="another", seed=4).rounds) == 2


def test_a_book_knows_no_less_than_the_ledger(tmp_path: Path) -> None:
    path, lines = tmp_path / "secure.json", []

    def note() -> None:
        assert json.loads(path.read_text())["noted"] == len(lines) + 1  # A crash here leaves more in the book.
        lines.append(1)

    book = Book(path, note=note)
    book.trust({"north": "SHA256:a"}, {})
    book.reveal(plan(), b"weights", ("a", "b"))
    book.reveal(plan(), b"weights", ("a", "b"))
    assert len(lines) == 3
    assert Book(path, 3).known == 1
    with pytest.raises(StorageError, match="knows of 3 changes to it, and the ledger of 4"):
        Book(path, 4)
    with pytest.raises(StorageError, match="older copy"):
        Book(tmp_path / "absent", 1)


def test_a_damaged_book_is_named(tmp_path: Path) -> None:
    (tmp_path / "secure.json").write_text('{"sites": ')
    with pytest.raises(StorageError, match="damaged"):
        Book(tmp_path / "secure.json")


def test_the_policy_names_peers(tmp_path: Path, template: Path) -> None:
    found = fingerprint(new_identity().public)
    text = (template / "policy.toml").read_text()
    (tmp_path / "policy.toml").write_text(text.replace("secure-peers = {}", f'secure-peers = {{ north = "{found}" }}'))
    assert load_policy(tmp_path / "policy.toml").secure_peers == {"north": found}


def test_the_identity_is_the_key_of_the_node(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    path = tmp_path / "node"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    identity = read_identity(path)
    assert identity.public == key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    shown = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    assert fingerprint(identity.public) == keys.fingerprint(shown)
    with pytest.raises(StorageError, match="doctor"):
        read_identity(tmp_path / "absent")


def test_of_two_runs_at_once_and_no_more(tmp_path: Path) -> None:
    """An update is a model in memory: what is left of the oldest run is forgotten."""
    site = SecureSite("north", new_identity, Book())
    update = ({"conv.weight": GIVEN["conv.weight"] + 1, "norm.count": GIVEN["norm.count"]}, {"num-examples": 1.0})
    for run in ("one", "two", "three"):
        site.offer("question", plan(run=run), update, GIVEN, 1, Terms())
    for run, code in (("one", "secure-unknown"), ("three", "malformed")):
        with pytest.raises(GateRefused) as caught:
            site.answer("shares", plan(run=run), arrays_with(b"{}"))
        assert caught.value.code == code
