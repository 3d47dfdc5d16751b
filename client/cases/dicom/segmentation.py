"""Labels go back to the archive as a DICOM segmentation of the very images that they were drawn on.

A segmentation has one segment a label, in the order of the labels, also for a label that has no voxel; its frames lie
on the original frames, with the positions that the originals have. Where the case was resampled, the segmentation has
the resampled grid in the same frame of reference.
"""

import hashlib
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import numpy as np
import numpy.typing as npt
from highdicom.content import AlgorithmIdentificationSequence, PixelMeasuresSequence, PlaneOrientationSequence
from highdicom.content import PlanePositionSequence as PlanePosition
from highdicom.seg import Segmentation, SegmentDescription
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import DA, DS, TM

from wardround import __version__
from wardround.client.cases.dicom.codes import category, meaning, type_of
from wardround.client.cases.dicom.headers import BROKEN, quiet
from wardround.client.cases.dicom.register import SourceSeries
from wardround.client.cases.volume import Volume
from wardround.errors import DataError, GeometryError

Made = Literal["MANUAL", "SEMIAUTOMATIC", "AUTOMATIC"]

SERIES_NUMBER = 7300
_FULL_DATE, _FULL_TIME = "%Y%m%d", "%H%M%S"
# It tells, and quotes, what it dislikes about the name of a patient.
logging.getLogger("highdicom").setLevel(logging.CRITICAL + 1)

# What an archive may leave out and a segmentation has to say, if only that it is unknown.
_UNKNOWN = ("PatientID", "PatientName", "AccessionNumber", "StudyID", "ReferringPhysicianName", "Manufacturer")


@dataclass(frozen=True)
class Origin:
    """How a label came to be, as the segmentation tells it.

    Parameters
    ----------
    made
        ``SEMIAUTOMATIC`` where a model took part, ``MANUAL`` where none did.
    author
        Who answers for it; empty for nobody known.
    model
        Digest of the weights that were in front of the author; empty if there were none.
    round
        The federation's round.
    when
        When it was accepted.
    """

    made: Made
    author: str
    model: str
    round: int
    when: datetime


def write_seg(source: SourceSeries, labels: Volume, names: Sequence[str], origin: Origin) -> Segmentation:
    """Make a BINARY segmentation of the series that a case came from.

    Parameters
    ----------
    source
        Of the register.
    labels
        Integers 0 … 254 on the grid of the case; 0 is no segment.
    names
        Of labels 1, 2, …; labels beyond them are called ``label 3`` and so on.
    origin
        Written into the algorithm's identification, unless it is ``MANUAL``.

    Returns
    -------
    Segmentation
        Segment ``n`` is label ``n``. Its UIDs are the same whenever the same label of the same author is written.

    Raises
    ------
    GeometryError
        If the label is not on the grid of the case.
    DataError
        If the headers of the series do not allow a segmentation.
    """
    if not labels.same_grid(source.grid):
        raise GeometryError(
            "the label is not on the grid of its case", "it was made for another case", "export the case's own label"
        )
    array = np.ascontiguousarray(labels.array, np.uint8)
    count = max(int(array.max()), len(names), 1)
    called = [names[n] if n < len(names) else f"label {n + 1}" for n in range(count)]
    try:
        with quiet():
            images = _images(source)
            planes, places = _planes(source, array)
            segmentation = Segmentation(
                source_images=images,
                pixel_array=planes,
                segmentation_type="BINARY",
                segment_descriptions=[_segment(n + 1, name, origin) for n, name in enumerate(called)],
                series_instance_uid=_uid("series", source, origin),
                series_number=SERIES_NUMBER,
                sop_instance_uid=_uid("instance", source, origin, array, called),
                instance_number=1,
                manufacturer="Wardround",
                manufacturer_model_name="Wardround",
                software_versions=__version__,
                device_serial_number="0",
                content_label="WARDROUND",
                content_description="Segmentation",
                content_creator_name=f"{meaning(origin.author)}^" if origin.author else None,
                transfer_syntax_uid=ExplicitVRLittleEndian,
                omit_empty_frames=bool(array.any()),
                **places,
            )
            _thick(segmentation, source.grid.spacing[2])
            _settle(segmentation, origin.when)
    except BROKEN as error:
        raise DataError(
            "the label cannot be written as a segmentation",
            f"the headers of its series do not allow it ({type(error).__name__})",
            "export it as NIfTI from the workbench",
        ) from None
    return segmentation


def encoded(dataset: Dataset) -> bytes:
    """The bytes of a file of PS3.10: with its preamble, which archives keep as they get it."""
    stream = io.BytesIO()
    dataset.preamble = b"\0" * 128
    with quiet():
        dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _images(source: SourceSeries) -> list[Dataset]:
    """The original headers in the order of slices, with what they leave out filled in as unknown."""
    first: dict[int, None] = dict.fromkeys(instance for instance, _ in source.frames)
    images = []
    for number in first:
        image = Dataset()
        image.update(source.instances[number])
        image.file_meta = source.instances[number].file_meta
        for name in _UNKNOWN:
            image.setdefault(name, None)
        for name, kind in (("PatientBirthDate", DA), ("StudyDate", DA), ("StudyTime", TM)):
            setattr(image, name, _valid(kind, image.get(name)))
        if image.get("PatientSex") not in {"M", "F", "O"}:
            image.PatientSex = ""
        for name in ("PatientName", "ReferringPhysicianName"):
            # As text: what was encoded otherwise is encoded anew, together with the names of labels.
            setattr(image, name, str(image.get(name) or ""))
        image.SpecificCharacterSet = "ISO_IR 192"
        if not image.get("FrameOfReferenceUID"):
            image.FrameOfReferenceUID = generate_uid(entropy_srcs=["frame", source.series_uid])
        images.append(image)
    return images


def _planes(source: SourceSeries, array: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], dict[str, object]]:
    """Planes ``[plane, row, column]`` of labels, and where they lie if they do not lie on the originals one by one."""
    stack = np.ascontiguousarray(array.transpose(2, 1, 0))
    if not source.resampled and len(source.frames) == len(source.instances):
        return stack, {}
    affine, spacing = source.grid.affine, source.grid.spacing
    axes = affine[:3, :3] / spacing
    positions = [affine[:3] @ [0, 0, k, 1] for k in range(array.shape[2])]
    if not source.resampled:
        positions = [_position(source.instances[instance], frame) for instance, frame in source.frames]
    return stack, {
        "plane_positions": [PlanePosition("PATIENT", [float(one) for one in place]) for place in positions],
        "plane_orientation": PlaneOrientationSequence("PATIENT", [float(one) for one in axes[:, :2].T.ravel()]),
        "pixel_measures": PixelMeasuresSequence(
            pixel_spacing=[spacing[1], spacing[0]], slice_thickness=spacing[2], spacing_between_slices=spacing[2]
        ),
    }


def _position(instance: Dataset, frame: int) -> npt.NDArray[np.float64]:
    groups = instance.get("PerFrameFunctionalGroupsSequence")
    if not groups:
        return np.array(instance.ImagePositionPatient, np.float64)
    shared = (instance.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    for group in (groups[frame], shared):
        if found := group.get("PlanePositionSequence"):
            return np.array(found[0].ImagePositionPatient, np.float64)
    return np.array(instance.ImagePositionPatient, np.float64)


def _segment(number: int, name: str, origin: Origin) -> SegmentDescription:
    algorithm = None
    if origin.made != "MANUAL":
        algorithm = AlgorithmIdentificationSequence(
            name="Wardround",
            family=codes.DCM.ArtificialIntelligence,
            version=__version__,
            parameters={"model": origin.model or "none", "federation-round": str(origin.round)},
        )
    return SegmentDescription(
        segment_number=number,
        segment_label=meaning(name),
        segmented_property_category=category(name),
        segmented_property_type=type_of(name),
        algorithm_type=origin.made,
        algorithm_identification=algorithm,
    )


def _thick(segmentation: Segmentation, step: float) -> None:
    """Say how thick a slice is where the original does not: a segmentation has to."""
    measures = segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    for name in ("SliceThickness", "SpacingBetweenSlices"):
        if not measures.get(name):
            setattr(measures, name, DS(step, auto_format=True))


def _settle(segmentation: Segmentation, when: datetime) -> None:
    """The day of the label, and a UID from its own, in place of the day of the export and a random one."""
    for part in ("Series", "Content", "InstanceCreation"):
        setattr(segmentation, f"{part}Date", when.strftime(_FULL_DATE))
        setattr(segmentation, f"{part}Time", when.strftime(_FULL_TIME))
    for item in segmentation.get("ContributingEquipmentSequence") or []:
        item.ContributionDateTime = when.strftime(_FULL_DATE + _FULL_TIME)
    organization = generate_uid(entropy_srcs=["dimensions", str(segmentation.SOPInstanceUID)])
    for item in (*segmentation.DimensionOrganizationSequence, *segmentation.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization


def _uid(
    what: str,
    source: SourceSeries,
    origin: Origin,
    array: npt.NDArray[np.uint8] | None = None,
    names: Sequence[str] = (),
) -> str:
    told = [what, source.case_id, source.series_uid, origin.author]
    if array is not None:
        digest = hashlib.sha256(array.tobytes()).hexdigest()
        told += [digest, *names, origin.made, origin.model, str(origin.round), origin.when.isoformat(), __version__]
    return str(generate_uid(entropy_srcs=["\n".join(told)]))


def _valid(kind: type, value: object) -> str:
    try:
        return str(value) if value and kind(str(value)) is not None else ""
    except BROKEN:
        return ""
