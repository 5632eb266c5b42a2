"""One image gives the same probabilities whichever way it takes: predict, explain, evaluate, the apps, exported files, the edge.

Stated tolerances: ways inside the package 1e-6, for they share the prepared pixels; exported files with preprocessing and the
edge consumer ``EXPORTED``, for they take eight bits and resize by a product of matrices, so single grey levels fall to the other
side.
"""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from PIL import Image

from tests.cxr.film_files import dataset, save
from tests.satellite.tile_files import write_raster
from vitdomains.core.bundle import Bundle, read_bundle, write_bundle
from vitdomains.core.commands import cli
from vitdomains.core.config.schema import Model
from vitdomains.core.data.dataset import ImageDataset
from vitdomains.core.data.manifest import make_manifest
from vitdomains.core.data.preprocess import PreprocessSpec
from vitdomains.core.explain.render import explain_file
from vitdomains.core.export.formats import FORMATS
from vitdomains.core.export.job import ExportOptions, export_bundle
from vitdomains.core.inference.predictor import Predictor
from vitdomains.core.models.build import build_model
from vitdomains.cxr import DOMAIN as CXR
from vitdomains.cxr.film.film import read_image as read_film_pixels
from vitdomains.satellite import DOMAIN as SATELLITE
from vitdomains.satellite.data.reader import read_image as read_tile
from vitdomains.zeroshot.embeddings.reader import read_image as read_picture

EXPORTED = 0.01
CLASSES = ("Effusion", "Mass", "Nodule", "Edema")
ROOT = Path(__file__).resolve().parents[1]


def bundle_of(domain: str, folder: Path, spec: PreprocessSpec) -> Bundle:
    """An untrained model with a steep head, so that a film that is read otherwise gets another answer."""
    torch.manual_seed(0)
    spec_of_model = Model(name="vit:Ti/16", channels=spec.channels, options={"depth": 1})
    model = build_model(spec_of_model, len(CLASSES), image_size=spec.height)
    with torch.no_grad():
        model.head.weight.normal_(std=0.12)  # type: ignore[union-attr, operator]
    kind: Any = "multilabel" if domain == "cxr" else "singlelabel"
    bundle = Bundle(
        path=folder, domain=domain, task_kind=kind, classes=CLASSES, model=spec_of_model, preprocess=spec,
        temperature=(1.5,), thresholds=(0.5,) * len(CLASSES), threshold_rule="", metrics={}, data_card="", provenance={},
        exports={}, files={},
    )  # fmt: skip
    return write_bundle(bundle, model.state_dict())


def data_set(files: list[Path], read: Callable[..., Any], spec: PreprocessSpec) -> ImageDataset:
    targets = np.eye(len(CLASSES))[np.arange(len(files)) % len(CLASSES)]
    manifest = make_manifest(
        [f.name for f in files], [str(f) for f in files], [f.name for f in files], CLASSES, targets,
        splits=["val"] * len(files), name="n",
    )  # fmt: skip
    return ImageDataset(manifest, read, spec)


def picture(height: int, width: int, channels: int = 1) -> np.ndarray:
    """Something with a left, a right, an above and a below, uint8 [H, W] or [H, W, C]."""
    y, x = np.mgrid[0:height, 0:width] / np.array([height, width]).reshape(2, 1, 1)
    planes = [
        0.15 + 0.5 * y * (1 - 0.3 * c) + 0.3 * np.exp(-30 * ((x - 0.3 - 0.2 * c) ** 2 + (y - 0.4) ** 2))
        for c in range(channels)
    ]
    pixels = np.rint(255 * np.stack(planes, axis=-1)).astype(np.uint8)
    return pixels[:, :, 0] if channels == 1 else pixels


def turned(image: Image.Image, file: Path, **how: Any) -> None:
    flag = Image.Exif()
    flag[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(file, exif=flag, **how)


def write_films(folder: Path) -> dict[str, Path]:
    """Those before ``small.png`` show one film."""
    folder.mkdir(parents=True)
    grey = picture(150, 130)
    film = Image.fromarray(grey)
    film.save(folder / "8bit.png")
    for bits in (10, 12, 16):
        deep = np.rint(grey / 255.0 * (2**bits - 1)).astype(np.uint16)
        deep[0, 0] = 2**bits - 1
        Image.fromarray(deep).save(folder / f"{bits}bit.png")
    film.convert("RGB").save(folder / "rgb.png")
    film.convert("RGBA").save(folder / "rgba.png")
    film.convert("P").save(folder / "palette.png")
    turned(film, folder / "turned.png")
    turned(film, folder / "turned.jpg", quality=100)
    save(dataset(grey, bits=8), folder / "8bit.dcm")
    save(dataset(255 - grey, bits=8, PhotometricInterpretation="MONOCHROME1"), folder / "inverted.dcm")
    Image.fromarray(picture(40, 33)).save(folder / "small.png")
    Image.fromarray(picture(500, 300)).save(folder / "large.png")
    pierced = film.convert("RGBA")
    pierced.putalpha(Image.fromarray(np.where(picture(150, 130) > 90, 255, 0).astype(np.uint8)))
    pierced.save(folder / "transparent.png")
    save(dataset(grey.astype(np.uint16) * 16, bits=12, WindowCenter=2048, WindowWidth=4096), folder / "window.dcm")
    return {file.name: file for file in sorted(folder.iterdir())}


SAME_FILM = {"8bit.png", "10bit.png", "12bit.png", "16bit.png", "rgb.png", "rgba.png", "palette.png", "turned.png", "turned.jpg",
             "8bit.dcm", "inverted.dcm"}  # fmt: skip


def write_tiles(folder: Path) -> dict[str, Path]:
    folder.mkdir(parents=True)
    pixels = picture(90, 100, 3)
    tile = Image.fromarray(pixels)
    for name in ("rgb.png", "rgb.webp", "rgb.bmp"):
        tile.save(folder / name, **({"lossless": True} if name.endswith("webp") else {}))
    tile.convert("RGBA").save(folder / "rgba.png")
    tile.convert("L").save(folder / "grey.png")
    turned(tile, folder / "turned.jpg", quality=100, subsampling=0)
    Image.fromarray(picture(30, 41, 3)).save(folder / "small.png")
    Image.fromarray(picture(400, 300, 3)).save(folder / "large.png")
    write_raster(folder / "tile.tif", np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    return {file.name: file for file in sorted(folder.iterdir())}


SAME_TILE = {"rgb.png", "rgb.webp", "rgb.bmp", "rgba.png", "turned.jpg", "tile.tif"}


class Ways:
    """Every way from a file to probabilities, for one bundle and its input files."""

    def __init__(self, folder: Path, domain: Any, spec: PreprocessSpec, files: dict[str, Path], read: Any) -> None:
        bundle = bundle_of(domain.name, folder / "bundle", spec)
        self.domain, self.files, self.read = domain, files, read
        data = data_set([f for f in files.values() if f.suffix != ".dcm"], read, spec)
        options = ExportOptions(
            ("onnx", "openvino", "torchscript", "pt2"), with_preprocessing=True, allowed=1.0, threads=1
        )
        self.bundle, self.made = export_bundle(bundle, data, options)
        self.bundle, plain = export_bundle(
            self.bundle, data, replace(options, formats=("onnx", "openvino"), with_preprocessing=False)
        )
        self.made += plain
        self.predictor = Predictor(self.bundle, read, precision="fp32", threads=1)
        self.data = data_set(list(files.values()), read, spec)

    def by_command(self, runtime: str, out: Path) -> dict[str, np.ndarray]:
        args = [
            "predict",
            str(self.bundle.path),
            *map(str, self.files.values()),
            "--out",
            str(out),
            "--runtime",
            runtime,
        ]
        assert cli.main(self.domain, [*args, "--precision", "fp32", "--threads", "2"]) == 0
        table = pd.read_csv(out)
        assert not table["error"].notna().any()
        return dict(zip(self.files, table[list(CLASSES)].to_numpy(), strict=True))

    def by_explain(self) -> dict[str, np.ndarray]:
        return {
            name: explain_file(self.predictor, file, "rollout", steps=0).scores for name, file in self.files.items()
        }

    def by_data_set(self) -> dict[str, np.ndarray]:
        """As ``train`` and ``evaluate`` read."""
        rows = {}
        for row, name in enumerate(self.files):
            image = np.atleast_3d(self.data.image(row)).transpose(2, 0, 1)
            rows[name] = self.predictor.scores(self.predictor.logits(torch.from_numpy(image.copy())[None]))[0]
        return rows

    def by_export(self, name: str) -> dict[str, np.ndarray]:
        """By a program that leaves every setting to the runtime."""
        form = FORMATS[name.removeprefix("with_preprocessing/")]
        run = default_runner(self.bundle.path / self.bundle.exports[name]["files"][0], form.runtime)
        return {key: run(_bytes(self.read(file)))[0] for key, file in self.files.items()}

    def by_edge(self) -> dict[str, np.ndarray]:
        app = runpy.run_path(str(ROOT / "apps" / "edge_predict.py"))
        session = onnxruntime.InferenceSession(self.bundle.path / "with_preprocessing" / "model.onnx")
        channels = session.get_inputs()[0].shape[3]
        pictures = {key: file for key, file in self.files.items() if file.suffix not in (".dcm", ".tif")}
        return {
            key: session.run(None, {"image": app["read"](str(file), channels)})[0][0] for key, file in pictures.items()
        }


def default_runner(file: Path, runtime: str) -> Callable[[np.ndarray], np.ndarray]:
    if runtime == "onnx":
        session = onnxruntime.InferenceSession(file)
        return lambda image: session.run(None, {"image": image})[0]
    if runtime == "openvino":
        import openvino as ov

        compiled = ov.Core().compile_model(file, "CPU")
        return lambda image: np.array(compiled(image)[0])
    module = torch.export.load(file).module() if file.suffix == ".pt2" else torch.jit.load(file)
    return lambda image: module(torch.from_numpy(image)).detach().numpy()


def _bytes(image: np.ndarray) -> np.ndarray:
    image = np.atleast_3d(image)
    return (image if image.dtype == np.uint8 else np.rint(image * 255).astype(np.uint8))[None]


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Ways:
    folder = tmp_path_factory.mktemp("films")
    spec = PreprocessSpec(64, 64, "letterbox", 1, (0.45,), (0.2,))
    return Ways(folder, CXR, spec, write_films(folder / "films"), read_film_pixels)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Ways:
    folder = tmp_path_factory.mktemp("tiles")
    spec = PreprocessSpec(48, 48, "crop", 3, (0.4, 0.5, 0.3), (0.2, 0.2, 0.25))
    files = write_tiles(folder / "tiles")
    return Ways(folder, SATELLITE, spec, {k: f for k, f in files.items() if k != "grey.png"}, read_tile)


@pytest.mark.parametrize("which", ["films", "tiles"])
def test_every_way_gives_the_same_numbers(
    which: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MALLOC_TOP_PAD_", "67108864")
    ways: Ways = request.getfixturevalue(which)
    assert not [each.refused for each in ways.made if each.refused]
    expected = ways.by_data_set()
    inside = {
        "explain": ways.by_explain(),
        **{r: ways.by_command(r, tmp_path / f"{r}.csv") for r in ("torch", "onnx", "openvino")},
    }
    outside = {name: ways.by_export(name) for name in ways.bundle.exports if "/" in name} | {"edge": ways.by_edge()}
    for tolerance, found in ((1e-5, inside), (EXPORTED, outside)):
        for way, rows in found.items():
            for name, scores in rows.items():
                np.testing.assert_allclose(scores, expected[name], atol=tolerance, err_msg=f"{way}: {name}")
    same = SAME_FILM if which == "films" else SAME_TILE
    for name in same:
        np.testing.assert_allclose(
            expected[name], expected["8bit.png" if which == "films" else "rgb.png"], atol=EXPORTED, err_msg=name
        )
    assert same <= ways.files.keys()
    reference = "8bit.png" if which == "films" else "rgb.png"
    np.save(tmp_path / "sideways.npy", np.rot90(ways.read(ways.files[reference])))
    (sideways,) = Predictor(ways.bundle, np.load, precision="fp32", threads=1).predict(
        [("", str(tmp_path / "sideways.npy"))]
    )
    assert np.abs(sideways.scores - expected[reference]).max() > 2 * EXPORTED, "what is read sideways would be seen"


def test_readers_of_both_tile_domains_see_the_same_picture(tmp_path: Path) -> None:
    for name, file in write_tiles(tmp_path / "tiles").items():
        mine, other = read_tile(file), read_picture(file)
        np.testing.assert_array_equal(np.atleast_3d(mine), np.atleast_3d(other), err_msg=name)


def test_the_app_reads_as_predict_does(films: Ways) -> None:
    from apps.films.engine import Engine
    from apps.shared.bundle_info import read_bundle_info

    engine = Engine(read_bundle_info(films.bundle.path, "cxr"), threads=1)
    expected = films.by_data_set()
    for name, file in films.files.items():
        prepared, _ = engine.prepared(str(file))
        np.testing.assert_allclose(engine.scores([prepared])[0], expected[name], atol=0.02, err_msg=name)


def test_the_edge_names_its_classes(films: Ways) -> None:
    notes = onnxruntime.InferenceSession(films.bundle.path / "with_preprocessing" / "model.onnx").get_modelmeta()
    assert json.loads(notes.custom_metadata_map["classes"]) == list(CLASSES)
    assert read_bundle(films.bundle.path).exports["with_preprocessing/onnx"]["checks"][0]["passed"]
