"""What the readers of an item say together, and how far they agree beyond chance."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitdomains.core.metrics.bootstrap import draw, interval
from vitdomains.core.review.schema import Answer, ReviewError
from vitdomains.core.review.store import parse_answers

UNSURE = "unsure"
PRESENT, ABSENT = "present", "absent"
_OPPOSITE = {PRESENT: ABSENT, ABSENT: PRESENT}
Rule = Literal["unanimous", "majority"]


def resolved(answer: Answer, call: str) -> str:
    """What an answer says of its subject: ``present``, ``absent``, a class name, ``unsure``, or ``not NAME``."""
    if answer.verdict == "label":
        return answer.label
    if answer.verdict == "unsure":
        return UNSURE
    return call if answer.verdict == "agree" else _OPPOSITE.get(call, f"not {call}")


def readings(table: pd.DataFrame, *, blinded_only: bool = False) -> pd.DataFrame:
    """One row for what a reviewer said of a subject of an item, the latest decision in each role.

    Args:
        table: ``ReviewStore.table()``.
        blinded_only: Leave out what was decided with the prediction in sight.

    Returns:
        Columns item, subject, reviewer, role, value (see ``resolved``), call, seq.
    """
    chosen = table[table["blinded"] == 1] if blinded_only else table
    latest = chosen.drop_duplicates(["item", "reviewer", "role"], keep="last")
    rows = []
    for row in latest.to_dict("records"):
        calls, who = json.loads(row["calls"]), (row["reviewer"], row["role"])
        for subject, answer in parse_answers(row["answers"]).items():
            call = calls.get(subject, "")
            rows.append((row["item"], subject, *who, resolved(answer, call), call, row["seq"]))
    return pd.DataFrame(rows, columns=["item", "subject", "reviewer", "role", "value", "call", "seq"])


def consensus(read: pd.DataFrame, rule: Rule = "unanimous") -> pd.DataFrame:
    """What holds of each subject of each item.

    Args:
        read: From ``readings``.
        rule: ``unanimous``: all readers say the same; ``majority``: more than half of them do. An adjudicator's word, the
            latest where there are several, goes before both.

    Returns:
        Columns item, subject, value (``unsure`` where nothing holds), readers (count), settled (bool: a value other than
        ``unsure`` holds, or an adjudicator left it at that), adjudicated (bool).
    """
    rows = []
    for (item, subject), group in read.groupby(["item", "subject"], sort=False):
        final = group[group["role"] == "adjudicator"]
        said = group.loc[group["role"] == "reader", "value"]
        if len(final):
            value, settled = str(final.sort_values("seq")["value"].iloc[-1]), True
        else:
            counts = said.value_counts()
            needed = len(said) if rule == "unanimous" else len(said) // 2 + 1
            value = str(counts.index[0]) if counts.iloc[0] >= needed else UNSURE
            settled = value != UNSURE
        rows.append((item, subject, value, len(said), settled, len(final) > 0))
    return pd.DataFrame(rows, columns=["item", "subject", "value", "readers", "settled", "adjudicated"])


def disagreements(read: pd.DataFrame) -> list[str]:
    """Items of which two readers at least say different things and no adjudicator has spoken, in order of their reading."""
    open_ = []
    for item, group in read.groupby("item", sort=False):
        by_readers = group[group["role"] == "reader"]
        if len(by_readers) == len(group) and (by_readers.groupby("subject")["value"].nunique() > 1).any():
            open_.append(str(item))
    return open_


def cohen_kappa(a: Sequence[str], b: Sequence[str]) -> float:
    """Cohen's kappa of two readers over the same items: (p_o - p_e) / (1 - p_e).

    Cohen 1960 (A coefficient of agreement for nominal scales, Educational and Psychological Measurement 20, 37-46),
    computed by scikit-learn. NaN where nothing was read, or both say one and the same thing of every item: chance then explains
    all agreement.
    """
    if len(a) != len(b):
        raise ReviewError(f"{len(a)} readings against {len(b)}.", hint="Give both readers' words on the same items.")
    if not len(a) or len(set(a) | set(b)) == 1:
        return float("nan")
    from sklearn.metrics import cohen_kappa_score  # seconds to import, and few users of this room need it

    return float(cohen_kappa_score(list(a), list(b)))


def fleiss_kappa(counts: npt.ArrayLike, weight: npt.ArrayLike | None = None) -> float:
    """Fleiss' kappa of any number of readers: (P_bar - P_e) / (1 - P_e).

    Fleiss 1971 (Measuring nominal scale agreement among many raters, Psychological Bulletin 76, 378-382). Where items
    have different numbers of readers, the share of a category is the mean over items of its share in each (Gwet 2014,
    Handbook of Inter-Rater Reliability, 4th edition), which is Fleiss' own where the numbers are equal.

    Args:
        counts: [N, C] how many readers put item i into category j.
        weight: [N] of the items (how often a bootstrap drew each); None: one each.

    Returns:
        Kappa; NaN with no item of two readers, or only one category in use.
    """
    n = np.asarray(counts, dtype=np.float64)
    w = np.ones(len(n)) if weight is None else np.asarray(weight, dtype=np.float64)
    readers = n.sum(axis=1)
    w = np.where(readers >= 2, w, 0.0)
    if w.sum() == 0:
        return float("nan")
    w, readers = w / w.sum(), np.maximum(readers, 2)
    observed = float(w @ (((n**2).sum(axis=1) - readers) / (readers * (readers - 1))))
    share = w @ (n / readers[:, None])
    expected = float((share**2).sum())
    return (observed - expected) / (1 - expected) if expected < 1 - 1e-12 else float("nan")


@dataclass(frozen=True)
class Agreement:
    """How far readers agree on one subject; ``low`` and ``high`` bound kappa with 95 % confidence (bootstrap over items)."""

    subject: str
    items: int
    readers: int
    percent: float
    fleiss: float
    low: float
    high: float
    cohen: dict[tuple[str, str], float]
    with_model: float
    """Mean of Cohen's kappa of each reader and the model's call."""


def agreement(read: pd.DataFrame, *, bootstrap: int = 500, seed: int = 0) -> list[Agreement]:
    """Agreement on every subject over the items that two readers at least have read; ``unsure`` is a category of its own.

    Args:
        read: From ``readings``; adjudicators play no part.
        bootstrap: Replicates behind each interval.
        seed: Of the replicates.
    """
    by_readers = read[read["role"] == "reader"]
    return [_agreement(str(s), group, bootstrap, seed) for s, group in by_readers.groupby("subject", sort=False)]


def _agreement(subject: str, group: pd.DataFrame, bootstrap: int, seed: int) -> Agreement:
    said = group.pivot(index="item", columns="reviewer", values="value")
    double = said[said.notna().sum(axis=1) >= 2]
    counts = (
        pd.get_dummies(double.stack()).groupby(level=0).sum().to_numpy(np.float64) if len(double) else np.empty((0, 1))
    )
    draws = draw(np.arange(len(counts)), bootstrap if len(counts) > 1 else 0, seed)
    replicates = np.array([fleiss_kappa(counts, w) for block in draws.weights() for w in block.T])
    low, high = interval(replicates) if len(replicates) else (float("nan"), float("nan"))
    readers = counts.sum(axis=1)
    same = ((counts**2).sum(axis=1) - readers) / (readers * (readers - 1)) if len(counts) else np.empty(0)
    cohen = {}
    for a, b in combinations(sorted(said.columns), 2):
        both = said[[a, b]].dropna()
        if len(both):
            cohen[(str(a), str(b))] = cohen_kappa(both[a].tolist(), both[b].tolist())
    called = group[group["call"] != ""]
    model = [cohen_kappa(g["value"].tolist(), g["call"].tolist()) for _, g in called.groupby("reviewer")]
    known = [k for k in model if not math.isnan(k)]
    return Agreement(
        subject=subject,
        items=len(double),
        readers=int(double.notna().any().sum()) if len(double) else 0,
        percent=float(same.mean()) if len(same) else float("nan"),
        fleiss=fleiss_kappa(counts),
        low=low,
        high=high,
        cohen=cohen,
        with_model=float(np.mean(known)) if known else float("nan"),
    )
