"""DICOM: series in, CT series out. LPS is known here and in the other readers and writers."""
