"""Heat maps that say which part of an image a classifier looked at, how faithful they are, and pictures of them."""

from vitdomains.core.explain.api import CLASS_AGNOSTIC, METHODS, Heatmap, explain

__all__ = ["CLASS_AGNOSTIC", "METHODS", "Heatmap", "explain"]
