"""Satellite data sets: sources, tile folders, band reading, statistics."""
