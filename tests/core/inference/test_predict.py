"""One bad file never ends a job; a job without a result does not end with status 0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from tests.core import small_bundle, toy
from vitdomains.core.bundle import Bundle
from vitdomains.core.commands import cli
from vitdomains.core.errors import ConfigError, ExplainError, ImageError
from vitdomains.core.explain.render import explain_file
from vitdomains.core.inference.predictor import Predictor
from vitdomains.core.inference.table import predictions_table, write_predictions


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("predict")
    return small_bundle.make(folder / "bundle", toy.write_images(folder / "images", n=40))


@pytest.fixture(autouse=True)
def _no_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TOP_PAD_", "67108864")  # a test runner does not restart itself for a faster allocator


def images(bundle: Bundle) -> list[str]:
    return sorted(map(str, (bundle.path.parent / "images").glob("*.npy")))


def raising(error: BaseException) -> Callable[[str | Path], np.ndarray]:
    def read(path: str | Path) -> np.ndarray:
        if Path(path).name.startswith("000"):
            raise error
        return toy.read_image(path)

    return read


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (TypeError("an integer is required"), "TypeError: an integer is required"),
        (cv2.error("pixels exceed"), "error: pixels exceed"),
        (Image.DecompressionBombError("too large"), "DecompressionBombError"),
        (MemoryError(), "MemoryError"),
        (RecursionError("deep\n\x1b[31mred"), "RecursionError: deep [31mred"),
        (UnicodeDecodeError("utf-8", b"x", 0, 1, "no"), "UnicodeDecodeError"),
        (ConfigError("Four channels.", hint="Give three."), "Four channels. Give three."),
    ],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_whatever_a_reader_raises_is_a_row(bundle: Bundle, error: Exception, text: str, threads: int) -> None:
    files = images(bundle)[:6]
    predictor = Predictor(bundle, raising(error), precision="fp32", threads=threads, batch_size=2)
    found = list(predictor.predict([(Path(file).stem, file) for file in files]))
    assert [each.path for each in found] == files
    assert files[0] in found[0].error and text in found[0].error and "\n" not in found[0].error
    assert not any(each.error for each in found[1:]) and np.isfinite(found[1].scores).all()


def test_explain_says_what_is_wrong_with_a_file_too(bundle: Bundle) -> None:
    predictor = Predictor(bundle, raising(TypeError("an integer is required")), precision="fp32", threads=1)
    with pytest.raises(ImageError, match="TypeError: an integer is required"):
        explain_file(predictor, images(bundle)[0], "rollout", steps=0)
    with torch.no_grad():
        predictor.model.head.bias[:] = torch.inf  # type: ignore[union-attr, operator, index]
    predictor.bundle = replace(bundle, task_kind="singlelabel")
    predictor._task = predictor.bundle.task
    with pytest.raises(ExplainError, match="no finite number"):
        explain_file(predictor, images(bundle)[1], "rollout", steps=0)


def test_an_image_of_other_channels_is_a_row(bundle: Bundle, tmp_path: Path) -> None:
    np.save(tmp_path / "four.npy", np.zeros((9, 9, 4), np.float32))
    np.save(tmp_path / "none.npy", np.zeros((0, 9), np.float32))
    np.save(tmp_path / "whole.npy", np.zeros((9, 9), np.int32))
    found = list(Predictor(bundle, np.load, threads=2).predict([("", str(f)) for f in sorted(tmp_path.glob("*.npy"))]))
    assert "4 channels" in found[0].error and "cannot be resized" in found[1].error and "int32" in found[2].error


def test_ctrl_c_in_a_reader_is_no_row(bundle: Bundle) -> None:
    with pytest.raises(KeyboardInterrupt):
        list(Predictor(bundle, raising(KeyboardInterrupt()), threads=1).predict([("0", images(bundle)[0])]))


def test_no_finite_number_is_an_error_not_a_negative(bundle: Bundle) -> None:
    predictor = Predictor(bundle, toy.read_image, precision="fp32", threads=1)
    with torch.no_grad():
        predictor.model.head.bias[1] = torch.nan  # type: ignore[union-attr, operator, index]
    (found,) = predictor.predict([("0", images(bundle)[0])])
    assert "no finite number in fp32" in found.error and not found.labels and np.isnan(found.scores).all()


def test_the_exit_status_says_what_became_of_the_files(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.npy").write_bytes(b"nothing")
    out = tmp_path / "p.CSV"
    args = ["predict", str(bundle.path), "--out", str(out), "--runtime", "torch"]
    assert cli.main(toy.DOMAIN, [*args, str(tmp_path / "bad.npy")]) == 4
    assert "All 1 files failed" in " ".join(capsys.readouterr().err.split())
    assert pd.read_csv(out)["error"].notna().all(), "the table says why"
    mixed = [*args, str(tmp_path / "bad.npy"), images(bundle)[0]]
    assert cli.main(toy.DOMAIN, mixed) == 0
    assert "2 files, 1 with an error" in capsys.readouterr().out
    assert cli.main(toy.DOMAIN, [*mixed, "--strict"]) == 3
    assert cli.main(toy.DOMAIN, [*args, images(bundle)[0], "--strict"]) == 0
    (tmp_path / "folder.csv").mkdir()
    assert cli.main(toy.DOMAIN, [*args[:2], images(bundle)[0], "--out", str(tmp_path / "folder.csv")]) == 2
    assert "is a folder" in capsys.readouterr().err


def test_classes_with_the_names_of_columns_stand_beside_them(bundle: Bundle, tmp_path: Path) -> None:
    predictor = Predictor(replace(bundle, classes=("error", "path")), toy.read_image, threads=1)
    write_predictions(predictor, [("0", images(bundle)[0])], tmp_path / "p.parquet")
    table = pd.read_parquet(tmp_path / "p.parquet")
    assert list(table) == ["id", "path", "score:error", "score:path", "labels", "error"]
    assert table["error"][0] == "" and 0 <= table["score:error"][0] <= 1
    assert list(predictions_table([], ("error",), quality=False)) == ["id", "path", "score:error", "labels", "error"]


def test_rows_of_another_backend_are_not_gone_on_with(bundle: Bundle, tmp_path: Path) -> None:
    records, out = [(Path(file).stem, file) for file in images(bundle)[:3]], tmp_path / "p.csv"
    stopped = Predictor(bundle, toy.read_image, precision="bf16", threads=1)
    with pytest.raises(ZeroDivisionError):
        write_predictions(stopped, records, out, lambda done, total: 1 // (2 - done))
    assert (tmp_path / ".p.csv.journal").is_file()
    done: list[int] = []
    fp32 = Predictor(bundle, toy.read_image, precision="fp32", threads=1)
    write_predictions(fp32, records, out, lambda n, total: done.append(n))
    assert done == [1, 2, 3]
