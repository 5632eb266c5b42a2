"""STAC items of a map and of the model behind it, so that catalogues find the one and know the other.

The model's item carries the Machine Learning Model extension (https://github.com/stac-extensions/mlm); the map's item has the
footprint, the projection and the classes, and points to the scenes and to the model's item as what it is derived from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyproj
import pystac
import shapely
from jsonschema import Draft7Validator
from pystac.extensions.projection import ProjectionExtension
from pystac.validation.local_validator import get_local_schema_cache
from referencing import Registry, Resource
from stac_model.base import ProcessingExpression, TaskEnum
from stac_model.input import InputStructure, ModelInput, ValueScalingZScore
from stac_model.output import MLMClassification, ModelOutput, ModelResult
from stac_model.schema import MLModelExtension, MLModelProperties

from vitdomains.core.bundle import WEIGHTS, Bundle
from vitdomains.core.errors import ManifestError
from vitdomains.core.files import write_text
from vitdomains.core.geo.map.outline import outline
from vitdomains.core.geo.map.outputs import Labels, Place, class_colours

_SCHEMA = "https://stac-extensions.github.io/{}/schema.json"
CLASSIFICATION, FILE, PROCESSING = (
    _SCHEMA.format(name) for name in ("classification/v2.0.0", "file/v2.1.0", "processing/v1.2.0")
)
_ITEM = f"https://schemas.stacspec.org/v{pystac.get_stac_version()}/item-spec/json-schema/item.json"


@dataclass(frozen=True)
class Product:
    """A file that a map consists of: its address relative to the item, media type and title."""

    href: str
    media_type: str
    title: str


def model_item(bundle: Bundle, href: str) -> pystac.Item:
    """The item of a model, valid anywhere and at any time.

    Args:
        bundle: On disk.
        href: Address of the bundle's folder, relative to the item.
    """
    created = bundle.provenance.get("created") or datetime.now(UTC).isoformat(timespec="seconds")
    item = pystac.Item(
        id=f"model-{bundle.id}",
        geometry=None,
        bbox=None,
        datetime=datetime.fromisoformat(created),
        properties={
            "description": f"{bundle.model.name} on {bundle.data_card or bundle.domain}, {len(bundle.classes)} classes"
        },
        stac_extensions=[FILE],
    )
    checksum = bundle.files.get(WEIGHTS)
    weights = pystac.Asset(
        f"{href}/{WEIGHTS}",
        title="Weights",
        media_type="application/vnd.safetensors",
        roles=["mlm:model", "mlm:weights", "data"],
        extra_fields={"mlm:artifact_type": "safetensors", "bands": [{"name": name} for name in _bands(bundle)]}
        | ({"file:checksum": f"1220{checksum}"} if checksum else {}),  # multihash: sha2-256, 32 bytes
    )
    item.add_asset("model", weights)
    item.add_asset("bundle", pystac.Asset(f"{href}/bundle.json", media_type="application/json", roles=["metadata"]))
    MLModelExtension.ext(item, add_if_missing=True).apply(_model_properties(bundle))
    if not bundle.model.weights:
        item.properties["mlm:pretrained_source"] = None  # the schema wants it said that there is none
    return item


def _bands(bundle: Bundle) -> list[str]:
    spec = bundle.preprocess
    return list(spec.bands) or [f"channel-{i + 1}" for i in range(spec.channels)]


def _model_properties(bundle: Bundle) -> MLModelProperties:
    """What goes into the model and what comes out, in the words of the MLM extension."""
    spec, made = bundle.preprocess, bundle.provenance
    means, stds = ((value * spec.channels)[: spec.channels] for value in (spec.mean, spec.std))
    task = TaskEnum.SCENE_CLASSIFICATION if bundle.task_kind == "singlelabel" else TaskEnum.CLASSIFICATION
    activation = "softmax" if bundle.task_kind == "singlelabel" else "sigmoid"
    scaled = [ValueScalingZScore(mean=mean, stddev=std) for mean, std in zip(means, stds, strict=True)]
    taken = ModelInput(
        name="tile",
        bands=_bands(bundle),
        input=InputStructure(
            shape=[-1, spec.channels, spec.height, spec.width],
            dim_order=["batch", "bands", "height", "width"],
            data_type="float32",
        ),
        value_scaling=list(scaled),
        resize_type="interpolation-area",
        pre_processing_function=ProcessingExpression(
            format="python", expression="vitdomains.core.data.preprocess:prepare"
        ),
    )
    classes = [MLMClassification(value=i, name=slug(name), description=name) for i, name in enumerate(bundle.classes)]
    given = ModelOutput(
        name="classes",
        tasks={task},
        result=ModelResult(shape=[-1, len(bundle.classes)], dim_order=["batch", "class"], data_type="float32"),
        classes=classes,
        post_processing_function=ProcessingExpression(
            format="text", expression=f"{activation}(logits / temperature), temperature = {list(bundle.temperature)}"
        ),
    )
    return MLModelProperties(
        name=f"{bundle.domain}-{bundle.id}",
        architecture=bundle.model.name,
        tasks={task},
        framework="PyTorch",
        framework_version=made.get("packages", {}).get("torch"),
        total_parameters=made.get("parameters", {}).get("total"),
        pretrained=bool(bundle.model.weights),
        pretrained_source=bundle.model.weights or None,
        input=[taken],
        output=[given],
    )


def map_item(
    name: str,
    place: Place,
    labels: Labels,
    products: Mapping[str, Product],
    model: pystac.Item,
    *,
    when: datetime | None = None,
    sources: Sequence[str] = (),
) -> pystac.Item:
    """The item of a map.

    Args:
        name: Id of the item.
        place: Of the map; without a CRS the item has no geometry.
        labels: Its legend.
        products: Files by role: ``labels``, ``probabilities``, ``tiles``.
        model: Item of the model, beside this one.
        when: Of the scene; None: not known, then the time of making stands there.
        sources: Addresses of the scenes' own items.
    """
    made = datetime.now(UTC).replace(microsecond=0)
    footprint, box = (
        (None, None) if place.crs is None else outline(place.transform, place.crs, place.grid.width, place.grid.height)
    )
    item = pystac.Item(
        id=name,
        geometry=None if footprint is None else shapely.geometry.mapping(footprint),
        bbox=None if box is None else list(box),
        datetime=when or made,
        properties={"created": made.isoformat().replace("+00:00", "Z"), "processing:level": "L4"},
        stac_extensions=[CLASSIFICATION, PROCESSING],
    )
    if when is None:
        item.properties["description"] = "The time of the scene is not known; datetime is that of the map."
    for key, product in products.items():
        item.add_asset(
            key, pystac.Asset(product.href, title=product.title, media_type=product.media_type, roles=["data"])
        )
    if labels.kind == "singlelabel" and "labels" in item.assets:
        item.assets["labels"].extra_fields["classification:classes"] = [
            {
                "value": value,
                "name": slug(labels.names[value]),
                "title": labels.names[value],
                "color_hint": bytes(colour).hex().upper(),
            }
            for value, colour in class_colours(labels).items()
        ]
    if place.crs is not None:
        code = place.crs.to_epsg()
        projection = ProjectionExtension.ext(item, add_if_missing=True)
        projection.apply(
            code=f"EPSG:{code}" if code else None,
            projjson=None if code else pyproj.CRS.from_wkt(place.crs.to_wkt()).to_json_dict(),
            shape=list(place.grid.shape),
            transform=list(place.cells)[:6],
        )
    model_link = pystac.Link(pystac.RelType.DERIVED_FROM, f"{model.id}.json", pystac.MediaType.GEOJSON)
    model_link.extra_fields = {"mlm:name": model.properties["mlm:name"], "processing:level": "L4"}
    item.add_link(model_link)
    for source in sources:
        item.add_link(pystac.Link(pystac.RelType.DERIVED_FROM, source, pystac.MediaType.GEOJSON))
    return item


def write_item(item: pystac.Item, out: Path) -> None:
    """Write an item, after ``check_item``; links stay as they are given."""
    found = item.to_dict(include_self_link=False, transform_hrefs=False)
    check_item(found)
    write_text(out, json.dumps(found, indent=1))


def check_item(item: Mapping[str, Any]) -> None:
    """Validate an item offline: against STAC's own schemas, and its MLM fields by stac-model.

    The JSON schemas of extensions are on the network only; ``pystac.Item.validate`` fetches them.

    Raises:
        ManifestError: What does not hold, and where.
    """
    schemas = get_local_schema_cache()
    registry: Registry[Any] = Registry().with_resources(
        [(uri, Resource.from_contents(s)) for uri, s in schemas.items()]
    )
    wrong = [
        f"{'/'.join(map(str, error.absolute_path))}: {error.message}"
        for error in Draft7Validator(schemas[_ITEM], registry=registry).iter_errors(json.loads(json.dumps(item)))
    ]
    properties = item["properties"]
    if any("/mlm/" in uri for uri in item["stac_extensions"]):
        try:
            MLModelProperties.model_validate(properties)
        except ValueError as error:
            wrong += str(error).splitlines()
        if not any("mlm:model" in asset.get("roles", ()) for asset in item["assets"].values()):
            wrong.append("assets: none has the role mlm:model")
    if wrong:
        raise ManifestError(f"The STAC item {item.get('id')} is not valid: {'; '.join(wrong)[:600]}.")


def slug(name: str) -> str:
    """A class name as the classification extension wants it: letters, digits, ``-`` and ``_``."""
    return re.sub(r"[^0-9A-Za-z_-]+", "-", name).strip("-") or "class"
