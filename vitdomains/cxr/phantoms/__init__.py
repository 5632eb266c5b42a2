"""Phantom chest films with known findings, boxes and masks."""
