"""What all sensitivities cost over one whole forward pass per cell.

A cell is one search unit at one precision. What one would write without knowing the layers runs
the whole model for every cell, takes its loss, and the divergence of its predictions from those of
the 16-bit model, which it keeps. Ours runs the layers from the changed one on. After every cell of
ours come the naive pass and ours without the divergence, in one process, so that whatever else the
machine does falls on all. All is done in rounds, and of every cell the median round counts.
"""

from __future__ import annotations

import argparse
import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "2")

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent))

import form
import torch
from torch.nn import functional
from trial_cost import (
    PRECISIONS,
    Subject,
    add_arguments,
    demo_subject,
    now,
    random_subject,
    since,
    timed,
)

from qpruner_core.domain.progress import Progress
from qpruner_core.models.trunk import LayerInputs, first_inputs, run_layers, sequence_losses
from qpruner_core.quantization.bank import Bank
from qpruner_core.quantization.sensitivity import measure as measure_sensitivities
from qpruner_core.search.space import SearchSpace

TARGET = 0.60
TIES = ("layer", "block", "linear")
N_ROUNDS = 3


@dataclass(slots=True)
class Turns:
    """What one round over the cells of a tie costs; seconds, one entry per cell each."""

    ours: list[float] = field(default_factory=list)
    """Loss and divergence as we measure them. The first holds the reference pass, and the first of
    a layer the layer before it at 16 bit.
    """
    naive: list[float] = field(default_factory=list)
    """The whole model with loss and divergence."""
    loss_alone: list[float] = field(default_factory=list)
    """The layers from the changed one on, with the loss alone."""


def measure(arguments: argparse.Namespace) -> form.Report:
    """Time the cells of every tie, ours and naive in turns."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    subject = random_subject() if arguments.random else demo_subject()
    bank = Bank(subject.model, subject.layout, PRECISIONS, subject.device)
    ids = subject.ids[: 4 if arguments.quick else 16]
    rows, targets = [], []
    for tie in TIES:
        space = SearchSpace(subject.layout, PRECISIONS, tie)
        rounds = [in_turns(subject, bank, space.units, ids) for _ in range(N_ROUNDS)]
        found = row(tie, rounds)
        rows.append(found)
        targets.append(
            form.Target(
                name=f"all sensitivities by {tie} over one naive pass per cell",
                value=float(found["over_naive"] or 0.0),
                target=TARGET,
            )
        )
    return form.Report(name="sensitivity_cost", rows=rows, targets=targets)


def in_turns(
    subject: Subject, bank: Bank, units: Mapping[str, tuple[str, ...]], ids: torch.Tensor
) -> Turns:
    """Return the costs of every cell of one batch, ours, naive and without divergence in turns."""
    naive = Naive(subject, ids)
    naive.one_pass()  # warms up
    starts = starting_inputs(subject, naive.ids)
    layers = {linear.name: linear.layer for linear in subject.layout.linears}
    first = [layers[names[0]] for names in units.values() for _ in PRECISIONS]
    turns = Turns()

    def between(_: Progress) -> None:
        nonlocal started
        turns.ours.append(since(started).seconds)
        layer = first[len(turns.naive)]
        turns.naive.append(timed(naive.one_pass)[0].seconds)
        alone = timed(lambda: naive.loss_alone(starts[layer], layer))[0]
        turns.loss_alone.append(alone.seconds)
        started = now()

    started = now()
    measure_sensitivities(bank, units, ids, between)
    return turns


class Naive:
    """The model's own forward on one batch, and the log-probabilities it is compared with."""

    @torch.no_grad()
    def __init__(self, subject: Subject, ids: torch.Tensor) -> None:
        self._subject = subject
        self.ids = ids.to(subject.device.torch)
        self._reference = self._model_logs()[1]

    @torch.no_grad()
    def one_pass(self) -> tuple[float, float]:
        """Return loss and divergence of the model as it stands now."""
        loss, logs = self._model_logs()
        divergence = functional.kl_div(logs, self._reference, log_target=True, reduction="sum")
        return float(loss), float(divergence) / logs[..., 0].numel()

    @torch.no_grad()
    def loss_alone(self, inputs: LayerInputs, layer: int) -> float:
        """Return the loss, running the layers from one on: ours without the divergence."""
        model = self._subject.model
        hidden = run_layers(model, self._subject.layout, inputs, layer)
        return float(sequence_losses(model, hidden, self.ids).double().sum())

    def _model_logs(self) -> tuple[torch.Tensor, torch.Tensor]:
        output = self._subject.model(input_ids=self.ids, labels=self.ids, use_cache=False)
        return output.loss, output.logits[:, :-1].float().log_softmax(dim=-1)


@torch.no_grad()
def starting_inputs(subject: Subject, ids: torch.Tensor) -> list[LayerInputs]:
    """Return what every layer is given on a batch."""
    inputs = [first_inputs(subject.model, subject.layout, ids)]
    for layer in range(subject.layout.n_layers - 1):
        hidden = run_layers(subject.model, subject.layout, inputs[-1], layer, layer + 1)
        inputs.append(inputs[-1].at(hidden))
    return inputs


def row(tie: str, rounds: Sequence[Turns]) -> dict[str, form.Cell]:
    """Return the row of one tie: of every cell the median round, of the naive pass the median of
    all.
    """
    ours = [median(costs) for costs in zip(*(turns.ours for turns in rounds), strict=True)]
    alone = [median(costs) for costs in zip(*(turns.loss_alone for turns in rounds), strict=True)]
    naive = median(seconds for turns in rounds for seconds in turns.naive)
    return {
        "tie": tie,
        "cells": len(ours),
        "rounds": len(rounds),
        "total_seconds": sum(ours),
        "median_seconds_per_cell": median(ours),
        "median_seconds_naive_pass": naive,
        "over_naive": sum(ours) / (naive * len(ours)),
        "over_loss_alone": sum(ours) / sum(alone),
    }


if __name__ == "__main__":
    sys.exit(form.main(measure, "Seconds of all sensitivities over naive passes.", add_arguments))
