"""Eight-bit weights and arithmetic: ONNX dynamic for transformers, ONNX static and OpenVINO with calibration images.

Only MatMul, Gemm and Conv are quantised: LayerNorm, Softmax and GELU in eight bits destroy a transformer's accuracy (Lin et
al. 2022, FQ-ViT, arXiv:2111.13824, table 2: ViT-B from 84.5 to 23.6), and cost next to nothing in float32.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vitdomains.core.export.formats import Calibration
from vitdomains.core.export.onnx import save
from vitdomains.core.export.torch_formats import quiet
from vitdomains.core.inference.runtimes import Forward, nncf_module, openvino_module, preserved_signal_stack

QUANTISED = ("MatMul", "Gemm", "Conv")
TRIED_ON = 32
"""Calibration images on which NNCF's options are tried and its layers ranked."""
SMOOTHED, UNSMOOTHED = 0.95, -1.0
"""Strength of SmoothQuant (Xiao et al. 2023, arXiv:2211.10438, equation 4): NNCF's own for transformers, and none."""


def quantize_dynamic(source: Path, path: Path, *, skip: Iterable[str] = ()) -> Path:
    """INT8 weights, activations scaled anew at each run: no calibration, for models of linear layers.

    Convolutions keep their float32 arithmetic, which in this scheme is faster, with weights stored in eight bits. The scale
    is that of the whole batch, so an image's logits depend a little on its neighbours.

    Args:
        source: An ONNX file in float32.
        path: The file to write.
        skip: Names of nodes that stay in float32.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization import quantize_dynamic as quantize

    path.parent.mkdir(parents=True, exist_ok=True)
    with quiet():
        quantize(
            onnx.load(source), str(path), weight_type=QuantType.QInt8, per_channel=True,
            op_types_to_quantize=["MatMul", "Gemm"], nodes_to_exclude=list(skip), extra_options={"MatMulConstBOnly": True},
        )  # fmt: skip
    proto = onnx.load(path)
    _store_convolutions(proto.graph, set(skip))
    return _save_with_notes(proto, source, path)


def calibrate(source: Path, ranges: Path, batches: Iterable[np.ndarray], method: Calibration = "percentile") -> Path:
    """Find the range of every tensor that INT8 will hold, from real inputs, and write it to a JSON file.

    Args:
        source: An ONNX file in float32.
        ranges: The file to write.
        batches: Inputs, [B, ...] each; one is in memory at a time.
        method: ``percentile`` cuts off the outermost 0.001 % of values; ``entropy`` cuts where the histogram of the rest
            is nearest to its eight-bit version (Migacz 2017, TensorRT).
    """
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator, save_tensors_data

    kind = CalibrationMethod.Percentile if method == "percentile" else CalibrationMethod.Entropy
    with tempfile.TemporaryDirectory() as folder, quiet():
        calibrator = create_calibrator(
            source, QUANTISED, str(Path(folder) / "augmented.onnx"), kind, extra_options={"symmetric": False}
        )
        name = calibrator.infer_session.get_inputs()[0].name
        for batch in batches:
            calibrator.collect_data(_OneBatch({name: batch}))
        save_tensors_data(calibrator.compute_data(), ranges)
    return ranges


def quantize_static(
    source: Path, path: Path, ranges: Path, *, method: Calibration = "percentile", skip: Iterable[str] = ()
) -> Path:
    """INT8 weights and activations with fixed ranges, for models with convolutions.

    The results of MatMul and Gemm stay in float32, for a LayerNorm, a Softmax or a GELU follows; those of convolutions become
    eight-bit, without which ONNX Runtime would not compute in eight bits. Products of two activations stay in float32.

    Args:
        source: An ONNX file in float32.
        path: The file to write.
        ranges: What ``calibrate`` wrote for ``source``.
        method: The method of ``ranges``.
        skip: Names of nodes that stay in float32.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize

    path.parent.mkdir(parents=True, exist_ok=True)
    with quiet():
        quantize(
            onnx.load(source), str(path), quant_format=QuantFormat.QDQ, op_types_to_quantize=list(QUANTISED), per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, nodes_to_exclude=list(skip),
            calibrate_method=CalibrationMethod.Percentile if method == "percentile" else CalibrationMethod.Entropy,
            calibration_cache_path=ranges,
            extra_options={"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]},
        )  # fmt: skip
    return _save_with_notes(onnx.load(path), source, path)


@preserved_signal_stack()
def quantize_openvino(
    source: Path,
    path: Path,
    images: Sequence[np.ndarray],
    score: Callable[[Forward], float],
    allowed: float,
    *,
    transformer: bool,
) -> Path:
    """INT8 by NNCF with accuracy control: layers go back to float until ``score`` loses no more than ``allowed``.

    SmoothQuant, which hands the range of activations on to the weights, is taken where it brings the outputs of calibration
    images nearer to those in float: it does where few channels dominate, as in pretrained models, and harms where none does.
    Ranges reach from the least to the largest value that any calibration image shows. NNCF's default takes the mean of each
    image's extremes; that cuts off the few very large activations on which a trained transformer relies (Sun et al. 2024,
    Massive Activations in Large Language Models, arXiv:2402.17762, section 4 on ViTs), and bright spots in few images.

    Args:
        source: An OpenVINO IR in float32 (.xml).
        path: The .xml to write.
        images: Calibration inputs, [1, ...] each; layers are ranked by their effect on the outputs of these.
        score: From a function of inputs to the metric, higher is better; called for the float model, for the quantised one, and
            once more for every layer that goes back to float.
        allowed: Loss of the metric that is tolerated, absolute.
        transformer: Whether the model has attention, which NNCF then treats by its own rules.

    Raises:
        ExportError: The extra is not installed.
    """
    ov, nncf = openvino_module(), nncf_module()
    data = nncf.Dataset(list(images))
    smoothing = _best_smoothing(source, images[:: -(-len(images) // TRIED_ON)]) if transformer else UNSMOOTHED

    def validate(model: Any, items: Iterable[np.ndarray]) -> tuple[float, list[list[np.ndarray]]]:
        request = model.create_infer_request()

        def forward(batch: np.ndarray) -> np.ndarray:
            return np.array(request.infer([batch], share_inputs=True)[0], dtype=np.float32)

        # With outputs beside the metric NNCF ranks layers by outputs; without them it would ask for the metric of the whole
        # split once for every layer and image.
        return score(forward), [[forward(item)] for item in items]

    with quiet():
        quantised = nncf.quantize_with_accuracy_control(
            ov.Core().read_model(str(source)), data, data, validate, max_drop=allowed, drop_type=nncf.DropType.ABSOLUTE,
            subset_size=len(images), model_type=nncf.ModelType.TRANSFORMER if transformer else None,
            advanced_quantization_parameters=_nncf_parameters(smoothing),
            advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
                ranking_subset_size=min(len(images), TRIED_ON)
            ),
        )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    ov.save_model(quantised, str(path), compress_to_fp16=False)
    return path


def _nncf_parameters(smoothing: float) -> Any:
    nncf = nncf_module()
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    return nncf.AdvancedQuantizationParameters(
        activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
        smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(convolution=UNSMOOTHED, matmul=smoothing),
    )


def _best_smoothing(source: Path, images: Sequence[np.ndarray]) -> float:
    """The strength of SmoothQuant whose outputs, of a transformer quantised in full, are nearest to those in float.

    Half of the images calibrate and the other half judge: on those that set the ranges every strength looks good.
    """
    ov, nncf = openvino_module(), nncf_module()
    seen, unseen = list(images[::2]), list(images[1::2] or images)

    def outputs(model: Any) -> np.ndarray:
        request = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
        return np.concatenate([np.array(request.infer([image])[0]) for image in unseen])

    errors = {}
    with quiet():
        truth = outputs(ov.Core().read_model(str(source)))
        for smoothing in (SMOOTHED, UNSMOOTHED):
            quantised = nncf.quantize(
                ov.Core().read_model(str(source)), nncf.Dataset(seen), subset_size=len(seen),
                model_type=nncf.ModelType.TRANSFORMER, advanced_parameters=_nncf_parameters(smoothing),
            )  # fmt: skip
            errors[smoothing] = float(np.square(outputs(quantised) - truth).mean())
    return min(errors, key=lambda smoothing: errors[smoothing])


class _OneBatch:
    """What ONNX Runtime's calibrators read from: ``get_next`` until it gives nothing."""

    def __init__(self, feed: dict[str, np.ndarray]) -> None:
        self._feed: dict[str, np.ndarray] | None = feed

    def get_next(self) -> dict[str, np.ndarray] | None:
        feed, self._feed = self._feed, None
        return feed


def _store_convolutions(graph: onnx.GraphProto, skip: set[str]) -> None:
    """Keep the weights of convolutions in eight bits, one scale an output channel; they become float32 on loading."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    named = {node.input[1] for node in graph.node if node.op_type == "Conv" and node.name not in skip}
    for name in sorted(named & weights.keys()):
        values = numpy_helper.to_array(weights[name])
        scale = np.maximum(np.abs(values).reshape(len(values), -1).max(axis=1), 1e-12).astype(np.float32) / 127
        rounded = np.rint(values / scale.reshape(-1, *[1] * (values.ndim - 1))).astype(np.int8)
        graph.initializer.remove(weights[name])
        graph.initializer.extend(
            [numpy_helper.from_array(rounded, f"{name}_int8"), numpy_helper.from_array(scale, f"{name}_scale")]
        )
        zero = helper.make_tensor(f"{name}_zero", TensorProto.INT8, [len(scale)], [0] * len(scale))
        graph.initializer.append(zero)
        inputs = [f"{name}_int8", f"{name}_scale", f"{name}_zero"]
        graph.node.insert(0, helper.make_node("DequantizeLinear", inputs, [name], axis=0, name=f":{name}_dequantize"))


def _save_with_notes(proto: onnx.ModelProto, source: Path, path: Path) -> Path:
    """Carry the notes of the float file over to the one made from it."""
    notes = {entry.key: entry.value for entry in onnx.load(source, load_external_data=False).metadata_props}
    del proto.metadata_props[:]
    del proto.graph.value_info[:]
    helper.set_model_props(proto, notes)
    return save(proto, path)
