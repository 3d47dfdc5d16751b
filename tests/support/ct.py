"""A small CT series made for tests: a ball in a block, oblique if asked, with the identity of nobody."""

from dataclasses import dataclass
from io import BytesIO

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from wardround.client.cases.volume import Volume


@dataclass(frozen=True, eq=False)
class Series:
    """A series as an archive holds it, and the volume that it is.

    Parameters
    ----------
    study, series
        StudyInstanceUID and SeriesInstanceUID.
    files
        DICOM files, not in the order of their positions.
    volume
        ``[column, row, slice]`` with slices in ascending order along the normal, affine in LPS millimetres.
    centre
        Of the ball, in voxels.
    """

    study: str
    series: str
    files: tuple[bytes, ...]
    volume: Volume
    centre: tuple[int, int, int]


def ct_series(
    shape: tuple[int, int, int] = (64, 56, 24),
    spacing: tuple[float, float, float] = (1.0, 1.0, 2.5),
    *,
    patient: str = "Phantom^Paul",
) -> Series:
    """A series of ``shape`` (columns, rows, slices)."""
    columns, rows, slices = shape
    centre = (columns // 3, rows // 2, slices // 2)
    grid = np.stack(np.meshgrid(*(np.arange(side) for side in shape), indexing="ij"))
    distance = np.linalg.norm((grid - np.reshape(centre, (3, 1, 1, 1))) * np.reshape(spacing, (3, 1, 1, 1)), axis=0)
    array = np.where(distance < 9, 300, -50).astype(np.int16)
    array[:2, :, :] = -900
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (-30, -25, 100)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    files = []
    for k in range(slices):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        one.SOPClassUID, one.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = study, series, frame
        one.PatientName, one.PatientID, one.PatientBirthDate, one.PatientSex = patient, "4711", "19700101", "O"
        one.StudyDate = one.SeriesDate = one.ContentDate = "20260101"
        one.StudyTime = one.SeriesTime = one.ContentTime = "120000"
        one.StudyID, one.SeriesNumber, one.InstanceNumber, one.AccessionNumber = "1", 1, k + 1, "1"
        one.StudyDescription, one.SeriesDescription, one.Modality = "phantom", "ball", "CT"
        one.Manufacturer, one.ReferringPhysicianName, one.PatientPosition = "nobody", "", "HFS"
        one.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        one.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        one.ImagePositionPatient = [float(value) for value in affine[:3] @ [0, 0, k, 1]]
        one.PixelSpacing, one.SliceThickness = [spacing[1], spacing[0]], spacing[2]
        one.Rows, one.Columns, one.SamplesPerPixel = rows, columns, 1
        one.PhotometricInterpretation = "MONOCHROME2"
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 1
        one.RescaleSlope, one.RescaleIntercept, one.RescaleType = 1, 0, "HU"
        one.WindowCenter, one.WindowWidth = 100, 800
        one.PixelData = np.ascontiguousarray(array[:, :, k].T).tobytes()
        buffer = BytesIO()
        pydicom.dcmwrite(buffer, one, enforce_file_format=True)
        files.append(buffer.getvalue())
    order = np.random.default_rng(0).permutation(slices)
    volume = Volume(array.astype(np.float32), affine)
    return Series(study, series, tuple(files[k] for k in order), volume, centre)
