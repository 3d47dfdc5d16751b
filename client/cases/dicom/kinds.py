"""Kinds of objects that DICOM knows: which become volumes, and by what word the others are left out."""

from collections.abc import Mapping

VOLUME_CLASSES = frozenset(
    "1.2.840.10008.5.1.4.1.1." + tail
    for tail in ("2", "2.1", "2.2", "4", "4.1", "4.4", "128", "128.1", "130", "13.1.1", "13.1.2", "13.1.3")
)
"""CT, MR and PET, each as single images, enhanced and converted; volumes of X-ray angiography and tomosynthesis."""

_OTHER_CLASSES = {
    "1.2.840.10008.1.3.10": "directory",
    "1.2.840.10008.5.1.4.1.1.7": "secondary-capture",
    "1.2.840.10008.5.1.4.1.1.11": "presentation-state",
    "1.2.840.10008.5.1.4.1.1.66": "segmentation",
    "1.2.840.10008.5.1.4.1.1.88.59": "key-object",
    "1.2.840.10008.5.1.4.1.1.88": "structured-report",
    "1.2.840.10008.5.1.4.1.1.104": "document",
    "1.2.840.10008.5.1.4.1.1.481": "radiotherapy",
}
_NOT_SEGMENTATIONS = {
    "1.2.840.10008.5.1.4.1.1.66": "raw-data",
    "1.2.840.10008.5.1.4.1.1.66.1": "registration",
    "1.2.840.10008.5.1.4.1.1.66.2": "registration",
    "1.2.840.10008.5.1.4.1.1.66.3": "registration",
}

REASONS: Mapping[str, str] = {
    "symlink": "links, which are not followed",
    "not-a-file": "pipes or devices",
    "empty": "empty files",
    "too-large": "files that are too large",
    "encrypted": "encrypted entries of an archive",
    "compression": "entries of an archive that are packed otherwise than by deflate",
    "archive": "archives within: unpack them and import them by themselves",
    "not-dicom": "files that are not DICOM",
    "unreadable": "DICOM files that cannot be read",
    "directory": "DICOMDIR",
    "no-uid": "objects without UIDs",
    "no-pixels": "objects without images",
    "secondary-capture": "secondary captures",
    "presentation-state": "presentation states",
    "segmentation": "segmentations",
    "structured-report": "reports",
    "key-object": "key object selections",
    "document": "documents",
    "radiotherapy": "objects of radiotherapy",
    "registration": "registrations",
    "raw-data": "raw data",
    "unsupported-kind": "objects of another kind",
    "localizer": "scouts and localizers",
    "colour": "colour images",
    "burned-in-annotation": "images with text burnt in",
    "no-geometry": "images without a place in the patient",
    "too-many-frames": "objects of too many frames",
    "repeated": "files that were there twice",
    "conflicting": "images with the UID of another image",
    "single-image": "images that are a series, or a part of one, by themselves",
}
"""Why a file, or a frame, is part of no volume."""


def other_kind(kind: str) -> str:
    """The reason for leaving out objects of a SOP class that is not one of :data:`VOLUME_CLASSES`."""
    if kind in _NOT_SEGMENTATIONS:
        return _NOT_SEGMENTATIONS[kind]
    fitting = [root for root in _OTHER_CLASSES if kind == root or kind.startswith(root + ".")]
    return _OTHER_CLASSES[max(fitting, key=len)] if fitting else "unsupported-kind"
