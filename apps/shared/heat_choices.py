"""Names of the heat-map methods and colour maps that a reviewer may choose."""

from __future__ import annotations

import numpy as np
import streamlit as st

from apps.viewer import as_base64

METHOD_NAMES = {
    "relevance": "relevance (attention and gradient)",
    "gradient_rollout": "gradient rollout",
    "rollout": "attention rollout (no class)",
    "gradcam": "Grad-CAM",
    "occlusion": "occlusion (slow)",
}


@st.cache_data(show_spinner=False)
def colour_maps() -> dict[str, str]:
    """Colour maps as base64 of 256 RGB triples."""
    from vitdomains.core.explain.overlay import COLOUR_MAPS, colours

    ramp = np.linspace(0, 1, 256, dtype=np.float32)[None]
    return {name: as_base64(colours(ramp, name).tobytes()) for name in COLOUR_MAPS}
