"""Every criterion is its formula, on weights that are fused, stored inputs first, or experts'."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scored_models import CONFIGS, IDS, build, inputs_of, owned, sequence_gradients

from qpruner_core.domain.layout import GroupLayout, ModelLayout
from qpruner_core.domain.spec import ImportanceSpec
from qpruner_core.importance import score

ELEMENT: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    # w (weights,), g (sequences, weights)
    "taylor": lambda w, g: (w * g).abs().sum(1).mean(),
    "taylor_second": lambda w, g: (0.5 * w**2 * g**2).sum(1).mean(),
    "taylor_mixed": lambda w, g: (w * g - 0.5 * w**2 * g**2).abs().sum(1).mean(),
}
VECTOR: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "taylor": lambda w, g: (w @ g.mean(0)).abs(),
    "taylor_second": lambda w, g: 0.5 * w @ (g.T @ g / len(g)) @ w,
    "taylor_mixed": lambda w, g: (w @ g.mean(0) - 0.5 * w @ (g.T @ g / len(g)) @ w).abs(),
}


@pytest.fixture(params=CONFIGS)
def built(request: pytest.FixtureRequest) -> tuple[Any, ModelLayout]:
    return build(request.param)


def expect(
    scores: Any, layout: ModelLayout, formula: Callable[[GroupLayout, int], torch.Tensor]
) -> None:
    for group in layout.groups:
        expected = [formula(group, unit).item() for unit in range(group.n_units)]
        # Routers and norms of float64 models compute in float32.
        np.testing.assert_allclose(scores[group.name], expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("aggregation", ["element", "vector"])
def test_taylor_criteria_are_their_formulas_over_all_sequences(built, aggregation):
    model, layout = built
    names = tuple(ELEMENT)
    options = {name: {"aggregation": aggregation} for name in names}
    scores = score(model, layout, IDS, ImportanceSpec(criteria=names, options=options))
    weights = {name: p.detach() for name, p in model.named_parameters()}
    gradients = sequence_gradients(model, IDS)
    for name in names:
        formula = (ELEMENT if aggregation == "element" else VECTOR)[name]
        expect(
            scores.unit_scores[name],
            layout,
            lambda group, unit, formula=formula: formula(
                owned(group, unit, weights),
                torch.stack([owned(group, unit, of_one) for of_one in gradients]),
            ),
        )


@pytest.mark.parametrize("p", [1.0, 2.0, 3.5])
def test_magnitude_is_the_norm_of_all_that_leaves(built, p):
    model, layout = built
    spec = ImportanceSpec(criteria=("magnitude",), options={"magnitude": {"p": p}})
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    expect(
        score(model, layout, IDS, spec).unit_scores["magnitude"],
        layout,
        lambda group, unit: torch.linalg.vector_norm(owned(group, unit, weights), ord=p),
    )


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("wanda", lambda w, x: w.abs().sum() * torch.linalg.vector_norm(x)),
        ("flap", lambda w, x: (x - x.mean()).square().sum() * w.square().sum()),
    ],
)
def test_wanda_and_flap_weigh_columns_of_output_projections_by_their_inputs(built, name, column):
    model, layout = built
    outputs = {g.name: (g, part) for g in layout.groups for part in g.slices if part.is_input}
    seen = inputs_of(model, [p.tensor.removesuffix(".weight") for _, p in outputs.values()], IDS)

    def worth(group: GroupLayout, unit: int) -> torch.Tensor:
        if group.members:
            expert = outputs[group.members[unit]][0]
            return sum((worth(expert, u) for u in range(expert.n_units)), torch.zeros(()))
        part = outputs[group.name][1]
        rows = seen.get(part.tensor.removesuffix(".weight"))
        weight = model.get_parameter(part.tensor).detach().movedim(part.axis, 0)  # (in, out)
        entries = range(unit * part.unit_size, (unit + 1) * part.unit_size)
        columns = [column(weight[j], rows[:, j]) for j in entries if rows is not None]
        return torch.stack([torch.zeros((), dtype=torch.float64), *columns]).sum()

    scores = score(model, layout, IDS, ImportanceSpec(criteria=(name,)))
    expect(scores.unit_scores[name], layout, worth)


def test_criteria_scored_together_give_what_each_gives_alone(built):
    model, layout = built
    names = ("taylor_mixed", "flap", "taylor", "wanda", "magnitude", "random")
    together = score(model, layout, IDS, ImportanceSpec(criteria=names)).unit_scores
    for name in names:
        alone = score(model, layout, IDS, ImportanceSpec(criteria=(name,))).unit_scores[name]
        for group in layout.groups:
            np.testing.assert_array_equal(together[name][group.name], alone[group.name])
