"""Metrics on a split with intervals, trivial baselines, the report and the model card."""
