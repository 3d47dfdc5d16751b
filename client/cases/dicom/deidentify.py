"""A header without the patient: DICOM PS3.15 Annex E, Basic Application Level Confidentiality Profile, and options.

What happens to an attribute stands in ``confidentiality.tsv`` beside this file. Where the standard leaves a choice that
depends on the kind of object, an attribute is emptied or replaced rather than removed, so that the object stays valid.
Of what the standard leaves alone, this does less: private attributes go; UIDs, dates and times that the table does not
name are treated as those that it names; text that it does not name is kept only as far as it is made of words of
imaging; what stands where a date, a code or a UID belongs and is none is not kept. Pixels are not looked at: an object
that says it has text burnt in is refused, and faces stay faces.

Not built: cleaning of structured content, of graphics and of private attributes; the basic profile removes these.
"""

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence

from wardround.client.cases.dicom.headers import BROKEN, quiet
from wardround.client.cases.dicom.register import Register
from wardround.errors import SeriesRefused

_STANDARD_UID = re.compile(r"1\.2\.840\.10008\.[0-9.]+")
_DATE = re.compile(r"[\d+\-:./ ]*")
_CODE = re.compile(r"[A-Z0-9_ ]{0,16}")
_TEXT = frozenset({"AE", "LO", "LT", "PN", "SH", "ST", "UC", "UN", "UR", "UT"})
_DATES = frozenset({"DA", "DT", "TM"})
_BYTES = frozenset({"OB", "OD", "OF", "OL", "OV", "OW"})
_DUMMIES: Mapping[str, Any] = {
    "AS": "000Y",
    "DA": "19000101",
    "DT": "19000101000000",
    "TM": "000000",
    "DS": "0",
    "IS": "0",
    "UR": "urn:removed",
    "AT": 0,
    **dict.fromkeys(("FD", "FL", "SL", "SS", "SV", "UL", "US", "UV"), 0),
    **dict.fromkeys(("OB", "OD", "OF", "OL", "OV", "OW", "UN"), b"\0\0\0\0\0\0\0\0"),
}
_NUMBER = re.compile(r"\d{1,2}(mm|cm|ms|s|t)?")
_WORD = re.compile(r"[A-Za-z0-9]+")

_VOCABULARY = """
abd abdomen abdominal ac acq acquisition adc aif angio ankle ant anterior aorta apical arterial artery asl avg
axial ax axiale b0 base basis biopsy bladder blade body bolus bone brain breast bsp c1 c2 c7 calcium cardiac
carotid cbf cbv ce cervical chest cine cm coil colon contrast cor coronal coronary corr cranial cranium csf
cspine ct cta ctp curved cyst deep delayed derived diastole diff diffusion dixon dose dti dual dwi dyn dynamic
early echo ecg elbow enhanced ep ep2d epi equilibrium ex exam fa fast fat fatsat femur fid field filter fl fl2d
fl3d flair flash flow fluid foot forearm fov fs fse fused gad gd gradient gre hand hard haste head heart hepatic
hi high hip hippocampus humerus iac image in inner inphase invivo ir iso isotropic kernel kidney knee lat late
lateral left leg liver loc localizer low lower lumbar lung lungs magnitude map mask mean medium mip mm mpr
mprage mr mra mrcp mri mrv multi muscle myocardium nasal native neck noncontrast none norm of on opp opposed
orbit orbits out outphase pancreas par parenchyma part pat pc pd pelvis perf perfusion pet petct phase pituitary
plain plane plus portal post posterior pre prone prostate proton pulm pulmonary qsm ra radial rapid ratio recon
reconstruction rectum ref reformat renal rest resolution right routine run sag sagittal scan scout se sella
sense sequence series shoulder short sinus skull slab slice slices soft space spair spin spine spleen spoiled
sshot stack std stir stress study subtraction suv swan swi systole t t1 t1w t2 t2w tan te temporal thin thigh
thorax thoracic thyroid ti time tirm tissue tof torso tr trace tra trans transverse trufi tse tumor tumour turbo
ultra upper vein venous vessel vessels vibe vol volume water wb weighted whole window with without wo wrist x y
z siemens healthineers philips ge medical systems healthcare toshiba canon hitachi fujifilm samsung hologic
esaote neusoft shimadzu united imaging bruker agfa carestream konica minolta hyperfine aspect
"""
WORDS = frozenset(_VOCABULARY.split())
"""Words of imaging and names of manufacturers: what free text is reduced to."""

Dates = Literal["remove", "shift", "keep"]


@dataclass(frozen=True)
class Options:
    """Options of the profile, each by its name in PS3.15.

    Parameters
    ----------
    retain_uids
        Retain UIDs.
    retain_device_identity
        Retain Device Identity.
    retain_institution_identity
        Retain Institution Identity.
    retain_patient_characteristics
        Retain Patient Characteristics: sex, age, size, weight and the like.
    dates
        ``remove``; ``shift``, Retain Longitudinal Temporal Information With Modified Dates: all dates of a patient
        moved by the same number of days, times kept; ``keep``, With Full Dates.
    clean_descriptors
        Clean Descriptors: descriptions and comments are kept as far as they are made of :data:`WORDS` and numbers
        of two digits.
    """

    retain_uids: bool = False
    retain_device_identity: bool = False
    retain_institution_identity: bool = False
    retain_patient_characteristics: bool = False
    dates: Dates = "remove"
    clean_descriptors: bool = False

    @property
    def codes(self) -> tuple[tuple[str, str], ...]:
        """What was done, in codes of PS3.16, CID 7050."""
        chosen = {
            ("113100", "Basic Application Confidentiality Profile"): True,
            ("113105", "Clean Descriptors Option"): self.clean_descriptors,
            ("113106", "Retain Longitudinal Temporal Information Full Dates Option"): self.dates == "keep",
            ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"): self.dates == "shift",
            ("113108", "Retain Patient Characteristics Option"): self.retain_patient_characteristics,
            ("113109", "Retain Device Identity Option"): self.retain_device_identity,
            ("113110", "Retain UIDs Option"): self.retain_uids,
            ("113112", "Retain Institution Identity Option"): self.retain_institution_identity,
        }
        return tuple(code for code, taken in chosen.items() if taken)


@dataclass(frozen=True)
class Rule:
    """One row of the table.

    Parameters
    ----------
    action
        ``X`` remove, ``Z`` empty, ``D`` dummy, ``U`` another UID, or a choice of them such as ``X/Z/D``.
    options
        Options that keep or clean the attribute.
    keyword
        Of the attribute; empty where the dictionary does not know it yet.
    """

    action: str
    options: frozenset[str]
    keyword: str


@cache
def table() -> Mapping[str, Rule]:
    """The table: eight hexadecimal digits of a tag → rule; ``50xxxxxx`` and the like for groups that repeat."""
    text = files("wardround.client.cases.dicom").joinpath("confidentiality.tsv").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {
        row["tag"]: Rule(row["action"], frozenset(filter(None, row["options"].split(","))), row["keyword"])
        for row in csv.DictReader(lines, delimiter="\t")
    }


def deidentified(dataset: Dataset, options: Options, register: Register) -> Dataset:
    """A copy of an object, or of its header, without what identifies a patient.

    Parameters
    ----------
    dataset
        Stays as it is. Pixels, if there are any, are taken over unseen.
    register
        Of the site: it knows by which UID each UID is replaced, and by how many days a patient's dates are moved.

    Raises
    ------
    SeriesRefused
        ``burned-in-annotation`` if the header says so; ``damaged-header`` if it cannot be read to its end.
    """
    try:
        with quiet():
            if str(dataset.get("BurnedInAnnotation", "")).strip().upper() == "YES":
                raise SeriesRefused(
                    "the images have text burnt in",
                    "their header says so, and text in pixels is not removed",
                    "have it removed from the images where they were made",
                    reason="burned-in-annotation",
                )
            patient = str(dataset.get("PatientID", ""))
            found = _Copier(options, register, patient).copy(dataset)
            _declare(found, options)
            _rewrite_meta(found, dataset)
            return found
    except BROKEN:
        raise SeriesRefused(
            "a header cannot be read to its end",
            "it is damaged, or nested too deeply",
            "export the series again",
            reason="damaged-header",
        ) from None


@dataclass(frozen=True)
class _Copier:
    options: Options
    register: Register
    patient: str

    def copy(self, dataset: Dataset) -> Dataset:
        found = Dataset()
        for tag in sorted(dataset.keys()):
            # Private attributes, lengths of groups, overlays and curves.
            if tag.is_private or tag.element == 0 or (tag.group & 0xFF01) in (0x5000, 0x6000):
                continue
            kept = self._kept(dataset[tag])
            if kept is not None:
                found[tag] = kept
        return found

    def _kept(self, element: DataElement) -> DataElement | None:
        rule = table().get(f"{element.tag:08x}")
        if rule is None:
            return self._unlisted(element)
        if self._retained(rule) and not ("dates" in rule.options and self._is_prose(element)):
            return self._inside(element)
        if element.VR in _DATES and self.options.dates == "shift" and "dates" in rule.options:
            return self._shifted(element)
        cleaned = {"patient-clean"} if self.options.retain_patient_characteristics else set()
        if self.options.retain_device_identity:
            cleaned.add("device-clean")
        if self.options.clean_descriptors:
            cleaned.add("descriptors")
        if cleaned & rule.options and element.VR in _TEXT:
            return self._cleaned(element)
        return self._done(element, rule.action)

    def _retained(self, rule: Rule) -> bool:
        taken = {
            "uids": self.options.retain_uids,
            "device": self.options.retain_device_identity,
            "institution": self.options.retain_institution_identity,
            "patient": self.options.retain_patient_characteristics,
            "dates": self.options.dates == "keep",
        }
        return any(taken.get(name, False) for name in rule.options)

    def _done(self, element: DataElement, action: str) -> DataElement | None:
        if action == "X":
            return None
        if element.VR == "SQ":
            if "U" in action:  # references to other images stay, with UIDs of our own
                return self._inside(element)
            # A sequence that must have items is required nowhere that it could be removed.
            return None if action in ("X/D", "X/Z/D") else DataElement(element.tag, "SQ", Sequence())
        return self._renamed(element) if "U" in action else self._replaced(element, dummy="D" in action)

    def _replaced(self, element: DataElement, *, dummy: bool) -> DataElement:
        value = _DUMMIES.get(element.VR, "REMOVED") if dummy else None
        if element.keyword == "PatientID":
            value = self.register.pseudonym(self.patient)
        return DataElement(element.tag, element.VR, value)

    def _unlisted(self, element: DataElement) -> DataElement | None:
        if element.VR == "UI":
            return element if self.options.retain_uids else self._renamed(element)
        if element.VR in _DATES:
            if self.options.dates == "remove" or self._is_prose(element):
                return None
            return self._shifted(element) if self.options.dates == "shift" else element
        if element.VR in _TEXT:
            return self._cleaned(element) or DataElement(element.tag, element.VR, None)
        return None if self._is_opaque(element) else self._inside(element)

    @staticmethod
    def _is_opaque(element: DataElement) -> bool:
        """Whether it is a code that is none, or bytes that are no part of an image."""
        if element.VR == "CS":
            return not all(_CODE.fullmatch(str(value or "")) for value in _values(element))
        shows = element.tag.group == 0x7FE0 or (element.tag.group == 0x0028 and element.VR == "OW")
        return element.VR in _BYTES and not shows

    def _inside(self, element: DataElement) -> DataElement:
        if element.VR != "SQ":
            return element
        return DataElement(element.tag, "SQ", Sequence([self.copy(item) for item in element.value]))

    def _renamed(self, element: DataElement) -> DataElement:
        new = [
            uid if not uid or _STANDARD_UID.fullmatch(str(uid)) else self.register.new_uid(str(uid))
            for uid in _values(element)
        ]
        return DataElement(element.tag, "UI", new if len(new) > 1 else new[0])

    def _shifted(self, element: DataElement) -> DataElement | None:
        if self._is_prose(element):
            return self._done(element, "Z")
        if element.VR == "TM":
            return element
        days = self.register.date_shift(self.patient)
        moved = [_moved(str(value), days) if value else "" for value in _values(element)]
        if None in moved:
            return self._done(element, "Z")
        return DataElement(element.tag, element.VR, moved if len(moved) > 1 else moved[0])

    @staticmethod
    def _is_prose(element: DataElement) -> bool:
        """Whether an attribute that should hold a date or a time holds something else."""
        return not all(_DATE.fullmatch(str(value or "")) for value in _values(element))

    @staticmethod
    def _cleaned(element: DataElement) -> DataElement | None:
        if element.VR == "UN" or not element.value:
            return None
        kept = [" ".join(word for word in _WORD.findall(str(value)) if _is_known(word)) for value in _values(element)]
        return DataElement(element.tag, element.VR, kept if len(kept) > 1 else kept[0]) if any(kept) else None


def _values(element: DataElement) -> list[Any]:
    return list(element.value) if hasattr(element.value, "append") else [element.value]


def _is_known(word: str) -> bool:
    return word.lower() in WORDS or _NUMBER.fullmatch(word.lower()) is not None


def _moved(value: str, days: int) -> str | None:
    """A DA or DT some days earlier or later; None where it names no whole date."""
    match = re.fullmatch(r"(\d{4})(\d{2})(\d{2})(.*)", value.strip())
    if match is None:
        return None
    try:
        day = date(*(int(part) for part in match.groups()[:3])) + timedelta(days=days)
    except (ValueError, OverflowError):
        return None
    return f"{day.year:04d}{day.month:02d}{day.day:02d}{match[4]}"


def _declare(found: Dataset, options: Options) -> None:
    """Say in the object what was done to it."""
    found.PatientIdentityRemoved = "YES"
    found.DeidentificationMethod = "Wardround: PS3.15 Annex E"
    codes = []
    for value, meaning in options.codes:
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
        codes.append(code)
    found.DeidentificationMethodCodeSequence = Sequence(codes)
    states = {"remove": "REMOVED", "shift": "MODIFIED", "keep": "UNMODIFIED"}
    found.LongitudinalTemporalInformationModified = states[options.dates]


def _rewrite_meta(found: Dataset, original: Dataset) -> None:
    """A preamble of zeros and only what must stand in the file's own group: the rest names machines and people."""
    meta = FileMetaDataset()
    old = getattr(original, "file_meta", None)
    if old is not None and "TransferSyntaxUID" in old:
        meta.TransferSyntaxUID = old.TransferSyntaxUID
    for name, source in (("MediaStorageSOPClassUID", "SOPClassUID"), ("MediaStorageSOPInstanceUID", "SOPInstanceUID")):
        if source in found:
            setattr(meta, name, found[source].value)
    found.file_meta = meta
    found.preamble = b"\0" * 128
