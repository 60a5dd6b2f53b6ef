"""On how much text sensitivities are measured."""

from __future__ import annotations

import pytest

from qpruner_core.domain.spec import SearchSpec
from qpruner_core.pipeline.quantizing import n_signal_sequences


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 16),
        ({"signal": "loss"}, 64),
        ({"joint": "global", "ratios": (0.5,)}, 64),
        ({"signal": "loss", "signal_tokens": 1024}, 8),
        ({"signal_tokens": 4096}, 32),
        ({"signal_tokens": 5}, 1),
        ({"signal_tokens": 10**9}, 64),
    ],
)
def test_divergences_get_little_text_and_losses_all_of_it_unless_the_search_says(
    changes, expected
):
    assert n_signal_sequences(SearchSpec(**changes), 64, 128) == expected
