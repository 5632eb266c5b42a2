"""Endings of the files that are read: apart from the code behind them, since every command names them before it computes."""

RASTERS = (".tif", ".tiff", ".jp2", ".j2k", ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".img")
"""Pictures and rasters that tiles are read from."""

FILMS = (".dcm", ".dicom", ".dic", ".ima", ".png", ".jpg", ".jpeg", ".jpe", ".jfif", "")
"""Chest films; "": files without an ending, as scanners name DICOM."""

UNREAD = frozenset(
    {
        *RASTERS, *FILMS[:-1], ".gif", ".heic", ".heif", ".avif", ".jxl", ".psd", ".dng", ".nef", ".cr2", ".ppm", ".pgm", ".pnm",
        ".ecw", ".sid", ".vrt", ".hdf", ".h5", ".nc", ".nii", ".mha", ".npy", ".npz", ".zip", ".tar", ".gz",
    }
)  # fmt: skip
"""Files that likely hold images: where such a file is not read, somebody may miss it."""
