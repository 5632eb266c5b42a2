"""The benchmark's clock, its cases, and one small benchmark from end to end, stopped and continued."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from benchmarks import harness
from vitdomains.bench import tables
from vitdomains.bench.__main__ import main
from vitdomains.bench.candidates import forward_call, module, parameters, textures, weight_bytes
from vitdomains.bench.cases import Case, Subject, bundle_subject, case_from_json, impossible, make_cases, named_subject
from vitdomains.bench.processes import prepare, resident, work_folder
from vitdomains.bench.run import BenchOptions, bench
from vitdomains.bench.timing import environment, machine, rounds, summary
from vitdomains.core.bundle import Bundle, update_bundle, write_bundle
from vitdomains.core.config.schema import Model
from vitdomains.core.data.preprocess import PreprocessSpec
from vitdomains.core.errors import ConfigError
from vitdomains.core.evaluation.plots import render
from vitdomains.core.models.build import build_model

SUBJECT = Subject("small", "timm:mobilenetv3_small_050", 32, 32)
REPEATS = 3


def silent(phase: str, done: int, total: int, text: str) -> None:
    """No progress."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    model = Model(name="vit:Ti/16", channels=1, image_size=32, options={"depth": 1})
    made = Bundle(
        path=folder / "bundle", domain="toy", task_kind="multilabel", classes=("left", "right"), model=model,
        preprocess=PreprocessSpec(32, 32, "letterbox", 1, (0.5,), (0.25,)), temperature=(1.0,), thresholds=(0.5, 0.5),
        threshold_rule="youden", metrics={}, data_card="squares", provenance={}, exports={}, files={},
    )  # fmt: skip
    return write_bundle(made, build_model(model, 2).state_dict())


@pytest.fixture(scope="module")
def result(folder: Path, bundle: Bundle) -> dict[str, Any]:
    """What the command measured of the bundle."""
    words = ["--repeats", str(REPEATS), "--work", str(folder / "work"), "--out", str(folder / "result.json")]
    assert main(["bundle", str(bundle.path), *words]) == 0
    read: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return read


def row(result: dict[str, Any], runtime: str, precision: str) -> dict[str, Any]:
    (found,) = [r for r in result["rows"] if (r["runtime"], r["precision"]) == (runtime, precision)]
    return dict(found)


def test_candidates_take_turns_in_an_order_that_changes_and_repeats() -> None:
    turns: list[str] = []
    calls = {name: (lambda name=name: turns.append(name)) for name in "abcd"}
    timed = list(rounds(calls, 5, warmup=2))
    assert len(timed) == 5 and all(set(one) == set("abcd") for one in timed)
    order = ["".join(turns[i : i + 4]) for i in range(0, len(turns), 4)]
    assert len(order) == 7 and all(sorted(one) == list("abcd") for one in order) and len(set(order)) > 1
    turns.clear()
    list(rounds(calls, 5, warmup=2))
    assert ["".join(turns[i : i + 4]) for i in range(0, len(turns), 4)] == order


def test_a_short_call_is_preceded_by_one_that_is_not_timed() -> None:
    turns: list[str] = []
    list(rounds({"a": lambda: turns.append("a")}, 3, warmup=1, warm_below=10.0))
    assert len(turns) == 1 + 2 * 3  # how long it takes is known after the first
    turns.clear()
    list(rounds({"a": lambda: turns.append("a")}, 3, warmup=1, warm_below=0.0))
    assert len(turns) == 4


def test_the_summary_is_median_and_percentiles() -> None:
    assert summary(list(range(1, 12))) == {"median_s": 6.0, "p10_s": 2.0, "p90_s": 10.0, "min_s": 1.0, "repeats": 11.0}
    assert harness.interleave({"a": lambda: None}, repeats=4)["a"]["repeats"] == 4


def test_the_environment_says_what_a_number_depends_on() -> None:
    said = environment()
    assert said["versions"]["torch"] == torch.__version__.split("+")[0]
    assert len(said["load_average"]) == 3 and said["cores"] >= 1 and said["cpu"]
    if Path("/proc/cpuinfo").is_file() and "avx2" in Path("/proc/cpuinfo").read_text():
        assert "avx2" in machine()["features"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runtimes": ["tflite"]}, "runtime 'tflite'"),
        ({"runtimes": ["onnx+compile"]}, "option of torch 'compile'"),
        ({"runtimes": ["torch+fast"]}, "option of torch 'fast'"),
        ({"precisions": ["int4"]}, "precision 'int4'"),
        ({"batches": [0]}, "batch is 0"),
        ({"threads": [-1]}, "threads is -1"),
        ({"device": "tpu"}, "device 'tpu'"),
        ({"subjects": [SUBJECT, SUBJECT]}, "given twice"),
    ],
)
def test_an_impossible_word_is_refused(change: dict[str, Any], message: str) -> None:
    given = {"subjects": [SUBJECT], "runtimes": ["torch"], "precisions": ["fp32"], "batches": [1], "threads": [1]}
    with pytest.raises(ConfigError, match=message) as caught:
        make_cases(**{**given, **change})
    assert caught.value.hint


def test_names_become_subjects() -> None:
    assert named_subject("mobilevit_s") == Subject("mobilevit_s", "timm:mobilevit_s", 256, 256)
    assert named_subject("timm:resnet50", 96) == Subject("resnet50", "timm:resnet50", 96, 96)
    assert named_subject("vit:Ti/16").model == "vit:Ti/16"
    with pytest.raises(ConfigError, match="resnet5O") as caught:
        named_subject("resnet5O")
    assert "resnet50" in caught.value.hint


def test_what_cannot_run_says_why_before_it_is_tried() -> None:
    case = Case(SUBJECT, "torch", "fp32", 1, 1)
    assert impossible(case) == ""
    assert "bf16" in impossible(replace(case, runtime="onnx", precision="bf16"))
    assert "torch.ao" in impossible(replace(case, precision="int8"))
    assert "GPU" in impossible(replace(case, runtime="torch+cudagraph"))
    assert "GPU" in impossible(replace(case, precision="fp16"))
    assert impossible(replace(case, runtime="torch+cudagraph", precision="fp16", device="cuda")) == ""
    assert case_from_json(case.to_json()) == case


def test_inputs_look_like_images() -> None:
    images = textures(Subject("x", "", 64, 48, channels=2), 3)
    assert images.shape == (3, 2, 64, 48) and images.dtype == np.float32
    assert np.array_equal(images, textures(Subject("x", "", 64, 48, channels=2), 3))
    assert images.std() == pytest.approx(1.0, abs=1e-3)
    neighbours = np.corrcoef(images[..., 1:].ravel(), images[..., :-1].ravel())[0, 1]
    assert neighbours > 0.8  # white noise has 0


def test_the_model_is_measured_as_it_is_deployed() -> None:
    model = module(SUBJECT)
    assert not model.training
    with torch.no_grad():
        deep = model.forward_features(torch.from_numpy(textures(SUBJECT, 2)))  # type: ignore[operator]
    assert deep.abs().max() > 1e-3, "random weights do not make denormal numbers of the input"
    assert weight_bytes(model, "fp32") == pytest.approx(4 * parameters(model), rel=0.05)  # and running statistics
    assert weight_bytes(model, "bf16") == pytest.approx(weight_bytes(model, "fp32") / 2, rel=0.01)


def gives_the_logits_of_the_model(case: Case, work: Path) -> None:
    with torch.no_grad():
        expected = module(SUBJECT)(torch.from_numpy(textures(SUBJECT, case.batch)))
    logits = forward_call(case, work)()
    assert isinstance(logits, torch.Tensor)
    tolerance = {"fp32": 1e-4, "fp16": 0.05, "bf16": 0.1}[case.precision] * expected.abs().max().item()
    torch.testing.assert_close(logits.float().cpu(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("runtime", ["torch", "torch+channels_last", "torch+jit"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_way_of_torch_runs(runtime: str, precision: str, tmp_path: Path) -> None:
    gives_the_logits_of_the_model(Case(SUBJECT, runtime, precision, 2, 1), tmp_path)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("runtime", ["torch", "torch+channels_last", "torch+cudagraph", "torch+compile+cudagraph"])
def test_every_way_of_the_gpu_runs(runtime: str, tmp_path: Path) -> None:
    gives_the_logits_of_the_model(Case(SUBJECT, runtime, "fp16", 2, 1, "cuda"), tmp_path)


def test_the_result_has_what_was_asked_for(result: dict[str, Any], folder: Path, bundle: Bundle) -> None:
    assert result["complete"] and not list(folder.glob("*.partial"))
    assert result["environment"]["load_average"] and result["sessions"][0]["rounds"] == REPEATS
    work = work_folder(folder / "work", bundle_subject(bundle.path))
    for runtime, precision in (("torch", "fp32"), ("torch", "bf16"), ("onnx", "fp32"), ("onnx", "int8")):
        one = row(result, runtime, precision)
        assert "failed" not in one, one
        assert len(one["seconds"]) == REPEATS and 0 < one["p10_s"] <= one["median_s"] <= one["p90_s"]
        assert one["images_per_second"] == pytest.approx(1 / one["median_s"])
        assert one["parameters"] == sum(p.numel() for p in module(bundle_subject(bundle.path)).parameters())
        if runtime == "onnx":
            assert one["size_bytes"] == (work / f"{precision}.onnx").stat().st_size
    assert row(result, "onnx", "int8")["size_bytes"] < 0.5 * row(result, "onnx", "fp32")["size_bytes"]
    assert row(result, "onnx", "fp32")["peak_memory_mib"] < row(result, "torch", "fp32")["peak_memory_mib"]
    assert "ONNX Runtime has no bf16" in row(result, "onnx", "bf16")["failed"]


def test_openvino_is_measured_where_it_is_installed(result: dict[str, Any]) -> None:
    pytest.importorskip("openvino")
    sizes = {}
    for precision in ("fp32", "bf16"):
        one = row(result, "openvino", precision)
        assert "failed" not in one, one
        sizes[precision] = one["size_bytes"]
    assert sizes["bf16"] < 0.75 * sizes["fp32"]


def stop(phase: str, done: int, total: int, text: str) -> None:
    """Ctrl-C after the first round."""
    if phase == "time":
        raise KeyboardInterrupt


def test_a_stopped_benchmark_goes_on_where_it_was(result: dict[str, Any], folder: Path, bundle: Bundle) -> None:
    cases = make_cases([bundle_subject(bundle.path)], ["torch", "onnx"], ["fp32"], [2], [1])
    options, out = BenchOptions(repeats=3, warmup=0, memory=False, work=folder / "work"), folder / "stopped.json"
    with pytest.raises(KeyboardInterrupt):
        bench(cases, out, options, stop)
    (before,) = json.loads((folder / "stopped.json.partial").read_text())["rounds"]
    last = bench(cases, out, options, silent)
    assert last["complete"] and [session["rounds"] for session in last["sessions"]] == [1, 2]
    assert all(len(one["seconds"]) == 3 and one["seconds"][0] == before[one["label"]] for one in last["rows"])
    assert json.loads(out.read_text())["rows"] == last["rows"] and not list(folder.glob("*.partial"))


def test_other_cases_do_not_go_on_from_what_was_stopped(result: dict[str, Any], folder: Path, bundle: Bundle) -> None:
    subject, out = [bundle_subject(bundle.path)], folder / "changed.json"
    options = BenchOptions(repeats=2, warmup=0, memory=False, work=folder / "work")
    with pytest.raises(KeyboardInterrupt):
        bench(make_cases(subject, ["torch"], ["fp32"], [1], [1]), out, options, stop)
    other = bench(make_cases(subject, ["torch"], ["fp32"], [3], [1]), out, options, silent)
    assert other["complete"] and len(other["sessions"]) == 1


def test_a_benchmark_stops_in_time(result: dict[str, Any], folder: Path, bundle: Bundle) -> None:
    cases = make_cases([bundle_subject(bundle.path)], ["torch"], ["fp32"], [1], [1])
    short = bench(cases, folder / "short.json", BenchOptions(work=folder / "work", minutes=1e-9), silent)
    assert not short["complete"] and not (folder / "short.json").exists()
    (folder / "short.json.partial").unlink()


def test_an_exported_artefact_is_what_is_measured(result: dict[str, Any], folder: Path, bundle: Bundle) -> None:
    ours = work_folder(folder / "work", bundle_subject(bundle.path)) / "fp32.onnx"
    marked = onnx.load(ours)
    onnx.helper.set_model_props(marked, {"from": "export"})
    other = replace(bundle, path=folder / "exported")
    other = write_bundle(other, build_model(bundle.model, 2).state_dict())
    update_bundle(other, lambda place: onnx.save(marked, place / "model.onnx"))
    work = folder / "exported_work"
    made = prepare(bundle_subject(other.path), ["fp32.onnx"], work, 300.0)
    assert made.failed == {}
    assert [entry.value for entry in onnx.load(work / "fp32.onnx").metadata_props] == ["export"]


def test_what_fails_is_a_row_with_its_reason(result: dict[str, Any], folder: Path, bundle: Bundle) -> None:
    work = folder / "damaged"
    work.mkdir()
    (work / "fp32.onnx").write_bytes(b"no model")
    measured, reason = resident(Case(bundle_subject(bundle.path), "onnx", "fp32", 1, 1), work, 300.0)
    assert measured == {} and "onnx" in reason.lower()
    cases = make_cases([Subject("nothing", "timm:nothing_at_all", 32, 32)], ["torch", "onnx"], ["fp32"], [1], [1])
    shown = bench(cases, folder / "failed.json", BenchOptions(repeats=1, work=folder / "work"), silent)
    assert shown["complete"] and all("nothing_at_all" in one["failed"] for one in shown["rows"])
    (grid,) = tables.details(shown["rows"])
    assert grid.rows == () and "torch fp32, onnx fp32" in grid.notes[0]


def made_up(model: str, how: tuple[str, str], seconds: list[float], batch: int = 1, **more: Any) -> dict[str, Any]:
    subject = Subject(model, "", 224, 224)
    case = Case(subject, *how, batch, 1)
    return {
        "label": case.label, "model": model, "image_size": 224, "runtime": how[0], "precision": how[1], "batch": batch,
        "threads": 1, "device": "cpu", "parameters": 5_000_000, "size_bytes": 20_000_000, "peak_memory_mib": 150.0,
        **summary(seconds), "images_per_second": batch / summary(seconds)["median_s"], "seconds": seconds, "run": "one", **more,
    }  # fmt: skip


ROWS = [
    made_up("a", ("torch", "fp32"), [0.1, 0.2, 0.1]),
    made_up("a", ("onnx", "fp32"), [0.05, 0.1, 0.05]),
    made_up("b", ("onnx", "fp32"), [0.4, 0.8, 0.4], batch=8),
    made_up("b", ("torch", "fp32"), [0.1, 0.1, 0.1], run="another"),
    {**made_up("a", ("onnx", "bf16"), [1.0]), "failed": "no kernels"},
    {**made_up("b", ("onnx", "bf16"), [1.0]), "failed": "no kernels"},
    {**made_up("b", ("onnx", "int8"), [1.0]), "failed": "too old"},
]


def test_comparison_is_round_by_round_and_image_by_image() -> None:
    compared = {one["label"]: ratio for one, ratio in tables.against(ROWS, "a, torch")}
    assert compared["a, onnx, fp32, batch 1, 1 thread"] == pytest.approx({"median": 2.0, "p10": 2.0, "p90": 2.0})
    assert compared["b, onnx, fp32, batch 8, 1 thread"]["median"] == pytest.approx(2.0)
    assert not any(label.startswith("b, torch") for label in compared), "another run of the machine does not compare"
    assert tables.against(ROWS)[0][1]["median"] == 1.0, "the first is the baseline"
    with pytest.raises(ConfigError, match="3 rows fit 'fp32, onnx|2 rows fit"):
        tables.against(ROWS, "onnx, fp32")
    with pytest.raises(ConfigError, match="0 rows fit"):
        tables.against(ROWS, "c")


def test_tables_hold_the_numbers_and_the_reasons() -> None:
    grid = harness.pivot([r for r in ROWS if r["batch"] == 1], "ms", "Latency")
    assert grid.columns == ("model", "M parameters", "px", "torch fp32", "onnx fp32")
    assert grid.rows[0] == ("a", "5.0", "224", "100", "50.0")
    assert grid.notes == ("not run, no kernels: onnx bf16", "not run, too old: onnx int8 (b)")
    text = harness.markdown(grid)
    assert "| a | 5.0 | 224 | 100 | 50.0 |" in text and "- not run, too old" in text
    first, *_, last = tables.details(ROWS)
    assert first.title == "a, 5.00 M parameters, 224 px, batch 1, 1 thread" and "batch 1" in last.title
    assert first.rows[0] == ("torch fp32", "100", "100 to 180", "10.0", "20.0", "150")
    assert tables.drawn(grid).row_count == 2


def test_the_plot_is_a_picture() -> None:
    points = [("resnet50", 30.0, 80.9, "CNN"), ("vit", 60.0, 84.5, "ViT")]
    png, svg = render(harness.accuracy_plot(points, "ms", "top-1, %", "quoted"))
    assert png.startswith(b"\x89PNG") and "resnet50" in svg and "quoted" in svg


def test_commands_explain_what_is_wrong(
    result: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(folder / "result.json")
    assert main(["compare", file, "--to", "onnx, fp32"]) == 0
    assert "1.00" in capsys.readouterr().out
    assert main(["compare", file, file]) == 2
    assert main(["compare", str(folder / "no.json")]) == 2
    assert main(["models", "resnet5O"]) == 2
    assert main(["models", "resnet50", "--runtimes", "tflite"]) == 2
    assert main(["models"]) == 2
    assert main(["speed"]) == 2
    assert main([]) == 0


def test_a_benchmark_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to measure"):
        bench([], tmp_path / "x.json", BenchOptions(), silent)


def test_what_measures_memory_of_other_runtimes_imports_no_pytorch() -> None:
    code = "import sys, vitdomains.bench.processes; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_peer_that_is_not_there_is_named_before_anything_is_measured() -> None:
    with pytest.raises(
        SystemExit, match=r"no_such_peer is not installed. Run: pip install 'no_such_peer'\nor leave it out"
    ) as ended:
        harness.require("json", "no_such_peer", otherwise="or leave it out: --no-peers")
    assert ended.value.code
    assert harness.missing("json") == ""
    assert "vitdomains[bench]" in harness.missing("torchgeo") or not harness.missing("torchgeo")
