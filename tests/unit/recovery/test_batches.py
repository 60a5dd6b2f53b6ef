from __future__ import annotations

import pytest
import torch

from qpruner_core.data.training import IGNORED, TrainingSet
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.errors import DataTooShortError
from qpruner_core.recovery.batches import batches


def rows(n: int, length: int) -> TrainingSet:
    return TrainingSet.of_text(torch.arange(n).unsqueeze(1).expand(n, length))


def test_one_pass_shows_every_sequence_once() -> None:
    spec = RecoverySpec(steps=3, batch_size=4, sequence_length=8)
    shown = torch.cat([batch.ids for batch in batches(rows(12, 10), spec)])
    assert shown.shape == (12, 8)
    assert sorted(shown[:, 0].tolist()) == list(range(12))


def test_the_order_depends_on_the_seed_alone() -> None:
    def order(seed: int) -> list[int]:
        spec = RecoverySpec(steps=4, batch_size=4, sequence_length=8, seed=seed)
        return [int(i) for batch in batches(rows(32, 8), spec) for i in batch.ids[:, 0]]

    assert order(0) == order(0)
    assert order(0) != order(1)


def test_a_later_start_goes_on_with_the_same_batches() -> None:
    spec = RecoverySpec(steps=5, batch_size=4, sequence_length=8)
    whole = [batch.ids for batch in batches(rows(9, 8), spec)]
    later = [batch.ids for batch in batches(rows(9, 8), spec, 3)]
    assert len(later) == 2
    assert all(torch.equal(a, b) for a, b in zip(whole[3:], later, strict=True))


def test_fewer_sequences_than_a_batch_are_shown_again() -> None:
    spec = RecoverySpec(steps=2, batch_size=8, sequence_length=8)
    assert [batch.ids.shape[0] for batch in batches(rows(3, 8), spec)] == [8, 8]


def test_training_text_without_a_sequence_is_refused_with_a_sentence() -> None:
    empty = TrainingSet.of_text(torch.empty(0, 128, dtype=torch.int64))
    with pytest.raises(DataTooShortError, match="Give a longer training text"):
        next(batches(empty, RecoverySpec(steps=1)))


def test_rows_that_teach_nothing_are_left_out_and_a_set_of_them_is_refused() -> None:
    ids = torch.arange(20).view(2, 10)
    labels = torch.full_like(ids, IGNORED)
    labels[1, 3] = 13
    spec = RecoverySpec(steps=2, batch_size=1, sequence_length=10)
    shown = [
        batch.ids[0, 0].item() for batch in batches(TrainingSet(ids=ids, labels=labels), spec)
    ]
    assert shown == [10, 10]
    labels[1, 3] = IGNORED
    labels[:, 0] = ids[:, 0]  # no token comes before the first
    with pytest.raises(DataTooShortError, match="none of which has a token to learn"):
        next(batches(TrainingSet(ids=ids, labels=labels), spec))


def test_the_first_token_of_an_example_is_not_learned_from_the_example_before_it() -> None:
    ids = torch.arange(10).view(1, 10)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5]])
    training = TrainingSet(ids=ids, labels=ids, positions=positions)
    spec = RecoverySpec(steps=1, batch_size=1, sequence_length=10)
    (batch,) = batches(training, spec)
    assert batch.labels[0].tolist() == [IGNORED, 1, 2, 3, IGNORED, 5, 6, 7, 8, 9]
    assert batch.n_learned == 8


def test_parts_are_the_batch_in_order() -> None:
    (batch,) = batches(rows(6, 8), RecoverySpec(steps=1, batch_size=6, sequence_length=8))
    parts = list(batch.parts(2))
    assert [len(part.ids) for part in parts] == [2, 2, 2]
    assert torch.equal(torch.cat([part.ids for part in parts]), batch.ids)
    assert sum(part.n_learned for part in parts) == batch.n_learned
