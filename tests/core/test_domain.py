"""What a domain may leave to the data: its reader, its preprocessing, its task, and the keys that say so."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.core import toy
from vitdomains.core import pipeline
from vitdomains.core.config.schema import Config, Data, Model
from vitdomains.core.config.validate import validate
from vitdomains.core.data.image_cache import ImageCache
from vitdomains.core.data.preprocess import PreprocessSpec
from vitdomains.core.domain import domain_reader, task_kind
from vitdomains.core.errors import ConfigError

SPEC = PreprocessSpec(8, 8, "squash", 2, (0.0, 0.0), (1.0, 1.0), "float32")


def read_named(path: str | Path, bands: tuple[str, ...]) -> npt.NDArray[np.float32]:
    """An image whose channels are the lengths of the band names."""
    return np.ones((8, 8, len(bands)), np.float32) * [len(name) for name in bands]


def test_a_domain_without_a_reader_reads_as_ever() -> None:
    assert domain_reader(toy.DOMAIN, SPEC) is toy.read_image


def test_a_reader_is_made_from_the_preprocessing() -> None:
    domain = replace(toy.DOMAIN, reader=lambda spec: partial(read_named, bands=spec.bands))
    read = domain_reader(domain, replace(SPEC, bands=("red", "nir!")))
    assert read("any")[0, 0].tolist() == [3, 4]


def test_the_domain_completes_the_preprocessing() -> None:
    domain = replace(toy.DOMAIN, preprocess=lambda config, spec: replace(spec, sensor=config.data.sensor))
    made = pipeline.preprocess_spec(replace(toy.default_config(), data=Data(sensor="x", image_size=32)), domain)
    assert made.sensor == "x"


def test_given_statistics_win_over_those_of_the_weights() -> None:
    config = replace(toy.default_config(), data=Data(image_size=32, mean=[0.3], std=[0.1]))
    made = pipeline.preprocess_spec(config, toy.DOMAIN)
    assert (made.mean, made.std) == ((0.3,), (0.1,))


def test_the_data_say_the_task_before_the_domain() -> None:
    assert task_kind(toy.DOMAIN, Data()) == "multilabel"
    assert task_kind(toy.DOMAIN, Data(task="singlelabel")) == "singlelabel"


def test_bands_belong_to_the_pixels_in_the_cache(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    specs = (SPEC, replace(SPEC, bands=("a", "b")), replace(SPEC, bands=("b", "a")), replace(SPEC, sensor="s"))
    assert len({ImageCache(spec).key(tmp_path / "a") for spec in specs}) == 4


def test_bands_travel_and_older_bundles_have_none() -> None:
    spec = replace(SPEC, bands=("red", "nir"), sensor="s")
    assert PreprocessSpec.from_dict(spec.to_dict()) == spec
    old = {key: value for key, value in SPEC.to_dict().items() if key not in ("bands", "sensor")}
    assert PreprocessSpec.from_dict(old) == SPEC


@pytest.mark.parametrize("bands", [("red",), ("red", "red")])
def test_bands_that_are_not_the_channels_are_refused(bands: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="bands is"):
        replace(SPEC, bands=bands)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"bands": ["a", "b"]}, "names 2 bands, model.channels is 3"),
        ({"bands": ["a", "a", "b"]}, "names a band twice"),
        ({"mean": [0.5]}, "go together"),
        ({"mean": [0.5, 0.5], "std": [1.0, 1.0]}, "has 2 numbers, model.channels is 3"),
        ({"mean": [0.5], "std": [0.0]}, "not above 0"),
        ({"block_size": -1.0}, "block_size = -1 is out of range"),
    ],
)
def test_impossible_scales_are_refused(data: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(Config(data=Data(**data), model=Model(channels=3)))  # type: ignore[arg-type]
