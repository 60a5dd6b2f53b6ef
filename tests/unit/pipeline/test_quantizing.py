"""The step *quantize* records what was asked: which signal, how stable, what cells cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from qpruner_core.domain.record import RunRecord
from qpruner_core.domain.spec import RunSpec
from qpruner_core.pipeline import Line

Start = Callable[[RunSpec], Line]
Go = Callable[..., RunRecord]


def asked(spec: RunSpec, information: str) -> RunSpec:
    options = {information: {"n_samples": 128}} if information != "block_influence" else {}
    return replace(
        spec,
        importance=replace(spec.importance, options=options),
        search=replace(spec.search, information=information, tie="block"),
    )


@pytest.mark.parametrize("information", ["mutual_information_gaussian", "block_influence"])
def test_the_signal_asked_for_is_on_record_with_its_stability(
    deep_spec: RunSpec, start: Start, go: Go, information: str
) -> None:
    spec = asked(deep_spec, information)
    found = go(start(spec), spec, "load", "score", "prune", "quantize").quantize
    assert found is not None
    assert found.information == information
    assert len(found.mutual_information) == 4
    assert min(found.mutual_information) >= 0.0
    assert (found.information_stability is None) == (information == "block_influence")


def test_every_cell_has_a_divergence_beside_its_loss(
    deep_spec: RunSpec, start: Start, go: Go
) -> None:
    spec = asked(deep_spec, "mutual_information")
    found = go(start(spec), spec, "load", "score", "prune", "quantize").quantize
    assert found is not None
    assert len(found.sensitivities) == 4 * 2 * 2
    assert all(cell.kl is not None and cell.kl >= 0.0 for cell in found.sensitivities)
