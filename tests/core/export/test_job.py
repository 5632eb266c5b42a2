"""From a bundle to its artefacts: those that pass lie beside the weights, of those that fail only the record is left."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.core import small_bundle, toy
from vitdomains.core.bundle import Bundle, load_model, read_bundle, write_bundle
from vitdomains.core.commands import cli
from vitdomains.core.commands.export import findings
from vitdomains.core.config.schema import Data, Model
from vitdomains.core.data.dataset import ImageDataset
from vitdomains.core.data.preprocess import PreprocessSpec
from vitdomains.core.errors import ExportError
from vitdomains.core.export.checks import bf16_difference
from vitdomains.core.export.formats import BF16_TOLERANCE, FORMATS, chosen_formats
from vitdomains.core.export.job import Exported, ExportOptions, export_bundle
from vitdomains.core.export.onnx import read_metadata
from vitdomains.core.export.reference import end_to_end
from vitdomains.core.inference.predictor import Predictor
from vitdomains.core.inference.runtimes import session
from vitdomains.core.models.vit import vit

Made = tuple[Bundle, tuple[Exported, ...]]


def test_every_format_passes_and_lies_beside_the_weights(exported: Made) -> None:
    _, made = exported
    assert [each.format for each in made] == list(FORMATS) and not any(each.refused for each in made)
    bundle = read_bundle(exported[0].path)  # checks every hash
    for name, form in FORMATS.items():
        assert set(form.files) <= set(bundle.files)
        record = bundle.exports[name]
        assert record["bytes"] == sum((bundle.path / file).stat().st_size for file in form.files)
        assert set(record["checks"][0]["largest_difference"]) == {"1", "3", "8"}
        assert record["checks"][0]["passed"] and record["packages"]["torch"]
    assert bundle.id == read_bundle(exported[0].path, verify=False).id


def test_a_consumer_finds_all_it_needs_in_the_file(exported: Made) -> None:
    bundle = exported[0]
    notes = read_metadata(bundle.path / "model.onnx")
    assert notes["bundle_id"] == bundle.id and notes["classes"] == '["left", "right"]'
    assert '"resize": "letterbox"' in notes["preprocess"] and notes["temperature"] == "[1.5]"
    assert read_metadata(bundle.path / "model.int8-static.onnx") == notes


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A model that eight bits destroy."""
    folder = tmp_path_factory.mktemp("fragile")
    return small_bundle.make(folder / "bundle", toy.write_images(folder / "images", n=120), outliers=300.0)


def test_what_fails_is_not_left_behind_and_says_whose_fault_it_is(
    fragile: Bundle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MALLOC_TOP_PAD_", "67108864")  # a test runner does not restart itself for a faster allocator
    words = ["--formats", "int8", "--threads", "1", "--allowed_loss", "0.05"]
    assert cli.main(toy.DOMAIN, ["export", str(fragile.path), *words]) == 3
    said = capsys.readouterr().out
    assert "outputs differ by" in said and "refused" in said
    assert said.index("attn.qkv") < said.index("mlp.fc1")
    assert "try: --formats int8-dynamic --keep attn.qkv" in said
    bundle = read_bundle(fragile.path)
    assert not [file for file in bundle.files if file.endswith(".onnx")]
    assert "outputs differ" in bundle.exports["int8-dynamic"]["refused"]
    assert bundle.exports["int8-dynamic"]["layer_errors"][0]["kind"] == "attn.qkv"

    assert cli.main(toy.DOMAIN, ["export", str(fragile.path), *words, "--keep", "attn.qkv"]) == 0
    bundle = read_bundle(fragile.path)
    assert "model.int8-dynamic.onnx" in bundle.files and not bundle.exports["int8-dynamic"]["refused"]


def test_a_format_that_fails_takes_its_older_file_with_it(exported: Made, toy_images: Path, tmp_path: Path) -> None:
    copy = read_bundle(shutil.copytree(exported[0].path, tmp_path / "bundle"))
    images = small_bundle.validation(toy_images)
    _, (made,) = export_bundle(copy, images, ExportOptions(("torchscript",), allowed=-1.0, threads=1))
    assert "falls" in made.refused and not made.files
    after = read_bundle(copy.path)
    assert "model.torchscript" not in after.files and "model.pt2" in after.files


def test_impossible_formats_are_refused_before_any_work(tmp_path: Path) -> None:
    root = toy.write_images(tmp_path / "images", n=40)
    spec = Model(name="timm:mobilenetv3_small_050", channels=1)
    bundle = small_bundle_of(spec, tmp_path / "bundle")
    with pytest.raises(ExportError, match=r"int8-dynamic: its convolutions .* use int8-static") as caught:
        export_bundle(bundle, small_bundle.validation(root), ExportOptions(("onnx", "int8-dynamic")))
    assert "--formats onnx" in caught.value.hint and caught.value.exit_status == 3
    assert read_bundle(bundle.path).exports == {}
    with pytest.raises(ExportError, match="Unknown format tflite"):
        export_bundle(bundle, small_bundle.validation(root), ExportOptions(("tflite",)))


def small_bundle_of(spec: Model, folder: Path) -> Bundle:
    """A bundle of any model, untrained."""
    from vitdomains.core.bundle import write_bundle
    from vitdomains.core.models.build import build_model

    bundle = Bundle(
        path=folder, domain="toy", task_kind="multilabel", classes=toy.CLASSES, model=spec, preprocess=small_bundle.SPEC,
        temperature=(1.0,), thresholds=(0.5, 0.5), threshold_rule="", metrics={}, data_card="", provenance={}, exports={},
        files={},
    )  # fmt: skip
    return write_bundle(bundle, build_model(spec, 2, image_size=toy.SIZE).state_dict())


def test_int8_means_what_suits_the_model_and_the_other_formats() -> None:
    model = vit("Ti/16", 2, image_size=32, depth=1)
    assert chosen_formats(["int8"], model) == ("int8-dynamic",)
    assert chosen_formats(["int8", "openvino"], model) == ("int8-dynamic", "openvino", "int8-openvino")
    stem = vit("Ti/16", 2, image_size=32, depth=1, stem="conv")
    assert chosen_formats(["int8"], stem) == ("int8-static",)


def test_a_kind_of_layer_that_is_not_there_is_named(exported: Made, toy_images: Path) -> None:
    images = small_bundle.validation(toy_images)
    with pytest.raises(ExportError, match=r"no kind of layer mlp\.fc9") as caught:
        export_bundle(exported[0], images, ExportOptions(("int8-dynamic",), keep=("mlp.fc9",), threads=1))
    assert "mlp.fc1" in caught.value.hint


def test_an_artefact_with_preprocessing_needs_nothing_around_it(
    exported: Made, toy_images: Path, tmp_path: Path
) -> None:
    """In every format it takes images of any size, also where all that it was checked on had one."""
    copy = read_bundle(shutil.copytree(exported[0].path, tmp_path / "bundle"))
    images = small_bundle.validation(toy_images)
    options = ExportOptions(
        ("onnx", "openvino", "torchscript", "pt2"), with_preprocessing=True, allowed=0.05, threads=1
    )
    bundle, made = export_bundle(replace(copy), images, options)
    predictor = Predictor(bundle, toy.read_image, precision="fp32", threads=1)
    pixels = np.rint(np.clip(toy.read_image(images.paths[0]), 0, 1) * 255).astype(np.uint8)
    for number, image in enumerate((pixels, np.pad(pixels, ((9, 0), (0, 30))), pixels[:20, :29])):
        np.save(tmp_path / f"{number}.npy", image / np.float32(255))
        (expected,) = predictor.predict([("0", str(tmp_path / f"{number}.npy"))])
        for each in made:
            assert each.format.startswith("with_preprocessing/") and not each.refused
            form = FORMATS[each.format.removeprefix("with_preprocessing/")]
            run = session(bundle.path / each.files[0], form.runtime, threads=1)
            np.testing.assert_allclose(run(image[None, :, :, None])[0], expected.scores, atol=5e-3)
    assert "model.onnx" in bundle.files  # the plain artefact is still there
    with pytest.raises(ExportError, match="NNCF would quantise the resize"):
        export_bundle(bundle, images, replace(options, formats=("int8-openvino",)))


def test_openvino_int8_that_is_refused_says_whose_fault_it_is(exported: Made, toy_images: Path, tmp_path: Path) -> None:
    copy = read_bundle(shutil.copytree(exported[0].path, tmp_path / "bundle"))
    images = small_bundle.validation(toy_images)
    _, (made,) = export_bundle(copy, images, ExportOptions(("int8-openvino",), allowed=-1.0, threads=1))
    assert "falls" in made.refused and not made.trials and not made.files
    assert {"attn.qkv", "mlp.fc1"} <= {one.kind for one in made.layer_errors}
    said = "\n".join(findings([made]))
    assert "measured on int8-static" in said and f"--formats int8-static --keep {made.layer_errors[0].kind}" in said
    after = read_bundle(copy.path)
    assert "model.int8.xml" not in after.files and after.exports["int8-openvino"]["layer_errors"]


def test_a_file_that_is_wrong_in_the_precision_that_its_runtime_takes_is_not_kept(
    exported: Made, toy_images: Path, tmp_path: Path
) -> None:
    """A program that says nothing of precision gets bf16 from OpenVINO on some processors; here a grey level decides all."""
    bundle, images = exported[0], small_bundle.validation(toy_images)
    steep = write_bundle(replace(bundle, path=tmp_path / "steep", exports={}), _steep(bundle, images))
    source, reference = end_to_end(load_model(steep), steep, images, 1, lambda *_: None)
    assert bf16_difference(source.module, reference) > BF16_TOLERANCE
    options = ExportOptions(("onnx", "openvino"), with_preprocessing=True, allowed=1.0, threads=1)
    _, made = export_bundle(steep, images, options)
    assert not made[0].refused and "which OpenVINO takes by default" in made[1].refused and not made[1].files
    source, reference = end_to_end(load_model(bundle), bundle, images, 1, lambda *_: None)
    assert bf16_difference(source.module, reference) < BF16_TOLERANCE


def test_grey_images_among_colour_ones_are_repeated(tmp_path: Path) -> None:
    spec = PreprocessSpec(16, 16, "squash", 3, (0.5,), (0.25,))
    bundle = replace(
        small_bundle_of(Model(name="vit:Ti/8", channels=3, options={"depth": 1}), tmp_path / "b"), preprocess=spec
    )
    rng = np.random.default_rng(0)
    for number in range(4):
        np.save(
            tmp_path / f"{number}_{number % 2}{number // 2}.npy",
            rng.integers(0, 256, (20, 20, 3)[: 3 - number % 2], dtype=np.uint8),
        )
    images = ImageDataset(toy.build_manifest(Data(root=str(tmp_path))), np.load, spec)
    source, reference = end_to_end(vit("Ti/8", 2, image_size=16, depth=1).eval(), bundle, images, 1, lambda *_: None)
    assert [batch.shape for batch in reference.batches()] == [(1, 20, 20, 3)] * 4
    with torch.no_grad():
        np.testing.assert_allclose(
            source.module(torch.from_numpy(reference.sample)).numpy(), reference.sample_outputs, atol=1e-3
        )


def _steep(bundle: Bundle, images: ImageDataset) -> dict[str, torch.Tensor]:
    """The model's state with a last layer so large, and centred on these images, that bfloat16's rounding turns answers over."""
    model = load_model(bundle)
    predictor = Predictor(bundle, toy.read_image, precision="fp32", threads=1, model=model)
    stored = torch.stack([images[i][0] for i in range(len(images))])
    with torch.no_grad():
        centre = np.median(predictor.logits(stored), axis=0)
        model.head.bias -= torch.from_numpy(centre).to(model.head.bias)
        model.head.bias *= 1000
        model.head.weight *= 1000
    return model.state_dict()
