"""Windows of rasters, local or remote: bands, nodata, warping, formats that may be opened."""
