"""DICOM in and out: series become cases without a name, labels go back as segmentations of the series they came from."""
