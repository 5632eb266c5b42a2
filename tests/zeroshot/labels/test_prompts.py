"""Classes and templates: from a file to prompts, and from prompts to one vector a class."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from vitdomains.core.config.yaml_file import read_yaml
from vitdomains.core.errors import ConfigError
from vitdomains.zeroshot.labels.prompts import (
    class_embeddings,
    expand_templates,
    make_prompts,
    matching_class,
    read_classes,
    read_prompts,
    remembering,
    single_prompt,
    template_sets,
)

ROOT = Path(__file__).resolve().parents[3]
LEVELS = {
    "templates": ["photo", "a view of {}."],
    "classes": [
        {"name": "forest", "synonyms": ["woods"], "parent": "natural / vegetation"},
        {"name": "parking lot", "descriptions": ["many cars in rows"]},
        {"name": "cloud", "background": True},
    ],
}


def encode(texts: Sequence[str]) -> np.ndarray:
    """Unit vectors that depend on the text alone."""
    rows = [np.random.default_rng(list(text.encode())).normal(size=8) for text in texts]
    return np.stack([row / np.linalg.norm(row) for row in rows]).astype(np.float32)


def test_names_synonyms_and_descriptions_become_prompts() -> None:
    prompts = make_prompts(LEVELS)
    assert prompts.names == ("forest", "parking lot", "cloud")
    assert prompts.classes[0].prompts == (
        "a photo of a forest.", "a view of forest.", "a photo of a woods.", "a view of woods.",
    )  # fmt: skip
    assert prompts.classes[1].prompts[-1] == "many cars in rows"
    assert prompts.classes[0].parent == "natural/vegetation" and prompts.classes[2].background


def test_a_list_of_names_and_a_choice_of_templates_need_no_file() -> None:
    prompts = read_classes("forest, solar farm", ["clip_eurosat"])
    assert prompts.names == ("forest", "solar farm")
    assert prompts.classes[1].prompts[0] == "a centered satellite photo of solar farm."
    assert len(read_classes("forest").classes[0].prompts) == 18


def test_the_published_templates_have_a_source() -> None:
    sets = template_sets()
    assert len(sets["clip_eurosat"]["templates"]) == 3 and len(sets["clip_resisc45"]["templates"]) == 18
    for entry in sets.values():
        assert entry["source"] and all(t.count("{}") == 1 for t in entry["templates"])
    assert expand_templates(["plain", "of {}"]) == ("{}", "of {}")


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"classes": []}, "no classes"),
        ({"classes": ["a", "a"]}, "twice"),
        ({"classes": [{"name": "a", "synonym": ["b"]}]}, "synonym"),
        ({"classes": [{"synonyms": ["b"]}]}, "is no class"),
        ({"classes": ["a"], "template": ["{}"]}, "template"),
        ({"classes": ["a"], "templates": ["no place"]}, "no place"),
        ({"classes": ["a", {"name": "b", "parent": "a"}]}, "both a class and a parent"),
        ({"classes": [{"name": "a", "descriptions": 3}]}, "descriptions of a"),
    ],
)
def test_a_wrong_class_file_is_explained(raw: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        make_prompts(raw)
    assert error.value.hint


def test_a_class_is_the_normalised_mean_of_its_prompts() -> None:
    prompts = make_prompts(LEVELS)
    vectors = class_embeddings(prompts, encode)
    mean = encode(prompts.classes[0].prompts).mean(axis=0)
    np.testing.assert_allclose(vectors[0], mean / np.linalg.norm(mean), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    one = class_embeddings(single_prompt(prompts), encode)
    np.testing.assert_allclose(one[0], encode(["a photo of a forest."])[0], atol=1e-6)


def test_texts_are_encoded_once(tmp_path: Path) -> None:
    asked: list[str] = []

    def counted(texts: Sequence[str]) -> np.ndarray:
        asked.extend(texts)
        return encode(texts)

    first = remembering(counted, tmp_path / "texts.parquet")(["a", "b", "a"])
    again = remembering(counted, tmp_path / "texts.parquet")(["b", "c"])
    assert asked == ["a", "b", "c"]
    np.testing.assert_array_equal(first[1], again[0])


def test_prompts_survive_the_disk_and_the_id_follows_them(tmp_path: Path) -> None:
    prompts = make_prompts(LEVELS)
    (tmp_path / "prompts.json").write_text(json.dumps(prompts.to_dict()))
    assert read_prompts(tmp_path / "prompts.json") == prompts
    assert prompts.id == make_prompts(LEVELS).id != single_prompt(prompts).id
    with pytest.raises(ConfigError):
        read_prompts(tmp_path / "absent.json")


def test_labels_of_others_are_matched_by_name_and_synonym() -> None:
    prompts = make_prompts(LEVELS)
    assert matching_class(prompts, "Parking_Lot") == "parking lot"
    assert matching_class(prompts, "Woods") == "forest" and matching_class(prompts, "lake") == ""


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "zeroshot").glob("*.yaml")), ids=lambda f: f.stem)
def test_the_files_that_come_along_can_be_read(file: Path) -> None:
    raw = read_yaml(file)
    if "model" in raw:  # options of a job, see test_commands
        file = ROOT / raw["classes"]
    assert len(read_classes(file).names) >= 7


def test_eurosat_is_asked_for_as_it_was_published() -> None:
    prompts = read_classes(ROOT / "configs" / "zeroshot" / "eurosat.yaml")
    assert all(len(c.prompts) == 3 for c in prompts.classes)
    assert matching_class(prompts, "SeaLake") == "lake or sea"
