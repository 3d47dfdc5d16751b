"""What comes in and what leaves: arrays, scalars, and whatever somebody might hide in them."""

import io
import math
import pickle
import re
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from wardround.client.gate.codes import CODES
from wardround.client.gate.policy import Policy
from wardround.client.gate.update import (
    check_incoming,
    check_metrics,
    check_outgoing,
    check_status,
    size_of,
    without_withheld,
)
from wardround.errors import GateRefused
from wardround.strategies.contract import ARRAYS, METRICS, Weights, weights_to_record

CANARY = "DOE^JOHN^1970"
Answer = Callable[..., RecordDict]

GOOD: dict[str, Any] = {"num-examples": 6.0, "loss": 0.5}


def refusal(check: Callable[[], object]) -> str:
    """The code with which `check` refuses, once it is sure that the refusal gives nothing away."""
    with pytest.raises(GateRefused) as refused:
        check()
    assert CANARY not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.code in CODES
    return refused.value.code


def looks(weights: Weights) -> dict[str, tuple[tuple[int, ...], str]]:
    return {name: (array.shape, str(array.dtype)) for name, array in weights.items()}


def crafted(array: Array, **changes: Any) -> Array:
    """The array with other fields; some of them could not be given when one is made."""
    other = Array(dtype=array.dtype, shape=array.shape, stype=array.stype, data=array.data)
    for field, value in changes.items():
        setattr(other, field, value)
    return other


class Bomb:
    """Unpickling it would be noticed."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("it was unpickled",))


def pickled() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([Bomb()], dtype=object), allow_pickle=True)
    return stream.getvalue()


class TestIncoming:
    def test_good_weights_come_in(self, weights: Weights) -> None:
        record = weights_to_record(weights)
        check_incoming(record, Policy(), looks(weights))
        check_incoming(record, Policy(), None)
        assert list(record) == list(weights)

    def test_the_order_of_arrays_is_free(self, weights: Weights) -> None:
        check_incoming(weights_to_record(dict(reversed(weights.items()))), Policy(), looks(weights))

    @pytest.mark.parametrize(
        ("change", "code"),
        [
            (lambda arrays: arrays.pop("steps"), "names"),
            (lambda arrays: arrays.update({CANARY: np.zeros(1, np.float32)}), "names"),
            (lambda arrays: arrays.update(extra=np.zeros(1, np.float32)), "names"),
            (lambda arrays: arrays.update(steps=np.zeros(1, np.int64)), "shape"),
            (lambda arrays: arrays.update(steps=np.zeros((), np.float64)), "dtype"),
            (lambda arrays: arrays["conv.weight"].fill(np.nan), "not-finite"),
            (lambda arrays: arrays["conv.bias"].fill(np.inf), "not-finite"),
            (lambda arrays: arrays.clear(), "names"),
        ],
    )
    def test_weights_of_another_network(
        self, weights: Weights, change: Callable[[dict[str, Any]], None], code: str
    ) -> None:
        arrays = {name: array.copy() for name, array in weights.items()}
        change(arrays)
        assert refusal(lambda: check_incoming(weights_to_record(arrays), Policy(), looks(weights))) == code

    @pytest.mark.parametrize("name", ["", " ", "a b", "../x", "a/b", "a\n", "a..b", ".a", "a" * 201, CANARY, "a\u00e9"])
    def test_odd_names_are_refused_even_where_the_network_is_not_known(self, name: str) -> None:
        record = weights_to_record({name: np.zeros(1, np.float32)})
        assert refusal(lambda: check_incoming(record, Policy(), None)) == "names"

    @pytest.mark.parametrize(
        ("changes", "code"),
        [
            ({"data": pickled()}, "encoding"),
            ({"data": pickled(), "dtype": "object"}, "dtype"),
            ({"data": b""}, "encoding"),
            ({"data": CANARY.encode()}, "encoding"),
            ({"stype": "torch"}, "encoding"),
            ({"dtype": "float64"}, "encoding"),
            ({"dtype": "S10000000000"}, "dtype"),
            ({"dtype": "f4,f4"}, "dtype"),
            ({"dtype": CANARY}, "dtype"),
            ({"dtype": "complex64"}, "dtype"),
            ({"shape": (4,)}, "encoding"),
            ({"shape": (-2, -2)}, "shape"),
            ({"shape": (2.0, 2)}, "shape"),
            ({"shape": (True, 2)}, "shape"),
            ({"shape": ("2", 2)}, "shape"),
        ],
    )
    def test_crafted_arrays(self, weights: Weights, changes: dict[str, Any], code: str) -> None:
        record = weights_to_record(weights)
        record["conv.weight"] = crafted(record["conv.weight"], **changes)
        assert refusal(lambda: check_incoming(record, Policy(), None)) == code

    @pytest.mark.parametrize("shape", [(2_500_000_000,), (10**6, 10**6), (10**300,)])
    def test_ten_gigabytes_that_are_only_declared(self, shape: tuple[int, ...]) -> None:
        header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
        data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
        record = ArrayRecord({"a": Array(dtype="float32", shape=shape, stype="numpy.ndarray", data=data)})
        tracemalloc.start()
        try:
            assert refusal(lambda: check_incoming(record, Policy(), None)) == "too-large"
            generous = Policy(max_parameters_bytes=10**400)
            assert refusal(lambda: check_incoming(record, generous, None)) == "encoding"
            assert tracemalloc.get_traced_memory()[1] < 2**20
        finally:
            tracemalloc.stop()

    def test_arrays_are_weighed_together(self, weights: Weights) -> None:
        size = sum(len(array.data) for array in weights_to_record(weights).values())
        check_incoming(weights_to_record(weights), Policy(max_parameters_bytes=size), None)
        short = Policy(max_parameters_bytes=size - 1)
        assert refusal(lambda: check_incoming(weights_to_record(weights), short, None)) == "too-large"

    def test_many_arrays(self) -> None:
        one = weights_to_record({"a": np.zeros(1, np.float32)})["a"]
        record = ArrayRecord({f"a{number}": one for number in range(10_001)})
        assert refusal(lambda: check_incoming(record, Policy(), None)) == "names"


class TestOutgoing:
    def check(self, content: RecordDict, given: Weights, kind: Any = "train", cases: int = 6, **limits: Any) -> str:
        return refusal(lambda: check_outgoing(kind, content, Policy(**limits), given, cases))

    def test_a_good_update_and_a_good_score_leave(self, answer: Answer, weights: Weights) -> None:
        content = answer()
        check_outgoing("train", content, Policy(), weights, 6)
        assert content == answer()
        scores = answer(metrics={"num-examples": 5, "dice": 0.8, "dice-2": 0.7}, arrays=None)
        del scores["arrays"]
        check_outgoing("evaluate", scores, Policy(), weights, 5)

    def test_too_few_cases(self, answer: Answer, weights: Weights) -> None:
        content = answer(metrics={"num-examples": 4.0})
        assert self.check(content, weights, cases=4) == "too-few-cases"
        check_outgoing("train", content, Policy(min_cases=4), weights, 4)
        del content["arrays"]
        assert self.check(content, weights, "evaluate", cases=4) == "too-few-cases"

    @pytest.mark.parametrize("claimed", [7.0, 1e12, 0.0, -1.0, math.nan, math.inf, 2**70])
    def test_an_answer_claims_no_more_cases_than_there_are(
        self, answer: Answer, weights: Weights, claimed: float
    ) -> None:
        assert self.check(answer(metrics={"num-examples": claimed}), weights) in ("num-examples", "metric")

    @pytest.mark.parametrize(
        ("records", "code"),
        [
            ({"arrays": None}, "missing-record"),
            ({"metrics": None}, "missing-record"),
            ({"metrics": ConfigRecord({"num-examples": 6.0})}, "missing-record"),
            ({"more": ConfigRecord({"patient": CANARY})}, "extra-record"),
            ({CANARY: MetricRecord({})}, "extra-record"),
            ({"plan": ConfigRecord({})}, "extra-record"),
        ],
    )
    def test_records_other_than_agreed(
        self, answer: Answer, weights: Weights, records: dict[str, Any], code: str
    ) -> None:
        content = answer()
        for name, record in records.items():
            if record is None:
                del content[name]
            else:
                content[name] = record
        assert self.check(content, weights) == code

    def test_weights_do_not_leave_with_a_score(self, answer: Answer, weights: Weights) -> None:
        assert self.check(answer(metrics={"num-examples": 6.0}), weights, "evaluate") == "extra-record"

    @pytest.mark.parametrize(
        "metrics",
        [
            {CANARY: 1.0},
            {"patient-19700101": 1.0},
            {"loss-19700101": 1.0},
            {"dice": 0.5},
            {"seen": 3},
            {"loss": math.nan},
            {"loss": -math.inf},
            {"loss": 1e10},
            {"loss": 10**400},
            {"loss": -(10**400)},
            {"loss": [0.5]},
            {"loss": []},
            {"loss": [float(ord(letter)) for letter in CANARY]},
            {"num-examples": [6.0]},
            {"trust": 2.0},
            {"kernel-ratio": math.nan},
            {"kernel-mean": 1.5},
            {"kernel-different": 0.1},
        ],
    )
    def test_metrics_other_than_agreed(self, answer: Answer, weights: Weights, metrics: dict[str, Any]) -> None:
        assert self.check(answer(metrics=GOOD | metrics), weights) in ("metric", "num-examples")

    def test_a_metric_that_the_policy_took_out(self, answer: Answer, weights: Weights) -> None:
        narrow = frozenset({"num-examples"})
        assert self.check(answer(), weights, train_metrics=narrow) == "metric"
        check_outgoing("train", answer(metrics={"num-examples": 6.0}), Policy(train_metrics=narrow), weights, 6)

    def test_an_answer_leaves_without_what_the_policy_took_out(self, answer: Answer, weights: Weights) -> None:
        policy = Policy(train_metrics=frozenset({"trust"}), evaluate_metrics=frozenset({"num-examples", "loss"}))
        content = answer(metrics={"num-examples": 6.0, "loss": 0.5, "trust": 1.0, CANARY: 1.0})
        kept = without_withheld("train", content, policy)
        assert dict(kept.metric_records[METRICS]) == {"num-examples": 6.0, "trust": 1.0, CANARY: 1.0}
        assert kept[ARRAYS] is content[ARRAYS]
        scores = answer(metrics={"num-examples": 6.0, "loss": 0.5, "dice": 0.8, "dice-2": 0.7})
        scores = without_withheld("evaluate", RecordDict({METRICS: scores[METRICS]}), policy)
        assert dict(scores.metric_records[METRICS]) == {"num-examples": 6.0, "loss": 0.5}
        check_outgoing("evaluate", scores, policy, weights, 6)
        assert without_withheld("train", content, Policy()) is content

    def test_a_number_that_is_more_than_a_number(self) -> None:
        class Named(float):
            patient = CANARY

        metrics = MetricRecord(dict(GOOD))
        metrics["loss"] = Named(0.5)
        assert refusal(lambda: check_metrics(metrics, 1e9)) == "metric"

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("name", ["conv.weight", "conv.bias"])
    def test_weights_that_are_not_finite(self, answer: Answer, weights: Weights, name: str, value: float) -> None:
        array = weights[name].copy()
        array.flat[-1] = value
        assert self.check(answer(arrays=weights | {name: array}), weights) == "not-finite"

    @pytest.mark.parametrize(
        ("change", "code"),
        [
            ({"extra": np.zeros(3, np.float32)}, "names"),
            ({CANARY: np.zeros(3, np.float32)}, "names"),
            ({"conv.bias": np.zeros(1, np.float32)}, "shape"),
            ({"conv.bias": np.zeros((1, 2), np.float32)}, "shape"),
            ({"conv.bias": np.zeros(2, np.float64)}, "dtype"),
            ({"steps": np.array(10.0)}, "dtype"),
        ],
    )
    def test_weights_of_another_network(
        self, answer: Answer, weights: Weights, change: dict[str, Any], code: str
    ) -> None:
        assert self.check(answer(arrays=weights | change), weights) == code

    def test_a_missing_array(self, answer: Answer, weights: Weights) -> None:
        assert self.check(answer(arrays={"conv.bias": weights["conv.bias"]}), weights) == "names"

    def test_the_norm_is_that_of_the_change_over_all_float_arrays(self, answer: Answer, weights: Weights) -> None:
        content = answer(arrays=weights | {"conv.bias": weights["conv.bias"] + np.array([3, -4], np.float32)})
        check_outgoing("train", content, Policy(max_update_norm=5.0), weights, 6)
        assert self.check(content, weights, max_update_norm=4.999) == "norm"
        huge = answer(arrays=weights | {"conv.bias": np.full(2, 3e38, np.float32)})
        assert self.check(huge, weights) == "norm"

    def test_a_counter_goes_up(self, answer: Answer, weights: Weights) -> None:
        for step in (0, 1, 10**9):
            content = answer(arrays=weights | {"steps": weights["steps"] + step})
            check_outgoing("train", content, Policy(), weights, 6)

    @pytest.mark.parametrize(
        "change",
        [
            {"steps": np.array(9, np.int64)},
            {"steps": np.array(2**62, np.int64)},
            {"table": np.array([0, 1, 3], np.int32)},
            {"table": np.frombuffer(CANARY.encode()[:12], np.int32)},
        ],
    )
    def test_integers_carry_nothing(self, answer: Answer, weights: Weights, change: dict[str, Any]) -> None:
        assert self.check(answer(arrays=weights | change), weights) == "integer-changed"

    def test_a_flag_does_not_change(self, answer: Answer) -> None:
        given = {"flag": np.array(False)}
        check_outgoing("train", answer(arrays=given), Policy(), given, 6)
        assert self.check(answer(arrays={"flag": np.array(True)}), given) == "integer-changed"

    @pytest.mark.parametrize(
        "header",
        [
            f"{{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }} #{CANARY}",
            f"{{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }}{' ' * 500}",
            "{'descr': '<f4', 'shape': (2,), 'fortran_order': False}",
            "{'descr': '<f4', 'fortran_order': True, 'shape': (2,), }",
        ],
    )
    def test_nothing_hides_in_the_header_of_an_array(self, answer: Answer, weights: Weights, header: str) -> None:
        text = header.encode() + b"\n"
        data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + weights["conv.bias"].tobytes()
        content = answer()
        arrays = content.array_records["arrays"]
        arrays["conv.bias"] = crafted(arrays["conv.bias"], data=data)
        assert self.check(content, weights) == "encoding"

    def test_the_other_order_of_numbers_is_not_the_usual_one(self, answer: Answer, weights: Weights) -> None:
        stream = io.BytesIO()
        np.save(stream, np.asfortranarray(weights["conv.weight"]))
        content = answer()
        arrays = content.array_records["arrays"]
        arrays["conv.weight"] = crafted(arrays["conv.weight"], data=stream.getvalue())
        assert self.check(content, weights) == "encoding"

    @pytest.mark.parametrize(
        ("changes", "code"),
        [
            ({"data": pickle.dumps(Bomb())}, "encoding"),
            ({"data": pickled()}, "encoding"),
            ({"data": CANARY.encode()}, "encoding"),
            ({"stype": CANARY}, "encoding"),
            ({"dtype": CANARY}, "dtype"),
            ({"shape": (3,)}, "shape"),
        ],
    )
    def test_crafted_arrays(self, answer: Answer, weights: Weights, changes: dict[str, Any], code: str) -> None:
        content = answer()
        arrays = content.array_records["arrays"]
        arrays["conv.bias"] = crafted(arrays["conv.bias"], **changes)
        assert self.check(content, weights) == code

    def test_bytes_behind_the_numbers(self, answer: Answer, weights: Weights) -> None:
        content = answer()
        arrays = content.array_records["arrays"]
        arrays["conv.bias"] = crafted(arrays["conv.bias"], data=arrays["conv.bias"].data + CANARY.encode())
        assert self.check(content, weights) == "encoding"

    @given(
        st.dictionaries(
            st.text(max_size=20) | st.sampled_from(["dice", "dice-2", "dice-200", "loss", "hd95-mm-1", "cases"]),
            st.floats() | st.integers() | st.lists(st.floats()),
            max_size=3,
        )
    )
    def test_whatever_passes_is_agreed_and_finite(self, metrics: dict[str, Any]) -> None:
        content = RecordDict({METRICS: MetricRecord({"num-examples": 6.0} | metrics)})
        try:
            check_outgoing("evaluate", content, Policy(), {}, 6)
        except GateRefused:
            return
        for name, value in content.metric_records[METRICS].items():
            assert re.sub(r"-[0-9]{1,2}$", "", name) in Policy().evaluate_metrics
            assert type(value) in (int, float)
            assert abs(value) <= 1e9  # type: ignore[arg-type]


class TestStatus:
    def test_counts_leave(self) -> None:
        check_status(RecordDict({METRICS: MetricRecord({"cases": 3.0, "seen": 2, "round": 0.0})}), Policy())

    @pytest.mark.parametrize(
        ("records", "code"),
        [
            ({}, "missing-record"),
            ({METRICS: ConfigRecord({})}, "missing-record"),
            ({METRICS: MetricRecord({}), "more": ConfigRecord({"a": CANARY})}, "extra-record"),
            ({METRICS: MetricRecord({CANARY: 1.0})}, "metric"),
            ({METRICS: MetricRecord({"loss": 1.0})}, "metric"),
            ({METRICS: MetricRecord({"cases": 0.5})}, "metric"),
            ({METRICS: MetricRecord({"cases": -1})}, "metric"),
            ({METRICS: MetricRecord({"cases": math.nan})}, "metric"),
            ({METRICS: MetricRecord({"cases": [1, 2]})}, "metric"),
        ],
    )
    def test_anything_else_stays(self, records: dict[str, Any], code: str) -> None:
        assert refusal(lambda: check_status(RecordDict(records), Policy())) == code

    def test_a_site_may_say_nothing(self) -> None:
        content = RecordDict({METRICS: MetricRecord({"cases": 3})})
        assert refusal(lambda: check_status(content, Policy(allow_status=False))) == "kind-not-allowed"


def test_the_size_of_a_content() -> None:
    arrays = weights_to_record({"a": np.zeros(3, np.float32)})
    assert size_of(RecordDict()) == 0
    assert size_of(RecordDict({"arrays": arrays})) == len(arrays["a"].data) == 128 + 12
    assert size_of(RecordDict({"m": MetricRecord({"a": 1.0, "b": [1, 2]})})) == 24
    assert size_of(RecordDict({"c": ConfigRecord({"a": "four", "b": b"12", "c": True})})) == 14
