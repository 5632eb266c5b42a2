"""Alignment: gradients of cached batches, towers under other names, and training that goes on and can be loaded."""

from __future__ import annotations

import json
from copy import deepcopy
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from transformers import AutoModel, BertConfig, BertModel

from tests.zeroshot.tiny import SIZE, bert_tokenizer, dual
from vitdomains.core.errors import ManifestError, TrainingError
from vitdomains.zeroshot import DOMAIN
from vitdomains.zeroshot.__main__ import COMMANDS
from vitdomains.zeroshot.align.data import Pairs, hold_out, read_pairs, spoken
from vitdomains.zeroshot.align.towers import dinov2_from_timm, text_encoder, with_mean_pooling
from vitdomains.zeroshot.align.train import LOSSES, Alignment, Loss, align, backward, load_batch
from vitdomains.zeroshot.models.towers import Parts, load_towers, make_towers
from vitdomains.zeroshot.students.student import read_tiles

COLOURS = {"Red": (0, 0, 200), "GreenField": (0, 200, 0), "Blue": (200, 0, 0)}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir()
        for i in range(6):
            noise = rng.integers(0, 50, (SIZE, SIZE, 3))
            cv2.imwrite(str(root / name / f"{i}.png"), (noise + colour).astype(np.uint8))
    return root


@pytest.fixture(scope="module")
def pairs(pictures: Path) -> Pairs:
    return read_pairs(pictures, ["a photo of a {}.", "{}"])


@pytest.mark.parametrize("name", list(LOSSES))
def test_gradients_do_not_depend_on_the_chunk(name: Loss) -> None:
    torch.manual_seed(0)
    data = torch.randn(2, 12, 5)
    groups = torch.arange(12) % 5

    def gradients(chunk: int | None) -> list[torch.Tensor]:
        torch.manual_seed(1)
        towers = [torch.nn.Linear(5, 4).double(), torch.nn.Linear(5, 4).double()]
        scale, bias = (torch.nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (1.0, -2.0))

        def encode(i: int, rows: torch.Tensor) -> torch.Tensor:
            return F.normalize(towers[i](data[i][rows].double()), dim=-1)

        rows = torch.arange(12)
        if chunk:
            backward((partial(encode, 0), partial(encode, 1)), (rows, rows),
                     lambda a, b: LOSSES[name](a, b, groups, scale, bias), chunk)  # fmt: skip
        else:
            LOSSES[name](encode(0, rows), encode(1, rows), groups, scale, bias).backward()
        found = [p for tower in towers for p in tower.parameters()] + [scale]
        return [p.grad for p in found if p.grad is not None]

    plain = gradients(None)
    assert len(plain) == 5
    for chunk in (1, 5, 12):
        for ours, theirs in zip(gradients(chunk), plain, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-10)


def test_chunks_are_computed_again_with_the_same_dropout() -> None:
    torch.manual_seed(0)
    layer, seen = torch.nn.Linear(4, 4), list[torch.Tensor]()

    def encode(rows: torch.Tensor) -> torch.Tensor:
        seen.append(F.dropout(layer(torch.ones(len(rows), 4)), 0.5))
        return seen[-1]

    backward((encode, encode), (torch.arange(6), torch.arange(6)), lambda a, b: (a * b).sum(), 3)
    for first, second in zip(seen[:4], seen[4:], strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(seen[0], seen[1])


def test_info_nce_is_clips_where_all_captions_differ() -> None:
    images, texts = F.normalize(torch.randn(2, 6, 8), dim=-1)
    ours = LOSSES["infonce"](images, texts, torch.arange(6), torch.tensor(2.0), torch.tensor(0.0))
    logits = torch.tensor(2.0).exp() * images @ texts.T
    theirs = (F.cross_entropy(logits, torch.arange(6)) + F.cross_entropy(logits.T, torch.arange(6))) / 2
    torch.testing.assert_close(ours, theirs)


def test_dinov2_of_timm_has_the_same_features_in_transformers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vit = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=42, depth=2, embed_dim=24, num_heads=3)
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    images = torch.randn(2, 3, 42, 42)
    with torch.no_grad():
        theirs = vit.eval()(images)
        ours = dinov2_from_timm(vit)(images).pooler_output
        mean = vit.forward_features(images).mean(dim=1)
        averaging = dinov2_from_timm(vit, "mean")
        averaging.save_pretrained(tmp_path)
        pooled = AutoModel.from_pretrained(tmp_path)(images).pooler_output
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(pooled, averaging(images).pooler_output, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pooled, F.layer_norm(mean, (24,), eps=0.0), atol=0.02, rtol=0.02)
    assert F.cosine_similarity(pooled, ours).max() < 0.95


def test_mean_pooling_survives_a_normal_transformers_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = bert_tokenizer()
    bert = BertModel(BertConfig(vocab_size=len(tokenizer), hidden_size=24, intermediate_size=48, num_hidden_layers=2,
                                num_attention_heads=4)).eval()  # fmt: skip
    with_mean_pooling(bert).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    tokens = tokenizer(["a photo of a river", "forest"], return_tensors="pt", padding=True)
    with torch.no_grad():
        hidden, mask = bert(**tokens).last_hidden_state, tokens["attention_mask"][..., None]
        mean = (hidden * mask).sum(1) / mask.sum(1)
        ours = AutoModel.from_pretrained(tmp_path).eval()(**tokens).pooler_output
    centred = mean - mean.mean(1, keepdim=True)
    assert F.cosine_similarity(ours, centred).min() > 0.999
    assert text_encoder(str(tmp_path))[0].config.num_hidden_layers == 3


def test_pairs_from_folders_and_tables(pictures: Path, pairs: Pairs, tmp_path: Path) -> None:
    assert spoken("GreenField") == "green field"
    assert pairs.captions[pairs.names.index("GreenField")] == ("a photo of a green field.", "green field")
    seen, held = hold_out(pairs, 1, seed=0)
    assert len(held.names) == 1 and len(held.paths) == 6 and set(held.groups) == {0}
    assert set(seen.names) | set(held.names) == set(COLOURS) and not set(seen.paths) & set(held.paths)
    with pytest.raises(ManifestError, match="cannot be held out"):
        hold_out(pairs, 2, seed=0)
    (tmp_path / "pairs.csv").write_text(f"path,caption\n{pictures}/Red/0.png,red\n{pictures}/Red/1.png,red\n")
    table = read_pairs(tmp_path / "pairs.csv")
    assert table.names == ("red",) and list(table.groups) == [0, 0]


def _accuracy(parts: Parts, pairs: Pairs) -> float:
    towers = make_towers(parts)
    with torch.no_grad():
        images = towers.image(load_batch(pairs.paths, towers.preprocess))
        texts = towers.text.encode([group[0] for group in pairs.captions])
    return float(((images @ texts.T).argmax(1).numpy() == pairs.groups).mean())


@pytest.mark.parametrize("how", [
    Alignment(steps=60, batch_size=18, lr=0.02, text_rate=1.0, chunk=6),
    Alignment(trained="lora", unlock_image=True, steps=60, batch_size=18, chunk=9, lr=0.02),
    Alignment(trained="full", loss="sigmoid", steps=60, batch_size=18, chunk=9, lr=0.01),
    Alignment(trained="full", steps=60, batch_size=18, chunk=9, lr=0.01, precision="bf16"),
], ids=["projection", "lora", "full", "bf16"])  # fmt: skip
def test_training_learns_and_loads_as_a_normal_model(how: Alignment, pairs: Pairs, tmp_path: Path) -> None:
    parts = dual()
    state = parts.model.vision_model.state_dict()
    key = next(k for k in state if k.endswith(("query.weight", "q_proj.weight")))
    before = state[key].clone()
    done = align(parts, pairs, tmp_path / "work", how)
    assert _accuracy(done, pairs) > 0.9
    after = done.model.vision_model.state_dict()[key]
    assert torch.equal(before, after) != how.unlock_image
    done.save(tmp_path / "model")
    assert load_towers(tmp_path / "model").id == make_towers(done).id


def test_a_stopped_training_goes_on_as_if_it_had_not_stopped(pairs: Pairs, tmp_path: Path) -> None:
    parts = dual()  # once: a tokenizer that is trained again may number its words otherwise
    how = Alignment(steps=6, batch_size=9, save_seconds=0.0, trained="lora")

    class Stop(Exception):
        pass

    def stop(phase: str, done: int, total: int, text: str) -> None:
        if phase == "align" and done == 5:
            raise Stop

    with pytest.raises(Stop):
        align(deepcopy(parts), pairs, tmp_path / "stopped", how, on_progress=stop)
    resumed = align(deepcopy(parts), pairs, tmp_path / "stopped", how)
    whole = align(deepcopy(parts), pairs, tmp_path / "whole", how)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    with pytest.raises(TrainingError, match="steps was 6, is 7"):
        align(deepcopy(parts), pairs, tmp_path / "stopped", Alignment(steps=7))


def test_the_command_ends_in_a_model_for_label(pictures: Path, tmp_path: Path) -> None:
    parts = dual()
    for name, saved in {"vision": (parts.model.vision_model, parts.processor),
                        "text": (parts.model.text_model, parts.tokenizer)}.items():  # fmt: skip
        for part in saved:
            part.save_pretrained(tmp_path / name)
    words = ["--image-tower", str(tmp_path / "vision"), "--text-tower", str(tmp_path / "text"),
             "--data", str(pictures), "--out", str(tmp_path / "model"), "--hold_out", "1", "--steps", "40", "--lr", "0.02",
             "--batch_size", "12", "--evaluate", str(pictures), "--evaluate_classes", "red, blue, green field",
             "--features", str(tmp_path / "features")]  # fmt: skip
    assert COMMANDS["align"](DOMAIN, words) == 0
    report = json.loads((tmp_path / "model" / "align.json").read_text())
    assert report["top1"]["held-out classes among all"]["images"] == 6
    assert set(report["held_out"]) | set(report["trained_on"]) == set(COLOURS)
    assert len(list((tmp_path / "features").iterdir())) == 1
    assert COMMANDS["align"](DOMAIN, words) == 0, "the same command goes on, here from its end"
    again = json.loads((tmp_path / "model" / "align.json").read_text())
    assert again["top1"] == report["top1"]
    asked = [str(pictures), "--model", str(tmp_path / "model"), "--classes", "red, blue, green field",
             "--out", str(tmp_path / "labels"), "--threads", "1", "--no_sheets", "--precision", "fp32"]  # fmt: skip
    assert COMMANDS["label"](DOMAIN, asked) == 0
    table = read_tiles(tmp_path / "labels")
    truth = [spoken(Path(path).parent.name) for path in table["path"]]
    found = float((table["label"].to_numpy() == np.array(truth)).mean())
    assert found == pytest.approx(report["top1"][pictures.name]["scores"]["ensemble"])
    with pytest.raises(TrainingError, match="another --out"):
        COMMANDS["align"](DOMAIN, [*words, "--steps", "41"])
