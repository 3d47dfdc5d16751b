"""Windows on large images: what is drawn lies inside, at the same place of the patient, and small images have none."""

import numpy as np
import pytest

from wardround.client.annotation.prompts import (
    UNLABELLED,
    Annotations,
    ErasePrompt,
    ExtentPrompt,
    PointPrompt,
    ScribblePrompt,
    SlicePrompt,
    SliceRequest,
)
from wardround.client.cases.volume import Volume
from wardround.client.workbench import window as module
from wardround.client.workbench.window import Window, around, window_for

SHAPE = (60, 50, 40)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LIVE_VOXELS": 20**3, "SIDE": 16, "MARGIN": 6, "_RIM": 2}.items():
        monkeypatch.setattr(module, name, value)


def square(axis: int, index: int, low: int, high: int) -> SlicePrompt:
    labels = np.zeros([side for other, side in enumerate(SHAPE) if other != axis], np.uint8)
    labels[low:high, low:high] = 1
    return SlicePrompt(axis, index, labels)


def test_a_small_image_is_worked_on_as_a_whole() -> None:
    assert window_for((20, 20, 20), Annotations()).is_whole
    assert not window_for((20, 20, 21), Annotations()).is_whole


def test_nothing_drawn_means_the_middle() -> None:
    assert window_for(SHAPE, Annotations()).box == (22, 38, 17, 33, 12, 28)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_what_is_drawn_lies_inside_with_a_margin(axis: int) -> None:
    drawn = Annotations().adding(square(axis, 3, 20, 30), PointPrompt((25, 25, 25), 1))
    window = window_for(SHAPE, drawn)
    assert window.answers(drawn)
    assert window.origin[axis] == 0, "it ends with the image"
    assert all(0 <= low < high <= side for low, high, side in zip(window.origin, window.end, SHAPE, strict=True))
    assert not window.answers(drawn.adding(PointPrompt(tuple(side - 1 for side in SHAPE), 1)))  # type: ignore[arg-type]


def test_background_far_away_moves_nothing_unless_there_is_nothing_else() -> None:
    far = PointPrompt((0, 0, 0), 0)
    window = window_for(SHAPE, Annotations().adding(PointPrompt((50, 40, 30), 1)))
    assert window.answers(Annotations().adding(PointPrompt((50, 40, 30), 1), far))
    assert window.local(far) is None
    assert not window.answers(Annotations().adding(far))
    assert window_for(SHAPE, Annotations().adding(far)).local(far) == far


def test_prompts_say_inside_what_they_say_outside() -> None:
    window = Window(SHAPE, (10, 40, 5, 45, 8, 30))
    rng = np.random.default_rng(0)
    stroke = np.where(rng.random(SHAPE[:2]) < 0.1, 1, UNLABELLED).astype(np.uint8)
    for whole in (SlicePrompt(1, 20, rng.integers(0, 3, (60, 40), dtype=np.uint8)), ScribblePrompt(2, 9, stroke)):
        local = window.local(whole)
        assert isinstance(local, SlicePrompt | ScribblePrompt)
        cut = [part for axis, part in enumerate(window.slices) if axis != whole.axis]
        assert np.array_equal(local.labels, whole.labels[tuple(cut)])
        assert window.outside(SliceRequest(local.axis, local.index)) == SliceRequest(whole.axis, whole.index)
    assert window.local(PointPrompt((10, 5, 8), 1)) == PointPrompt((0, 0, 0), 1)
    assert window.local(PointPrompt((40, 5, 8), 1)) is None
    erased = window.local(ErasePrompt(0, 12, np.ones((50, 40), bool)))
    assert isinstance(erased, ErasePrompt)
    assert (erased.index, erased.mask.shape) == (2, (40, 22))
    assert window.local(ErasePrompt(0, 9, np.ones((50, 40), bool))) is None
    assert window.local_extent(ExtentPrompt((0, 10, 9), (20, 49, 12))) == ExtentPrompt((0, 5, 1), (10, 39, 4))


def test_a_crop_lies_where_it_lay() -> None:
    affine = np.array([[0.0, -2, 0, 5], [1, 0, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]])
    image = Volume(np.random.default_rng(0).random(SHAPE, np.float32), affine)
    window = Window(SHAPE, (10, 40, 5, 45, 8, 30))
    crop = window.crop(image)
    assert crop.array[1, 2, 3] == image.array[11, 7, 11]
    assert np.allclose(crop.affine @ [1, 2, 3, 1], affine @ [11, 7, 11, 1])


def test_the_window_of_a_whole_label_holds_it() -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[30:50, 2:9, 38] = 2
    window = around(labels)
    assert not window.is_whole
    assert labels[window.slices].sum() == labels.sum()
    assert around(np.zeros(SHAPE, np.uint8)).box == window_for(SHAPE, Annotations()).box
