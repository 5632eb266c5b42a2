"""Pure functions of labels and scores: metrics, bootstrap intervals, calibration."""
