"""Phantoms: reproducible, learnable, not separable by a threshold, and different from site to site on demand."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from wardround.client.cases.dataset import load_dataset, split_by_file, verify_dataset
from wardround.client.cases.phantoms import (
    LABEL_NAMES,
    ScannerShift,
    draw_phantom,
    site_shift,
    write_phantom_dataset,
)
from wardround.errors import StorageError, UsageError

SEEDS = range(8)
SMALL = (24, 28, 24)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("seed", SEEDS)
def test_both_parts_are_there_whole_and_inside(seed: int) -> None:
    image, labels = draw_phantom(np.random.default_rng(seed), shift=site_shift(seed, 1.0))
    assert image.same_grid(labels)
    assert image.array.dtype == np.float32
    assert labels.array.dtype == np.uint8
    assert np.isfinite(image.array).all()
    assert image.array.min() >= 0
    assert np.unique(labels.array).tolist() == [0, 1, 2]
    for value in (1, 2):
        part = labels.array == value
        assert 300 < part.sum() < 0.1 * part.size
        pieces = np.bincount(ndimage.label(part)[0].ravel())[1:]
        assert pieces.max() > 0.99 * pieces.sum()  # a crumb along the border between the parts is allowed
    organ = labels.array > 0
    assert ndimage.label(organ)[1] == 1
    inside = organ[1:-1, 1:-1, 1:-1].sum()
    assert inside == organ.sum()


def test_a_generator_gives_one_case_and_another_generator_another() -> None:
    one, again, other = (draw_phantom(np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one[0].array, again[0].array)
    np.testing.assert_array_equal(one[0].affine, again[0].affine)
    assert (one[1].array != other[1].array).any()


@pytest.mark.parametrize("seed", SEEDS)
def test_no_intensity_window_finds_the_organ(seed: int) -> None:
    image, labels = draw_phantom(np.random.default_rng(seed))
    organ = labels.array > 0
    levels = np.quantile(image.array, np.linspace(0, 1, 41))
    best = 0.0
    for n, low in enumerate(levels):
        for high in levels[n + 1 :]:
            window = (image.array >= low) & (image.array < high)
            best = max(best, 2 * (window & organ).sum() / (window.sum() + organ.sum()))
    assert best < 0.5


def test_the_parts_differ_in_intensity_less_than_either_spreads_but_they_do() -> None:
    steps = []
    for seed in SEEDS:
        image, labels = draw_phantom(np.random.default_rng(seed))
        head, body = (ndimage.median(image.array, labels.array, value) for value in (1, 2))
        steps.append(body / head)
    assert 1.1 < np.median(steps) < 1.6


def test_intensity_units_differ_between_cases() -> None:
    tops = [draw_phantom(np.random.default_rng(seed), SMALL)[0].array.max() for seed in range(20)]
    assert max(tops) > 10 * min(tops)


def test_the_anatomy_does_not_depend_on_the_scanner() -> None:
    plain, shifted = (draw_phantom(np.random.default_rng(3), shift=site_shift(1, s)) for s in (0.0, 2.0))
    np.testing.assert_array_equal(plain[1].array, shifted[1].array)
    assert (plain[0].array != shifted[0].array).any()


def background_noise(shift: ScannerShift) -> float:
    """Mean absolute difference between neighbours, relative to the mean signal."""
    image = draw_phantom(np.random.default_rng(0), shift=shift)[0].array
    return float(np.abs(np.diff(image, axis=0)).mean() / image.mean())


def test_noise_resolution_contrast_and_bias_do_what_they_say() -> None:
    assert background_noise(ScannerShift(noise=0.12)) > 1.3 * background_noise(ScannerShift(noise=0.02))
    assert background_noise(ScannerShift(resolution=1.2)) < 0.8 * background_noise(ScannerShift(resolution=0.3))

    def spread(shift: ScannerShift) -> float:
        image = draw_phantom(np.random.default_rng(0), shift=shift)[0].array
        return float(image.std() / image.mean())

    assert spread(ScannerShift(contrast=1.5)) > 1.3 * spread(ScannerShift(contrast=0.7))

    def drift(bias: float) -> float:
        image = draw_phantom(np.random.default_rng(0), shift=ScannerShift(bias=bias))[0].array.astype(float)
        plain = draw_phantom(np.random.default_rng(0), shift=ScannerShift(bias=0.0))[0].array
        smooth = ndimage.gaussian_filter(image, 6) / ndimage.gaussian_filter(plain, 6)
        return float(smooth.std() / smooth.mean())

    assert drift(0.3) > 3 * drift(0.05) > 0


def test_noise_is_rician() -> None:
    shift = ScannerShift(noise=0.5, bias=0.0)
    noisy = draw_phantom(np.random.default_rng(0), shift=shift)[0].array
    clean = draw_phantom(np.random.default_rng(0), shift=ScannerShift(noise=0.0, bias=0.0))[0].array
    unit = 1 / 0.85  # the brightest tissue in units of white matter's signal
    dark = clean < 0.3 * unit * np.percentile(clean, 90)
    # In the dark, the magnitude has a floor that Gaussian noise would not have (mean of the signal: below 0.3).
    white = np.percentile(clean, 90) / 0.85
    assert noisy[dark].mean() / white > 0.5 * np.sqrt(np.pi / 2) * 0.95


def test_without_strength_every_site_has_the_reference_scanner() -> None:
    assert {site_shift(n, 0.0) for n in range(6)} == {ScannerShift()}


def test_with_strength_no_two_sites_are_alike_and_all_are_physical() -> None:
    shifts = [site_shift(n, 2.0) for n in range(30)]
    assert len(set(shifts)) == 30
    assert all(min(s.contrast, s.resolution, s.noise, s.bias) > 0 for s in shifts)
    assert max(s.contrast for s in shifts[:4]) > 2 * min(s.contrast for s in shifts[:4])


@pytest.mark.parametrize("strength", [-1.0, float("nan"), float("inf")])
def test_a_strength_out_of_range_is_refused(strength: float) -> None:
    with pytest.raises(UsageError, match="strength"):
        site_shift(0, strength)


def test_a_shape_that_is_too_small_is_refused() -> None:
    with pytest.raises(UsageError, match="shape"):
        draw_phantom(np.random.default_rng(0), (40, 8, 40))


@pytest.mark.parametrize("shape", [(16, 16, 16), (32, 20, 48)])
def test_other_shapes_hold_both_parts(shape: tuple[int, int, int]) -> None:
    image, labels = draw_phantom(np.random.default_rng(0), shape)
    assert image.shape == shape
    assert np.unique(labels.array).tolist() == [0, 1, 2]


class TestDataset:
    def test_it_is_read_back_by_the_ordinary_reader(self, tmp_path: Path) -> None:
        folder = write_phantom_dataset(tmp_path / "p", 2, 3, 1, 7, shift_strength=1.0, shape=SMALL)
        dataset = load_dataset(folder)
        verify_dataset(dataset)
        assert dataset.label_names == LABEL_NAMES
        federation = split_by_file(dataset, Path("split.json"))
        assert {site: len(cases) for site, cases in federation.sites.items()} == {"site_1": 3, "site_2": 3}
        assert {site: len(cases) for site, cases in federation.tests.items()} == {"site_1": 1, "site_2": 1}
        for part in (federation.sites, federation.tests):
            assert all(dataset.natural_sites[case] == site for site, cases in part.items() for case in cases)

    def test_a_seed_gives_the_same_bytes(self, tmp_path: Path) -> None:
        one, two, other = (
            tree(write_phantom_dataset(tmp_path / name, 1, 2, 1, seed, shift_strength=0.5, shape=SMALL))
            for name, seed in (("a", 1), ("b", 1), ("c", 2))
        )
        assert one == two
        assert one["imagesTr/site_1_case_001.nii.gz"] != other["imagesTr/site_1_case_001.nii.gz"]

    def test_more_cases_and_sites_leave_the_others_as_they_are(self, tmp_path: Path) -> None:
        few = tree(write_phantom_dataset(tmp_path / "few", 1, 1, 1, 3, shift_strength=1.0, shape=SMALL))
        many = tree(write_phantom_dataset(tmp_path / "many", 2, 2, 1, 3, shift_strength=1.0, shape=SMALL))
        volumes = [name for name in few if name.endswith(".nii.gz")]
        assert len(volumes) == 4
        assert all(many[name] == few[name] for name in volumes)
        images = [content for name, content in many.items() if name.startswith("imagesTr")]
        assert len(set(images)) == len(images) == 6

    def test_the_very_same_data_set_is_kept(self, tmp_path: Path) -> None:
        folder = write_phantom_dataset(tmp_path / "p", 1, 1, 0, 0, shift_strength=0.0, shape=SMALL)
        inode = folder.stat().st_ino
        write_phantom_dataset(folder, 1, 1, 0, 0, shift_strength=0.0, shape=SMALL)
        assert folder.stat().st_ino == inode

    def test_another_one_is_not_replaced(self, tmp_path: Path) -> None:
        folder = write_phantom_dataset(tmp_path / "p", 1, 1, 0, 0, shift_strength=0.0, shape=SMALL)
        before = tree(folder)
        with pytest.raises(StorageError):
            write_phantom_dataset(folder, 1, 1, 0, 1, shift_strength=0.0, shape=SMALL)
        assert tree(folder) == before

    def test_a_full_disk_leaves_no_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        replace, done = Path.replace, []

        def full_after_two(self: Path, target: Path) -> Path:
            done.append(target)
            if len(done) > 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return replace(self, target)

        monkeypatch.setattr(Path, "replace", full_after_two)
        with pytest.raises(StorageError, match="disk is full"):
            write_phantom_dataset(tmp_path / "p", 1, 2, 0, 0, shift_strength=0.0, shape=SMALL)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("numbers", [(0, 1, 1, 0), (1, 0, 1, 0), (1, 1, -1, 0), (1, 1, 1, -1)])
    def test_numbers_out_of_range_are_refused(self, tmp_path: Path, numbers: tuple[int, int, int, int]) -> None:
        with pytest.raises(UsageError):
            write_phantom_dataset(tmp_path / "p", *numbers, shift_strength=0.0)
        assert list(tmp_path.iterdir()) == []

    def test_the_scanners_are_on_record(self, tmp_path: Path) -> None:
        folder = write_phantom_dataset(tmp_path / "p", 2, 1, 0, 0, shift_strength=1.0, shape=SMALL)
        scanners = json.loads((folder / "dataset.json").read_text())["scanners"]
        assert ScannerShift(**scanners["site_2"]) == site_shift(1, 1.0)
