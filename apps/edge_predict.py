"""Classify an image with one ONNX file on a Raspberry Pi or the like: plain onnxruntime, numpy and Pillow, nothing else.

    python edge_predict.py model.onnx film.png [another.png ...]

The file is one that ``export --with_preprocessing`` wrote: 8-bit image of any size in, calibrated probabilities out.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image


def read(path: str, channels: int) -> np.ndarray:
    """uint8 [1, H, W, C]; 16-bit grey images lose their lower byte."""
    with Image.open(path) as image:
        if image.mode.startswith("I"):
            image = Image.fromarray((np.asarray(image, np.uint32) >> 8).astype(np.uint8))
        return np.atleast_3d(np.asarray(image.convert("L" if channels == 1 else "RGB")))[None]


def main(model: str, *images: str) -> None:
    """Print one JSON object a line: the file, and the probability of each class."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    taken, notes = session.get_inputs()[0], session.get_modelmeta().custom_metadata_map
    if taken.type != "tensor(uint8)" or "classes" not in notes:
        sys.exit(f"{model} takes no images: export it with --with_preprocessing")
    for path in images:
        (scores,) = session.run(None, {taken.name: read(path, taken.shape[3])})[0]
        probabilities = dict(zip(json.loads(notes["classes"]), scores.tolist(), strict=True))
        sys.stdout.write(json.dumps({"file": path, "probabilities": probabilities}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) > 2 else sys.exit("usage: edge_predict.py MODEL.onnx IMAGE ...")
