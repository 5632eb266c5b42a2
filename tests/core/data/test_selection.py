"""What is labelled next: the uncertain first, no two alike, nothing that is known already."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from vitdomains.core.data.selection import k_centre, queue
from vitdomains.core.errors import ConfigError, VitDomainsError
from vitdomains.core.geo.map.tiles_table import tile_table


def table(scores: np.ndarray, errors: tuple[str, ...] = ()) -> pd.DataFrame:
    n = len(scores)
    plan = pd.DataFrame({"tile_id": [f"t{i}" for i in range(n)], "scene": "s.tif", "path": "s.tif"})
    plan = plan.assign(col=np.arange(n) * 8, row=0, width=8, height=8)
    return tile_table(plan, scores, ("a", "b", "c"), model_id="m", errors=errors)


def test_k_centre_covers_clusters_before_it_repeats_one() -> None:
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    x = np.concatenate([centre + rng.normal(0, 0.1, (20, 2)) for centre in centres])
    rows, reach = k_centre(x, 6)
    assert {int(r) // 20 for r in rows[:4]} == {0, 1, 2, 3}
    assert len(set(rows.tolist())) == 6
    assert np.isinf(reach[0]) and (np.diff(reach[1:]) <= 1e-9).all()
    assert reach[3] > 5 and reach[4] < 1


def test_k_centre_is_within_twice_the_best_radius() -> None:
    """The bound of the greedy choice (Gonzalez 1985), against all pairs of centres."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(14, 2))
    rows, _ = k_centre(x, 3, known=x[:1])
    far = np.linalg.norm(x[:, None] - x[None], axis=2)

    def radius(centres: list[int]) -> float:
        return float(far[:, centres].min(axis=1).max())

    best = min(radius([0, i, j, k]) for i in range(14) for j in range(i) for k in range(j))
    assert radius([0, *rows.tolist()]) <= 2 * best + 1e-9


def test_k_centre_keeps_away_from_what_is_known() -> None:
    x = np.array([[0.0], [0.1], [5.0], [5.1]])
    rows, reach = k_centre(x, 2, known=np.array([[0.05]]))
    assert rows[0] == 3 and reach[0] == pytest.approx(5.05)


def test_k_centre_of_equal_rows_names_each_once() -> None:
    rows, _ = k_centre(np.zeros((5, 3)), 9)
    assert sorted(rows.tolist()) == [0, 1, 2, 3, 4]
    with pytest.raises(VitDomainsError, match="not finite"):
        k_centre(np.array([[np.nan]]), 1)


def test_uncertain_tiles_come_first() -> None:
    scores = np.array([[0.9, 0.05, 0.05], [0.5, 0.49, 0.01], [0.4, 0.3, 0.3], [1.0, 0.0, 0.0]])
    by_margin = queue(table(scores), 2, "margin")
    assert by_margin["tile_id"].tolist() == ["t1", "t2"]
    assert by_margin["score"].tolist() == pytest.approx([0.99, 0.9])
    by_entropy = queue(table(scores), 2, "entropy")
    assert by_entropy["tile_id"].tolist() == ["t2", "t1"]
    assert by_entropy["rank"].tolist() == [1, 2] and set(by_entropy["reason"]) == {"entropy"}
    assert list(by_entropy.columns[:6]) == ["tile_id", "path", "scene", "rank", "score", "reason"]


def test_tiles_without_a_prediction_are_left_out() -> None:
    scores = np.array([[0.4, 0.3, 0.3], [0.4, 0.3, 0.3], [np.nan] * 3])
    chosen = queue(table(scores, ("", "cannot be read", "")), 5, "entropy")
    assert chosen["tile_id"].tolist() == ["t0"]
    with pytest.raises(VitDomainsError, match="No tile with a prediction"):
        queue(table(scores[2:]), 5, "entropy")


def test_both_takes_the_uncertain_and_spreads_them() -> None:
    rng = np.random.default_rng(0)
    doubtful, sure = np.array([0.36, 0.33, 0.31]), np.array([0.98, 0.01, 0.01])
    scores = np.array([doubtful if i < 20 else sure for i in range(60)])
    places = np.array([[i % 2 * 10.0, 0.0] for i in range(60)]) + rng.normal(0, 0.01, (60, 2))
    chosen = queue(table(scores), 4, "both", embed=lambda rows: places[rows.index])
    numbers = [int(name[1:]) for name in chosen["tile_id"]]
    assert max(numbers) < 20, "only uncertain ones"
    assert {n % 2 for n in numbers[:2]} == {0, 1}, "one of each place first"
    assert np.isfinite(chosen["score"]).all()


def test_what_cannot_be_chosen_is_refused() -> None:
    scores = np.array([[0.4, 0.3, 0.3]])
    with pytest.raises(ConfigError, match="'luck' chooses nothing"):
        queue(table(scores), 1, "luck")
    with pytest.raises(ConfigError, match="needs embeddings"):
        queue(table(scores), 1, "diversity")
