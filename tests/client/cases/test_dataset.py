"""Data sets: what is refused at the door, and that no split lets a subject be learnt from and tested on."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wardround.client.annotation.prompts import UNLABELLED
from wardround.client.cases.dataset import (
    Dataset,
    Federation,
    load_dataset,
    read_scribbles,
    split_by_file,
    split_dirichlet,
    split_even,
    split_natural,
    verify_dataset,
)
from wardround.client.cases.nifti import write_volume
from wardround.client.cases.volume import Volume
from wardround.errors import DataError, GeometryError, UsageError

DATA = Path(os.environ.get("WARDROUND_DATA", "/nowhere"))
needs_data = pytest.mark.skipif(
    not (DATA / "hippocampus").is_dir() or not (DATA / "lgg_multisite").is_dir(),
    reason="WARDROUND_DATA names no folder that holds hippocampus/ and lgg_multisite/",
)

GRID = np.diag([-1.0, -1.0, 1.0, 1.0])
SUBJECTS = 16


def build(folder: Path, subjects: int = SUBJECTS) -> Path:
    """Two cases a subject; the brightness grows with the subject, the first half comes from site X, the rest from Y."""
    rng = np.random.default_rng(0)
    rows, pairs = ["case,subject,site,source_dtype"], []
    for n in range(2 * subjects):
        image = (10.0 ** (n // 2) * (1 + rng.random((4, 4, 4)))).astype(np.float32)
        write_volume(folder / f"imagesTr/c{n:02d}.nii.gz", Volume(image, GRID))
        label = (rng.random((4, 4, 4)) > 0.5).astype(np.uint8)
        write_volume(folder / f"labelsTr/c{n:02d}.nii.gz", Volume(label, GRID))
        pairs.append({"image": f"./imagesTr/c{n:02d}.nii.gz", "label": f"./labelsTr/c{n:02d}.nii.gz"})
        first_half = n < subjects
        rows.append(f"c{n:02d},s{n // 2:02d},{'X' if first_half else 'Y'},{'uint8' if first_half else 'float32'}")
    description = {"name": "Toy", "labels": {"0": "background", "1": "thing"}, "training": pairs, "test": []}
    (folder / "dataset.json").write_text(json.dumps(description))
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Read-only."""
    return load_dataset(build(tmp_path_factory.mktemp("toy")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """To be broken by a test."""
    return build(tmp_path / "toy", 4)


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    description = json.loads((folder / "dataset.json").read_text())
    change(description)
    (folder / "dataset.json").write_text(json.dumps(description))


def no_subject_on_both_sides(dataset: Dataset, federation: Federation) -> bool:
    trained = {dataset.subjects[case] for cases in federation.sites.values() for case in cases}
    return trained.isdisjoint(dataset.subjects[case] for case in federation.test_cases)


def write_split(folder: Path, split: object) -> Path:
    path = folder / "mine.json"
    path.write_text(json.dumps(split))
    return path


class TestLoading:
    def test_cases_come_in_the_order_of_the_file_with_all_that_is_known(self, shared: Dataset) -> None:
        assert list(shared.cases) == [f"c{n:02d}" for n in range(2 * SUBJECTS)]
        assert shared.labelled == tuple(shared.cases)
        assert (shared.name, shared.label_names) == ("Toy", ("background", "thing"))
        assert shared.cases["c03"].label == shared.root / "labelsTr/c03.nii.gz"
        assert (shared.subjects["c03"], shared.natural_sites["c03"], shared.pipelines["c03"]) == ("s01", "X", "uint8")

    def test_without_a_manifest_every_case_is_its_own_subject(self, folder: Path) -> None:
        (folder / "manifest.csv").unlink()
        dataset = load_dataset(folder)
        assert dataset.subjects == {case: case for case in dataset.cases}
        assert dataset.natural_sites == {}
        assert dataset.pipelines == {}

    def test_a_case_without_a_label_is_kept_apart(self, folder: Path) -> None:
        edit(folder, lambda d: d["test"].append(d["training"].pop()["image"]))
        dataset = load_dataset(folder)
        assert dataset.cases["c07"].label is None
        assert "c07" not in dataset.labelled

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="is not a folder"):
            load_dataset(tmp_path / "nowhere")

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="is empty"):
            load_dataset(tmp_path)

    def test_a_folder_without_a_description(self, folder: Path) -> None:
        (folder / "dataset.json").unlink()
        with pytest.raises(DataError, match=r"dataset\.json does not exist"):
            load_dataset(folder)

    @pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "\xff"])
    def test_a_description_that_is_no_json_object(self, folder: Path, text: str) -> None:
        (folder / "dataset.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(DataError, match=r"cannot use .*dataset\.json"):
            load_dataset(folder)

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (lambda d: d.update(training=[]), "names no case"),
            (lambda d: d.update(training="x"), "no list"),
            (lambda d: d.update(training=[{"label": "x"}]), "names no image"),
            (lambda d: d["training"].append(d["training"][0]), "twice"),
            (lambda d: d["training"][0].update(image="../secret.nii.gz"), "outside"),
            (lambda d: d["training"][0].update(label="imagesTr/../../secret.nii.gz"), "outside"),
            (lambda d: d["training"][0].update(image="/etc/hostname"), "outside"),
            (lambda d: d["training"][0].update(image="imagesTr/gone.nii.gz"), "gone.nii.gz does not exist"),
            (lambda d: d["training"][0].update(label="labelsTr/gone.nii.gz"), "gone.nii.gz does not exist"),
            (lambda d: d.pop("labels"), "labels"),
            (lambda d: d.update(labels={"0": "background"}), "labels"),
            (lambda d: d.update(labels={"0": "background", "2": "thing"}), "without a gap"),
            (lambda d: d.update(labels={"0": "background", "x": "thing"}), "without a gap"),
        ],
    )
    def test_a_description_that_cannot_be_used(
        self, folder: Path, change: Callable[[dict[str, Any]], object], says: str
    ) -> None:
        edit(folder, change)
        with pytest.raises(DataError, match=says):
            load_dataset(folder)

    @pytest.mark.parametrize("text", [b"id,subject\nc00,s\n", b"case,subject\n\xff\xfe,s\n"])
    def test_a_manifest_that_cannot_be_used(self, folder: Path, text: bytes) -> None:
        (folder / "manifest.csv").write_bytes(text)
        with pytest.raises(DataError, match=r"cannot use .*manifest\.csv"):
            load_dataset(folder)


class TestVerifying:
    def test_a_sound_data_set_passes(self, shared: Dataset) -> None:
        verify_dataset(shared)

    def test_a_label_that_does_not_match_its_image_is_named(self, folder: Path) -> None:
        write_volume(folder / "labelsTr/c02.nii.gz", Volume(np.zeros((4, 4, 5), np.uint8), GRID))
        with pytest.raises(GeometryError, match=r"c02\.nii\.gz does not lie on the grid"):
            verify_dataset(load_dataset(folder))

    def test_a_label_that_is_not_named_in_the_description_is_named(self, folder: Path) -> None:
        write_volume(folder / "labelsTr/c05.nii.gz", Volume(np.full((4, 4, 4), 2, np.uint8), GRID))
        with pytest.raises(DataError, match=r"c05\.nii\.gz holds the label value 2"):
            verify_dataset(load_dataset(folder))

    def test_a_damaged_image_is_named(self, folder: Path) -> None:
        (folder / "imagesTr/c01.nii.gz").write_bytes(b"broken")
        with pytest.raises(DataError, match=r"c01\.nii\.gz"):
            verify_dataset(load_dataset(folder))


def scribble_on(
    folder: Path, strokes: np.ndarray, case: str = "c01", affine: np.ndarray = GRID, **keys: Any
) -> Dataset:
    """The data set with strokes on one case, and other keys of its description."""
    write_volume(folder / f"scribblesTr/{case}.nii.gz", Volume(strokes, affine))

    def change(description: dict[str, Any]) -> None:
        description.update(keys)
        for pair in description["training"]:
            if case in pair["image"]:
                pair["scribble"] = f"./scribblesTr/{case}.nii.gz"

    edit(folder, change)
    return load_dataset(folder)


class TestScribbles:
    STROKES = np.full((4, 4, 4), 4, dtype=np.uint8)
    STROKES[1, 2, 3], STROKES[0, 0, 0] = 1, 0

    def test_strokes_are_read_and_the_rest_is_unlabelled(self, folder: Path) -> None:
        dataset = scribble_on(folder, self.STROKES, scribble_ignore_value=4)
        strokes = read_scribbles(dataset, "c01")
        assert strokes.array.dtype == np.uint8
        assert (strokes.array[1, 2, 3], strokes.array[0, 0, 0]) == (1, 0)
        assert np.count_nonzero(strokes.array == UNLABELLED) == 62
        assert [case.id for case in dataset.cases.values() if case.scribble is not None] == ["c01"]
        verify_dataset(dataset)

    def test_unlabelled_is_the_usual_value(self, folder: Path) -> None:
        strokes = np.where(self.STROKES == 4, UNLABELLED, self.STROKES).astype(np.uint8)
        assert np.array_equal(read_scribbles(scribble_on(folder, strokes), "c01").array, strokes)

    def test_a_value_that_is_no_label_is_named(self, folder: Path) -> None:
        dataset = scribble_on(folder, self.STROKES, scribble_ignore_value=3)
        for read in (lambda: read_scribbles(dataset, "c01"), lambda: verify_dataset(dataset)):
            with pytest.raises(DataError, match=r"c01\.nii\.gz holds a value that is no label"):
                read()

    def test_strokes_on_another_grid_are_refused(self, folder: Path) -> None:
        dataset = scribble_on(folder, self.STROKES, affine=2 * GRID, scribble_ignore_value=4)
        with pytest.raises(GeometryError, match="does not lie on the grid"):
            read_scribbles(dataset, "c01")

    def test_a_case_without_strokes_says_so(self, shared: Dataset) -> None:
        with pytest.raises(DataError, match="case c00 has no scribble"):
            read_scribbles(shared, "c00")

    @pytest.mark.parametrize("value", ["4", None, True, 1.5])
    def test_an_ignore_value_that_cannot_be_used(self, folder: Path, value: object) -> None:
        edit(folder, lambda d: d.update(scribble_ignore_value=value))
        with pytest.raises(DataError, match="scribble_ignore_value"):
            load_dataset(folder)

    @pytest.mark.data
    def test_expert_scribbles_of_the_heart(self, data_folder: Path) -> None:
        if not (data_folder / "acdc_scribbles").is_dir():
            pytest.skip("WARDROUND_DATA holds no acdc_scribbles/")
        dataset = load_dataset(data_folder / "acdc_scribbles")
        strokes = read_scribbles(dataset, "patient002_ED").array
        assert np.unique(strokes).tolist() == [0, 1, 2, 3, UNLABELLED]
        assert np.mean(strokes != UNLABELLED) < 0.05


class TestSplitByFile:
    def test_sites_and_their_own_tests(self, shared: Dataset, tmp_path: Path) -> None:
        path = write_split(tmp_path, {"sites": {"A": ["c02", "c00"], "B": ["c04"]}, "test": {"A": ["c06"]}})
        federation = split_by_file(shared, path)
        assert federation == Federation({"A": ("c02", "c00"), "B": ("c04",)}, {"A": ("c06",), "B": ()})

    def test_a_path_is_also_looked_for_in_the_data_sets_folder(self, shared: Dataset) -> None:
        write_split(shared.root, {"sites": {"A": ["c00"]}, "test": ["c02"]})
        assert split_by_file(shared, Path("mine.json")).tests == {"A": ("c02",)}

    def test_a_test_case_goes_to_the_sites_that_train_on_its_institution(self, shared: Dataset, tmp_path: Path) -> None:
        sites = {"A": ["c00"], "B": ["c02", "c20"], "C": ["c22"]}
        path = write_split(tmp_path, {"sites": sites, "test": ["c04", "c24"]})
        assert split_by_file(shared, path).tests == {"A": ("c04",), "B": ("c04", "c24"), "C": ("c24",)}

    def test_where_the_institution_is_unknown_to_those_of_its_pipeline(self, folder: Path, tmp_path: Path) -> None:
        manifest = (folder / "manifest.csv").read_text().replace(",X,", ",,").replace(",Y,", ",,")
        (folder / "manifest.csv").write_text(manifest)
        path = write_split(tmp_path, {"sites": {"A": ["c00"], "B": ["c04"]}, "test": ["c02", "c06"]})
        assert split_by_file(load_dataset(folder), path).tests == {"A": ("c02",), "B": ("c06",)}

    def test_where_nothing_is_known_to_all(self, folder: Path, tmp_path: Path) -> None:
        (folder / "manifest.csv").unlink()
        path = write_split(tmp_path, {"sites": {"A": ["c00"], "B": ["c04"]}, "test": ["c02"]})
        assert split_by_file(load_dataset(folder), path).tests == {"A": ("c02",), "B": ("c02",)}

    @pytest.mark.parametrize("key", ["federation", "simulated_federation"])
    def test_published_splits_are_read_and_remarks_in_them_ignored(
        self, shared: Dataset, tmp_path: Path, key: str
    ) -> None:
        split = {"train": ["c00"], "validation": ["c06"], key: {"note": "a remark", "A": ["c00"]}, "cases": []}
        federation = split_by_file(shared, write_split(tmp_path, split))
        assert federation == Federation({"A": ("c00",)}, {"A": ("c06",)})

    @pytest.mark.parametrize(
        ("split", "says"),
        [
            ({"sites": {"A": ["c00", "c99"]}}, "c99 is not in the data set"),
            ({"sites": {"A": ["c00"]}, "test": ["c99"]}, "c99 is not in the data set"),
            ({"sites": {"A": ["c00"], "B": ["c02", "c00"]}}, "c00 is listed twice"),
            ({"sites": {"A": ["c00", "c00"]}}, "c00 is listed twice"),
            ({"sites": {"A": ["c00"]}, "test": {"A": ["c02", "c02"]}}, "listed twice"),
            ({"sites": {"A": ["c00"], "B": []}}, "B has no training case"),
            ({"sites": {"A": ["c00"]}, "test": ["c01"]}, "subject s00 is in training"),
            ({"sites": {"A": ["c00"]}, "test": ["c00"]}, "subject s00 is in training"),
            ({"sites": {"A": ["c00"]}, "test": {"B": ["c02"]}}, "unknown site B"),
            ({"sites": {"A": [1]}}, "list of case ids"),
            ({"sites": {"A": ["c00"]}, "test": "c02"}, "list of case ids"),
            ({"sites": {}}, "names no sites"),
            ({"train": ["c00"]}, "names no sites"),
            ([], "JSON object"),
        ],
    )
    def test_a_split_that_cannot_be_used(self, shared: Dataset, tmp_path: Path, split: object, says: str) -> None:
        with pytest.raises(DataError, match=says):
            split_by_file(shared, write_split(tmp_path, split))

    def test_a_case_without_a_label_cannot_be_dealt(self, folder: Path, tmp_path: Path) -> None:
        edit(folder, lambda d: d["training"][0].pop("label"))
        with pytest.raises(DataError, match="c00 has no label"):
            split_by_file(load_dataset(folder), write_split(tmp_path, {"sites": {"A": ["c00"]}}))

    def test_a_missing_file(self, shared: Dataset) -> None:
        with pytest.raises(DataError, match="does not exist"):
            split_by_file(shared, Path("nowhere.json"))


def even(dataset: Dataset, seed: int) -> Federation:
    return split_even(dataset, 3, 0.25, np.random.default_rng(seed))


def dirichlet(dataset: Dataset, seed: int) -> Federation:
    return split_dirichlet(dataset, 3, 0.3, 0.25, np.random.default_rng(seed))


def natural(dataset: Dataset, seed: int) -> Federation:
    return split_natural(dataset, 0.25, np.random.default_rng(seed))


class TestRandomSplits:
    @pytest.mark.parametrize("split", [even, dirichlet, natural])
    @pytest.mark.parametrize("seed", range(10))
    def test_every_case_is_dealt_once_and_whole_subjects_together(
        self, shared: Dataset, split: Callable[[Dataset, int], Federation], seed: int
    ) -> None:
        federation = split(shared, seed)
        dealt = [c for part in (federation.sites, federation.tests) for cases in part.values() for c in cases]
        assert sorted(dealt) == sorted(shared.cases)
        assert no_subject_on_both_sides(shared, federation)
        for part in (federation.sites, federation.tests):
            assert all(part.values())
            homes = {(shared.subjects[case], site) for site, cases in part.items() for case in cases}
            assert len({subject for subject, _ in homes}) == len(homes)

    @pytest.mark.parametrize("split", [even, dirichlet, natural])
    def test_the_generator_decides(self, shared: Dataset, split: Callable[[Dataset, int], Federation]) -> None:
        assert split(shared, 1) == split(shared, 1)
        assert split(shared, 1) != split(shared, 2)

    def test_even_sites_differ_by_a_subject_at_most(self, shared: Dataset) -> None:
        federation = split_even(shared, 5, 0.25, np.random.default_rng(0))
        sizes = [len(federation.sites[site]) + len(federation.tests[site]) for site in federation.sites]
        assert max(sizes) - min(sizes) <= 2  # two cases a subject

    def test_natural_sites_are_the_institutions(self, shared: Dataset) -> None:
        federation = natural(shared, 0)
        assert set(federation.sites) == {"X", "Y"}
        for part in (federation.sites, federation.tests):
            assert all(shared.natural_sites[case] == site for site, cases in part.items() for case in cases)
        assert {site: len(cases) for site, cases in federation.tests.items()} == {"X": 4, "Y": 4}

    def test_a_subject_of_two_institutions_is_never_tested_on(self, folder: Path) -> None:
        rows = (folder / "manifest.csv").read_text().splitlines()
        rows[1] = rows[1].replace(",s00,X,", ",s03,X,")
        (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
        dataset = load_dataset(folder)
        for seed in range(20):
            federation = split_natural(dataset, 0.5, np.random.default_rng(seed))
            assert not {"c00", "c06", "c07"} & set(federation.test_cases)

    def test_without_institutions_there_is_no_natural_split(self, folder: Path) -> None:
        (folder / "manifest.csv").unlink()
        with pytest.raises(DataError, match="natural site"):
            natural(load_dataset(folder), 0)

    def test_alpha_sets_how_much_the_sites_differ(self, shared: Dataset) -> None:
        def spread(alpha: float) -> float:
            """Mean over draws of the variance between sites of the mean rank of brightness."""
            spreads = []
            for seed in range(20):
                federation = split_dirichlet(shared, 3, alpha, 0.0, np.random.default_rng(seed))
                spreads.append(np.var([np.mean([int(c[1:]) for c in cases]) for cases in federation.sites.values()]))
            return float(np.mean(spreads))

        assert spread(0.1) > 3 * spread(100.0)

    @pytest.mark.parametrize("alpha", [1e-3, 0.1, 1e3])
    def test_no_alpha_leaves_a_site_empty(self, shared: Dataset, alpha: float) -> None:
        for seed in range(20):
            federation = split_dirichlet(shared, SUBJECTS // 2, alpha, 0.1, np.random.default_rng(seed))
            assert all(federation.sites.values())
            assert all(federation.tests.values())

    def test_a_fraction_of_zero_tests_on_nothing(self, shared: Dataset) -> None:
        federation = split_even(shared, 3, 0.0, np.random.default_rng(0))
        assert federation.test_cases == ()
        assert sum(map(len, federation.sites.values())) == len(shared.cases)

    @pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
    def test_a_fraction_out_of_range(self, shared: Dataset, fraction: float) -> None:
        with pytest.raises(UsageError, match="fraction"):
            split_even(shared, 2, fraction, np.random.default_rng(0))

    @pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
    def test_an_alpha_out_of_range(self, shared: Dataset, alpha: float) -> None:
        with pytest.raises(UsageError, match="alpha"):
            split_dirichlet(shared, 2, alpha, 0.2, np.random.default_rng(0))

    def test_no_sites(self, shared: Dataset) -> None:
        with pytest.raises(UsageError, match="0 sites"):
            split_even(shared, 0, 0.2, np.random.default_rng(0))

    def test_more_sites_than_the_subjects_can_fill(self, shared: Dataset) -> None:
        with pytest.raises(DataError, match="fewer sites"):
            split_even(shared, SUBJECTS, 0.2, np.random.default_rng(0))


@pytest.mark.data
@needs_data
class TestRealData:
    def test_hippocampus_has_four_simulated_sites_and_tests_by_pipeline(self) -> None:
        dataset = load_dataset(DATA / "hippocampus")
        verify_dataset(dataset)
        assert dataset.label_names == ("background", "Anterior", "Posterior")
        federation = split_by_file(dataset, Path("split.json"))
        assert {site: len(c) for site, c in federation.sites.items()} == {
            "site_A": 33,
            "site_B": 62,
            "site_C": 35,
            "site_D": 14,
        }
        assert len(federation.test_cases) == 36
        assert {dataset.pipelines[c] for c in federation.tests["site_A"]} == {"uint8"}
        assert federation.tests["site_B"] == federation.tests["site_D"]
        assert {dataset.pipelines[c] for c in federation.tests["site_B"]} == {"float32"}

    def test_glioma_has_four_institutions_and_each_tests_its_own(self) -> None:
        dataset = load_dataset(DATA / "lgg_multisite")
        verify_dataset(dataset)
        federation = split_by_file(dataset, Path("split.json"))
        assert {site: len(c) for site, c in federation.sites.items()} == {
            "site_DU": 26,
            "site_HT": 20,
            "site_CS": 10,
            "site_FG": 8,
        }
        for site, cases in federation.tests.items():
            assert cases
            assert {dataset.natural_sites[case] for case in cases} == {site.removeprefix("site_")}

    def test_natural_split_of_glioma(self) -> None:
        dataset = load_dataset(DATA / "lgg_multisite")
        federation = split_natural(dataset, 0.2, np.random.default_rng(0))
        assert {site: len(c) for site, c in federation.tests.items()} == {"CS": 2, "DU": 7, "FG": 2, "HT": 5}

    def test_dirichlet_split_of_hippocampus_keeps_both_sides_of_a_brain_together(self) -> None:
        dataset = load_dataset(DATA / "hippocampus")
        federation = split_dirichlet(dataset, 4, 0.3, 0.2, np.random.default_rng(0))
        assert no_subject_on_both_sides(dataset, federation)
