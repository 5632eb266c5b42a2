"""Whole scenes: tiling, label rasters, maps, the queue of tiles to review."""
