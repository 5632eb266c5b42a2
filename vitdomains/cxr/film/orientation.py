"""Which way up a film is stored, and the turn that brings the patient's left to the right and the feet to the bottom.

Patient Orientation (PS3.3, C.7.6.1.1.1) names where the rows and where the columns of the stored picture run to; L and F are
the standard of frontal films. Field of View Rotation and Horizontal Flip (PS3.3, C.8.11.6) say what the device did to the
picture of the detector, whose side they leave open: without Patient Orientation, left and right stay unknown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vitdomains.cxr.film.header import Header

_Image = TypeVar("_Image", bound=np.generic)
NOT_GIVEN = "not given"


@dataclass(frozen=True)
class Turn:
    """How a stored picture becomes an upright one: transposed first, then its rows and its columns in reverse order.

    ``text`` says it in words: what the header gives, and what was done.
    """

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False
    text: str = NOT_GIVEN

    def apply(self, image: NDArray[_Image]) -> NDArray[_Image]:
        """An upright picture ``[H, W]`` of a stored one; the same array where nothing is to be turned."""
        turned = image.T if self.transpose else image
        turned = turned[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]
        return np.ascontiguousarray(turned)

    def stored_points(self, points: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
        """Column and row ``[N, 2]`` in the stored picture of points in the upright one of ``size`` (H, W); edges are 0 and W."""
        column, row = points[:, 0], points[:, 1]
        column = size[1] - column if self.flip_columns else column
        row = size[0] - row if self.flip_rows else row
        return np.stack((row, column) if self.transpose else (column, row), axis=1)

    @property
    def is_unknown(self) -> bool:
        """Whether a header speaks of the orientation without saying which it is."""
        return self.text.startswith("unknown")

    def stored_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the stored picture of an upright one."""
        return size[::-1] if self.transpose else size


AS_STORED = Turn()


def read_turn(header: Header) -> Turn:
    """The turn that a header asks for; none where it does not say, or names no frontal or lateral plane."""
    given = header.texts("PatientOrientation")
    device = [
        f"{name} {value}"
        for name, keyword in (("flip", "FieldOfViewHorizontalFlip"), ("rotation", "FieldOfViewRotation"))
        if (value := header.text(keyword).upper()) not in ("", "NO", "0", "0.0")
    ]
    if not any(given):
        return Turn(
            text=f"unknown (field of view: {', '.join(device)}; no Patient Orientation)" if device else NOT_GIVEN
        )
    named = "\\".join(given)[:20]
    ends = "".join(value[:1].upper() for value in given) if len(given) == 2 else ""
    transpose = ends[:1] in ("H", "F")
    upright = ends[::-1] if transpose else ends
    if not re.fullmatch("[LRAP][HF]", upright):  # what is neither a frontal nor a lateral plane
        return Turn(text=f"unknown (Patient Orientation {named})")
    flip_columns, flip_rows = upright[0] == "R", upright[1] == "H"
    done = "turned from" if transpose or flip_rows or flip_columns else "as stored,"
    return Turn(transpose, flip_rows, flip_columns, f"{done} {named}")
