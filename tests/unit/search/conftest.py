"""Search spaces of a small Llama as its config describes it; an objective without a model."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.metrics import Metrics, TaskResult
from qpruner_core.domain.plan import PrecisionPlan, PruningPlan
from qpruner_core.domain.record import SensitivityCell
from qpruner_core.models.architectures import llama
from qpruner_core.search.space import SearchSpace

MakeSpace = Callable[..., SearchSpace]
Measure = Callable[[SearchSpace, PrecisionPlan], Metrics]
_QUALITY = {"nf4": 1.0, "fp4": 1.5, "int8": 0.1, "bf16": 0.0}


@pytest.fixture
def make_layout() -> Callable[[int], ModelLayout]:
    def make(n_layers: int) -> ModelLayout:
        layout = llama.layout(
            {
                "model_type": "llama",
                "num_hidden_layers": n_layers,
                "hidden_size": 64,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 16,
                "intermediate_size": 128,
                "vocab_size": 128,
                "tie_word_embeddings": True,
            }
        )
        # MLP widths differ from layer to layer, as after pruning.
        width = {
            "gate_proj": "out_features",
            "up_proj": "out_features",
            "down_proj": "in_features",
        }
        linears = tuple(
            replace(li, **{width[li.role]: 128 - 16 * (li.layer % 3)}) if li.role in width else li
            for li in layout.linears
        )
        return replace(layout, linears=linears)

    return make


@pytest.fixture
def make_space(make_layout: Callable[[int], ModelLayout]) -> MakeSpace:
    def make(
        n_layers: int = 6,
        precisions: tuple[str, ...] = ("nf4", "int8", "bf16"),
        tie: str = "layer",
    ) -> SearchSpace:
        return SearchSpace(make_layout(n_layers), precisions, tie)

    return make


@pytest.fixture
def sensitivities() -> Callable[[SearchSpace], tuple[SensitivityCell, ...]]:
    def make(space: SearchSpace) -> tuple[SensitivityCell, ...]:
        weight = np.random.default_rng(0).gamma(1.0, 0.05, size=len(space.units))
        return tuple(
            SensitivityCell(unit=u, precision=p, loss_increase=float(weight[i] * _QUALITY[p]))
            for i, u in enumerate(space.units)
            for p in space.precisions
        )

    return make


@pytest.fixture
def measure(sensitivities: Callable[[SearchSpace], tuple[SensitivityCell, ...]]) -> Measure:
    """A deterministic stand-in for the evaluation: additive, with a little interaction."""

    def run(space: SearchSpace, plan: PrecisionPlan) -> Metrics:
        by_cell = {(c.unit, c.precision): c.loss_increase for c in sensitivities(space)}
        parts = [by_cell[unit, precision] for unit, precision in space.choices(plan).items()]
        loss = 2.0 + sum(parts) + 3.0 * sum(a * b for a, b in itertools.pairwise(parts))
        task = TaskResult(
            n_items=3, accuracy=1 / 3, accuracy_normalized=2 / 3, correct=(True, False, False)
        )
        return Metrics(
            loss=loss,
            accuracy=1.0 / loss,
            weight_bytes=space.bytes(plan),
            device="cpu",
            tasks={"toy": task},
            seconds=0.25,
        )

    return run


@pytest.fixture
def narrower() -> Callable[[ModelLayout], ModelLayout]:
    """Another pruning level: MLP channels of every layer halved."""

    def make(layout: ModelLayout) -> ModelLayout:
        groups = [group for group in layout.groups if group.kind == "mlp_channels"]
        kept = {group.name: tuple(range(group.n_units // 2)) for group in groups}
        return layout.pruned(PruningPlan(kept=kept))

    return make


@pytest.fixture
def sensitivities_of_levels() -> Callable[[SearchSpace], tuple[SensitivityCell, ...]]:
    def make(space: SearchSpace) -> tuple[SensitivityCell, ...]:
        weight = np.random.default_rng(0).gamma(1.0, 0.05, size=len(space.units))
        return tuple(
            SensitivityCell(
                unit=unit,
                precision=precision,
                level=level,
                loss_increase=float(weight[i] * (_QUALITY[precision] + 0.7 * level)),
            )
            for i, unit in enumerate(space.units)
            for level, precision in space.options
        )

    return make
