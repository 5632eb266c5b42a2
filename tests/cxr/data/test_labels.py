"""The label space of chest films: names, policies, what a publisher's silence means."""

from __future__ import annotations

import numpy as np
import pytest

from vitdomains.core.errors import ConfigError, ManifestError
from vitdomains.cxr.data import label_maps, labels

NAN = float("nan")


def test_label_space_holds_nih_and_chexpert_once_each() -> None:
    assert len(labels.NIH) == 14
    assert len(labels.CHEXPERT) == 14
    assert len(labels.FINDINGS) == 20
    assert len(set(labels.FINDINGS)) == 20
    assert set(labels.NIH) | set(labels.CHEXPERT) == {*labels.FINDINGS, labels.NO_FINDING}
    assert "Pleural_Thickening" in labels.FINDINGS


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("Pleural Effusion", "Effusion"),
        ("pleural_thickening", "Pleural_Thickening"),
        ("PLEURAL-THICKENING", "Pleural_Thickening"),
        ("Infiltrate", "Infiltration"),
        ("No Finding", "No_Finding"),
        (" Lung  Opacity ", "Lung_Opacity"),
        ("COVID", None),
    ],
)
def test_names_become_canonical(name: str, found: str | None) -> None:
    assert labels.canonical(name) == found


def test_every_alias_leads_to_a_finding() -> None:
    assert set(labels.ALIASES.values()) <= {*labels.FINDINGS, labels.NO_FINDING}


def test_unknown_class_suggests_the_nearest() -> None:
    with pytest.raises(ManifestError) as caught:
        labels.resolve(["Cardiomegalie"])
    assert "'Cardiomegalie'" in caught.value.message
    assert "Did you mean Cardiomegaly?" in caught.value.hint
    with pytest.raises(ManifestError, match=r"Effusion twice"):
        labels.resolve(["Effusion", "Pleural Effusion"])
    assert labels.resolve(["rotated", "hernia"], known=["rotated"]) == ("rotated", "Hernia")


def test_uncertain_policies_per_finding() -> None:
    values = np.array([[-1, -1, -1, -1]], dtype=np.float32)
    classes = ("Edema", "Mass", "Nodule", "Hernia")
    policy = {"edema": "ones", "Mass": "zeros", "Nodule": "ignore"}
    np.testing.assert_array_equal(labels.apply_policies(values, classes, policy, "unknown"), [[1, 0, NAN, NAN]])
    np.testing.assert_array_equal(labels.apply_policies(values, classes, "zeros", "unknown"), [[0, 0, 0, 0]])
    assert values[0, 0] == -1


def test_blank_is_unknown_or_negative_and_uncertain_is_not_blank() -> None:
    values = np.array([[NAN, -1, 1]], dtype=np.float32)
    classes = ("Edema", "Mass", "Nodule")
    np.testing.assert_array_equal(labels.apply_policies(values, classes, "ignore", "unknown"), [[NAN, NAN, 1]])
    np.testing.assert_array_equal(labels.apply_policies(values, classes, "ignore", "negative"), [[0, NAN, 1]])


def test_impossible_policies() -> None:
    values = np.zeros((1, 1), dtype=np.float32)
    with pytest.raises(ConfigError, match=r"'maybe'.*ignore, zeros, ones"):
        labels.apply_policies(values, ("Edema",), "maybe", "unknown")
    with pytest.raises(ManifestError, match=r"Did you mean Edema"):
        labels.apply_policies(values, ("Edema",), {"Edeme": "ones"}, "unknown")


def test_no_finding_makes_blanks_negative_but_not_devices() -> None:
    classes = ("No_Finding", "Edema", "Support_Devices")
    values = np.array([[1, NAN, NAN], [NAN, 1, NAN], [NAN, -1, NAN], [NAN, NAN, 1]], dtype=np.float32)
    expected = [[1, 0, NAN], [0, 1, NAN], [NAN, -1, NAN], [NAN, NAN, 1]]
    np.testing.assert_array_equal(labels.no_finding_closure(values, classes), expected)


def test_lists_assert_leave_open_or_deny() -> None:
    positive = {"Emphysema": frozenset({"emphysema"}), "Mass": frozenset({"mass"})}
    unsure = {"Emphysema": frozenset({"COPD signs"})}
    listed = [["emphysema", "COPD signs"], ["COPD signs", "emphysema"], ["COPD signs", "mass"], []]
    expected = [[1, 0], [1, 0], [NAN, 1], [0, 0]]
    np.testing.assert_array_equal(labels.from_lists(listed, positive, unsure), expected)


def test_vocabularies_speak_of_known_findings_and_never_contradict_themselves() -> None:
    known = {*labels.FINDINGS, labels.NO_FINDING}
    assert set(label_maps.PADCHEST_POSITIVE) == set(labels.FINDINGS)
    assert set(label_maps.PADCHEST_UNSURE) <= set(label_maps.PADCHEST_POSITIVE)
    for finding, words in label_maps.PADCHEST_UNSURE.items():
        assert not words & label_maps.PADCHEST_POSITIVE[finding], finding
    assert {*label_maps.VINDR_POSITIVE, *label_maps.VINDR_JOINT} <= known
    assert "subcutaneous emphysema" not in label_maps.PADCHEST_POSITIVE["Emphysema"]
