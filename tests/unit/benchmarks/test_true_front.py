"""The table of the true front: rows measured again, and what it says of itself."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from qpruner_core.evaluation.perplexity import text_loss
from qpruner_core.models.device import Device
from qpruner_core.quantization.bank import Bank

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks"))

import true_front


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return true_front.pruned_demo(tmp_path_factory.mktemp("home"))


@pytest.mark.slow
def test_ten_random_rows_of_the_stored_table_are_measured_again(subject):
    truth = true_front.read()
    bank = subject.materials.bank(true_front.PRECISIONS)
    rng = np.random.default_rng()  # other rows in every run
    for index in rng.choice(len(truth.losses), size=10, replace=False):
        plan = true_front.plan_of(subject.layout, int(index))
        bank.apply(plan)
        again = text_loss(bank.model, subject.heldout)
        assert again == pytest.approx(truth.losses[index], abs=true_front.TOLERANCE), index
        assert bank.packed_bytes(plan) == truth.weight_bytes[index]


def test_the_table_holds_every_plan_and_says_how_it_was_made():
    truth = true_front.read()
    assert truth.sequence_losses.shape == (2**12, truth.about["sequences"][0])
    assert np.isfinite(truth.sequence_losses).all()
    assert {"command", "date", "machine", "versions", "ratio", "precisions"} <= set(truth.about)


def test_the_walk_gives_every_plan_what_its_own_forward_gives(tiny_model, tiny_layout):
    cpu = Device(kind="cpu", index=0, name="cpu", compute_dtype=torch.float32)
    bank = Bank(tiny_model.float().eval(), tiny_layout, true_front.PRECISIONS, cpu)
    ids = torch.arange(24).view(3, 8) % tiny_layout.vocab_size
    walked = true_front.Walk(bank).losses(ids)
    assert walked.shape == (2**tiny_layout.n_layers, 3)
    for index, losses in enumerate(walked):
        bank.apply(true_front.plan_of(tiny_layout, index))
        assert losses.mean() == pytest.approx(text_loss(bank.model, ids), abs=1e-6)
