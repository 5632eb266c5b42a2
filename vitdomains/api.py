"""The public Python interface, ``import vitdomains as vd``: what a notebook needs of the three domains.

The names in ``__all__`` are stable from one minor version to the next; modules below are not. Importing this module loads no
PyTorch: each function imports what it needs. Research use only: nothing here is a medical device.
"""

from __future__ import annotations

import html
import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdomains.core.domain import Domain, domain_reader
from vitdomains.core.errors import ConfigError, VitDomainsError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd
    from torch import nn

    from vitdomains.core.bundle import Bundle
    from vitdomains.core.config.schema import Config
    from vitdomains.core.explain.render import Explained
    from vitdomains.core.geo.read.raster import Window
    from vitdomains.core.inference.predictor import Predictor
    from vitdomains.core.models.vit import VisionTransformer
    from vitdomains.cxr.film.film import Film

__all__ = [
    "Evaluation", "Explanation", "Model", "Prediction", "VitDomainsError", "create_model", "evaluate", "explain", "load",
    "predict", "read_film", "read_window", "train", "vit", "zero_shot",
]  # fmt: skip

DOMAINS = ("cxr", "satellite", "zeroshot")


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image.

    Attributes:
        scores: Calibrated probability of each class; empty where ``error`` is set.
        calls: Classes at or above their threshold; of a single-label model the most probable one.
        thresholds: Probability from which each class is called.
        source: The file, or "array".
        error: Why there are no scores; "" where there are.
        quality: Why the image is not of the kind that the model was made for; "" where nothing was found.
    """

    scores: dict[str, float]
    calls: tuple[str, ...]
    thresholds: dict[str, float] = field(repr=False)
    source: str = ""
    error: str = ""
    quality: str = ""

    def __repr__(self) -> str:
        if self.error:
            return f"Prediction(error={self.error!r})"
        best = sorted(self.scores.items(), key=lambda item: -item[1])[:5]
        shown = ", ".join(f"{name} {score:.3f}{'*' if name in self.calls else ''}" for name, score in best)
        more = f", {len(self.scores) - 5} more" if len(self.scores) > 5 else ""
        return f"Prediction({shown}{more})"

    def _repr_html_(self) -> str:
        if self.error:
            return f"<p><b>{html.escape(self.source)}</b>: {html.escape(self.error)}</p>"
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{score:.3f}</td><td>{self.thresholds[name]:.3f}</td>"
            f"<td>{'called' if name in self.calls else ''}</td></tr>"
            for name, score in sorted(self.scores.items(), key=lambda item: -item[1])
        )
        note = f"<p>{html.escape(self.quality)}</p>" if self.quality else ""
        head = "<tr><th>class</th><th>probability</th><th>threshold</th><th></th></tr>"
        return f"<p><b>{html.escape(self.source)}</b></p>{note}<table>{head}{rows}</table>"


@dataclass(frozen=True)
class Explanation:
    """Heat maps of one image.

    Attributes:
        heatmaps: Class name -> float32 [H, W] in 0..1 on the image as it was read.
        scores: Calibrated probability of each class of the model.
        method: By which the maps were made.
    """

    heatmaps: dict[str, npt.NDArray[np.float32]] = field(repr=False)
    scores: dict[str, float]
    method: str
    _explained: Explained = field(repr=False)
    _source: str = field(repr=False)

    def save(self, path: str | Path) -> Path:
        """Write a picture (.png), a figure for print (.pdf, .svg) or, for a georeferenced file, the maps themselves (.tif).

        Raises:
            ConfigError: Another ending.
            ExplainError: A .tif of an image without a place on the ground.
        """
        from vitdomains.core.config.choices import FIGURES
        from vitdomains.core.explain.render import write_explained

        path = Path(path)
        if path.suffix.lower() not in FIGURES:
            raise ConfigError(f"{path} ends in none of {', '.join(FIGURES)}.", hint="Choose another name.")
        write_explained(self._explained, tuple(self.scores), self.method, self._source, path)
        return path

    def _repr_png_(self) -> bytes:
        from vitdomains.core.explain.render import picture, png

        return png(picture(self._explained, tuple(self.scores), self.method))


@dataclass(frozen=True)
class Evaluation:
    """How a model did on labelled data.

    Attributes:
        report: All that was measured, as in ``report.json`` of a bundle.
        predictions: One row an image: id, labels and probabilities.
        split: Which images: train, val, test or all.
    """

    report: dict[str, Any] = field(repr=False)
    predictions: pd.DataFrame = field(repr=False)
    split: str

    @property
    def metrics(self) -> dict[str, Any]:
        """The averages over classes, each ``{value, low, high}`` with a 95 % interval."""
        return {**self.report.get("overall", {}), **self.report["macro"]}


@dataclass(frozen=True)
class Model:
    """A bundle at work. Call it with one image, or use ``predict`` for many.

    Attributes:
        bundle: The description on disk.
        domain: What the bundle's domain knows of its images.
    """

    bundle: Bundle = field(repr=False)
    domain: Domain = field(repr=False)
    _predictor: Predictor = field(repr=False)

    @property
    def id(self) -> str:
        """Sixteen hex digits that stand for the model as it predicts."""
        return self.bundle.id

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits."""
        return self.bundle.classes

    @property
    def thresholds(self) -> dict[str, float]:
        """Probability from which each class is called."""
        return dict(zip(self.bundle.classes, self.bundle.thresholds, strict=True))

    @property
    def card(self) -> str:
        """The model card, Markdown; "" where the bundle has none."""
        file = self.bundle.path / "MODEL_CARD.md"
        return file.read_text(encoding="utf-8") if file.is_file() else ""

    def __repr__(self) -> str:
        runs = f"{self._predictor.backend.runtime} in {self._predictor.backend.precision}"
        return f"Model({self.bundle.domain}, {self.bundle.model.name}, {len(self.classes)} classes, {runs})"

    def __call__(self, image: str | Path | npt.NDArray[Any]) -> Prediction:
        """Score one image; a file that cannot be read gives a prediction with an ``error``.

        Args:
            image: A file, or an array [H, W] or [H, W, C]: uint8 or uint16 over their whole range, or float in 0..1.

        Raises:
            ConfigError: An array of another type or shape.
        """
        if isinstance(image, (str, Path)):
            (found,) = self._predictor.predict([(str(image), str(image))])
            scores, calls, error, quality = found.scores, found.labels, found.error, found.quality
        else:
            import numpy as np
            import torch

            from vitdomains.core.data.preprocess import prepare

            image = prepare(_unit_range(image), self.bundle.preprocess)
            planes = np.ascontiguousarray(np.atleast_3d(image).transpose(2, 0, 1))
            scores = self._predictor.scores(self._predictor.logits(torch.from_numpy(planes[None])))[0]
            calls, error, quality = self._predictor.labels(scores), "", ""
        named = {} if error else dict(zip(self.classes, map(float, scores), strict=True))
        source = str(image) if isinstance(image, (str, Path)) else "array"
        return Prediction(named, tuple(calls), self.thresholds, source, error, quality)

    def predict(self, images: str | Path | Iterable[str | Path], *, progress: bool = True) -> pd.DataFrame:
        """One row a file, in the order given; folders are searched to the bottom.

        Args:
            images: Files and folders.
            progress: Whether to show how far it is.

        Returns:
            The columns of ``vitdomains DOMAIN predict``: id, path, one probability a class, labels, error. A file that cannot
            be read is a row with an error.

        Raises:
            ManifestError: None of the inputs exists, or no image was found.
        """
        from vitdomains.core.data.folders import folder_manifest
        from vitdomains.core.inference.table import predictions_table
        from vitdomains.core.terminal import shown_progress

        given = [images] if isinstance(images, (str, Path)) else list(images)
        records = folder_manifest(given, self.domain.extensions, self.domain.name).table
        pairs = list(zip(records["id"], records["path"], strict=True))
        with shown_progress() as on_progress:
            found = []
            for prediction in self._predictor.predict(pairs):
                found.append(prediction)
                if progress:
                    on_progress("predict", len(found), len(pairs), "files")
        return predictions_table(found, self.classes, quality=self.domain.read_checked is not None)

    def explain(
        self, image: str | Path | npt.NDArray[Any], classes: str | Sequence[str] = (), *, method: str = "relevance"
    ) -> Explanation:
        """Heat maps: where in the image the score of a class comes from.

        Args:
            image: A file, or an array as for a call.
            classes: A class or several; none: those that the model calls, or else the most probable one.
            method: relevance, gradient_rollout, rollout, gradcam or occlusion.

        Raises:
            ExplainError: A class that the model does not know, or a method that does not fit it.
            ImageError: The file cannot be read.
        """
        from vitdomains.core.explain.render import explain_image

        file = isinstance(image, (str, Path))
        pixels = self._predictor.read(image) if file else _unit_range(image)  # type: ignore[arg-type]
        wanted = (classes,) if isinstance(classes, str) else tuple(classes)
        made = explain_image(self._predictor, pixels, method, wanted)
        scores = dict(zip(self.classes, map(float, made.scores), strict=True))
        return Explanation(
            dict(zip(made.findings, made.heats, strict=True)), scores, method, made, str(image) if file else "array"
        )


def load(
    bundle: str | Path, *, runtime: str = "auto", precision: str = "auto", device: str = "auto", threads: int = 0,
    batch_size: int = 8, domain: Domain | None = None,
) -> Model:  # fmt: skip
    """Load a bundle that ``train`` wrote.

    Args:
        bundle: Its folder.
        runtime: torch, onnx or openvino; auto: the fastest of those that the bundle was exported for.
        precision: fp32, bf16, fp16 or int8; auto: bf16 where the processor computes it in hardware.
        device: cpu or cuda; auto: a GPU where there is one.
        threads: Compute threads; 0: one a physical core.
        batch_size: Most images of a forward pass.
        domain: For a domain that is none of this package's.

    Raises:
        BundleError: It is not there, damaged, of a newer version, or lacks what the runtime needs.

    >>> import vitdomains as vd
    >>> m = vd.load("runs/demo/bundle")
    >>> m.classes
    ('Cardiomegaly', 'Effusion', 'Nodule')
    >>> found = m("film.dcm")
    >>> sorted(found.scores) == sorted(m.classes), found.error
    (True, '')
    >>> m.predict(["film.dcm", "not_there.dcm"], progress=False)["error"].astype(bool).tolist()
    [False, True]
    >>> m.explain("film.dcm", "Effusion").save("overlay.png").name
    'overlay.png'
    """
    from vitdomains.core.bundle import read_bundle
    from vitdomains.core.inference.predictor import Predictor

    description = read_bundle(bundle)
    domain = domain or _domain(description.domain)
    predictor = Predictor(
        description, domain_reader(domain, description.preprocess), device=device, precision=precision, threads=threads,
        batch_size=batch_size, runtime=runtime, read_checked=domain.read_checked,
    )  # fmt: skip
    return Model(description, domain, predictor)


def predict(bundle: str | Path, images: str | Path | Iterable[str | Path], **options: Any) -> pd.DataFrame:
    """``load(bundle, **options).predict(images)``."""
    return load(bundle, **options).predict(images)


def explain(
    bundle: str | Path, image: str | Path, classes: str | Sequence[str] = (), *, method: str = "relevance"
) -> Explanation:
    """``load(bundle, runtime="torch").explain(image, classes)``: heat maps need the model itself."""
    return load(bundle, runtime="torch").explain(image, classes, method=method)


def train(
    domain: str | Domain, config: str | Path | Config | Mapping[str, Any] | None = None, **overrides: Any
) -> Model | None:
    """Train, calibrate, evaluate and write a bundle: the main job.

    Args:
        domain: cxr, satellite or zeroshot; or a domain of your own.
        config: A YAML file, a ``Config`` or a nested dictionary; None: the domain's main job.
        **overrides: Single keys on top, dotted: ``**{"data.root": "/data", "run.dir": "runs/x"}``.

    Returns:
        The model, loaded; None in the processes that train beside the first one (``run.devices``).

    Raises:
        VitDomainsError: With what to do; ``run.resume`` goes on from what was saved.

    >>> import vitdomains as vd
    >>> m = vd.train("cxr", "config.yaml", **{"run.dir": "runs/doctest"})
    >>> vd.evaluate(m, split="val").split
    'val'
    """
    from vitdomains.core import pipeline
    from vitdomains.core.terminal import shown_progress

    where = _domain(domain)
    settings = _configured(where, config, overrides)
    with shown_progress() as on_progress:
        outcome = pipeline.train(where, settings, on_progress)
    return load(outcome.bundle.path, domain=where) if outcome.bundle else None


def evaluate(
    model: Model | str | Path, *, split: str = "", class_map: Mapping[str, str] | None = None, **overrides: Any
) -> Evaluation:
    """Measure a model on labelled data; nothing is written.

    Args:
        model: From ``load`` or ``train``, or a bundle's folder.
        split: train, val, test or all; empty: test of the data that the model was made from, all images of other data.
        class_map: What labels of other data mean, theirs -> ours; ``A|B`` where theirs is coarser.
        **overrides: Keys of ``data`` and ``run``, dotted: ``**{"data.root": "/other/hospital"}``; the default is the data that
            the model was trained on.

    Raises:
        ManifestError: The split is empty, or the data cannot be read.
    """
    from vitdomains.core import pipeline
    from vitdomains.core.config.parse import config_from_dict
    from vitdomains.core.terminal import shown_progress

    model = model if isinstance(model, Model) else load(model)
    base = config_from_dict(model.bundle.provenance["config"], check=False)
    config = _configured(
        model.domain, replace(base, run=replace(base.run, dir=str(model.bundle.path.parent))), overrides
    )
    with shown_progress() as on_progress:
        measured = pipeline.evaluate(model.domain, model.bundle, config, split, class_map, on_progress)
    return Evaluation(measured.report, measured.predictions, measured.rows.split)


def read_film(path: str | Path, **options: Any) -> Film:
    """Read one chest film, DICOM, PNG or JPEG: pixels [H, W] in 0..1 with bone bright, and what the header says of them.

    Args:
        path: The file.
        **options: Of ``vitdomains.cxr.film.film.read_film``: window, crop_border, max_pixels, modalities.

    Raises:
        ImageError: It cannot be read as one monochrome radiograph.

    >>> import vitdomains as vd
    >>> film = vd.read_film("film.dcm")
    >>> film.pixels.ndim, film.pixels.dtype.name
    (2, 'float32')
    """
    from vitdomains.cxr.film.film import read_film

    return read_film(path, **options)


def read_window(path: str | Path, window: tuple[int, int, int, int] | None = None, **options: Any) -> Window:
    """Read a part of a raster: pixels [C, H, W] in the file's numbers, validity [H, W], transform, CRS, band names.

    Args:
        path: A local file or an http(s) address.
        window: Column, row, width, height; None: all of it.
        **options: Of ``vitdomains.core.geo.read.raster.read_window``: bands, resolution (metres), crs, nodata.

    Raises:
        ImageError: It cannot be read, or would be larger than ``max_pixels``.

    >>> import vitdomains as vd
    >>> vd.read_window("scene.tif", (0, 0, 8, 8)).pixels.shape
    (3, 8, 8)
    """
    from vitdomains.core.geo.read.raster import read_window

    return read_window(path, window, **options)


def zero_shot(
    images: Iterable[str | Path | npt.NDArray[Any]], classes: Sequence[str], *,
    model: str | Path = "openai/clip-vit-base-patch32", template: str = "a photo of {}.", batch_size: int = 32,
) -> pd.DataFrame:  # fmt: skip
    """Probabilities of classes that no model was trained on, by a CLIP, SigLIP or dual encoder.

    Args:
        images: Files, PIL images or arrays [H, W, 3].
        classes: Names, one column each.
        model: Folder or hub name of the two towers.
        template: Text around each name; ``{}`` is the name.
        batch_size: Images of a forward pass.

    Returns:
        One row an image: the probability of each class, and ``label``, the most probable one.

    Raises:
        ConfigError: No class, or a class twice.
        ImageError: A file cannot be read.
        WeightsError: The model cannot be had.

    >>> import vitdomains as vd
    >>> vd.zero_shot(["photo.png"], ["forest", "water"], model="towers").columns.tolist()
    ['forest', 'water', 'label']
    """
    if not classes or len(set(classes)) < len(classes):
        raise ConfigError(f"classes = {list(classes)} names no class, or one twice.", hint="Give each name once.")
    import pandas as pd

    from vitdomains.zeroshot.models.towers import clip_zero_shot_classification

    texts = [template.format(name) for name in classes]
    scores = clip_zero_shot_classification(list(images), texts, model, batch_size)
    table = pd.DataFrame(scores, columns=list(classes))
    table["label"] = [classes[k] for k in scores.argmax(1)]
    return table


def vit(variant: str, num_classes: int = 1000, **options: Any) -> VisionTransformer:
    """The Vision Transformer of this package, by size and patch, with random weights.

    Args:
        variant: ``SIZE/PATCH``: Ti, S, B, L or H; 8, 14, 16 or 32 pixels.
        num_classes: Width of the logits.
        **options: Of ``VisionTransformer``: image_size, channels, registers, ...

    Raises:
        ConfigError: An unknown variant or option.

    >>> import vitdomains as vd
    >>> sum(p.numel() for p in vd.vit("Ti/16", num_classes=14).parameters())
    5527118
    """
    from vitdomains.core.models.vit import vit

    return vit(variant, num_classes, **options)


def create_model(
    name: str, num_classes: int = 1000, *, weights: str = "", image_size: int | None = None, **options: Any
) -> nn.Module:
    """A backbone by name with a linear head: [B, C, H, W] -> logits [B, num_classes].

    Args:
        name: ``vit:B/16``, ``timm:NAME`` or ``hf:NAME``.
        num_classes: Width of the logits.
        weights: A file, ``pretrained`` or "" for random weights.
        image_size: Height and width of the input, pixels; None: the backbone's own.
        **options: Further keys of ``model`` in the configuration: channels, drop_path, freeze, ...

    Raises:
        ConfigError: An unknown name or option.
        WeightsError: The weights cannot be found or do not fit.

    >>> import vitdomains as vd
    >>> type(vd.create_model("timm:resnet18", 5)).__name__
    'ResNet'
    """
    from vitdomains.core.config.schema import Model as Spec
    from vitdomains.core.models.build import build_model

    try:
        spec = Spec(name=name, weights=weights, **options)
    except TypeError as error:
        raise ConfigError(
            f"create_model: {error}.", hint="The keys are those of model in the configuration."
        ) from error
    return build_model(spec, num_classes, image_size=image_size)


def _domain(domain: str | Domain) -> Domain:
    if isinstance(domain, Domain):
        return domain
    if domain not in DOMAINS:
        raise ConfigError(f"{domain!r} is no domain.", hint=f"It is one of {', '.join(DOMAINS)}.")
    found: Domain = importlib.import_module(f"vitdomains.{domain}").DOMAIN
    return found


def _configured(
    domain: Domain, config: str | Path | Config | Mapping[str, Any] | None, overrides: Mapping[str, Any]
) -> Config:
    """The configuration as the command ``train`` reads it: file or value first, single keys on top."""
    import json

    from vitdomains.core.config.parse import config_from_dict, parse_config
    from vitdomains.core.config.schema import Config

    argv: list[str] = []
    base = config if isinstance(config, Config) else Config()
    if config is None:
        base = domain.default_config()
    elif isinstance(config, Mapping):
        base = config_from_dict(dict(config), base, check=False)
    elif not isinstance(config, Config):
        argv = [f"--config={config}"]
    for key, value in overrides.items():
        text = str(value) if isinstance(value, (str, Path)) else json.dumps(value)
        argv.append(f"--{key}={text}")
    allowed = {"data.sources.name": domain.sources} if domain.sources else {}
    return parse_config(argv, base, f"vitdomains {domain.name}", allowed=allowed)


def _unit_range(image: Any) -> npt.NDArray[np.float32]:
    """float32 in 0..1 of an array [H, W] or [H, W, C]."""
    import numpy as np

    image = np.asarray(image)
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise ConfigError(f"An array of shape {image.shape} is no image.", hint="Give [H, W] or [H, W, C].")
    if image.dtype in (np.uint8, np.uint16):
        return np.asarray(image / np.float32(np.iinfo(image.dtype).max), dtype=np.float32)
    if not np.issubdtype(image.dtype, np.floating):
        raise ConfigError(
            f"An array of {image.dtype} has no known scale.", hint="Give uint8, uint16, or float in 0..1."
        )
    if not np.isfinite(image).all() or image.min() < 0 or image.max() > 1:
        raise ConfigError("A float array has values outside 0..1.", hint="Divide by its full scale first.")
    return np.asarray(image, dtype=np.float32)
