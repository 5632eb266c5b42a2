"""Chest films from DICOM, PNG and JPEG to display values and model input.

DICOM is read by hand here, down to the data elements, for two measured reasons. Speed: up to 16 stored bits, all of the
grayscale pipeline is one lookup table, which this package applies while a block of rows is still in the processor's cache; a
film of 1955 x 1841 takes 4 ms where pydicom's bare decode takes 8 to 10 (``benchmarks/read_films.py``). And hostile
headers: a few hundred kilobytes of deflated or deeply nested elements make a general reader inflate a gigabyte or exhaust
its stack before any pixel is asked for. pydicom still decodes compressed frames and is what the tests compare with.

The way of a file: ``header`` tells by its first bytes what it is and reads the elements, ``pixels`` the stored words
(``codestream`` what a compressed frame says of itself), ``grayscale`` makes grey of them, ``orientation`` turns it upright;
``png_jpeg`` reads pictures; ``film`` is all of it for a model, ``display`` for a screen. Where two fields can disagree,
``tests/cxr/film/test_disagreements.py`` lists what is believed and why.
"""

from __future__ import annotations

from vitdomains.cxr.film.display import read_display
from vitdomains.cxr.film.film import Film, read_film, read_image

__all__ = ["Film", "read_display", "read_film", "read_image"]
