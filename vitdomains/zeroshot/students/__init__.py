"""Bundles trained from zero-shot labels and from reviewers' corrections."""
