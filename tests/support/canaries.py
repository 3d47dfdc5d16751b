"""What must never leave a hospital, planted where hospitals have it, and the search for it in whatever was heard.

Every word is planted in one place only, so that a word that is found says where it came from.
"""

import base64
import gzip
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nibabel as nib
import numpy as np
import numpy.typing as npt
from planted import IN_DICOM, WORDS

from wardround.client.cases.nifti import encode
from wardround.client.cases.volume import Volume
from wardround.client.learning.inference import normalise

_RUN = 12
"""Voxels of a row that are looked for together: so many of an image are nowhere by chance."""
_ROWS = 4

Needles = dict[str, bytes]


def write_case(folder: Path, image: Volume, labels: Volume) -> tuple[Path, Path]:
    """Write a case as a hospital might have it: names and header full of a patient. Returns its image and its label."""
    place = folder / WORDS["name of a folder of images"]
    place.mkdir(parents=True)
    names = (WORDS["name of a file"], WORDS["name of a label's file"])
    paths = (place / f"{names[0]}.nii.gz", place / f"{names[1]}.nii.gz")
    paths[0].write_bytes(encode(image))
    paths[1].write_bytes(encode(labels))
    sign(paths[0])
    return paths


def sign(path: Path) -> None:
    """Fill the header of an image with a patient; its voxels stay."""
    image = nib.Nifti1Image.from_bytes(gzip.decompress(path.read_bytes()))
    for field in ("descrip", "aux_file", "intent_name", "db_name"):
        image.header[field] = WORDS[field]
    note = nib.nifti1.Nifti1Extension("comment", WORDS["a header's extension"].encode())  # type: ignore[no-untyped-call]
    image.header.extensions.append(note)
    path.write_bytes(gzip.compress(image.to_bytes()))


def write_dicom(folder: Path, image: Volume) -> Needles:
    """Write an image of whole numbers as a series of DICOM full of a patient; what is planted there, in every spelling.

    Its UIDs are planted as well.
    """
    from dicoms import encoded, series

    def sign(dataset: Any, _: int) -> None:
        for keyword, word in IN_DICOM.items():
            setattr(dataset, keyword, word)

    datasets = series(image.array.astype(np.int16), image.affine, name="planted", change=sign)
    folder.mkdir(parents=True)
    for number, dataset in enumerate(datasets):
        (folder / f"{IN_DICOM['PatientName']}-{number}.dcm").write_bytes(encoded(dataset))
    uids = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID")
    planted = dict(IN_DICOM) | {name: str(datasets[0][name].value) for name in uids}
    return {f"{place} ({how})": text for place, word in planted.items() for how, text in _spellings(word)}


def words() -> Needles:
    """Every word in every spelling in which it could travel."""
    return {f"{place} ({how})": text for place, word in WORDS.items() for how, text in _spellings(word)}


def _spellings(word: str) -> Iterator[tuple[str, bytes]]:
    plain = word.encode()
    yield "as it is", plain
    yield "lower case", plain.lower()
    yield "UTF-16", word.encode("utf-16-le")
    yield "in an address", quote(word, safe="").encode()
    yield "hexadecimal", plain.hex().encode()
    yield "its SHA-256", hashlib.sha256(plain).digest()
    yield "its SHA-256 in hexadecimal", hashlib.sha256(plain).hexdigest().encode()
    for shift in range(3):
        # Of base64, the letters at either end depend on what stands beside the word.
        text = base64.b64encode(b"\0" * shift + plain)
        yield f"base64, {shift}", text[4 : len(text) // 4 * 4 - 4]


def pixels(image: Volume) -> Needles:
    """Rows of an image along each axis, in every kind of number in which they could travel, raw and normalised."""
    raw = image.array.astype(np.float64)
    found: Needles = {}
    for kind, values in (("raw", raw), ("normalised", normalise(image.array))):
        for dtype in ("<f4", ">f4", "<f2", "<f8"):
            for where, row in _rows(values):
                found[f"{kind} voxels along {where} as {dtype}"] = row.astype(dtype).tobytes()
    return found


def outline(labels: Volume) -> Needles:
    """The rows of a label that have most borders in them, whole; nothing along an axis where none has three."""
    found: Needles = {}
    for axis in range(3):
        rows = np.moveaxis(labels.array, axis, -1).reshape(-1, labels.array.shape[axis])
        borders = (np.diff(rows.astype(int), axis=1) != 0).sum(axis=1)
        # With fewer, a row is little more than zeros, which are everywhere.
        if borders.max() < 3:
            continue
        row = rows[borders.argmax()]
        for dtype in ("<u1", "<i2", "<i4", "<i8", "<f4"):
            found[f"labels along axis {axis} as {dtype}"] = row.astype(dtype).tobytes()
    return found


def _rows(values: npt.NDArray[Any]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """From the middle of the volume: the borders of an image may be empty."""
    middle = [side // 2 for side in values.shape]
    for axis in range(3):
        start = max(0, middle[axis] - _RUN // 2)
        for step in range(_ROWS):
            at: list[Any] = list(middle)
            at[(axis + 1) % 3] += step
            at[axis] = slice(start, start + _RUN)
            yield f"axis {axis}, row {step}", values[tuple(at)]


def find(needles: Mapping[str, bytes], places: Iterable[bytes]) -> set[str]:
    """Which of them are in one of the places."""
    whole = list(places)
    return {name for name, needle in needles.items() if any(needle in place for place in whole)}


def files(folder: Path) -> Iterator[bytes]:
    """Every file below a folder, its name before it; what is packed, unpacked."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            yield str(path.relative_to(folder)).encode() + b"\n" + data
            if data.startswith(b"\x1f\x8b"):
                yield gzip.decompress(data)
