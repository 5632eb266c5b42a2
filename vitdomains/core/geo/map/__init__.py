"""Tile grids over scenes, blending of overlapping predictions, and the maps that are written."""
