"""`wardround site pull` and `export` against a real archive: a series comes in, an accepted label goes back."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ct import Series, ct_series
from orthanc import Orthanc, orthanc
from pydicom import dcmread

from wardround.client.arrivals import IMPORTED
from wardround.client.cases.dicom.archives import RemoteSeries
from wardround.client.cases.dicom.export import export_label
from wardround.client.cases.dicom.pacs import Pacs
from wardround.client.cases.dicom.register import FOLDER, Register
from wardround.client.cases.dicom.segments import read_seg
from wardround.client.cases.drawings import Drawing
from wardround.client.cases.store import CaseStore
from wardround.client.cases.volume import Volume
from wardround.client.home import SETTINGS_TEMPLATE, SiteHome
from wardround.client.intake import STORE, make_live_site
from wardround.deploy.cli import run
from wardround.deploy.site.pulled import PULLED, pulled_folder, sweep_pulled
from wardround.errors import DataError, UsageError

CANARY = "KOWALSKA^EWA"


@pytest.fixture(scope="module")
def pacs() -> Iterator[Orthanc]:
    with orthanc() as running:
        yield running


@pytest.fixture(scope="module")
def series(pacs: Orthanc) -> Series:
    made = ct_series((32, 28, 8), patient=CANARY)
    for one in made.files:
        pacs.upload(one)
    return made


@pytest.fixture
def home(pacs: Orthanc, tmp_path: Path) -> SiteHome:
    place = SiteHome(tmp_path / "home")
    make_live_site(place, "north")
    table = f'[[pacs]]\nname = "archive"\ndicomweb = "{pacs.dicomweb}"\nuser = "{pacs.user}"\n'
    text = SETTINGS_TEMPLATE.format(name="north", coordinator="https://fed.example.org:8443") + table
    place.settings_file.write_text(text.replace("labels = []", 'labels = ["ball"]'))
    place.keys.mkdir()
    place.pacs_password("archive").touch(0o600)
    place.pacs_password("archive").write_text(pacs.password)
    return place


def typed(home: SiteHome, *words: str) -> int:
    return run(["site", *words, "--home", str(home.path)])


def accept(home: SiteHome, labels: Volume, case_id: str, author: str = "ann") -> None:
    with CaseStore(home.site / STORE) as store:
        drawing = Drawing(case_id, author, state="accepted", source="whole", model="ab12", round=3)
        store.save_drawing(drawing, labels)


def test_from_the_archive_and_back(
    home: SiteHome, pacs: Orthanc, series: Series, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert typed(home, "pull", "--find", "patient=4711") == 0
    assert series.series in capfd.readouterr().out
    assert typed(home, "pull", "--series", series.series) == 0
    told = capfd.readouterr()
    assert "1 new of 1 cases" in told.out
    with CaseStore(home.site / STORE) as store:
        (case_id,) = store.cases()
        image = store.image(case_id)
    assert (image.array == series.volume.array).all()
    assert not [path for path in (home.site / PULLED).iterdir() if path.name != "lock"], "nothing is left of a pull"
    accept(home, labels := image.with_array((image.array > 200).astype(np.uint8)), case_id)
    before = set(pacs.instances())
    assert typed(home, "export", case_id) == 0
    (new,) = set(pacs.instances()) - before
    (tmp_path / "back.dcm").write_bytes(pacs.file(new))
    back = dcmread(tmp_path / "back.dcm")
    assert (read_seg(back, image, names=["ball"]).array == labels.array).all()
    assert str(back.PatientName) == CANARY, "within the hospital it is the patient's"
    assert typed(home, "export", case_id, "--to", str(tmp_path / "seg.dcm"), "--author", "ann") == 0
    assert dcmread(tmp_path / "seg.dcm").SOPInstanceUID == back.SOPInstanceUID
    assert (tmp_path / "seg.dcm").stat().st_mode & 0o077 == 0
    told = capfd.readouterr()
    assert not [word for word in (CANARY, "4711", series.series, series.study) if word in told.out + told.err]


def test_a_study_is_taken_with_a_label_from_a_file(home: SiteHome, series: Series, tmp_path: Path) -> None:
    assert typed(home, "pull", "--study", series.study, "--pacs", "archive") == 0
    with CaseStore(home.site / STORE) as store:
        (case_id,) = store.cases()
        image = store.image(case_id)
    labels = image.with_array((image.array > 200).astype(np.uint8))
    accept(home, labels, case_id)
    assert typed(home, "export", case_id, "--to", str(tmp_path / "seg.dcm")) == 0
    folder = tmp_path / "files"
    folder.mkdir()
    for number, one in enumerate(series.files):
        (folder / f"{number}").write_bytes(one)
    assert typed(home, "import", str(folder), "--label", str(tmp_path / "seg.dcm")) == 0
    with CaseStore(home.site / STORE) as store:
        found = store.label(case_id, IMPORTED)
    assert found is not None
    assert (found.array == labels.array).all()


def test_a_pull_that_fails_leaves_nothing(
    home: SiteHome, series: Series, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from wardround.client.cases.dicom import archives

    taken = archives.Intake.take

    def breaking(self: archives.Intake, *data: object) -> None:
        taken(self, *data)  # type: ignore[arg-type]
        if self.count == 3:
            raise DataError("the line broke", "", "")

    monkeypatch.setattr(archives.Intake, "take", breaking)
    assert typed(home, "pull", "--series", series.series) == DataError.exit_code
    assert [path.name for path in (home.site / PULLED).iterdir()] == ["lock"]
    (home.site / PULLED / ".tmp-of-a-killed-pull").mkdir()
    assert typed(home, "pull", "--series", series.series) == DataError.exit_code
    assert [path.name for path in (home.site / PULLED).iterdir()] == ["lock"]
    monkeypatch.undo()
    assert typed(home, "pull", "--series", "1.2.3.4") == DataError.exit_code
    assert "1.2.3.4" not in "".join(capfd.readouterr())


def test_a_label_is_not_given_to_every_series_of_a_study(
    home: SiteHome, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    two = [RemoteSeries("1.2", f"1.2.{number}", "MR", "", 3) for number in (1, 2)]
    monkeypatch.setattr(Pacs, "find", lambda *_: two)
    monkeypatch.setattr(Pacs, "pull", lambda *_: pytest.fail("nothing is to be taken"))
    assert typed(home, "pull", "--study", "1.2", "--label", str(tmp_path / "label.nii")) == UsageError.exit_code


@pytest.mark.parametrize(
    "words",
    [
        ["pull"],
        ["pull", "--series", "1.2", "--study", "1.2"],
        ["pull", "--series", "../../x"],
        ["pull", "--find", "colour=red"],
        ["pull", "--series", "1.2", "--pacs", "http://evil.example.org"],
        ["export", "d0", "--to", "no-such-archive"],
    ],
)
def test_what_makes_no_sense_is_refused(home: SiteHome, words: list[str]) -> None:
    assert typed(home, *words) == UsageError.exit_code


def test_only_labels_that_count_leave(home: SiteHome, series: Series) -> None:
    assert typed(home, "pull", "--series", series.series) == 0
    with CaseStore(home.site / STORE) as store, Register(home.site / FOLDER) as register:
        (case_id,) = store.cases()
        labels = store.image(case_id).with_array(np.ones((32, 28, 8), np.uint8))
        store.save_label(case_id, labels, IMPORTED, 0, 0.0)
        store.save_drawing(Drawing(case_id, "bob", state="open"))
        for author in (IMPORTED, "bob", "nobody", "../x"):
            with pytest.raises(DataError, match="no label"):
                export_label(home, store, register, case_id, author)
        accept(home, labels, case_id)
        reviewing = _ReviewingHome(home.path)
        with pytest.raises(DataError, match="no label"):
            export_label(reviewing, store, register, case_id, "ann")
        store.review(case_id, "ann", by="rev", verdict="approved")
        assert export_label(reviewing, store, register, case_id, "ann")["voxels"] == labels.array.size
        store.review(case_id, "ann", by="rev", verdict="rejected", reason="inaccurate")
        with pytest.raises(DataError, match="no label"):
            export_label(home, store, register, case_id, "ann")


class _ReviewingHome(SiteHome):
    @property
    def workbench(self):  # type: ignore[no-untyped-def]
        return super().workbench.model_copy(update={"review": True})


def test_what_a_killed_pull_left_goes_with_the_next_import_and_not_while_one_pulls(home: SiteHome) -> None:
    left = home.site / PULLED / ".tmp-of-a-killed-pull" / "000001.dcm"
    left.parent.mkdir(parents=True)
    left.write_bytes(CANARY.encode())
    assert typed(home, "import", str(home.path / "nothing.nii.gz")) != 0
    assert not left.parent.exists()
    with pulled_folder(home) as folder:
        sweep_pulled(home)
        assert folder.is_dir()
    assert not folder.exists()
    left.parent.mkdir()
    sweep_pulled(home)
    assert [path.name for path in (home.site / PULLED).iterdir()] == ["lock"]
