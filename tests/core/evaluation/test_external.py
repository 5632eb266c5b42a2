"""A bundle on data of another place: names brought together, classes that are not annotated, figures beside those at home."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vitdomains.core.bundle import Bundle
from vitdomains.core.data.manifest import labels, make_manifest
from vitdomains.core.errors import ConfigError, ManifestError
from vitdomains.core.evaluation.evaluate import evaluate
from vitdomains.core.evaluation.external import class_names, home_figures, renamed_manifest
from vitdomains.core.evaluation.html import compared
from vitdomains.core.evaluation.report import home_table


def bundle(classes: tuple[str, ...], kind: str = "multilabel", path: Path = Path("nowhere")) -> Bundle:
    return SimpleNamespace(classes=classes, task_kind=kind, path=path)  # type: ignore[return-value]


def test_names_are_matched_without_case_where_that_is_not_ambiguous() -> None:
    names = class_names(bundle(("Pleural_Thickening", "Mass", "mass")), ["pleural thickening", "Mass", "MASS"])
    assert names.renamed == {"pleural thickening": "Pleural_Thickening", "Mass": "Mass"}
    assert any("MASS" in note and "left out" in note for note in names.notes)
    assert class_names(bundle(("Mass", "x")), ["mass", "Mass"]).renamed == {"Mass": "Mass"}


def test_a_coarser_label_is_measured_against_the_classes_that_it_holds() -> None:
    own = bundle(("Dense", "Sparse", "River", "error"), "singlelabel")
    names = class_names(own, ["homes", "stream", "id"], {"homes": "Dense|sparse", "stream": "River"})
    assert names.classes == ("Dense|Sparse", "River", "error")
    scores = names.scores(np.array([[0.3, 0.3, 0.35, 0.05]]), "singlelabel")
    np.testing.assert_allclose(scores, [[0.6, 0.35, 0.05]])
    assert names.thresholds((0.4, 0.2, 0.5, 0.5)) == (0.2, 0.5, 0.5)
    assert any("Coarser here: homes means Dense, Sparse" in note for note in names.notes)
    assert any("id" in note for note in names.notes)
    many = class_names(bundle(("A", "B", "C")), ["ab", "c"], {"ab": "A|B"})
    np.testing.assert_allclose(many.scores(np.array([[0.3, 0.6, 0.1]]), "multilabel"), [[0.6, 0.1]])


def test_finer_labels_count_together_and_unknown_stays_unknown() -> None:
    nan = np.nan
    targets = [[1, 0, 1], [0, 0, nan], [0, nan, 0], [nan, nan, nan]]
    made = make_manifest(list("abcd"), list("abcd"), list("abcd"), ["left lung", "right lung", "id2"], targets)
    names = class_names(bundle(("lung", "heart")), made.classes, {"left lung": "lung", "right lung": "lung"})
    found, rows = renamed_manifest(made, names, "multilabel")
    assert rows.tolist() == [True, True, False, False] and found.classes == ("lung", "heart")
    np.testing.assert_array_equal(labels(found), [[1, nan], [0, nan]])
    assert any("Finer here: left lung, right lung" in note for note in names.notes)


def test_another_granularity_is_pointed_at() -> None:
    names = class_names(bundle(("Nodule", "Mass", "Effusion")), ["Nodule/Mass", "Effusion"])
    assert any("Another granularity? The label Nodule/Mass" in note and "Nodule, Mass" in note for note in names.notes)
    assert names.renamed == {"Effusion": "Effusion"}


@pytest.mark.parametrize(
    ("annotated", "class_map", "asked", "message"),
    [
        (["x", "y"], {}, [], "labels none of the bundle's classes"),
        (["x"], {"z": "A"}, [], "names 'z', which the data does not label"),
        (["xylem"], {"xylem": "Aa"}, [], "has no class 'Aa'"),
        (["A", "B"], {"A": "A|B", "B": "B"}, [], "into two groups"),
        (["A"], {}, ["Effusoin"], "has no class 'Effusoin'"),
    ],
)
def test_maps_that_cannot_be_are_refused(
    annotated: list[str], class_map: dict[str, str], asked: list[str], message: str
) -> None:
    with pytest.raises((ConfigError, ManifestError), match=message) as caught:
        class_names(bundle(("A", "B", "Effusion")), annotated, class_map, asked)
    assert caught.value.hint


def test_classes_are_chosen_and_others_of_a_single_label_task_stay_in_the_contest() -> None:
    single = class_names(bundle(("A", "B", "C"), "singlelabel"), ["A", "B"], {}, ["A"])
    assert single.classes == ("A", "B", "C") and single.renamed == {"A": "A"}
    assert class_names(bundle(("A", "B", "C")), ["A", "B"], {}, ["b"]).classes == ("B",)


def measured(kind: str, seed: int, annotated: tuple[bool, ...]) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, len(annotated), 200)
    y = np.eye(len(annotated))[truth]
    y[:, ~np.array(annotated)] = np.nan
    scores = rng.dirichlet(np.ones(len(annotated)), 200) * 0.5 + 0.5 * np.nan_to_num(y)
    return evaluate(y, scores, np.arange(200), "abc"[: len(annotated)], [0.5] * len(annotated), kind, bootstrap=20)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["multilabel", "singlelabel"])
def test_figures_stand_beside_those_at_home(kind: str, tmp_path: Path) -> None:
    home, here = measured(kind, 0, (True, True, True)), measured(kind, 1, (True, False, True))
    assert here["not_annotated"] == ["b"] and here["averaged_classes"] == ["a", "c"]
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.json").write_text(json.dumps(home | {"baselines": {}}))
    found = home_figures(bundle(("a", "b", "c"), kind, tmp_path), here)
    assert found["both"] == ["a", "c"]
    metric = "f1" if kind == "singlelabel" else "auroc"
    assert found["macro"][metric] == pytest.approx(np.mean([home["classes"][c][metric]["value"] for c in "ac"]))
    headings, rows = compared(here | {"home": found})
    assert headings[0] == "Prevalence" and [name for name, _ in rows] == ["a", "c", "mean of 2 classes"]
    assert rows[0][1][0] == pytest.approx((here["classes"]["a"]["n_positive"] / here["classes"]["a"]["n"],
                                           home["classes"]["a"]["n_positive"] / 200))  # fmt: skip
    assert home_table(here | {"home": found}) is not None and home_table(here) is None
    assert home_figures(replace_path(bundle(("a",)), tmp_path / "none"), here) == {}


def replace_path(made: Bundle, path: Path) -> Bundle:
    made.path = path  # type: ignore[misc]
    return made
