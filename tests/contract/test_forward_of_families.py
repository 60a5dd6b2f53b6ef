"""What the line computes of every family in its own way equals what the model computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import CASES, IDS, build, logits, uneven
from torch.nn import functional

from qpruner_core.domain.layout import ModelLayout
from qpruner_core.evaluation.choices import EncodedItem
from qpruner_core.evaluation.perplexity import text_loss
from qpruner_core.evaluation.tasks import batches_of, choice_log_likelihoods, rows_of
from qpruner_core.models import trunk
from qpruner_core.pruning.surgery import prune_

FEATURES = {
    "sliding_window": 1000,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "query_pre_attn_scalar": 16,
    "embedding_multiplier": 1.0,
    "attention_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
}
"""What a config may ask for -> a value with which it would not show."""


@pytest.fixture(params=[False, True], ids=["dense", "pruned"])
def pair(request: pytest.FixtureRequest, model: Any, layout: ModelLayout) -> Any:
    """The model of a case with its layout, before and after it lost units."""
    return model, prune_(model, layout, uneven(layout)) if request.param else layout


@torch.no_grad()
def test_the_pieces_of_the_forward_together_are_the_model(pair):
    model, layout = pair
    inputs = trunk.first_inputs(model, layout, IDS)
    hidden = trunk.run_layers(model, layout, inputs)
    torch.testing.assert_close(
        trunk.final_logits(model, hidden), logits(model), rtol=0.0, atol=1e-12
    )
    for cut in range(layout.n_layers + 1):
        before = trunk.run_layers(model, layout, inputs, stop=cut)
        after = trunk.run_layers(model, layout, inputs.at(before), start=cut)
        assert torch.equal(after, hidden)
    assert not any("forward" in vars(x) for x in trunk.decoder_layers(model, layout))


def reference_losses(model: Any) -> torch.Tensor:
    """Return the mean negative log-likelihood of every sequence of `IDS`, (B,), nats."""
    predicted = logits(model)[:, :-1].transpose(1, 2)
    return functional.cross_entropy(predicted, IDS[:, 1:], reduction="none").mean(dim=1)


@torch.no_grad()
def test_losses_are_those_of_the_models_own_logits(pair):
    model, layout = pair
    hidden = trunk.run_layers(model, layout, trunk.first_inputs(model, layout, IDS))
    expected = reference_losses(model)
    losses = trunk.sequence_losses(model, hidden, IDS)
    torch.testing.assert_close(losses, expected, rtol=0.0, atol=1e-12)
    assert text_loss(model, IDS) == pytest.approx(expected.mean().item(), abs=1e-10)


def test_choices_that_share_their_context_are_worth_what_they_are_worth_alone(model):
    choices = ((5, 6, 7), (8, 9), (40, 3, 2, 1))
    context = tuple(IDS[0, :9].tolist())
    item = EncodedItem(
        contexts=(context,) * 3, continuations=choices, n_characters=(1, 1, 1), gold=0
    )
    found = choice_log_likelihoods(model, batches_of(rows_of([item])), 3)
    for value, choice in zip(found.tolist(), choices, strict=True):
        ids = torch.tensor([context + choice])
        scores = logits(model, ids)[0].log_softmax(-1)
        alone = sum(
            scores[place - 1, ids[0, place]].item() for place in range(len(context), ids.shape[1])
        )
        # Log-probabilities of choices are taken in float32.
        assert value == pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        (name, key)
        for name, (_, values) in CASES.items()
        for key in FEATURES
        if values.get(key) not in (None, FEATURES[key])
    ],
)
def test_what_a_variant_is_tried_for_shows_in_its_logits(name, key):
    asked, without = build(name), build(name, **{key: FEATURES[key]})
    for one, other in zip(asked.parameters(), without.parameters(), strict=True):
        assert torch.equal(one, other)
    assert (logits(asked) - logits(without)).abs().max() > 1e-6
