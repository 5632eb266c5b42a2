"""Demonstration data made here, and the three review apps started on it."""
