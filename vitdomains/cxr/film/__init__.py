"""Chest films from DICOM, PNG and JPEG to display values and model input."""
