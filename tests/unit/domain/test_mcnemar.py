from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from qpruner_core.domain.paired import mcnemar

COUNTS = st.integers(min_value=0, max_value=300)


@given(first=COUNTS, second=COUNTS)
def test_it_is_the_two_sided_binomial_test(first: int, second: int) -> None:
    expected = binomtest(first, first + second, 0.5).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("first", "second"), [(1500, 1600), (0, 4000), (9000, 9100)])
def test_thousands_of_changed_items_are_no_trouble(first: int, second: int) -> None:
    expected = binomtest(first, first + second, 0.5).pvalue
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_items_that_nobody_answers_differently_tell_nothing_apart() -> None:
    assert mcnemar(0, 0) == 1.0
