"""vitdomains: Vision Transformers for medical and satellite imaging."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vitdomains.core import __version__

if TYPE_CHECKING:
    from vitdomains.api import (
        Evaluation,
        Explanation,
        Model,
        Prediction,
        VitDomainsError,
        create_model,
        evaluate,
        explain,
        load,
        predict,
        read_film,
        read_window,
        train,
        vit,
        zero_shot,
    )  # fmt: skip

__all__ = [
    "Evaluation", "Explanation", "Model", "Prediction", "VitDomainsError", "__version__", "create_model", "evaluate",
    "explain", "load", "predict", "read_film", "read_window", "train", "vit", "zero_shot",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """The public names of ``vitdomains.api``, loaded at their first use."""
    if name in __all__:
        return getattr(importlib.import_module("vitdomains.api"), name)
    raise AttributeError(f"module 'vitdomains' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
