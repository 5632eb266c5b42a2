"""Files, overrides, help and errors of the configuration."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitdomains.core.config.parse import (
    SECTIONS,
    config_from_dict,
    config_to_dict,
    dump_config,
    known_keys,
    parse_config,
    take_overrides,
    validate,
)
from vitdomains.core.config.schema import Config, Data, Model, Recipe, Run, Source
from vitdomains.core.config.validate import RANGES
from vitdomains.core.config.yaml_file import MAX_BYTES, parse_yaml, read_yaml
from vitdomains.core.errors import ConfigError

DEFAULT = Config(data=Data(sources=[Source(name="nih")]))


def parse(*words: str) -> Config:
    return parse_config(words, DEFAULT, "prog train")


def refusal(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(*words)
    return str(caught.value)


def written(folder: Path, text: str) -> str:
    file = folder / "config.yaml"
    file.write_text(text, encoding="utf-8")
    return str(file)


# --------------------------------------------------------------------------------------------------------- what is taken


def test_no_words_give_the_default() -> None:
    assert parse() == DEFAULT


def test_overrides_have_the_type_of_their_key() -> None:
    config = parse(
        "--recipe.lr", "3e-4", "--recipe.epochs=7", "--model.freeze", "6", "--run.resume", "--data.root", "-odd/root",
        "--data.classes", "Mass, Nodule", "--recipe.betas", "[0.9, 0.95]", "--model.options", "{stem: conv}",
        "--recipe.progressive_sizes", "[[0.6, 224], [1, 384]]", "--data.cache", "none", "--recipe.weight_decay", "1",
    )  # fmt: skip
    assert (config.recipe.lr, config.recipe.epochs, config.model.freeze) == (3e-4, 7, "6")
    assert config.run.resume is True
    assert config.data.root == "-odd/root"
    assert config.data.cache == "none"
    assert config.data.classes == ["Mass", "Nodule"]
    assert config.recipe.betas == (0.9, 0.95)
    assert config.model.options == {"stem": "conv"}
    assert config.recipe.progressive_sizes == [(0.6, 224), (1.0, 384)]
    assert isinstance(config.recipe.progressive_sizes[0], tuple)
    assert isinstance(config.recipe.weight_decay, float)
    assert config.data.sources == [Source(name="nih")]


@pytest.mark.parametrize("words_first", [True, False])
def test_words_win_over_the_file(tmp_path: Path, words_first: bool) -> None:
    file = written(tmp_path, "recipe: {lr: 1e-5, epochs: 9}\nmodel:\n  freeze: 0.5\ndata:\n")
    words = ["--recipe.epochs", "3"]
    config = parse(*words, "--config", file) if words_first else parse("--config", file, *words)
    assert (config.recipe.lr, config.recipe.epochs, config.model.freeze) == (1e-5, 3, "0.5")
    assert config.data == DEFAULT.data


def test_sources_from_file_and_command_line_are_the_same(tmp_path: Path) -> None:
    wanted = [
        Source(name="chexpert", root="12", uncertain={"Edema": "ones"}, keep={"view": ["PA", "AP"]}, limit=5),
        Source(columns={"id": "image"}),
    ]
    file = written(
        tmp_path,
        "data:\n  sources:\n"
        "  - {name: chexpert, root: 12, uncertain: {Edema: ones}, keep: {view: [PA, AP]}, limit: 5}\n"
        "  - columns: {id: image}\n",
    )
    assert parse("--config", file).data.sources == wanted
    text = (
        '[{"name": "chexpert", "root": 12, "uncertain": {"Edema": "ones"}, "keep": {"view": ["PA", "AP"]}, "limit": 5},'
        ' {"columns": {"id": "image"}}]'
    )
    assert parse("--data.sources", text).data.sources == wanted
    assert parse("--data.sources+", "{name: mimic}").data.sources == [Source(name="nih"), Source(name="mimic")]


def test_dump_reads_back_to_an_equal_configuration(tmp_path: Path) -> None:
    config = parse("--recipe.progressive_sizes", "[[0.5, 128], [1, 384]]", "--recipe.min_lr", "1e-9", "--resume")
    config = replace(config, model=replace(config.model, freeze="6", weights="ein Gewicht: ü#", options={"a": [1, {}]}))
    assert config_from_dict(read_yaml(written(tmp_path, dump_config(config)))) == config
    assert config_from_dict(config_to_dict(config)) == config


@settings(max_examples=30, deadline=None)
@given(
    text=st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12),
    lr=st.floats(1e-12, 10),
    names=st.lists(st.text("ab:#-,[]{} 0", min_size=1).filter(str.strip), max_size=3, unique=True),
)
def test_any_text_and_number_survive_yaml(text: str, lr: float, names: list[str]) -> None:
    config = Config(data=Data(root=text, classes=names), recipe=Recipe(lr=lr, min_lr=0, augment="none"))
    assert config_from_dict(parse_yaml(dump_config(config), "x")) == config


def test_print_config_writes_what_config_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--recipe.lr", "2e-5", "--print_config")
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert parse("--config", written(tmp_path, printed)) == parse("--recipe.lr", "2e-5")


def test_help_explains_every_key_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for key in known_keys():
        assert f"--{key}" in shown
    for section in SECTIONS.values():
        for field in fields(section):
            assert field.name in shown
    assert "Peak learning rate of AdamW. (type: float, default: 0.0001)" in shown
    assert "Time between two saved states, seconds. (type: float, default: 60.0)" in shown
    assert "Uncertain labels (-1)" in shown  # keys of a source as well
    assert "less than 90 % of the parameters" in shown


def test_a_command_may_have_words_of_its_own() -> None:
    options, rest = take_overrides(
        ["runs/x/bundle", "--data.root", "/films", "--run.resume", "films/", "--out", "p.csv", "--recipe.lr=1", "-q"]
    )
    assert rest == ["runs/x/bundle", "films/", "--out", "p.csv", "-q"]
    assert options == ["--data.root=/films", "--run.resume=true", "--recipe.lr=1"]


def test_a_command_may_take_some_sections_only() -> None:
    config = parse_config(["--data.root", "x"], DEFAULT, "prog evaluate", sections=("data", "run"))
    assert config == replace(DEFAULT, data=replace(DEFAULT.data, root="x"))
    with pytest.raises(ConfigError, match=r"--recipe\.lr is no key"):
        parse_config(["--recipe.lr", "1"], DEFAULT, "prog evaluate", sections=("data", "run"))


# ------------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--recipe.lrr", "3"], ["recipe.lrr", "Did you mean recipe.lr"]),
        (["--lr", "3"], ["--lr", "recipe.lr"]),
        (["stray"], ["stray"]),
        (["--data", "x.yaml"], ["--data"]),
        (["--recipe.lr", "abc"], ["recipe.lr", "abc", "a number above 0"]),
        (["--recipe.lr"], ["recipe.lr", "without a value"]),
        (["--recipe.lr", "null"], ["recipe.lr", "None", "a number"]),
        (["--recipe.epochs", "3.5"], ["recipe.epochs", "3.5", "a whole number of at least 1"]),
        (["--recipe.epochs", "true"], ["recipe.epochs", "True", "whole number"]),
        (["--run.resume=maybe"], ["run.resume", "maybe", "true or false"]),
        (["--data.cache", "ram"], ["data.cache", "ram", "memory, disk, none"]),
        (["--recipe.betas", "[0.9]"], ["recipe.betas", "[0.9]", "two numbers"]),
        (["--model.options", "conv"], ["model.options", "conv", "a mapping"]),
        (["--data.sources", "nih"], ["data.sources", "nih", "a list of mappings"]),
        (["--data.sources", "[nih]"], ["data.sources[0]", "{name: nih}"]),
        (["--data.sources", "[{name: nih}, {rooot: x}]"], ["data.sources[1].rooot", "data.sources[1].root"]),
        (["--data.sources", "[{name: nih, limit: x}]"], ["data.sources.limit", "x", "a whole number"]),
        (["--data.sources", "[{class_path: os.system}]"], ["class_path", "no key"]),
        (["--data.sources", "[" * 3000], ["--data.sources"]),
    ],
)
def test_a_wrong_word_is_named_with_what_is_allowed(words: list[str], parts: list[str]) -> None:
    message = refusal(*words)
    assert [part for part in parts if part not in message] == [], message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("recipee: {lr: 1}", ["recipee", "recipe"]),
        ("recipe: {lrr: 1}", ["recipe.lrr", "recipe.lr"]),
        ("recipe: 3", ["recipe", "3", "section"]),
        ("recipe: {lr: [1]}", ["recipe.lr", "[1]", "a number"]),
        ("recipe: {lr: 1, lr: 2}", ["'lr' stands twice", "line 1"]),
        ("recipe: {lr: .nan}", ["recipe.lr = nan"]),
        ("data: {sources: [{keep: {view: PA}}]}", ["data.sources.keep", "PA", "{view: [PA, AP]}"]),
        ("- recipe", ["list"]),
        ("a: &a [*a]", ["alias *a"]),
        ("data: &d {root: x}\nmodel: *d", ["alias *d"]),
        ("recipe: !!python/object/apply:os.system [true]", ["python/object/apply"]),
        ("recipe: {lr: 1", ["line"]),
        ("[" * 100_000, ["config.yaml"]),
        ("{? [a] : 1}", ["config.yaml"]),
        ("1: 2", ["1 is no key"]),
    ],
)
def test_a_wrong_file_is_refused_with_its_reason(tmp_path: Path, text: str, parts: list[str]) -> None:
    message = refusal("--config", written(tmp_path, text))
    assert [part for part in parts if part not in message] == [], message


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    assert "does not exist" in refusal("--config", str(tmp_path / "none.yaml"))
    assert "is a folder" in refusal("--config", str(tmp_path))
    binary = tmp_path / "film.dcm"
    binary.write_bytes(b"\x80\x81\x82DICM")
    assert "UTF-8" in refusal("--config", str(binary))
    large = tmp_path / "large.yaml"
    large.write_text("#" * (MAX_BYTES + 1))
    assert "larger than" in refusal("--config", str(large))
    assert parse("--config", written(tmp_path, "")) == DEFAULT


def test_no_class_is_imported_that_a_configuration_names() -> None:
    config = parse("--model.options", "{class_path: no_such_module.Thing, init_args: {a: 1}}")
    assert config.model.options == {"class_path": "no_such_module.Thing", "init_args": {"a": 1}}


# ------------------------------------------------------------------------------------------------- ranges, combinations


def test_every_number_has_a_range() -> None:
    hints = {**known_keys(), **{f"data.sources.{name}": hint for name, hint in get_type_hints(Source).items()}}
    del hints["data.sources"]
    numbers = {key for key, hint in hints.items() if hint in (int, float)}
    numbers |= {key for key, hint in hints.items() if get_origin(hint) is tuple and float in get_args(hint)}
    assert set(RANGES) == numbers


@pytest.mark.parametrize("key", sorted(set(RANGES) - {"data.sources.limit", "recipe.betas"}))
def test_a_number_below_its_range_is_named(key: str) -> None:
    section, name = key.split(".")
    low = RANGES[key].low - 1
    part = replace(getattr(DEFAULT, section), **{name: low})
    with pytest.raises(ConfigError) as caught:
        validate(replace(DEFAULT, **{section: part}))
    assert f"{key} = {low:g}" in str(caught.value)
    assert str(RANGES[key]) in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_no_number_is_infinite(value: float) -> None:
    for key, limits in RANGES.items():
        assert not limits.holds(value), key


@pytest.mark.parametrize(
    ("config", "part"),
    [
        (Config(data=Data(val_fraction=0.5, test_fraction=0.5)), "data.val_fraction + data.test_fraction = 1"),
        (Config(data=Data(classes=["A", "B", "A"])), "'A' twice"),
        (Config(data=Data(sources=[Source(), Source(uncertain={"Mass": "one"})])), "data.sources[1].uncertain = 'one'"),
        (Config(data=Data(sources=[Source(limit=-1)])), "data.sources[0].limit = -1"),
        (Config(data=Data(sources=[Source(separator="")])), "data.sources[0].separator"),
        (Config(data=Data(sources=[Source(keep={"view": []})])), "data.sources[0].keep.view"),
        (Config(data=Data(image_size=390)), "Give 384 or 400"),
        (Config(model=Model(image_size=100)), "model.image_size = 100"),
        (Config(model=Model(name="resnet50")), "model.name = 'resnet50'"),
        (Config(model=Model(name="vit:Ti")), "vit:SIZE/PATCH"),
        (Config(model=Model(freeze="half")), "model.freeze = 'half'"),
        (Config(model=Model(freeze="1.5")), "model.freeze = '1.5'"),
        (Config(model=Model(freeze="-1")), "model.freeze = '-1'"),
        (Config(recipe=Recipe(betas=(0.9, 1.0))), "recipe.betas[1] = 1"),
        (Config(recipe=Recipe(lr=1e-7)), "recipe.min_lr = 1e-06 is above"),
        (Config(recipe=Recipe(epochs=1, warmup_epochs=2)), "recipe.warmup_epochs = 2"),
        (Config(recipe=Recipe(batch_size=2, repeated_augmentation=3)), "recipe.repeated_augmentation = 3"),
        (Config(recipe=Recipe(augment="imagnet")), "Did you mean imagenet"),
        (Config(recipe=Recipe(progressive_sizes=[(0.6, 384), (1.0, 224)])), "never shrink"),
        (Config(recipe=Recipe(progressive_sizes=[(0.6, 224), (0.6, 384)])), "shares [0.6, 0.6]"),
        (Config(recipe=Recipe(progressive_sizes=[(0.6, 224)])), "ends at 0.6"),
        (Config(recipe=Recipe(progressive_sizes=[(1.0, 448)])), "the size 448 px; the input is 384 px"),
        (Config(recipe=Recipe(progressive_sizes=[(0.5, 200), (1.0, 384)])), "recipe.progressive_sizes[0][1] = 200"),
        (Config(recipe=Recipe(frozen_cache_views=2)), "no block is frozen"),
        (Config(recipe=Recipe(teacher_weights="x")), "without a teacher"),
        (Config(recipe=Recipe(precision="fp16"), run=Run(accelerator="cpu")), "fp16"),
        (Config(run=Run(accelerator="gpu")), "run.accelerator = 'gpu'"),
        (Config(run=Run(dir=" ")), "run.dir"),
        (Config(run=Run(resume=True, overwrite=True)), "run.resume and run.overwrite"),
    ],
)
def test_impossible_combinations_are_named(config: Config, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(config)
    assert part in str(caught.value)


@pytest.mark.parametrize("freeze", ["none", "backbone", "0", "6", "0.5", ".5", "1.0", "stage:2"])
def test_ways_to_freeze(freeze: str) -> None:
    config = Config(model=Model(freeze=freeze))
    validate(config)
    assert config_from_dict(config_to_dict(config)) == config


def test_all_problems_are_told_at_once() -> None:
    message = refusal("--recipe.lr", "0", "--run.devices", "0", "--data.val_fraction", "2")
    assert message.startswith("3 values")
    assert all(key in message for key in ("recipe.lr", "run.devices", "data.val_fraction"))


def test_the_caller_may_say_what_is_allowed() -> None:
    allowed = {"data.sources.name": ("nih", "csv"), "recipe.monitor": ("", "auroc")}
    validate(DEFAULT, allowed=allowed)
    with pytest.raises(ConfigError, match=r"data\.sources\[0\]\.name = 'nhi'.*Did you mean nih"):
        validate(Config(data=Data(sources=[Source(name="nhi")])), allowed=allowed)


def test_the_defaults_are_valid() -> None:
    validate(Config())
    assert config_from_dict(config_to_dict(Config())) == Config()
