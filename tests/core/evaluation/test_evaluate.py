"""The report: what it holds, what it leaves out and says so, and the files that it becomes."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from sklearn.metrics import roc_auc_score

from vitdomains.core.errors import VitDomainsError
from vitdomains.core.evaluation import plots
from vitdomains.core.evaluation.evaluate import evaluate, headline, predictions_table, terminal_table, write_report
from vitdomains.core.metrics.scores import BINARY_METRICS

NASTY = "<b>Mass</b> & $x_1$ [red]"
CLASSES = ["Effusion", NASTY, "Hernia"]


@pytest.fixture(scope="module")
def multilabel():
    """Three classes, the last without a positive; sub-groups large, small and missing; labels partly unknown."""
    rng = np.random.default_rng(0)
    n = 300
    y = (rng.random((n, 3)) < (0.4, 0.2, 0.0)).astype(float)
    s = 1 / (1 + np.exp(-(2 * y + rng.normal(size=y.shape) - 1)))
    y[rng.random(y.shape) < 0.1] = np.nan
    groups = np.array([f"patient-{i // 3}" for i in range(n)])
    columns = pd.DataFrame({"sex": rng.choice(["F", "M"], n), "film": np.arange(n)})
    columns.loc[:9, "sex"] = None
    columns["view"] = "PA"
    columns.loc[:4, "view"] = "AP"
    report = evaluate(y, s, groups, CLASSES, (0.5, 0.6, 0.5), subgroup_columns=columns, bootstrap=120)
    ids = [f"film-{i}" for i in range(n)]
    return report, predictions_table(ids, y, s, CLASSES, groups=groups), y, s


@pytest.fixture(scope="module")
def singlelabel():
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 4, 200)
    s = rng.dirichlet(np.ones(4), 200) * 0.6 + 0.4 * np.eye(4)[truth]
    classes = ["Forest", "Water", "Port", "Farm"]
    y = np.eye(4)[truth]
    report = evaluate(y, s, np.arange(200) // 2, classes, [0.5] * 4, "singlelabel", bootstrap=60)
    return report, predictions_table(range(200), y, s, classes), truth, s


def cells(tree):
    """Every {value, low, high} of a report."""
    if isinstance(tree, dict):
        if set(tree) == {"value", "low", "high"}:
            yield tree
        else:
            for item in tree.values():
                yield from cells(item)


def test_report_holds_every_metric_with_its_interval(multilabel):
    report, _, y, s = multilabel
    assert (report["n"], report["groups"]) == (300, 100)
    for name in CLASSES[:2]:
        entry = report["classes"][name]
        for metric in BINARY_METRICS:
            cell = entry[metric]
            assert cell["low"] <= cell["value"] <= cell["high"]
    known = ~np.isnan(y[:, 0])
    assert report["classes"]["Effusion"]["auroc"]["value"] == pytest.approx(roc_auc_score(y[known, 0], s[known, 0]))
    assert report["classes"][NASTY]["threshold"] == 0.6
    assert headline(report) == ("auroc", report["macro"]["auroc"])


def test_an_undefined_class_is_null_and_left_out_of_averages(multilabel):
    report = multilabel[0]
    hernia = report["classes"]["Hernia"]
    assert hernia["n_positive"] == 0
    assert hernia["auroc"] == {"value": None, "low": None, "high": None}
    assert report["averaged_classes"] == CLASSES[:2]
    for metric in ("auroc", "ppv", "brier"):
        two = [report["classes"][name][metric]["value"] for name in CLASSES[:2]]
        assert report["macro"][metric]["value"] == pytest.approx(np.mean(two))
    weights = [report["classes"][name]["n_positive"] for name in CLASSES[:2]]
    two = [report["classes"][name]["auroc"]["value"] for name in CLASSES[:2]]
    assert report["weighted"]["auroc"]["value"] == pytest.approx(np.average(two, weights=weights))


def test_subgroups_are_measured_or_suppressed_with_a_reason(multilabel):
    report, _, y, s = multilabel
    sex = report["subgroups"]["sex"]
    assert sex["averaged_classes"] == CLASSES[:2]
    assert sex["values"]["(not given)"] == {"n": 10, "suppressed": "only 10 rows, at least 20 are needed"}
    assert sex["values"]["F"]["classes"]["Hernia"]["suppressed"] == "no positive case"
    assert "auroc" not in sex["values"]["F"]["classes"]["Hernia"]
    assert sex["values"]["F"]["n"] + sex["values"]["M"]["n"] == 290
    assert report["subgroups"]["film"]["skipped"].startswith("300 distinct values")
    view = report["subgroups"]["view"]["values"]
    rows = np.arange(300) >= 5
    known = rows & ~np.isnan(y[:, 0])
    expected = roc_auc_score(y[known, 0], s[known, 0])
    assert view["PA"]["classes"]["Effusion"]["auroc"]["value"] == pytest.approx(expected)
    assert "suppressed" in view["AP"]


def test_subgroup_averages_are_over_the_same_classes():
    rng = np.random.default_rng(2)
    y = (rng.random((120, 2)) < 0.5).astype(float)
    y[:60, 1] = 0  # the second class cannot be judged in one of the two sub-groups
    s = rng.random((120, 2))
    column = pd.DataFrame({"site": ["a"] * 60 + ["b"] * 60})
    found = evaluate(y, s, np.arange(120), ["x", "y"], [0.5, 0.5], subgroup_columns=column, bootstrap=0)["subgroups"]
    assert found["site"]["averaged_classes"] == ["x"]
    b = found["site"]["values"]["b"]
    assert b["macro"]["auroc"]["value"] == b["classes"]["x"]["auroc"]["value"]
    assert b["classes"]["y"]["auroc"]["value"] is not None
    assert b["macro"]["auroc"]["low"] is None  # no replicates, no interval


def test_single_label_report(singlelabel):
    report, _, truth, s = singlelabel
    predicted = s.argmax(axis=1)
    assert report["overall"]["accuracy"]["value"] == pytest.approx((predicted == truth).mean())
    assert np.sum(report["confusion"]["counts"]) == 200
    assert np.trace(report["confusion"]["counts"]) == (predicted == truth).sum()
    assert set(report["classes"]["Port"]) == {"n", "n_positive", "precision", "recall", "f1"}
    assert headline(report)[0] == "accuracy"
    assert all(
        cell["low"] <= cell["value"] <= cell["high"] for cell in (report["overall"]["kappa"], report["macro"]["f1"])
    )


def test_same_seed_same_report_whatever_the_order_of_the_groups():
    rng = np.random.default_rng(3)
    y, s, groups = (rng.random((90, 1)) < 0.5).astype(float), rng.random((90, 1)), rng.integers(0, 30, 90)
    first = evaluate(y, s, groups, ["x"], [0.5], bootstrap=50)
    order = rng.permutation(90)
    shuffled = evaluate(y[order], s[order], groups[order], ["x"], [0.5], bootstrap=50)
    for a, b in zip(cells(first), cells(shuffled), strict=True):
        assert a == pytest.approx(b)


def test_what_cannot_be_evaluated_is_refused():
    y, s = np.array([[1.0], [0.0]]), np.array([[0.4], [np.nan]])
    with pytest.raises(VitDomainsError, match="1 labelled images are not finite"):
        evaluate(y, s, [0, 1], ["x"], [0.5])
    with pytest.raises(VitDomainsError, match="no labelled image"):
        evaluate(np.full((2, 1), np.nan), np.zeros((2, 1)), [0, 1], ["x"], [0.5])
    with pytest.raises(ValueError, match="thresholds"):
        evaluate(y, np.zeros((2, 1)), [0, 1], ["x"], [0.5, 0.5])
    y[1] = np.nan  # a score that is not finite does no harm where nothing is known
    assert evaluate(y, s, [0, 1], ["x"], [0.5])["n"] == 2


class Page(HTMLParser):
    """Collects what a page would fetch, and checks that its elements close in order."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.tags, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href", "action", "data")]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read_page(path):
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    assert page.open == []
    return page


def test_page_is_self_contained_and_escaped(multilabel, tmp_path):
    report, table, _, _ = multilabel
    cell = {"value": 0.5, "low": 0.4, "high": 0.6}
    report = report | {"baselines": {"shuffled": {"auroc": cell, "margin": {"auroc": cell}, "note": "<i>note</i>"}}}
    picture = plots.render(plots.forest([("a", cell)], "x"))[0]
    path = write_report(
        report, table, tmp_path / "report", title="A <script>", notice="Research use only, not a medical device.",
        facts={"bundle": "<x>"}, pictures=[("film <1>", picture)],
    )  # fmt: skip
    page = read_page(path)
    text = " ".join(page.text)
    assert not {"script", "b", "i", "link", "iframe"} & set(page.tags)
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in page.addresses)
    assert not re.search(r"url\((?!#)|@import", path.read_text(encoding="utf-8"))
    for expected in (NASTY, "A <script>", "Research use only", "shuffled labels", "<i>note</i>", "film <1>", "n/a"):
        assert expected in text
    assert "only 10 rows, at least 20 are needed" in text
    assert "prefers-color-scheme:dark" in path.read_text(encoding="utf-8")
    assert "currentColor" in path.read_text(encoding="utf-8")


def test_files_are_valid_and_hold_no_patient(multilabel, tmp_path):
    report, table, y, _ = multilabel
    write_report(report, table, tmp_path / "report")
    out = tmp_path / "report"
    assert sorted(f.relative_to(out).as_posix() for f in out.rglob("*") if f.is_file()) == [
        "plots/metrics.png", "plots/precision_recall.png", "plots/reliability.png", "plots/roc.png",
        "predictions.csv", "report.html", "report.json",
    ]  # fmt: skip

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    loaded = json.loads((out / "report.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert loaded["classes"]["Effusion"]["auroc"] == report["classes"]["Effusion"]["auroc"]
    assert loaded["classes"]["Hernia"]["auroc"]["value"] is None
    rows = pd.read_csv(out / "predictions.csv")
    assert rows.columns[0] == "id" and "group" not in rows
    assert f"score:{NASTY}" in rows
    assert rows["label:Effusion"].isna().sum() == np.isnan(y[:, 0]).sum()
    assert not any("patient-" in f.read_text(encoding="utf-8") for f in out.iterdir() if f.is_file())
    write_report(report, table, out, with_groups=True)
    assert pd.read_csv(out / "predictions.csv")["group"].nunique() == 100


def test_an_earlier_report_is_replaced_and_other_files_stay(multilabel, singlelabel, tmp_path):
    out = tmp_path / "report"
    write_report(singlelabel[0], singlelabel[1], out)
    assert (out / "plots" / "confusion.png").exists()
    assert "Confusion matrix" in " ".join(read_page(out / "report.html").text)
    (out / "mine.txt").write_text("keep")
    write_report(multilabel[0], multilabel[1], out)
    assert (out / "mine.txt").read_text() == "keep"
    assert not (out / "plots" / "confusion.png").exists()
    assert (out / "plots" / "roc.png").exists()
    assert [f.name for f in tmp_path.iterdir()] == ["report"]


def test_a_failure_leaves_the_earlier_report(multilabel, tmp_path, monkeypatch):
    report, table, _, _ = multilabel
    path = write_report(report, table, tmp_path / "report", title="first")
    before = path.read_bytes()
    with pytest.raises(KeyError):
        write_report({"kind": "multilabel"}, table, tmp_path / "report")
    assert path.read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["report"]


def test_terminal_table_shows_brackets_intervals_and_baselines(multilabel, singlelabel):
    cell = {"value": 0.51234, "low": 0.4, "high": 0.6}
    for report, words in (
        (multilabel[0] | {"baselines": {"thumbnail": {"auroc": cell}}}, [NASTY, "0.512 (0.400-0.600)", "n/a", "macro"]),
        (singlelabel[0] | {"baselines": {"thumbnail": {"accuracy": cell}}}, ["Forest", "0.512 (0.400-0.600)", "kappa"]),
    ):
        console = Console(width=200, file=io.StringIO())
        console.print(terminal_table(report, "Test [x]"))
        text = console.file.getvalue()
        assert all(
            word in text for word in [*words, "Test [x]", "baseline: thumbnail regression", "bootstrap replicates"]
        )


def test_the_terminal_table_leaves_out_columns_rather_than_figures(multilabel):
    console = Console(width=80, file=io.StringIO())
    console.print(terminal_table(multilabel[0], width=80))
    text = console.file.getvalue()
    assert "…" not in text and "AUROC" in text and "Sens." in text and "ECE" not in text
    assert max(map(len, text.splitlines())) <= 80 and text.splitlines()[0].endswith("┓")


def test_a_report_with_nothing_to_plot_is_still_a_report(tmp_path):
    y, s = np.zeros((3, 1)), np.array([[0.1], [0.2], [0.3]])
    report = evaluate(y, s, [0, 1, 2], ["x"], [0.5], bootstrap=10)
    path = write_report(report, predictions_table("abc", y, s, ["x"]), tmp_path / "report")
    assert "Macro AUROC n/a" in re.sub(r"\s+", " ", "".join(read_page(path).text))


def test_a_thinned_curve_keeps_its_shape():
    rng = np.random.default_rng(4)
    y, s = rng.random(20_000) < 0.3, rng.random(20_000)
    fpr, tpr, _ = plots.curve(y, s + 0.3 * y)
    x, z = plots._thin(fpr, tpr)
    assert len(x) <= plots.MAX_POINTS
    assert (x[0], z[-1]) == (fpr[0], tpr[-1])
    assert np.trapezoid(z, x) == pytest.approx(np.trapezoid(tpr, fpr), abs=0.003)
