"""The report on one film: HTML, PDF and DICOM SR."""
