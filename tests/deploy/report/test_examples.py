import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from wardround.deploy.report.examples import Example, chosen, load_examples, save_example
from wardround.errors import UsageError


def test_an_example_survives_the_file(tmp_path: Path, example: Callable[..., Example]) -> None:
    kept = example(1)
    save_example(tmp_path / "examples" / "a.npz", kept)
    (loaded,) = load_examples(tmp_path)
    for name in ("image", "truth", "proxy", "prediction", "residual"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(kept, name))
    assert (loaded.title, loaded.drawn, loaded.spacing) == (kept.title, kept.drawn, kept.spacing)


def test_floats_with_holes_become_labels(tmp_path: Path) -> None:
    (tmp_path / "examples").mkdir()
    truth = np.array([[0.0, 1.0], [2.0, np.nan]])
    np.savez(tmp_path / "examples" / "a.npz", image=truth, truth=truth, title="t", drawn="axial 3")
    (loaded,) = load_examples(tmp_path)
    np.testing.assert_array_equal(loaded.truth, np.array([[0, 1], [2, 0]], dtype=np.uint8))
    assert loaded.proxy is None
    assert loaded.drawn == ("axial 3",)


def test_a_damaged_or_misshapen_file_is_left_out_and_logged(
    tmp_path: Path, example: Callable[..., Example], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "examples"
    save_example(folder / "b.npz", example(0))
    (folder / "a.npz").write_bytes((folder / "b.npz").read_bytes()[:200])
    np.savez(folder / "c.npz", image=np.zeros((4, 4)), truth=np.zeros((5, 4)))
    np.savez(folder / "d.npz", title="no image")
    np.savez(folder / "e.npz", image=np.array([[{"pickled": 1}]], dtype=object))
    with caplog.at_level(logging.WARNING):
        assert len(load_examples(tmp_path)) == 1
    assert sorted(entry.getMessage().split()[1] for entry in caplog.records) == ["a.npz", "c.npz", "d.npz", "e.npz"]


class _Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., int], tuple[Path, str]]:
        return Path.write_text, (self.path, "sprung")


def test_an_example_runs_no_code(tmp_path: Path) -> None:
    (tmp_path / "examples").mkdir()
    trap = np.array([[_Trap(tmp_path / "sprung")]], dtype=object)
    np.savez(tmp_path / "examples" / "a.npz", image=trap)
    assert load_examples(tmp_path) == []
    assert not (tmp_path / "sprung").exists()


def test_no_folder_means_no_examples(tmp_path: Path) -> None:
    assert load_examples(tmp_path) == []


def test_dice_on_a_slice_by_hand() -> None:
    truth = np.array([[1, 1, 2, 2]], dtype=np.uint8)
    proxy = np.array([[1, 0, 2, 2]], dtype=np.uint8)
    shown = Example(truth.astype(np.float32), truth, proxy)
    assert shown.dice(proxy) == pytest.approx((2 / 3 + 1.0) / 2)
    assert np.isnan(shown.dice(None))


def test_the_crop_holds_every_label_and_is_about_square_in_millimetres() -> None:
    truth = np.zeros((200, 300), dtype=np.uint8)
    truth[150:170, 20:60] = 1
    shown = Example(np.zeros(truth.shape, np.float32), truth, truth, None, None, "", (), (2.0, 1.0)).cropped()
    assert shown.truth is not None
    assert int(shown.truth.sum()) == 20 * 40
    rows, columns = shown.image.shape
    assert rows * 2.0 == pytest.approx(columns * 1.0, abs=2)


def test_a_slice_without_labels_is_shown_whole() -> None:
    blank = Example(np.zeros((9, 7), np.float32), np.zeros((9, 7), np.uint8))
    assert blank.cropped().image.shape == (9, 7)


def test_an_example_is_an_npz_file(tmp_path: Path, example: Callable[..., Example]) -> None:
    with pytest.raises(UsageError):
        save_example(tmp_path / "a.png", example(0))


@pytest.mark.parametrize(
    ("length", "count", "kept"), [(0, 2, []), (1, 2, [0]), (2, 2, [0, 1]), (4, 2, [1, 3]), (12, 3, [3, 7, 11])]
)
def test_too_many_examples_are_thinned_evenly(
    length: int, count: int, kept: list[int], example: Callable[..., Example]
) -> None:
    examples = [example(index, 16) for index in range(length)]
    assert [examples.index(item) for item in chosen(examples, count)] == kept
