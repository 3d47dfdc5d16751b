"""DICOM in and out: series become cases without a name, labels go back as segmentations of their series."""
