"""From DICOM series with DICOM-SEG or RTSTRUCT labels to a data set to train on.

`read` finds series and labels and joins them, `write` makes cases and lists them; the command is in `__main__`.
"""
