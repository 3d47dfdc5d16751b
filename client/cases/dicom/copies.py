"""Copies of images without the patient: headers by the profile, pixels without whatever they were wrapped in."""

from collections.abc import Callable
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from wardround import files
from wardround.client.cases.dicom.deidentify import Options, deidentified
from wardround.client.cases.dicom.headers import BROKEN, quiet, read_all
from wardround.client.cases.dicom.pixels import stored_values
from wardround.client.cases.dicom.register import Register
from wardround.client.cases.dicom.series import SeriesReport
from wardround.errors import SeriesRefused, UsageError


def write_copies(
    report: SeriesReport,
    target: Path,
    options: Options,
    register: Register,
    told: Callable[[int, int], None] | None = None,
) -> int:
    """Write a de-identified copy of every file that is part of a volume.

    A compressed image is decompressed, since a compressed stream may hold comments; of words, bits that hold no value
    are cleared, since old scanners keep overlays in them. Names of files and folders are the new UIDs.

    Parameters
    ----------
    target
        Must not exist, or be empty.
    told
        Called after every file, with how many of how many were written.

    Returns
    -------
    int
        How many files were written.

    Raises
    ------
    SeriesRefused
        If a file cannot be read or has text burnt in.
    StorageError
        If the disk is full or not writable.
    UsageError
        If `target` holds anything.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} is not empty", "copies would be mixed with what is there", "give a new folder")
    wanted = sorted({(volume.series_uid, frame.file) for volume in report.volumes for frame in volume.frames})
    sources = report.volumes[0].files if report.volumes else ()
    for number, (_, file) in enumerate(wanted):
        dataset = read_all(sources[file].read())
        found = None if dataset is None else _plain(dataset)
        if found is None:
            raise SeriesRefused(
                "a file of the series cannot be read",
                "it is damaged or cut short, or its pixels are of a kind that cannot be unpacked",
                "export the series again",
                reason="damaged-file",
            )
        copy = deidentified(found, options, register)
        path = target / str(copy.SeriesInstanceUID) / f"{copy.SOPInstanceUID}.dcm"
        with quiet(), files.new_file(path) as stream:
            copy.save_as(stream, enforce_file_format=True)
        if told is not None:
            told(number + 1, len(wanted))
    return len(wanted)


def _plain(dataset: Dataset) -> Dataset | None:
    """The object with pixels that are nothing but pixels; None where that cannot be done."""
    try:
        with quiet():
            allocated, bits = int(dataset.BitsAllocated), int(dataset.BitsStored)
            count = int(dataset.get("NumberOfFrames") or 1)
            pixels = b"".join(
                (values & ((1 << bits) - 1)).astype(f"<u{allocated // 8}").tobytes()
                for values in stored_values(dataset, range(count))
            )
            for name in ("PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
                if name in dataset:
                    del dataset[name]
            dataset.add_new("PixelData", "OW", pixels + b"\0" * (len(pixels) % 2))
            dataset.HighBit = bits - 1
            dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            return dataset
    except (*BROKEN, SeriesRefused):
        return None
