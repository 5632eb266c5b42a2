"""Classify an image with one ONNX file on a Raspberry Pi or the like: plain onnxruntime, numpy and Pillow, nothing else.

usage: python edge_predict.py MODEL.onnx IMAGE ..., with a file that ``export --with_preprocessing`` wrote"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def read(path: str, channels: int) -> np.ndarray:
    """uint8 [1, H, W, C], upright; deep grey by the fewest bits that hold it or by its sBIT, transparent grey on black."""
    head = np.fromfile(path, np.uint8, 1 << 16).tobytes()
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith("I"):
        deep = np.asarray(image).astype(np.uint16)
        bits = max(8, int(deep.max()).bit_length(), *head[: head.find(b"IDAT")].partition(b"sBIT")[2][:1])
        image = Image.fromarray(np.rint(deep * (255 / (2**bits - 1))).astype(np.uint8))
    elif head.startswith(b"\x89PNG") and head[24] == 16:
        sys.exit(f"{path}: 16-bit colour is not read. Save it as 8-bit colour or 16-bit grey.")
    elif channels == 1 and image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
    return np.atleast_3d(np.asarray(image.convert("L" if channels == 1 else "RGB")))[None]


def main(model: str, *images: str) -> None:
    """Print one JSON object a line: the file, and the probability of each class."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    taken, notes = session.get_inputs()[0], session.get_modelmeta().custom_metadata_map
    if taken.type != "tensor(uint8)" or not (classes := json.loads(notes.get("classes", "[]"))):
        sys.exit(f"{model} takes no images: export it with --with_preprocessing")
    for path in images:
        (scores,) = session.run(None, {taken.name: read(path, taken.shape[3])})[0].tolist()
        sys.stdout.write(json.dumps({"file": path, "probabilities": dict(zip(classes, scores, strict=True))}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) > 2 else sys.exit("usage: edge_predict.py MODEL.onnx IMAGE ...")
