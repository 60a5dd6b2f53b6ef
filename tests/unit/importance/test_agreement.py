"""Rank agreement is Spearman's, within groups, averaged over the groups of a kind."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from qpruner_core.importance.agreement import agreement

KINDS = {"a": "kv_heads", "b": "mlp_channels", "c": "mlp_channels"}


def drawn(seed: int, levels: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {name: draw.integers(0, levels, 30).astype(np.float32) for name in KINDS}


@pytest.mark.parametrize("levels", [4, 1_000_000])
def test_it_is_the_mean_of_spearmans_correlation_over_groups_ties_shared(levels):
    scored = {name: drawn(seed, levels) for seed, name in enumerate(("x", "y", "z"))}
    found = {(a.first, a.second, a.kind): a.correlation for a in agreement(scored, KINDS)}
    assert list(found) == [
        (first, second, kind)
        for first, second in (("x", "y"), ("x", "z"), ("y", "z"))
        for kind in ("kv_heads", "mlp_channels")
    ]
    for (first, second, kind), value in found.items():
        each = [
            spearmanr(scored[first][name], scored[second][name]).statistic
            for name in KINDS
            if KINDS[name] == kind
        ]
        assert value == pytest.approx(np.mean(each))


def test_it_looks_at_ranks_alone():
    scores = drawn(0, 1000)
    bent = {name: np.exp(values / 100) for name, values in scores.items()}
    turned = {name: -values for name, values in scores.items()}
    found = agreement({"x": scores, "bent": bent, "turned": turned}, {"b": "mlp_channels"})
    assert [a.correlation for a in found] == pytest.approx([1.0, -1.0, -1.0])
    assert all(-1.0 <= a.correlation <= 1.0 for a in found)


def test_units_that_are_not_told_apart_have_no_agreement():
    flat = {name: np.zeros(30, dtype=np.float32) for name in KINDS}
    scores = drawn(0, 1000)
    assert agreement({"x": scores, "flat": flat}, KINDS) == ()
    (only,) = agreement({"x": scores, "part": flat | {"c": scores["c"]}}, KINDS)
    assert (only.kind, only.correlation) == ("mlp_channels", pytest.approx(1.0))


def test_one_criterion_agrees_with_none():
    assert agreement({"x": drawn(0, 9)}, KINDS) == ()
