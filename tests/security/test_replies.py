"""A hostile site at the coordinator: every reply of this list is refused with its reason, and the others go on.

Replies travel as the objects that Flower sends, and are inflated from these, so that they can be broken there as well.
A patient's name that a site plants in a reply must reach neither the journal nor a log, an event or an error.
"""

import io
import json
import pickle
import tracemalloc
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from wardround.deploy.grid import InProcessGrid
from wardround.errors import RoundError
from wardround.server.journal import Journal, read_rounds
from wardround.server.rounds import Event, LoopSettings, RunResult, run_rounds
from wardround.strategies.catalogue import make_strategy
from wardround.strategies.contract import (
    ARRAYS,
    METRICS,
    PLAN,
    Weights,
    arrays_in,
    metrics_in,
    plan_in,
    weights_from_record,
    weights_to_record,
)
from wardround.strategies.plan import RoundPlan

CANARY = "JOHN_DOE"
START: Weights = {
    "conv": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),
    "bias": np.zeros(2, np.float32),
    "steps": np.array(3, np.int64),
}


@dataclass(frozen=True)
class Sent:
    """What a site is about to send: a message, and what becomes of its objects on the way."""

    message: Message
    tamper: Callable[[dict[str, bytes]], dict[str, bytes]] = dict

    def arrive(self) -> Message:
        """The message as the coordinator's grid inflates it."""
        objects = {name: part.deflate() for name, part in get_all_nested_objects(self.message).items()}
        arrived = inflate_object_from_contents(self.message.object_id, self.tamper(objects))
        assert isinstance(arrived, Message)
        return arrived


Attack = Callable[[Message, Message], Sent | Message]


class WireGrid(InProcessGrid):
    """An in-process grid whose replies go over Flower's wire; the site ``mallory`` sends what it wants."""

    def __init__(self, sites: Iterable[str], attack: Attack, kind: str = "train") -> None:
        super().__init__(self._site, sites)  # type: ignore[arg-type]  # called like one
        self._attack, self._kind = attack, kind

    def _site(self, message: Message, context: Context) -> Message:
        name = str(context.node_config["site"])
        honest = learn(message, len(name))
        if name != "mallory" or message.metadata.message_type != self._kind:
            return Sent(honest).arrive()
        sent = self._attack(message, honest)
        return (sent if isinstance(sent, Sent) else Sent(sent)).arrive()

    def _answer(self, message: Message) -> Message:
        # What cannot be inflated is raised to the coordinator, as Flower's grid does, and not answered for the site.
        name = self.site_name(message.metadata.dst_node_id)
        return self._site(message, replace(self._contexts[message.metadata.dst_node_id], node_config={"site": name}))


def learn(message: Message, target: float) -> Message:
    """The reply of a site that keeps the contract."""
    weights = weights_from_record(arrays_in(message.content))
    if message.metadata.message_type == "evaluate":
        return answer(message, None, {"num-examples": 2.0, "dice": 0.5})
    moved = {name: (array + (target - array) / 3).astype(array.dtype) for name, array in weights.items()}
    return answer(message, moved, {"num-examples": 2.0, "loss": 0.5})


def answer(message: Message, weights: Weights | None, metrics: dict[str, Any], **records: Any) -> Message:
    content = RecordDict({METRICS: MetricRecord(metrics)})
    if weights is not None:
        content[ARRAYS] = weights_to_record(weights)
    for name, record in records.items():
        content[name] = record
    return Message(content, reply_to=message)


def swapped(message: Message, honest: Message, **arrays: Array) -> Message:
    """The honest reply with some arrays replaced, or added."""
    record = ArrayRecord({**dict(arrays_in(honest.content).items()), **arrays})
    return Message(RecordDict({ARRAYS: record, METRICS: metrics_in(honest.content)}), reply_to=message)


def npy(array: np.ndarray[Any, Any], **keywords: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **keywords)
    return stream.getvalue()


def changed(**arrays: np.ndarray[Any, Any]) -> Attack:
    return lambda message, honest: swapped(message, honest, **{name: Array(array) for name, array in arrays.items()})


def declared(dtype: str, shape: tuple[int, ...], stype: str, data: bytes) -> Attack:
    return lambda message, honest: swapped(message, honest, bias=Array(dtype, shape, stype, data))


def scalars(**metrics: Any) -> Attack:
    named = {name.replace("_", "-"): value for name, value in metrics.items()}
    return lambda message, honest: answer(
        message, weights_from_record(arrays_in(honest.content)), {"num-examples": 2.0, **named}
    )


def error(code: int, reason: str) -> Attack:
    return lambda message, honest: Message(Error(code, reason), reply_to=message)


def beside(**records: Any) -> Attack:
    return lambda message, honest: answer(
        message, weights_from_record(arrays_in(honest.content)), {"num-examples": 2.0}, **records
    )


def metadata(**fields: Any) -> Attack:
    def attack(message: Message, honest: Message) -> Message:
        for name, value in fields.items():
            honest.metadata.__dict__[f"_{name}"] = value
        return honest

    return attack


def broken(kind: str, body: bytes) -> Attack:
    """The honest reply, with the object of one record replaced by other bytes under its old name."""

    def tamper(objects: dict[str, bytes]) -> dict[str, bytes]:
        return {
            name: data[: data.index(b"\x00") + 1] + body if data.startswith(f"{kind} ".encode()) else data
            for name, data in objects.items()
        }

    return lambda message, honest: Sent(honest, tamper)


class Bomb:
    """Unpickling this would be seen."""

    went_off = False

    def __reduce__(self) -> Any:
        return (setattr, (Bomb, "went_off", True))


def with_comment(data: bytes) -> bytes:
    """The header of an array is a Python literal; a comment in it would be read over."""
    comment = f"#{CANARY}\n".encode()
    padded = data.index(b"}") + 1
    return data[:padded] + comment + data[padded + len(comment) :]


GOOD = npy(np.zeros(2, np.float32))
HUGE = GOOD.replace(b"(2,), }" + b" " * 12, b"(2684354560,), }  ".ljust(19))
ATTACKS: dict[str, tuple[Attack, str]] = {
    "nan": (changed(conv=np.full((3, 4), np.nan, np.float32)), "not-finite"),
    "one infinity": (changed(bias=np.array([0, np.inf], np.float32)), "not-finite"),
    "a shape that broadcasts": (changed(bias=np.zeros(1, np.float32)), "shape"),
    "a transposed array": (changed(conv=np.zeros((4, 3), np.float32)), "shape"),
    "an extra array": (changed(JOHN_DOE=np.zeros(2, np.float32)), "names"),
    "a name that looks the same": (
        lambda message, honest: answer(
            message,
            {name.replace("b", "\u042c"): a for name, a in weights_from_record(arrays_in(honest.content)).items()},
            {"num-examples": 2.0},
        ),
        "names",
    ),
    "far away": (changed(conv=np.full((3, 4), 1e9, np.float32)), "norm"),
    "owns the mean": (scalars(num_examples=1e12), "num-examples"),
    "owns the mean with an integer": (scalars(num_examples=2**62), "num-examples"),
    "cancels the others": (scalars(num_examples=-4.0), "num-examples"),
    "pickle": (declared("float32", (2,), "numpy.ndarray", pickle.dumps(Bomb())), "encoding"),
    "pickle inside an array": (
        declared("float32", (2,), "numpy.ndarray", npy(np.array([Bomb()], dtype=object), allow_pickle=True)),
        "encoding",
    ),
    "pickle that says so": (declared("float32", (2,), "pickle", pickle.dumps(Bomb())), "encoding"),
    "10 GB declared": (declared("float32", (2684354560,), "numpy.ndarray", HUGE), "shape"),
    "10 GB in the header": (declared("float32", (2,), "numpy.ndarray", HUGE), "encoding"),
    "more bytes than declared": (declared("float32", (2,), "numpy.ndarray", GOOD + bytes(200_000)), "encoding"),
    "a name in a dtype": (declared(CANARY, (2,), "numpy.ndarray", GOOD), "dtype"),
    "a name in an encoding": (declared("float32", (2,), CANARY, GOOD), "encoding"),
    "a name in a header": (declared("float32", (2,), "numpy.ndarray", with_comment(GOOD)), "encoding"),
    "a name behind the numbers": (declared("float32", (2,), "numpy.ndarray", GOOD + CANARY.encode()), "encoding"),
    "a name of a metric": (scalars(JOHN_DOE=1.0), "metric"),
    "a long metric": (scalars(loss=[0.0] * 100_000), "metric"),
    "a name in a record": (beside(note=ConfigRecord({"patient": CANARY})), "extra-record"),
    "a name of a record": (beside(JOHN_DOE=MetricRecord({"age": 71})), "extra-record"),
    "images": (beside(images=ArrayRecord({CANARY: Array(np.zeros(64, np.uint8))})), "extra-record"),
    "text for scalars": (
        lambda message, honest: Message(
            RecordDict(
                {ARRAYS: arrays_in(honest.content), METRICS: ConfigRecord({"num-examples": 2.0, "note": CANARY})}
            ),
            reply_to=message,
        ),
        "missing-record",
    ),
    "an exception's text": (error(2, f"ValueError:<'no such file /data/{CANARY}/ct.nii.gz'>"), "error-reply"),
    "a name that looks like a class": (error(100, CANARY), "error-reply"),
    "a name that looks like a code": (error(100, "john-doe"), "error-reply"),
    "another round": (metadata(group_id=CANARY), "other-round"),
    "another kind": (metadata(message_type="query"), "other-type"),
    "no list of records": (broken("RecordDict", CANARY.encode()), "undecodable"),
    "records that are no table": (broken("RecordDict", json.dumps([CANARY]).encode()), "undecodable"),
    "endless brackets": (broken("ArrayRecord", b"[" * 200_000), "undecodable"),
    "an array without a description": (broken("Array", json.dumps({CANARY: 1}).encode()), "undecodable"),
    "scalars that are no scalars": (broken("MetricRecord", b"\xff" + CANARY.encode()), "undecodable"),
}


@dataclass
class Seen:
    """Where a planted name could come out."""

    folder: Path
    caplog: pytest.LogCaptureFixture
    capfd: pytest.CaptureFixture[str]
    events: list[Event]

    def canaries(self, more: str = "") -> list[str]:
        """The places in which it did."""
        output = self.capfd.readouterr()
        texts = {
            "log": self.caplog.text,
            "stdout": output.out,
            "stderr": output.err,
            "events": repr(self.events),
            "more": more,
            **{str(path): path.read_bytes().decode("latin-1") for path in self.folder.rglob("*") if path.is_file()},
        }
        return [place for place, text in texts.items() if "john" in text.lower().replace("\u042c", "b")]


@pytest.fixture
def seen(tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Seen:
    caplog.set_level("DEBUG")
    return Seen(tmp_path, caplog, capfd, [])


def run(seen: Seen, grid: InProcessGrid, folder: str, **settings: Any) -> RunResult:
    with Journal(seen.folder / folder) as journal:
        return run_rounds(
            grid,
            make_strategy("fedavg"),
            lambda number: RoundPlan(run="hostile", round=number, rounds=3, seed=1, model="none", labels=2),
            START,
            journal,
            LoopSettings(**{"rounds": 3, "quorum": 2, "deadline_s": 5.0, **settings}),
            site_name=grid.site_name,
            on_event=seen.events.append,
        )


def same(one: Weights, other: Weights) -> bool:
    return all(one[name].tobytes() == other[name].tobytes() for name in START)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_reply_is_refused_with_its_reason_and_the_others_go_on(name: str, seen: Seen) -> None:
    attack, code = ATTACKS[name]
    honest = run(seen, WireGrid(["north", "south-west"], attack), "honest")
    hostile = run(seen, WireGrid(["mallory", "north", "south-west"], attack), "hostile")
    assert same(hostile.weights, honest.weights)
    for record in hostile.rounds:
        assert record.refused == {"mallory": code}
        assert set(record.sites) == {"north", "south-west"}
    assert set(hostile.evaluation) == {"north", "south-west"}
    # A round that needs the hostile site is never closed, and its error does not quote it either.
    with pytest.raises(RoundError) as stuck:
        run(seen, WireGrid(["mallory", "north", "south-west"], attack), "stuck", quorum=3)
    assert f"mallory: {code}" in stuck.value.cause
    assert read_rounds(seen.folder / "stuck") == []
    assert seen.canaries(str(stuck.value)) == []
    assert not Bomb.went_off


def test_the_watch_sees_a_canary(seen: Seen) -> None:
    (seen.folder / "file").write_text(CANARY)
    assert seen.canaries() == [str(seen.folder / "file")]
    (seen.folder / "file").unlink()
    assert seen.canaries("no site called john-doe") == ["more"]


def test_what_is_declared_is_not_allocated(seen: Seen) -> None:
    for name in ("10 GB declared", "10 GB in the header"):
        tracemalloc.start()
        run(seen, WireGrid(["mallory", "north", "south-west"], ATTACKS[name][0]), name)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 50e6


def test_a_replayed_reply_counts_once(seen: Seen) -> None:
    first: list[Weights] = []

    def replay(message: Message, honest: Message) -> Message:
        first.append(weights_from_record(arrays_in(honest.content)))
        examples = 2.0 + RoundPlan.from_record(plan_in(message.content)).round
        return answer(message, first[0], {"num-examples": examples})

    records = run(seen, WireGrid(["mallory", "north", "south-west"], replay), "replay").rounds
    assert [dict(record.refused) for record in records] == [{}, {"mallory": "replayed"}, {"mallory": "replayed"}]


def test_a_reply_for_another_message_is_never_taken_for_an_answer(seen: Seen) -> None:
    attack = metadata(reply_to_message_id="message-1")
    records = run(seen, WireGrid(["mallory", "north", "south-west"], attack), "stray", deadline_s=0.2).rounds
    assert {record.missing.get("mallory") for record in records[1:]} == {"late"}
    assert all({"north", "south-west"} <= set(record.sites) for record in records)


@pytest.mark.parametrize(
    ("attack", "code"),
    [
        (lambda message, honest: answer(message, START, {"num-examples": 1.0}), "extra-record"),
        (lambda message, honest: answer(message, None, {"num-examples": 1.0, "dice": float("nan")}), "metric"),
        (lambda message, honest: answer(message, None, {"num-examples": 1.0, CANARY: 1.0}), "metric"),
        (lambda message, honest: answer(message, None, {"num-examples": 1e12, "dice": 1.0}), "num-examples"),
        (error(2, CANARY), "error-reply"),
        (broken("MetricRecord", b"\xff" + CANARY.encode()), "undecodable"),
    ],
)
def test_hostile_scores(attack: Attack, code: str, seen: Seen) -> None:
    result = run(seen, WireGrid(["mallory", "north", "south-west"], attack, "evaluate"), "scores")
    evaluation = result.rounds[-1].evaluation
    assert evaluation is not None
    assert evaluation.refused == {"mallory": code}
    assert set(result.evaluation) == {"north", "south-west"}
    assert seen.canaries() == []


def test_who_keeps_on_attacking_is_not_asked_any_more(seen: Seen) -> None:
    attack, code = ATTACKS["nan"]
    records = run(seen, WireGrid(["mallory", "north", "south-west"], attack), "quarantine", quarantine_after=1).rounds
    assert [dict(record.refused) for record in records] == [{"mallory": code}, {}, {}]
    assert records[-1].standing["mallory"].until == 3


def test_the_plan_reaches_the_sites_as_it_was_made() -> None:
    plan = RoundPlan(run="hostile", round=1, rounds=3, seed=1, model="none", labels=2)
    message = Message(RecordDict({PLAN: plan.to_record(), ARRAYS: weights_to_record(START)}), 1, "train")
    assert RoundPlan.from_record(plan_in(Sent(message).arrive().content)) == plan
