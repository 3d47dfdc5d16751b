"""The register: for the site's eyes only, the same after every restart, and honest about damage."""

import os
import re
import sqlite3
import stat
from pathlib import Path

import numpy as np
import pytest
from dicoms import affine_of, noise, series
from pydicom.dataset import Dataset

from wardround.client.cases.dicom.headers import pack
from wardround.client.cases.dicom.register import Register, SourceSeries
from wardround.client.cases.volume import Volume
from wardround.errors import DataError, StorageError, UsageError

AXIAL = affine_of(np.eye(3), (1, 1, 2), (0, 0, 0))


def source(register: Register, uid: str = "1.2.3", part: str = "") -> SourceSeries:
    headers: list[Dataset] = []
    for dataset in series(noise((3, 3, 2)), AXIAL):
        dataset.PatientName = "DOE^JANE"
        del dataset.PixelData
        headers.append(dataset)
    grid = Volume(np.zeros((3, 3, 2), np.uint8), AXIAL)
    frames = ((0, 0), (1, 0))
    return SourceSeries(register.case_id(uid, part), uid, "1.2", "1.4", part, "CT", tuple(headers), frames, grid)


def names(register: Register) -> tuple[str, str, str]:
    return register.case_id("1.2.3"), register.new_uid("1.2.3"), register.pseudonym("x")


def test_ids_are_the_same_after_a_restart_and_others_at_another_site(tmp_path: Path) -> None:
    with Register(tmp_path / "one") as register:
        first = (
            register.case_id("1.2.3"),
            register.new_uid("1.2.3"),
            register.date_shift("x"),
            register.pseudonym("x"),
        )
    with Register(tmp_path / "one") as register:
        again = (
            register.case_id("1.2.3"),
            register.new_uid("1.2.3"),
            register.date_shift("x"),
            register.pseudonym("x"),
        )
        assert register.case_id("1.2.3", "echo=2") != first[0]
        shifts = {register.date_shift(str(patient)) for patient in range(500)}
        assert register.date_shift("0") in shifts
        assert register.original_uid(first[1]) == "1.2.3"
        assert register.original_uid("1.2.3") is None
    with Register(tmp_path / "two") as register:
        other = (
            register.case_id("1.2.3"),
            register.new_uid("1.2.3"),
            register.date_shift("x"),
            register.pseudonym("x"),
        )
    assert first == again
    assert not set(first) & set(other)
    assert re.fullmatch(r"d[0-9a-f]{16}", first[0])
    assert re.fullmatch(r"2\.25\.[1-9][0-9]{0,38}", first[1])
    assert -3650 <= min(shifts) < max(shifts) <= -1
    assert len(shifts) > 400


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        with Register(tmp_path / "register") as register:
            register.enter(source(register), "x")
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "register").iterdir()}
    finally:
        os.umask(old)
    assert {"register.sqlite", "register.sqlite-wal"} <= set(modes)
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE((tmp_path / "register").stat().st_mode) == 0o700


def test_a_series_counts_when_its_import_has_ended(tmp_path: Path) -> None:
    with Register(tmp_path) as register:
        one = source(register)
        assert register.enter(one, "x") is False
        assert register.enter(one, "y") is False  # what was begun may be begun anew
        assert (register.case_of_series("1.2.3"), register.cases()) == (None, ())
        with pytest.raises(DataError, match="imported twice"):
            register.complete(one.case_id, "x")
        register.complete(one.case_id, "y")
        assert register.enter(one, "y") is True
        with pytest.raises(DataError, match="other images"):
            register.enter(one, "z")
        other = source(register, part="echo=2")
        register.enter(other, "x")
        register.complete(other.case_id, "x")
        assert register.case_of_series("1.2.3") == one.case_id
        assert register.cases_of_series("1.2.3") == register.cases() == (one.case_id, other.case_id)


def test_headers_come_back_as_they_were(tmp_path: Path) -> None:
    with Register(tmp_path) as register:
        one = source(register)
        register.enter(one, "x")
        with pytest.raises(DataError, match="did not end"):
            register.source(one.case_id)
        register.complete(one.case_id, "x")
    with Register(tmp_path) as register:
        found = register.source(one.case_id)
    assert found.instances == one.instances
    syntaxes = [[header.file_meta.TransferSyntaxUID for header in each.instances] for each in (found, one)]
    assert syntaxes[0] == syntaxes[1]
    assert (found.frames, found.part, found.modality, found.resampled) == (one.frames, "", "CT", False)
    assert (found.series_uid, found.study_uid, found.frame_of_reference_uid) == ("1.2.3", "1.2", "1.4")
    assert np.array_equal(found.grid.affine, one.grid.affine)
    assert found.grid.shape == one.grid.shape


def test_what_is_not_there_or_damaged_is_told_without_a_word_about_it(tmp_path: Path) -> None:
    with Register(tmp_path / "a") as register:
        with pytest.raises(DataError, match="not in the register"):
            register.source("d0123456789abcdef")
        register.enter(source(register), "x")
        register.complete(register.case_id("1.2.3"), "x")
    connection = sqlite3.connect(tmp_path / "a" / "register.sqlite")
    connection.execute("UPDATE instances SET header = x'00'")
    connection.commit()
    connection.close()
    with Register(tmp_path / "a") as register, pytest.raises(StorageError) as caught:
        register.source(register.case_id("1.2.3"))
    assert "DOE" not in str(caught.value)
    with pytest.raises(UsageError, match="closed"):
        register.cases()
    (tmp_path / "a" / "register.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(StorageError):
        Register(tmp_path / "a")


def test_a_register_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    Register(tmp_path).close()
    connection = sqlite3.connect(tmp_path / "register.sqlite")
    connection.execute("UPDATE about SET value = 2 WHERE name = 'version'")
    connection.commit()
    connection.close()
    with pytest.raises(StorageError, match="version 1"):
        Register(tmp_path)


def test_who_is_forgotten_is_nowhere_in_it_any_more(tmp_path: Path) -> None:
    with Register(tmp_path) as register:
        gone, stays = source(register), source(register, "1.2.4")
        for instance in stays.instances:
            instance.PatientName = "ROE^JOHN"
        for one in (gone, stays):
            register.enter(one, "x")
            register.complete(one.case_id, "x")
        packed = [pack(instance) for instance in gone.instances]
        assert all(any(header in path.read_bytes() for path in tmp_path.iterdir()) for header in packed)
        assert register.forget(gone.case_id)
        assert not register.forget(gone.case_id)
        assert not any(header in path.read_bytes() for header in packed for path in tmp_path.iterdir())
        assert register.cases() == (stays.case_id,)
        assert register.source(stays.case_id).instances[0].PatientName == "ROE^JOHN"
        assert register.enter(gone, "other") is False, "it may be imported anew"
