"""Exporters and quantisers talk about their own insides, on every channel; the user hears what became of the model instead."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

_LOGGERS = (None, "torch.onnx", "torch.export", "onnxscript", "onnx_ir", "onnxruntime", "nncf")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, no warnings, no log lines below error and no standard output of others."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
