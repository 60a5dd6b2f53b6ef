"""What is learned of a row does not depend on what else stands in it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from trained_models import FAMILIES, build, texts

from qpruner_core.catalog import ARCHITECTURES
from qpruner_core.recovery.batches import Batch
from qpruner_core.recovery.objective import batch_loss


def test_every_family_of_the_catalogue_is_among_them() -> None:
    assert set(FAMILIES) == {entry.name for entry in ARCHITECTURES}


def row(ids: torch.Tensor, learned: slice, positions: torch.Tensor | None = None) -> Batch:
    labels = torch.full_like(ids, -100)
    labels[:, learned] = ids[:, learned]
    return Batch(ids=ids, labels=labels, positions=positions)


def loss(model: Any, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return batch_loss(model, batch, batch.n_learned)


# Gemma 2 has no other attention than the eager one.
@pytest.mark.parametrize(
    ("family", "attention"),
    [(f, a) for f in FAMILIES for a in ("eager", "sdpa") if (f, a) != ("gemma2", "sdpa")],
)
def test_examples_that_share_a_row_do_not_see_each_other(family: str, attention: str) -> None:
    model, _ = build(family, attn_implementation=attention)
    first, second = texts(2, 9).ids[:1], texts(2, 9).ids[1:]
    ids = torch.cat([first[:, :5], second], dim=1)
    positions = torch.cat([torch.arange(5), torch.arange(9)]).unsqueeze(0)
    alone = [loss(model, row(first[:, :5], slice(1, 5))), loss(model, row(second, slice(1, 9)))]
    packed = [
        loss(model, row(ids, slice(1, 5), positions)),
        loss(model, row(ids, slice(6, 14), positions)),
    ]
    for found, wanted in zip(packed, alone, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_padding_behind_an_example_changes_nothing(attention: str) -> None:
    model, _ = build("llama", attn_implementation=attention)
    ids = torch.cat([texts(1, 7).ids, torch.zeros(1, 5, dtype=torch.int64)], dim=1)
    found = loss(model, row(ids, slice(1, 7), torch.arange(12).unsqueeze(0)))
    wanted = loss(model, row(ids[:, :7], slice(1, 7)))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
