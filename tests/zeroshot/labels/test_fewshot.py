"""Few-shot methods, transduction and the choice among them, on clusters of known shape."""

from __future__ import annotations

import numpy as np
import pytest

from vitdomains.core.errors import ConfigError
from vitdomains.zeroshot.labels.classify import Classifier
from vitdomains.zeroshot.labels.fewshot import (
    METHODS,
    as_layer,
    compare,
    measure,
    nearest_layer,
    probabilities,
    split,
    tip_adapter,
)
from vitdomains.zeroshot.labels.prompts import make_prompts
from vitdomains.zeroshot.labels.transductive import neighbour_graph, transductive_scores

K, D, SCALE = 4, 24, 50.0


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def clusters(n: int, seed: int = 0, off: float = 1.6) -> tuple[Classifier, np.ndarray, np.ndarray]:
    """Texts that point beside their clusters, N tiles, and their classes."""
    rng = np.random.default_rng(1)
    centre = unit(rng.normal(size=(K, D)))
    text = unit(centre + off * unit(rng.normal(size=(K, D))))
    rng = np.random.default_rng(seed)
    y = rng.integers(0, K, n)
    x = unit(centre[y] + 0.16 * rng.normal(size=(n, D)))
    prompts = make_prompts({"classes": ["forest", "river", "town", "field"]}, ["{}"])
    return Classifier(prompts, SCALE * text, np.zeros(K, np.float32), "softmax", (0.0,) * K), x, y


def shots(y: np.ndarray, each: int) -> np.ndarray:
    return np.concatenate([np.flatnonzero(y == k)[:each] for k in range(K)])


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_from_few_tiles_or_is_the_text(name: str) -> None:
    text, x, y = clusters(600)
    few = shots(y, 8)
    method = METHODS[name]
    logits = method.fit(text, x[few], y[few], **method.grid[0])
    reached = (logits(x).argmax(axis=1) == y).mean()
    plain = (text.logits(x).argmax(axis=1) == y).mean()
    assert reached == plain if name == "text" else reached > plain + 0.01
    np.testing.assert_allclose(probabilities(logits, x).sum(axis=1), 1.0)
    if method.linear:
        layer = as_layer(text, logits)
        np.testing.assert_allclose(layer.logits(x), logits(x), atol=2e-3)
        assert layer.temperature == 1.0


def test_without_weight_the_cache_and_without_data_the_anchor_are_the_text() -> None:
    text, x, y = clusters(60)
    plain = text.logits(x)
    np.testing.assert_allclose(tip_adapter(text, x, y, 0.0, 5.5)(x), plain, atol=1e-4)
    np.testing.assert_allclose(METHODS["anchored probe"].fit(text, x, y, 1e9)(x), plain, atol=1e-2)


def test_tip_adapter_is_the_formula() -> None:
    text, x, y = clusters(5)
    v = x[:1]
    cache = sum(np.exp(-3.0 * (1 - float(v[0] @ x[i]))) * np.eye(K)[y[i]] for i in range(5))
    expected = text.logits(v)[0] + 2.0 * SCALE / 100 * cache
    np.testing.assert_allclose(tip_adapter(text, x, y, 2.0, 3.0)(v)[0], expected, rtol=1e-4)


def test_the_choice_is_measured_on_tiles_that_it_did_not_see() -> None:
    text, x, y = clusters(80)
    quick = {name: METHODS[name] for name in ("text", "anchored probe", "Tip-Adapter")}
    found = compare(text, x, y, methods=quick)
    assert set(found.measured) == {*quick, "chosen"} and found.chosen != "text"
    assert found.measured[found.chosen].accuracy > found.measured["text"].accuracy
    assert all(m.low <= m.accuracy <= m.high and m.tiles == 80 for m in found.measured.values())
    # Labels without any relation: no method may look better than chance.
    noise = np.random.default_rng(5).integers(0, K, 80)
    assert compare(text, x, noise, methods=quick).measured["chosen"].low < 0.35
    assert measure(np.ones(10)).low == pytest.approx(0.722, abs=1e-3)  # Wilson


def test_groups_stay_together_and_lone_tiles_are_never_held_out() -> None:
    y = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2])
    groups = np.array([0, 0, 1, 1, 2, 2, 3, 3, 4])
    folds = list(split(y, groups, 5))
    assert folds and all(
        not set(groups[train]) & set(groups[test]) and 8 in train and 8 not in test for train, test in folds
    )
    assert not list(split(np.array([0, 1, 2]), np.arange(3), 5))


def test_few_tiles_are_learned_from_without_a_measurement() -> None:
    text, x, y = clusters(200)
    few = shots(y, 1)[:3]  # one class was never shown
    found = compare(text, x[few], y[few])
    assert not found.measured and found.chosen == "anchored probe" and "logistic regression" not in found.right
    with pytest.raises(ConfigError):
        compare(text, x[:0], y[:0])


def test_the_nearest_layer_gives_the_classes_of_probabilities() -> None:
    text, x, y = clusters(500)
    few = shots(y, 8)
    scores = probabilities(tip_adapter(text, x[few], y[few], 10.0, 5.5), x)
    layer = nearest_layer(text, x, scores)
    assert (layer.logits(x).argmax(axis=1) == scores.argmax(axis=1)).mean() > 0.97


def test_tiles_labelled_together_follow_their_clusters() -> None:
    text, x, y = clusters(400, off=1.3)
    posterior = text.probabilities(x)
    plain = (posterior.argmax(axis=1) == y).mean()
    none, truth = np.full(len(y), -1), np.full(len(y), -1)
    truth[shots(y, 2)] = y[shots(y, 2)]
    alone, taught = transductive_scores(x, posterior, [none, truth])
    assert plain < 0.97 and (alone.argmax(axis=1) == y).mean() > plain
    assert (taught.argmax(axis=1) == y).mean() > plain
    assert (taught[truth >= 0].argmax(axis=1) == truth[truth >= 0]).all()
    for z in (alone, taught):
        np.testing.assert_allclose(z.sum(axis=1), 1.0, atol=1e-9)
    (same,) = transductive_scores(x, posterior, [none])
    np.testing.assert_allclose(same, alone, atol=1e-9)
    (whole,) = transductive_scores(x[:3], posterior[:3], [y[:3]])
    np.testing.assert_array_equal(whole, np.eye(K)[y[:3]])


def test_the_graph_links_the_nearest_and_is_symmetric() -> None:
    _, x, _ = clusters(50)
    graph = neighbour_graph(x, 3).toarray()
    np.testing.assert_allclose(graph, graph.T)
    assert (np.diag(graph) == 0).all() and (graph >= 0).all()
    similarity = x @ x.T - 2 * np.eye(50)
    assert all(graph[i, similarity[i].argmax()] > 0 for i in range(50))
    assert neighbour_graph(x[:1], 3).toarray().shape == (1, 1)
