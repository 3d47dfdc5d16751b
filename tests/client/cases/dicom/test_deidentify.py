"""Headers without the patient: nothing that was planted comes through, and what may stay still stands."""

import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicoms import affine_of, encoded, noise, series
from pydicom import dcmread
from pydicom.datadict import DicomDictionary, dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from wardround.client.cases.dicom.deidentify import WORDS, Options, deidentified, table
from wardround.client.cases.dicom.register import Register
from wardround.errors import SeriesRefused

AXIAL = affine_of(np.eye(3), (1, 1, 2), (0, 0, 0))
CANARY = "QZXMUSTERQZX"
TEXT = ("AE", "LO", "LT", "PN", "SH", "ST", "UC", "UT", "UR")


@pytest.fixture
def register(tmp_path: Path) -> Iterator[Register]:
    with Register(tmp_path) as opened:
        yield opened


def image(**values: Any) -> Any:
    (dataset,) = series(noise((3, 3, 1)), AXIAL)
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def planted() -> Any:
    """An image with the canary in every text element of the dictionary, also in sequences, privately and in group 2."""
    dataset = image()
    for tag, (vr, *_) in DicomDictionary.items():
        if vr in TEXT and tag >> 16 not in (0, 2, 4) and not tag >> 16 >= 0x7F00:
            dataset.add_new(tag, vr, CANARY)
        elif vr in ("OB", "OW", "OF", "OL") and 4 < tag >> 16 < 0x7F00 and tag >> 16 != 0x0028:
            dataset.add_new(tag, vr, CANARY.encode())
        elif vr == "SQ" and tag >> 16 > 4:
            item = Dataset()
            item.PatientName = item.ConvolutionKernel = item.CodeMeaning = CANARY
            item.StudyDate, item.ReferencedSOPInstanceUID = "19510203", "1.2.3.4.5678"
            inner = Dataset()
            inner.PatientID = CANARY
            item.ReferencedPatientSequence = Sequence([inner])
            dataset.add_new(tag, vr, Sequence([item]))
    block = dataset.private_block(0x0009, CANARY, create=True)
    block.add_new(0x10, "LO", CANARY)
    block.add_new(0x11, "OB", CANARY.encode())
    dataset.add_new(0x60000022, "LO", CANARY)
    dataset.add_new(0x60003000, "OW", CANARY.encode())
    dataset.add_new(0x50000022, "LO", CANARY)
    dataset.add_new(0x00091101, "UN", CANARY.encode())
    dataset.file_meta.SourceApplicationEntityTitle = CANARY
    dataset.file_meta.PrivateInformationCreatorUID = "1.2.3.4.5678"
    dataset.file_meta.PrivateInformation = CANARY.encode()
    dataset.preamble = (CANARY * 20).encode()[:128]
    dataset.BurnedInAnnotation = "NO"
    dataset.SpecificCharacterSet = "ISO_IR 192"
    return dataset


@pytest.mark.parametrize(
    "options",
    [
        Options(),
        Options(clean_descriptors=True),
        Options(dates="shift"),
        Options(dates="keep", clean_descriptors=True),
        Options(retain_uids=True),
    ],
)
def test_nothing_that_was_planted_comes_through(options: Options, register: Register) -> None:
    dataset = planted()
    assert encoded(dataset).count(CANARY.encode()) > 1000
    found = encoded(deidentified(dataset, options, register))
    assert CANARY.encode() not in found
    assert (b"1.2.3.4.5678" in found) == options.retain_uids
    assert (b"19510203" in found) == (options.dates == "keep")
    assert dcmread(BytesIO(found)).PatientIdentityRemoved == "YES"
    assert dataset.PatientName == CANARY  # the original stays as it is


@pytest.mark.parametrize("dates", ["remove", "shift", "keep"])
def test_a_name_where_a_date_a_code_or_a_uid_belongs_does_not_come_through(dates: Any, register: Register) -> None:
    planted = {
        "AcquisitionTime": ("TM", "DOE^JANE"), "ContentTime": ("TM", ["1011", "DOE^JANE"]),
        "StudyDate": ("DA", "DOE^JANE"), "SeriesDate": ("DA", "20200301DOE^JANE"),
        "AcquisitionDateTime": ("DT", "20200301DOE^JANE"), "DateOfSecondaryCapture": ("DA", "DOE^JANE"),
        "HangingProtocolCreationDateTime": ("DT", "20200301DOE^JANE"), "BodyPartExamined": ("CS", "DOE^JANE"),
        "ImageType": ("CS", ["ORIGINAL", "PRIMARY", "DOE^JANE"]),
        "FrameOfReferenceUID": ("UI", "1.2.840.10008.DOE^JANE"),
    }  # fmt: skip
    dataset = image()
    for name, (vr, value) in planted.items():
        dataset.add_new(name, vr, value)
    dataset.InstanceCreationDate = ["20200301", "20200302"]
    found = deidentified(dcmread(BytesIO(encoded(dataset))), Options(dates=dates), register)
    assert b"JANE" not in encoded(found)
    if dates == "keep":
        assert found.InstanceCreationDate == ["20200301", "20200302"]


def test_every_row_of_the_table_is_done(register: Register) -> None:
    """Each attribute alone, with a value that would show, against its row."""
    checked = 0
    for name, rule in table().items():
        if "x" in name or name.startswith(("0000", "0002", "0004")):
            continue
        tag = int(name, 16)
        try:
            vr = dictionary_VR(tag).split(" ")[0]
        except KeyError:
            vr = "LO"
        dates = {"DA": "20200102", "TM": "101112", "DT": "20200102101112"}
        value: Any = {"SQ": [Dataset()], "UI": "1.2.3.4", **dates}.get(vr)
        if value is None:
            numbers = {"IS": "7", "DS": "7", "AS": "077Y"}
            value = numbers.get(vr, CANARY if vr in (*TEXT, "CS") else b"1234" if vr in ("OB", "OW", "UN") else 7)
        dataset = Dataset()
        dataset.add(DataElement(tag, vr, value))
        found = deidentified(dataset, Options(), register)
        if rule.action == "X":
            assert tag not in found, name
        elif rule.action in ("Z", "X/Z"):
            assert found[tag].is_empty, name
        elif "U" in rule.action and vr == "UI":
            assert found[tag].value == register.new_uid("1.2.3.4"), name
        elif vr == "SQ" and rule.action in ("X/D", "X/Z/D"):
            assert tag not in found, name
        elif vr == "SQ":
            assert len(found[tag].value) == ("U" in rule.action), name
        else:
            assert not found[tag].is_empty, name
            assert found[tag].value != value, name
        checked += 1
    assert checked > 640


def test_the_table_is_that_of_the_standard() -> None:
    rules = table()
    assert len(rules) == 655
    assert {rule.action for rule in rules.values()} == {"X", "Z", "D", "U", "X/Z", "X/D", "X/Z/D", "Z/D", "X/Z/U*"}
    known = {"uids", "device", "device-clean", "institution", "patient", "patient-clean", "dates", "descriptors"}
    assert {option for rule in rules.values() for option in rule.options} == known
    assert (rules["00100010"].action, rules["00100020"].action, rules["00080018"].action) == ("Z", "Z/D", "U")
    for name, rule in rules.items():
        assert re.fullmatch(r"[0-9a-f]{8}|[56]0xx[0-9a-fx]{4}", name)
        if "dates" in rule.options:
            assert dictionary_VR(int(name, 16)) in ("DA", "DT", "TM", "SH", "LO", "OB")
        if "patient" in rule.options:
            assert name[:4] in ("0010", "0038", "0040", "0072")


def test_what_makes_an_image_stays(register: Register) -> None:
    dataset = image(KVP="120", ConvolutionKernel="BONE", BodyPartExamined="HEAD")
    found = deidentified(dataset, Options(), register)
    for name in (
        "Rows", "Columns", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "PixelData", "Modality",
        "SOPClassUID", "ImageType", "RescaleSlope", "KVP", "BodyPartExamined", "ConvolutionKernel", "InstanceNumber",
    ):  # fmt: skip
        assert found[name] == dataset[name], name


def test_uids_are_replaced_alike_everywhere_and_those_of_the_standard_stay(register: Register) -> None:
    one, other = image(), image()
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = one.SOPClassUID, one.SOPInstanceUID
    other.SOPInstanceUID = "1.2.3.4"
    other.ReferencedImageSequence = Sequence([reference])
    found, second = (deidentified(dataset, Options(), register) for dataset in (one, other))
    assert second.ReferencedImageSequence[0].ReferencedSOPInstanceUID == found.SOPInstanceUID != one.SOPInstanceUID
    assert second.ReferencedImageSequence[0].ReferencedSOPClassUID == one.SOPClassUID
    assert found.SeriesInstanceUID == second.SeriesInstanceUID
    assert found.file_meta.MediaStorageSOPInstanceUID == found.SOPInstanceUID
    assert register.original_uid(found.SOPInstanceUID) == one.SOPInstanceUID
    kept = deidentified(one, Options(retain_uids=True), register)
    assert kept.SOPInstanceUID == kept.file_meta.MediaStorageSOPInstanceUID == one.SOPInstanceUID


def test_dates_of_one_patient_move_together(register: Register) -> None:
    dataset = image(PatientID="77", StudyDate="20200301", AcquisitionDateTime="20200229101112.5+0100", StudyTime="1011")
    dataset.PatientBirthDate = "19510203"
    found = deidentified(dataset, Options(dates="shift"), register)
    days = np.datetime64("2020-03-01") - np.datetime64(
        f"{found.StudyDate[:4]}-{found.StudyDate[4:6]}-{found.StudyDate[6:]}"
    )
    assert days.astype(int) == -register.date_shift("77")
    moved = found.AcquisitionDateTime
    assert np.datetime64(f"{moved[:4]}-{moved[4:6]}-{moved[6:8]}") + days == np.datetime64("2020-02-29")
    assert moved[8:] == "101112.5+0100"
    assert found.StudyTime == "1011"
    assert found.PatientBirthDate in ("", None)
    assert found.LongitudinalTemporalInformationModified == "MODIFIED"
    assert deidentified(image(StudyDate="in May"), Options(dates="shift"), register).StudyDate in ("", None)
    assert deidentified(dataset, Options(dates="keep"), register).StudyDate == "20200301"
    assert deidentified(dataset, Options(), register).StudyDate in ("", None)


def test_what_an_option_keeps(register: Register) -> None:
    dataset = image(PatientID="77", PatientName="DOE^JANE", PatientSex="F", PatientAge="069Y", PatientWeight="70")
    dataset.InstitutionName, dataset.DeviceSerialNumber = "St. Elsewhere", "S-1234"
    dataset.SeriesDescription, dataset.ImageComments = "t2_tse AX head DOE 12345", "call DOE"
    plain = deidentified(dataset, Options(), register)
    assert "PatientAge" not in plain
    assert plain.PatientSex in ("", None)
    assert plain.PatientID == register.pseudonym("77")
    assert "SeriesDescription" not in plain
    patient = deidentified(dataset, Options(retain_patient_characteristics=True), register)
    assert (patient.PatientSex, patient.PatientAge, patient.PatientWeight) == ("F", "069Y", 70)
    assert patient.PatientName in ("", None)
    place = deidentified(dataset, Options(retain_institution_identity=True), register)
    assert (place.InstitutionName, place.DeviceSerialNumber) == ("St. Elsewhere", "REMOVED")
    device = deidentified(dataset, Options(retain_device_identity=True), register)
    assert (device.InstitutionName, device.DeviceSerialNumber) == ("REMOVED", "S-1234")
    words = deidentified(dataset, Options(clean_descriptors=True), register)
    assert words.SeriesDescription == "t2 tse AX head"
    assert "ImageComments" not in words


def test_an_object_says_what_was_done_to_it(register: Register) -> None:
    options = Options(dates="shift", clean_descriptors=True, retain_patient_characteristics=True)
    found = deidentified(image(), options, register)
    codes = [(code.CodeValue, code.CodingSchemeDesignator) for code in found.DeidentificationMethodCodeSequence]
    assert codes == [(value, "DCM") for value in ("113100", "113105", "113107", "113108")]


def test_text_burnt_in_and_a_bottomless_header_are_refused(register: Register) -> None:
    with pytest.raises(SeriesRefused) as caught:
        deidentified(image(BurnedInAnnotation="yes "), Options(), register)
    assert caught.value.reason == "burned-in-annotation"
    dataset = image()
    for _ in range(3000):
        outer = Dataset()
        outer.ReferencedImageSequence = Sequence([dataset])
        dataset = outer
    with pytest.raises(SeriesRefused) as caught:
        deidentified(dataset, Options(), register)
    assert caught.value.reason == "damaged-header"


def test_no_word_that_stays_is_a_common_name() -> None:
    common = "smith johnson williams brown jones garcia miller davis may grace rose mark frank art will ray dean"
    assert not WORDS & set(common.split())
