"""Rasters and scenes on the ground: reading windows, remote files, tile grids, outputs that open elsewhere."""
