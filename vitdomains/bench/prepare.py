"""A process of its own that exports one model to the files that the runtimes load.

Runs as ``python -m vitdomains.bench.prepare SUBJECT WORK ARTEFACT ...``; what it learns of the model stands in
``prepared.json`` beside the files.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch

from vitdomains.bench.candidates import module, parameters, textures, weight_bytes
from vitdomains.bench.cases import Subject
from vitdomains.core.errors import VitDomainsError
from vitdomains.core.export import to_onnx, to_openvino
from vitdomains.core.export.formats import FORMATS, is_transformer
from vitdomains.core.export.int8 import calibrate, quantize_dynamic, quantize_openvino, quantize_static
from vitdomains.core.files import write_text

CALIBRATION_IMAGES = 16


def _fp32_onnx(subject: Subject, work: Path, file: Path) -> None:
    to_onnx(module(subject), torch.from_numpy(textures(subject, 2)), file)


def _int8_onnx(subject: Subject, work: Path, file: Path) -> None:
    """Dynamic for what is made of linear layers, static for what has convolutions."""
    source = work / "fp32.onnx"
    if is_transformer(module(subject)):
        quantize_dynamic(source, file)
        return
    quantize_static(source, file, calibrate(source, work / "ranges.json", _calibration(subject)))


def _fp32_xml(subject: Subject, work: Path, file: Path) -> None:
    to_openvino(work / "fp32.onnx", file)


def _bf16_xml(subject: Subject, work: Path, file: Path) -> None:
    """Weights in 16 bits on disk; the arithmetic is chosen when the file is loaded."""
    to_openvino(work / "fp32.onnx", file, fp16_weights=True)


def _int8_xml(subject: Subject, work: Path, file: Path) -> None:
    """Every layer that NNCF takes: with random weights there is no accuracy to give layers back for."""
    nodes = onnx.load(work / "fp32.onnx", load_external_data=False).graph.node
    attention = any(node.op_type == "Softmax" for node in nodes)
    images = _calibration(subject)
    quantize_openvino(work / "fp32.xml", file, images, lambda forward: 0.0, allowed=1.0, transformer=attention)


def _calibration(subject: Subject) -> list[npt.NDArray[np.float32]]:
    return np.split(textures(subject, CALIBRATION_IMAGES, seed=1), CALIBRATION_IMAGES)


MAKE: dict[str, Callable[[Subject, Path, Path], None]] = {
    "fp32.onnx": _fp32_onnx,
    "int8.onnx": _int8_onnx,
    "fp32.xml": _fp32_xml,
    "bf16.xml": _bf16_xml,
    "int8.xml": _int8_xml,
}
"""Each writes ``file`` and finds in ``work`` what it is made from."""
EXPORTED = {
    "fp32.onnx": ("onnx",),
    "int8.onnx": ("int8-static", "int8-dynamic"),
    "fp32.xml": ("openvino",),
    "int8.xml": ("int8-openvino",),
}
"""Formats of ``export`` that are what is measured here under another name."""


def _from_bundle(subject: Subject, file: Path) -> bool:
    """Whether the bundle has this artefact already; then it is what is measured."""
    formats = [FORMATS[name] for name in EXPORTED.get(file.name, ())] if subject.bundle else []
    there = next(
        (form for form in formats if all((Path(subject.bundle) / each).is_file() for each in form.files)), None
    )
    for each in there.files if there else ():
        shutil.copyfile(Path(subject.bundle) / each, file.with_suffix(Path(each).suffix))
    return there is not None


def main(subject: Subject, work: Path, artefacts: list[str]) -> None:
    """Write the artefacts, those first that others are made from; each appears whole or not at all."""
    model = module(subject)
    known = {
        "parameters": parameters(model),
        "weight_bytes": {p: weight_bytes(model, p) for p in ("fp32", "fp16", "bf16")},
    }
    write_text(work / "prepared.json", json.dumps(known))
    for name in artefacts:
        with tempfile.TemporaryDirectory(dir=work) as part:
            if not _from_bundle(subject, Path(part) / name):
                MAKE[name](subject, work, Path(part) / name)
            for file in sorted(Path(part).iterdir()):  # .bin before .xml
                os.replace(file, work / file.name)


if __name__ == "__main__":
    try:
        main(Subject(**json.loads(sys.argv[1])), Path(sys.argv[2]), sys.argv[3:])
    except VitDomainsError as error:
        sys.exit(error.message)
