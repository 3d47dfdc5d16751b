"""Drawings as bytes: what goes in comes out, and nothing but what was written can be read."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from drawn import same_drawing
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wardround.client.annotation.prompts import (
    UNLABELLED,
    Annotations,
    ErasePrompt,
    ExtentPrompt,
    PointPrompt,
    Prompt,
    ScribblePrompt,
    SlicePrompt,
)
from wardround.client.cases import drawing_file
from wardround.client.cases.drawing_file import decode, encode
from wardround.client.cases.drawings import REASONS, Drawing
from wardround.errors import StorageError, UsageError

SHAPE = (6, 5, 4)


def plane_of(axis: int) -> tuple[int, int]:
    first, second = (side for other, side in enumerate(SHAPE) if other != axis)
    return first, second


@st.composite
def prompts(draw: st.DrawFn) -> Prompt:
    kind = draw(st.sampled_from(["slice", "scribble", "point", "erase"]))
    if kind == "point":
        index = tuple(draw(st.integers(0, side - 1)) for side in SHAPE)
        return PointPrompt(index, draw(st.integers(0, 254)))  # type: ignore[arg-type]
    axis = draw(st.integers(0, 2))
    index_ = draw(st.integers(0, SHAPE[axis] - 1))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    plane = plane_of(axis)
    if kind == "slice":
        return SlicePrompt(axis, index_, rng.integers(0, UNLABELLED, plane, np.uint8))
    touched = rng.random(plane) < draw(st.sampled_from([0.0, 0.1, 1.0]))
    if kind == "erase":
        return ErasePrompt(axis, index_, touched)
    return ScribblePrompt(axis, index_, np.where(touched, rng.integers(0, 4, plane, np.uint8), np.uint8(UNLABELLED)))


STEPS = st.lists(st.lists(prompts(), max_size=3).map(tuple), max_size=4).map(tuple)
AMOUNT = st.floats(0, 1e9, allow_nan=False)
DRAWINGS = st.builds(
    Drawing,
    case_id=st.text(min_size=1).filter(lambda text: text.isprintable()),
    author=st.text("abcæ-", min_size=1),
    steps=STEPS,
    extent=st.none() | st.just(ExtentPrompt((0, 1, 2), (5, 4, 3))),
    undone=STEPS,
    state=st.sampled_from(["open", "accepted", "skipped", "approved", "rejected"]),
    source=st.sampled_from(["proxy", "prediction", "whole"]),
    effort_contour=AMOUNT,
    effort_strict=AMOUNT,
    round=st.integers(0, 1000),
    model=st.text("0123456789abcdef", max_size=64),
    seconds=AMOUNT,
    reason=st.sampled_from(sorted(REASONS)),
)


def a_drawing() -> Drawing:
    labels = np.full(plane_of(2), UNLABELLED, np.uint8)
    labels[1:3, 2] = 1
    return Drawing(
        "case", "ann",
        steps=(
            (SlicePrompt(0, 3, np.ones(plane_of(0), np.uint8)), PointPrompt((1, 2, 3), 2)),
            (ScribblePrompt(2, 1, labels),),
        ),
        extent=ExtentPrompt((0, 0, 0), (3, 3, 3)),
        undone=((ErasePrompt(1, 0, np.eye(*plane_of(1), dtype=bool)),),),
        effort_contour=12.5, round=3, model="ab12", seconds=61.25,
    )  # fmt: skip


class TestRoundTrip:
    @settings(max_examples=60, deadline=None)
    @given(DRAWINGS)
    def test_what_goes_in_comes_out(self, drawing: Drawing) -> None:
        data = encode(drawing)
        assert same_drawing(decode(data), drawing)
        assert encode(decode(data)) == data
        assert drawing.fits(SHAPE)

    def test_what_is_read_shares_no_memory_and_may_be_drawn_on(self) -> None:
        back = decode(encode(a_drawing()))
        stroke = back.steps[1][0]
        assert isinstance(stroke, ScribblePrompt)
        stroke.labels[0, 0] = 1

    def test_numpy_reads_it_without_unpickling(self, tmp_path: Path) -> None:
        (path := tmp_path / "drawing.npz").write_bytes(encode(a_drawing()))
        with np.load(path, allow_pickle=False) as arrays:
            assert sorted(arrays) == ["header", "pixels"]
            assert arrays["header"].tobytes().startswith(b'{"format":1,')
            assert arrays["pixels"].dtype == np.uint8

    def test_strokes_on_large_slices_take_little(self) -> None:
        labels = np.full((512, 512), UNLABELLED, np.uint8)
        labels[100:110, 300:303] = 1
        strokes = tuple((ScribblePrompt(2, number, labels),) for number in range(400))
        assert len(encode(Drawing("case", "ann", strokes))) < 20_000


class TestRefused:
    @pytest.mark.parametrize(
        "wrong",
        [
            {"case_id": ""}, {"author": ""}, {"state": "done"}, {"source": "guess"}, {"effort_contour": -1.0},
            {"effort_strict": float("nan")}, {"round": -1}, {"model": "../x"}, {"seconds": float("inf")},
            {"reason": "the patient moved"},
        ],
    )  # fmt: skip
    def test_a_value_out_of_its_range(self, wrong: dict[str, object]) -> None:
        with pytest.raises(UsageError, match=next(iter(wrong))):
            Drawing(**({"case_id": "case", "author": "ann"} | wrong))  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "prompt",
        [
            SlicePrompt(0, 0, np.full((5, 4), UNLABELLED, np.uint8)),
            SlicePrompt(0, 0, np.zeros((5, 4), np.int64)),  # type: ignore[arg-type]
            SlicePrompt(3, 0, np.zeros((5, 4), np.uint8)),
            ScribblePrompt(0, -1, np.zeros((5, 4), np.uint8)),
            ScribblePrompt(0, 0, np.zeros(5, np.uint8)),
            ScribblePrompt(0, 0, np.zeros((5, 4), np.uint8), remains=True),
            PointPrompt((0, 0, -1), 0),
            PointPrompt((0, 0, 0), UNLABELLED),
        ],
    )
    def test_what_cannot_be_drawn_is_not_written(self, prompt: Prompt) -> None:
        with pytest.raises(UsageError, match="cannot be stored"):
            encode(Drawing("case", "ann", ((prompt,),)))

    def test_too_much_is_not_written(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(drawing_file, "LARGEST", 10)
        with pytest.raises(UsageError, match="cannot be stored"):
            encode(a_drawing())


def members(data: bytes) -> tuple[bytes, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.read("header.npy")[128:], archive.read("pixels.npy")[128:]


def packed(**parts: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            np_file = io.BytesIO()
            np.save(np_file, np.frombuffer(content, np.uint8))
            archive.writestr(f"{name}.npy", np_file.getvalue())
    return stream.getvalue()


GOOD = encode(a_drawing())
HEADER, PIXELS = members(GOOD)


class TestDamage:
    @settings(max_examples=400, deadline=None)
    @given(st.data())
    def test_flipped_cut_and_added_bytes_are_an_error_of_ours_or_change_nothing(self, data: st.DataObject) -> None:
        content = bytearray(GOOD)
        for _ in range(data.draw(st.integers(1, 3))):
            match data.draw(st.sampled_from(["flip", "cut", "insert"])):
                case "flip":
                    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
                case "cut":
                    del content[data.draw(st.integers(1, len(content))) :]
                case "insert":
                    at = data.draw(st.integers(0, len(content)))
                    content[at:at] = data.draw(st.binary(min_size=1, max_size=8))
            if not content:
                break
        try:
            found = decode(bytes(content))
        except StorageError:
            return
        assert same_drawing(found, a_drawing())  # in a date, or outside the archive

    @settings(max_examples=400, deadline=None)
    @given(st.data())
    def test_a_header_that_was_changed_is_a_drawing_or_an_error_of_ours(self, data: st.DataObject) -> None:
        text = bytearray(HEADER)
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(text) - 1))
            text[at : at + data.draw(st.integers(0, 2))] = data.draw(
                st.sampled_from([b"9", b"-1", b"1e400", b"null", b"[", b"}", b'"', b"0.5", b"\xff"])
            )
        try:
            found = decode(packed(header=bytes(text), pixels=PIXELS))
        except StorageError:
            return
        assert same_drawing(decode(encode(found)), found)

    @settings(max_examples=100, deadline=None)
    @given(st.binary(max_size=200))
    @example(b"")
    @example(b"PK\x05\x06" + bytes(18))
    def test_any_other_bytes_are_an_error_of_ours(self, data: bytes) -> None:
        with pytest.raises(StorageError):
            decode(data)

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            (b'"format":1', b'"format":2'),
            (b'"format":1', b'"format":true'),
            (b'"round":3', b'"round":"3"'),
            (b'"round":3', b'"round":3.0'),
            (b'"round":3', b'"round":3,"patient":"x"'),
            (b'"seconds":61.25', b'"seconds":NaN'),
            (b'"seconds":61.25', b'"seconds":-1'),
            (b'"state":"open"', b'"state":"gone"'),
            (b'"kind":"point"', b'"kind":"pickle"'),
            (b'"kind":"erase"', b'"kind":"slice"'),
            (b'"shape":[5,4]', b'"shape":[5,5]'),
            (b'"shape":[5,4]', b'"shape":[99999,99999]'),
            (b'"shape":[5,4]', b'"shape":[5]'),
            (b'"box":[1,3,2,3]', b'"box":[3,1,2,3]'),
            (b'"box":[1,3,2,3]', b'"box":[1,3,2,4]'),
            (b'"box":[1,3,2,3]', b'"box":[1,2,2,3]'),
            (b'"box":[1,3,2,3]', b'"box":[5,7,2,3]'),
        ],
    )
    def test_a_header_that_encode_would_not_have_written(self, old: bytes, new: bytes) -> None:
        assert HEADER.count(old) == 1
        assert decode(packed(header=HEADER, pixels=PIXELS)).round == 3
        with pytest.raises(StorageError):
            decode(packed(header=HEADER.replace(old, new), pixels=PIXELS))

    @pytest.mark.parametrize("what", ["missing", "left over", "another member", "another order", "a pickle", "2"])
    def test_members_that_encode_would_not_have_written(self, what: str) -> None:
        stream = io.BytesIO()
        np.savez(stream, header=np.frombuffer(HEADER, np.uint8), pixels=np.array([{}], dtype=object))
        wrong = {
            "missing": packed(header=HEADER, pixels=PIXELS[:-1]),
            "left over": packed(header=HEADER, pixels=PIXELS + b"\0"),
            "another member": packed(header=HEADER, pixels=PIXELS, more=b""),
            "another order": packed(pixels=PIXELS, header=HEADER),
            "a pickle": stream.getvalue(),
            "2": packed(header=HEADER, pixels=PIXELS.replace(b"\1", b"\2")),  # in a mask
        }[what]
        if what == "2":
            # The slice and the stroke may hold a 2, the eraser's mask may not.
            assert PIXELS.replace(b"\1", b"\2") != PIXELS
        with pytest.raises(StorageError):
            decode(wrong)

    def test_an_archive_that_unpacks_to_far_more_than_its_size(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(drawing_file, "LARGEST", 2**20)
        bomb = packed(header=HEADER, pixels=bytes(2**22))
        assert len(bomb) < 2**14

        def unpacked(*_: object) -> bytes:
            raise AssertionError("it was unpacked")

        read = zipfile.ZipFile.read
        monkeypatch.setattr(
            zipfile.ZipFile,
            "read",
            lambda archive, entry: unpacked() if entry.file_size > 2**21 else read(archive, entry),
        )
        with pytest.raises(StorageError):
            decode(bomb)

    def test_planes_of_a_few_bytes_that_would_fill_the_memory(self) -> None:
        stroke = b'{"kind":"scribble","axis":2,"index":1,"shape":[16000,16000],"box":[0,0,0,0]}'
        text = HEADER[: HEADER.index(b'"steps":')] + b'"steps":[[' + b",".join([stroke] * 1000) + b"]]"
        text += HEADER[HEADER.index(b',"extent"') : HEADER.index(b'"undone":')] + b'"undone":[]'
        text += HEADER[HEADER.index(b',"state"') :]
        with pytest.raises(StorageError):
            decode(packed(header=text, pixels=b""))


class TestGroups:
    """Regrouping for a round: order stays, nothing is lost, and no group is before anything is drawn."""

    @settings(max_examples=60, deadline=None)
    @given(STEPS, st.integers(1, 5))
    def test_the_same_prompts_in_the_same_order_in_so_many_groups(self, steps: tuple, most: int) -> None:
        groups = Drawing("case", "ann", steps).in_groups(most)
        assert len(groups) <= most
        assert all(groups)
        flat = [prompt for step in steps for prompt in step]
        grouped = [prompt for group in groups for prompt in group]
        assert all(mine is yours for mine, yours in zip(grouped, flat, strict=False))
        drawn = Annotations()
        for group in groups:
            drawn = drawn.adding(*group)
            assert drawn.slices or drawn.scribbles or drawn.points
        # What is left out at the end left nothing drawn.
        rest = Annotations().adding(*flat)
        assert len(grouped) == len(flat) or not (rest.slices or rest.points or any(_touches(s) for s in rest.scribbles))

    @pytest.mark.parametrize(
        ("sizes", "most", "groups"),
        [
            ([1, 1], 2, [1, 1]),
            ([1, 7], 2, [1, 7]),
            ([2, 1, 1, 1, 3], 2, [4, 4]),
            ([1, 1, 1], 2, [2, 1]),
            ([5], 2, [3, 2]),  # drawn in one go: it gets all the updates of the plan nevertheless
            ([1], 3, [1]),
            ([0, 2, 0, 2], 2, [2, 2]),
            ([4, 2], 1, [6]),
            ([], 2, []),
        ],
    )
    def test_steps_stay_together_where_there_are_enough(self, sizes: list[int], most: int, groups: list[int]) -> None:
        steps = tuple(tuple(PointPrompt((0, 0, 0), 1) for _ in range(size)) for size in sizes)
        assert [len(group) for group in Drawing("case", "ann", steps).in_groups(most)] == groups

    def test_what_is_erased_at_once_is_never_a_group_of_its_own(self) -> None:
        stroke = ScribblePrompt(2, 1, np.ones(plane_of(2), np.uint8))
        eraser = ErasePrompt(2, 1, np.ones(plane_of(2), bool))
        point = PointPrompt((0, 0, 0), 1)
        assert Drawing("case", "ann", ((stroke, eraser), (point,))).in_groups(2) == ((stroke, eraser, point),)
        assert Drawing("case", "ann", ((point,), (stroke, eraser))).in_groups(2) == ((point,), (stroke, eraser))
        assert Drawing("case", "ann", ((stroke,), (eraser,))).in_groups(2) == ((stroke,),)
        assert Drawing("case", "ann", ((stroke,), (eraser,))).in_groups(1) == ()


def _touches(stroke: ScribblePrompt) -> bool:
    return bool((stroke.labels != UNLABELLED).any())


def test_the_classes_that_a_plan_needs() -> None:
    assert a_drawing().classes == 3
    assert Drawing("case", "ann").classes == 1
    assert Drawing("case", "ann", ((ErasePrompt(0, 0, np.ones((5, 4), bool)),),)).classes == 1


@pytest.mark.parametrize(
    ("prompt", "inside"),
    [
        (PointPrompt((5, 4, 3), 1), True),
        (PointPrompt((6, 0, 0), 1), False),
        (SlicePrompt(0, 5, np.zeros((5, 4), np.uint8)), True),
        (SlicePrompt(0, 6, np.zeros((5, 4), np.uint8)), False),
        (SlicePrompt(1, 0, np.zeros((5, 4), np.uint8)), False),
        (ErasePrompt(2, 0, np.zeros((6, 5), bool)), True),
        (ErasePrompt(2, 4, np.zeros((6, 5), bool)), False),
    ],
)
def test_whether_a_drawing_lies_in_an_image(prompt: Prompt, inside: bool) -> None:
    assert Drawing("case", "ann", ((prompt,),)).fits(SHAPE) == inside
    assert Drawing("case", "ann", undone=((prompt,),)).fits(SHAPE) == inside
    assert not Drawing("case", "ann", extent=ExtentPrompt((0, 0, 0), (6, 1, 1))).fits(SHAPE)
