"""Paired differences and what they say of the evaluation text."""

from __future__ import annotations

import re
from math import inf, sqrt

import numpy as np
import pytest

from qpruner_core.search.noise import paired_error, too_small


def text(n, spread=1.0, seed=0):
    return np.random.default_rng(seed).normal(3.0, spread, size=n)


def shifted(base, shift, spread, seed):
    return tuple(base + np.random.default_rng(seed).normal(shift, spread, size=len(base)))


def test_the_standard_error_is_that_of_the_differences():
    a, b = (1.0, 2.5, 3.0, 7.0), (1.5, 2.0, 2.0, 5.0)
    differences = [x - y for x, y in zip(a, b, strict=True)]
    mean = sum(differences) / 4
    variance = sum((d - mean) ** 2 for d in differences) / 3
    found = paired_error(a, b)
    assert found.mean == pytest.approx(mean)
    assert found.error == pytest.approx(sqrt(variance / 4))


def test_what_makes_a_sequence_hard_cancels():
    easy, hard = text(40, 0.1), text(40, 5.0)
    gain = np.random.default_rng(1).normal(0.1, 0.01, size=40)
    for base in (easy, hard):
        found = paired_error(base + gain, base)
        assert found.mean == pytest.approx(float(gain.mean()))
        assert found.error == pytest.approx(float(gain.std(ddof=1)) / sqrt(40))


def test_one_sequence_tells_nothing_and_unequal_texts_are_refused():
    assert paired_error((1.0,), (2.0,)).error == inf
    assert not paired_error((1.0,), (2.0,)).is_resolved
    with pytest.raises(ValueError, match="2 and 1 sequences"):
        paired_error((1.0, 2.0), (1.0,))


def test_a_front_that_is_told_apart_needs_no_words():
    base = text(64)
    front = [shifted(base, s, 0.01, i) for i, s in enumerate((0.4, 0.2, 0.1))]
    assert too_small(front, 128) == ""
    assert too_small(front[:1], 128) == ""
    assert too_small([], 128) == ""


def test_neighbours_within_two_errors_are_counted_and_the_text_that_would_do_is_named():
    base = text(64)
    near = shifted(base, 0.02, 0.1, 1)
    said = too_small([shifted(base, 0.5, 0.1, 0), near, tuple(base)], 128)
    pair = paired_error(near, tuple(base))
    assert said.startswith("1 of 2 pairs of neighbours")
    assert f"{pair.error:.4f} nats" in said
    tokens = int(re.search(r"about ([\d,]+) tokens", said)[1].replace(",", ""))
    enough = 64 * (2 * pair.error / pair.mean) ** 2 * 128
    assert enough <= tokens < enough + 129


def test_plans_that_text_cannot_tell_apart_are_called_alike():
    base = tuple(text(16))
    assert "alike" in too_small([base, base], 128)
    assert "alike" in too_small([(2.0,), (1.0,)], 128)


def test_plans_without_losses_are_not_compared():
    base = tuple(text(16))
    assert too_small([base, (), base], 128) == ""
