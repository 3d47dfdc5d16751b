"""The door itself: every way in, every way out, what stands in the ledger afterwards, and what never does."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import PROJECT, Clock, pack, sha256
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from wardround.client.gate.gate import Gate
from wardround.client.gate.ledger import Ledger, LedgerEntry
from wardround.errors import GateRefused, StorageError, UsageError
from wardround.strategies.contract import ARRAYS, METRICS, Weights, digest, weights_to_record
from wardround.strategies.plan import RoundPlan

Answer = Callable[..., RecordDict]

CANARY = "DOE^JOHN^1970"
SHA = "ab" * 32


def lines(gate: Gate) -> list[tuple[str, str, str, str]]:
    return [(entry.direction, entry.kind, entry.verdict, entry.code) for entry in gate.ledger.entries()]


def last(gate: Gate) -> LedgerEntry:
    return list(gate.ledger.entries())[-1]


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(GateRefused) as refused:
        act()
    assert CANARY not in str(refused.value)
    assert refused.value.__cause__ is None
    return refused.value.code


class TestBundles:
    def test_one_that_nobody_knows_waits(self, gate: Gate) -> None:
        fab = pack()
        assert refusal(lambda: gate.admit_app(sha256(fab), fab)) == "bundle-not-approved"
        assert [found.sha256 for found in gate.approvals.pending()] == [sha256(fab)]
        assert lines(gate) == [("in", "app", "refused", "bundle-not-approved")]
        assert (last(gate).sha256, last(gate).bytes) == (sha256(fab), len(fab))

    def test_one_that_was_approved_comes_in(self, gate: Gate) -> None:
        fab = pack()
        gate.approvals.keep(fab)
        gate.approvals.approve(sha256(fab), "Ada")
        gate.admit_app(sha256(fab), fab)
        gate.admit_app(sha256(fab), None)
        assert lines(gate) == [("none", "app", "allowed", "approved")] + [("in", "app", "allowed", "admitted")] * 2

    def test_an_approval_that_is_over_or_taken_back(self, gate: Gate, clock: Clock) -> None:
        fab = pack()
        gate.approvals.keep(fab)
        gate.approvals.approve(sha256(fab), "Ada", days=1)
        clock.now += 24 * 3600
        assert refusal(lambda: gate.admit_app(sha256(fab), fab)) == "bundle-expired"
        gate.approvals.approve(sha256(fab), "Ada")
        gate.admit_app(sha256(fab), fab)
        gate.approvals.revoke(sha256(fab), "Ada")
        assert refusal(lambda: gate.admit_app(sha256(fab), fab)) == "bundle-revoked"
        assert refusal(lambda: gate.admit_app(sha256(fab), None)) == "bundle-revoked"

    def test_one_that_is_not_the_one_that_was_named(self, gate: Gate) -> None:
        approved, other = pack(), pack({"pyproject.toml": PROJECT, "app.py": b""})
        gate.approvals.keep(approved)
        gate.approvals.approve(sha256(approved), "Ada")
        assert refusal(lambda: gate.admit_app(sha256(approved), other)) == "bundle-hash"
        for named in ("", CANARY, "../../etc/passwd", sha256(approved).upper(), sha256(approved)[:8], None, 7):
            assert refusal(lambda named=named: gate.admit_app(named, None)) == "bundle-hash"  # type: ignore[misc]

    def test_a_hostile_one_is_not_kept(self, gate: Gate, home: Path) -> None:
        fab = pack(manifest=CANARY.encode())
        assert refusal(lambda: gate.admit_app(sha256(fab), fab)) == "bundle-manifest"
        assert refusal(lambda: gate.admit_app(sha256(b""), b"")) == "bundle-unreadable"
        assert gate.approvals.listing() == ()
        assert not (home / "bundles").exists()

    def test_one_that_would_replace_ours_waits_and_is_never_approved(self, gate: Gate) -> None:
        fab = pack({"pyproject.toml": PROJECT, "wardround/__init__.py": b""})
        assert refusal(lambda: gate.admit_app(sha256(fab), fab)) == "bundle-not-approved"
        assert refusal(lambda: gate.approvals.approve(sha256(fab), "Ada", with_code=True)) == "bundle-shadows"
        assert refusal(lambda: gate.admit_app(sha256(fab), fab)) == "bundle-not-approved"

    def test_a_list_of_approvals_that_cannot_be_read(self, gate: Gate, home: Path) -> None:
        fab = pack()
        gate.approvals.keep(fab)
        gate.approvals.approve(sha256(fab), "Ada")
        (home / "approvals.json").write_text("{")
        assert refusal(lambda: gate.admit_app(sha256(fab), fab)) == "approvals-unreadable"
        assert last(gate).code == "approvals-unreadable"


class TestComingIn:
    def test_a_message_leaves_its_line(self, gate: Gate, plan: RoundPlan, weights: Weights, clock: Clock) -> None:
        record = weights_to_record(weights)
        gate.admit("train", plan, record)
        entry = last(gate)
        assert (entry.direction, entry.kind, entry.verdict, entry.code) == ("in", "train", "allowed", "admitted")
        assert (entry.run, entry.round, entry.plan) == ("demo", 2, plan.digest())
        assert entry.sha256 == digest(RecordDict({ARRAYS: record}))
        assert entry.bytes == sum(len(array.data) for array in record.values())
        assert (entry.cases, entry.epsilon) == (None, None)
        assert entry.time == "2027-01-15T08:00:00.000000Z"

    def test_the_network_is_asked_for_only_if_the_plan_is_allowed(
        self, gate: Gate, plan: RoundPlan, weights: Weights
    ) -> None:
        asked: list[RoundPlan] = []

        def looks(of: RoundPlan) -> dict[str, tuple[tuple[int, ...], str]]:
            asked.append(of)
            return {name: (array.shape, str(array.dtype)) for name, array in weights.items()}

        foreign = plan.model_copy(update={"model": "another"})
        assert (
            refusal(lambda: gate.admit("train", foreign, weights_to_record(weights), reference=looks)) == "plan-model"
        )
        assert asked == []
        gate.admit("train", plan, weights_to_record(weights), reference=looks)
        assert asked == [plan]
        fewer = {"conv.bias": ((2,), "float32")}
        assert refusal(lambda: gate.admit("train", plan, weights_to_record(weights), reference=fewer)) == "names"

    @pytest.mark.parametrize(
        ("kind", "changes", "arrays", "code"),
        [
            ("train", {"rounds": 5000}, {}, "plan-rounds"),
            ("train", {"supervision": "dense"}, {}, "plan-supervision"),
            ("train", {}, {"conv.bias": np.array([np.nan], np.float32)}, "not-finite"),
            ("train", {}, {CANARY: np.zeros(1, np.float32)}, "names"),
            ("evaluate", {"rounds": 5000}, {}, "plan-rounds"),
            ("dance", {}, {}, "kind-not-allowed"),
            (CANARY, {}, {}, "kind-not-allowed"),
            (None, {}, {}, "kind-not-allowed"),
            ("query", {}, {}, "extra-record"),
        ],
    )
    def test_a_refusal_leaves_its_line(
        self,
        *,
        gate: Gate,
        plan: RoundPlan,
        weights: Weights,
        kind: Any,
        changes: dict[str, Any],
        arrays: Weights,
        code: str,
    ) -> None:
        asked = plan.model_copy(update=changes)
        record = weights_to_record(weights | arrays)
        assert refusal(lambda: gate.admit(kind, asked, record)) == code
        entry = last(gate)
        assert (entry.direction, entry.verdict, entry.code) == ("in", "refused", code)
        assert entry.kind == (kind if kind in ("train", "evaluate", "query") else "error")
        assert (entry.run, entry.round, entry.plan, entry.sha256) == ("demo", 2, asked.digest(), None)
        assert entry.bytes > 0

    def test_a_message_without_plan_or_weights(self, gate: Gate, plan: RoundPlan, weights: Weights) -> None:
        assert refusal(lambda: gate.admit("train", None, weights_to_record(weights))) == "missing-record"
        assert refusal(lambda: gate.admit("train", plan, None)) == "missing-record"
        assert refusal(lambda: gate.admit("train", plan, ArrayRecord())) == "names"

    def test_a_site_may_refuse_to_score_and_to_say_how_it_is(
        self, gate: Gate, home: Path, plan: RoundPlan, weights: Weights
    ) -> None:
        gate.admit("query", None, None)
        gate.admit("evaluate", plan, weights_to_record(weights))
        (home / "policy.toml").write_text("allow-evaluate = false\nallow-status = false\n")
        assert refusal(lambda: gate.admit("query", None, None)) == "kind-not-allowed"
        assert refusal(lambda: gate.admit("evaluate", plan, weights_to_record(weights))) == "kind-not-allowed"
        gate.admit("train", plan, weights_to_record(weights))

    def test_what_breaks_a_check_is_refused(
        self, gate: Gate, plan: RoundPlan, weights: Weights, caplog: pytest.LogCaptureFixture
    ) -> None:
        def looks(_: RoundPlan) -> Any:
            raise ValueError(CANARY)

        with caplog.at_level(logging.DEBUG):
            record = weights_to_record(weights)
            assert refusal(lambda: gate.admit("train", plan, record, reference=looks)) == "malformed"
        assert last(gate).code == "malformed"
        assert "ValueError" in caplog.text
        assert CANARY not in caplog.text


class TestLeaving:
    def test_an_update_leaves_once(
        self, gate: Gate, release: Callable[..., str], answer: Answer, plan: RoundPlan
    ) -> None:
        told = release(epsilon=0.5)
        assert told == digest(answer())
        assert gate.released(told)
        assert not gate.released(told)
        first, second, third = gate.ledger.entries()
        assert [each.code for each in (first, second, third)] == ["released", "sent", "not-released"]
        assert [each.verdict for each in (first, second, third)] == ["allowed", "allowed", "refused"]
        for entry in (first, second):
            assert (entry.direction, entry.kind, entry.run, entry.round) == ("out", "train", "demo", 2)
            assert (entry.sha256, entry.cases, entry.epsilon, entry.plan) == (told, 6, 0.5, plan.digest())
            assert entry.bytes > 0

    def test_a_score_and_a_status_leave(self, gate: Gate, plan: RoundPlan, answer: Answer) -> None:
        score = RecordDict({METRICS: MetricRecord({"num-examples": 5, "dice": 0.75})})
        assert gate.released(gate.release("evaluate", plan, score, cases=5))
        assert last(gate).cases == 5
        status = RecordDict({METRICS: MetricRecord({"cases": 2.0, "seen": 1.0, "round": 0.0})})
        assert gate.released(gate.release("query", None, status), kind="query")
        assert last(gate).cases is None
        assert refusal(lambda: gate.release("query", None, score)) == "metric"
        assert refusal(lambda: gate.release("evaluate", plan, answer(), cases=6)) == "extra-record"

    @pytest.mark.parametrize(
        ("changes", "code"),
        [
            ({"cases": 4}, "too-few-cases"),
            ({"cases": 5}, "num-examples"),
            ({"cases": -1}, "malformed"),
            ({"cases": 6.0}, "malformed"),
            ({"cases": True}, "malformed"),
            ({"epsilon": -0.1}, "malformed"),
            ({"epsilon": float("nan")}, "malformed"),
            ({"plan": None}, "missing-record"),
            ({"given": None}, "names"),
            ({"given": {}}, "names"),
            ({"kind": "dance"}, "kind-not-allowed"),
            ({"kind": "evaluate"}, "extra-record"),
        ],
    )
    def test_a_refusal_leaves_its_line_and_nothing_else(
        self, gate: Gate, release: Callable[..., str], answer: Answer, changes: dict[str, Any], code: str
    ) -> None:
        assert refusal(lambda: release(**changes)) == code
        assert [each.code for each in gate.ledger.entries()] == [code]
        assert last(gate).verdict == "refused"
        assert not gate.released(digest(answer()))

    def test_a_plan_that_came_in_before_the_policy_changed(
        self, gate: Gate, home: Path, release: Callable[..., str]
    ) -> None:
        (home / "policy.toml").write_text("models = []")
        assert refusal(release) == "plan-model"

    def test_one_changed_bit_does_not_leave(
        self, gate: Gate, release: Callable[..., str], answer: Answer, weights: Weights
    ) -> None:
        release()
        content = answer()
        array = content.array_records[ARRAYS]["conv.bias"]
        content.array_records[ARRAYS]["conv.bias"] = Array(
            dtype=array.dtype,
            shape=array.shape,
            stype=array.stype,
            data=array.data[:-1] + bytes([array.data[-1] ^ 1]),
        )
        assert not gate.released(digest(content))


class TestErrors:
    def test_only_a_code_is_written_down(self, gate: Gate, plan: RoundPlan) -> None:
        gate.note_error("train", plan, "paused")
        gate.note_error("evaluate", plan, "DataError")
        gate.note_error(None, None, f"cannot read /data/{CANARY}.nii.gz")
        gate.note_error(CANARY, None, CANARY)
        assert lines(gate) == [
            ("out", "train", "refused", "paused"),
            ("out", "evaluate", "refused", "data-error"),
            ("out", "error", "refused", "other"),
            ("out", "error", "refused", "other"),
        ]
        assert [(entry.run, entry.round) for entry in gate.ledger.entries()][:3] == [
            ("demo", 2),
            ("demo", 2),
            (None, None),
        ]


class TestNothingPasses:
    """Where the gate cannot know what it allows, or cannot write down what it does."""

    def everything(self, gate: Gate, plan: RoundPlan, weights: Weights, content: RecordDict) -> set[str]:
        status = RecordDict({METRICS: MetricRecord({"cases": 1})})
        return {
            refusal(lambda: gate.admit("train", plan, weights_to_record(weights))),
            refusal(lambda: gate.admit("query", None, None)),
            refusal(lambda: gate.release("train", plan, content, given=weights, cases=6)),
            refusal(lambda: gate.release("query", None, status)),
        }

    @pytest.mark.parametrize("text", [None, b"min-cases = 0", b"\xff", b"[", b"allow-everything = true"])
    def test_without_a_policy(
        self, *, gate: Gate, home: Path, plan: RoundPlan, weights: Weights, answer: Answer, text: bytes | None
    ) -> None:
        gate.admit("train", plan, weights_to_record(weights))
        policy = home / "policy.toml"
        policy.unlink() if text is None else policy.write_bytes(text)
        with pytest.raises(UsageError):
            _ = gate.policy
        assert self.everything(gate, plan, weights, answer()) == {"policy-unreadable"}
        assert {entry.code for entry in gate.ledger.entries()} == {"admitted", "policy-unreadable"}

    def test_with_a_ledger_that_is_not_whole(
        self, home: Path, clock: Clock, plan: RoundPlan, weights: Weights, answer: Answer
    ) -> None:
        gate = Gate(home, clock)
        told = gate.release("train", plan, answer(), given=weights, cases=6)
        ledger = home / "ledger.jsonl"
        ledger.write_bytes(ledger.read_bytes().replace(b'"cases":6', b'"cases":7'))
        damaged = ledger.read_bytes()
        again = Gate(home, clock)
        assert self.everything(again, plan, weights, answer()) == {"ledger-damaged"}
        assert refusal(lambda: again.released(told)) == "ledger-damaged"
        assert refusal(lambda: again.note_error("train", plan, "paused")) == "ledger-damaged"
        fab = pack()
        assert refusal(lambda: again.admit_app(sha256(fab), fab)) == "ledger-damaged"
        assert ledger.read_bytes() == damaged
        again.ledger.set_aside()
        again.admit("train", plan, weights_to_record(weights))
        assert not again.released(told)

    def test_with_a_ledger_that_cannot_be_written(
        self,
        gate: Gate,
        plan: RoundPlan,
        weights: Weights,
        answer: Answer,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        told = gate.release("train", plan, answer(), given=weights, cases=6)

        def full(*_: object, **__: object) -> None:
            raise StorageError("cannot write", "the disk is full", "")

        monkeypatch.setattr(Ledger, "append", full)
        assert self.everything(gate, plan, weights, answer()) == {"ledger-not-written"}
        assert refusal(lambda: gate.released(told)) == "ledger-not-written"
        monkeypatch.undo()
        assert gate.released(told)
        assert not gate.released(told)

    def test_a_line_that_a_crash_tore_is_mended_at_the_start(self, gate: Gate, home: Path, clock: Clock) -> None:
        gate.admit("query", None, None)
        with (home / "ledger.jsonl").open("ab") as file:
            file.write(b'{"number":2,"time')
        Gate(home, clock)
        assert [entry.code for entry in Ledger(home / "ledger.jsonl").entries()] == ["admitted", "torn-line-dropped"]

    def test_a_new_policy_counts_from_the_next_message_on(
        self, gate: Gate, home: Path, plan: RoundPlan, weights: Weights
    ) -> None:
        gate.admit("train", plan, weights_to_record(weights))
        (home / "policy.toml").write_text("max-rounds = 2")
        assert refusal(lambda: gate.admit("train", plan, weights_to_record(weights))) == "plan-rounds"
        (home / "policy.toml").write_text("max-rounds = 3")
        gate.admit("train", plan, weights_to_record(weights))


def test_no_text_of_a_patient_reaches_ledger_or_log(
    *,
    gate: Gate,
    home: Path,
    plan: RoundPlan,
    weights: Weights,
    answer: Answer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A canary in every place where a text could be: names, values, headers, codes, kinds, bundles."""
    with caplog.at_level(logging.DEBUG):
        odd = weights_to_record({CANARY: np.zeros(1, np.float32)})
        header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }} #{CANARY}\n".encode()
        data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(8)
        hidden = answer()
        hidden.array_records[ARRAYS]["conv.bias"] = Array("float32", (2,), "numpy.ndarray", data)
        alien = Array(CANARY, (2,), CANARY, CANARY.encode())
        out: list[RecordDict] = [
            hidden,
            answer(metrics={"num-examples": 6.0, CANARY: 1.0}),
            answer(metrics={"num-examples": 6.0, "loss": [float(ord(letter)) for letter in CANARY]}),
            answer(arrays=weights | {CANARY: np.zeros(1, np.float32)}),
            RecordDict({**answer(), CANARY: ConfigRecord({CANARY: CANARY})}),
            RecordDict({METRICS: ConfigRecord({CANARY: CANARY}), ARRAYS: ArrayRecord({CANARY: alien})}),
        ]
        for content in out:
            refusal(lambda content=content: gate.release("train", plan, content, given=weights, cases=6))  # type: ignore[misc]
        for record in (odd, ArrayRecord({"a": alien}), ArrayRecord({CANARY: alien})):
            refusal(lambda record=record: gate.admit("train", plan, record))  # type: ignore[misc]
        refusal(lambda: gate.admit(CANARY, plan, odd))  # type: ignore[arg-type]
        gate.released(CANARY)
        gate.released(SHA, kind=CANARY, run=CANARY)
        gate.note_error(CANARY, plan, CANARY)
        for fab in (CANARY.encode(), pack({"pyproject.toml": CANARY.encode()}), pack(manifest=CANARY.encode())):
            refusal(lambda fab=fab: gate.admit_app(sha256(fab), fab))  # type: ignore[misc]
    written = b"".join(file.read_bytes() for file in home.rglob("*") if file.is_file())
    for form in (CANARY, json.dumps(CANARY), "DOE", "JOHN"):
        assert form.encode() not in written
        assert form not in caplog.text
    assert len(list(gate.ledger.entries())) == 16
    assert gate.ledger.verify().ok


def test_the_gate_is_light() -> None:
    """It is loaded wherever a line of the ledger is read: without torch, and without anything that opens an image."""
    modules = ["approvals", "bundle", "chain", "codes", "gate", "ledger", "policy", "update"]
    imports = ", ".join(f"wardround.client.gate.{name}" for name in modules)
    code = f"import sys, {imports}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert answer.returncode == 0, answer.stderr
    loaded = set(answer.stdout.split())
    assert "wardround" in loaded
    assert not loaded & {"torch", "monai", "SimpleITK", "scipy", "nibabel", "matplotlib", "sqlalchemy"}
