"""Every plan of a small search space, measured: the truth that searches are held against.

The demo model, pruned by 20 % with the product's defaults, has 12 layers; with one of two
precisions per layer that makes 4,096 plans. They are walked as a tree: plans that agree on their
first layers share the hidden states after them, so all plans take 2^13 - 2 passes of one layer
instead of 12 x 2^12, and 4,096 passes of the output head. The loss is the one every trial of a
search would measure: the same text, the same candidates, the same float32.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "2")

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

sys.path.insert(0, str(Path(__file__).resolve().parent))

import form
import numpy as np
import torch
from numpy.typing import NDArray

from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.record import QuantizationOutcome, RunRecord
from qpruner_core.domain.spec import ImportanceSpec, ModelSpec, PruningSpec, RunSpec, SearchSpec
from qpruner_core.evaluation.perplexity import text_loss
from qpruner_core.models.device import pick_device
from qpruner_core.models.trunk import LayerInputs, first_inputs, run_layers, sequence_losses
from qpruner_core.pipeline.line import Line
from qpruner_core.pipeline.materials import Materials
from qpruner_core.quantization.bank import Bank
from qpruner_core.store.records import RunStore

TABLE = Path(__file__).resolve().parent / "true_front.npz"
PRECISIONS = ("nf4", "int8")
"""What a layer may get; bit l of a plan's index (layer 0 is the most significant) chooses."""
RATIO = 0.2
SEQUENCES_PER_BATCH = 32
"""Sequences whose hidden states are held at once, for every depth of the tree."""
TOLERANCE = 1e-4
"""Nats by which the walk may differ from the model's own forward: float32 in another order."""


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """The pruned model, its candidates and what they are measured on."""

    record: RunRecord
    materials: Materials
    line: Line

    def signals(self) -> QuantizationOutcome:
        """Measure sensitivities and mutual information as the product does."""
        self.line.step("quantize")
        found = self.line.record().quantize
        if found is None:
            raise RuntimeError("the quantising step has left no outcome")
        return found

    @property
    def layout(self) -> ModelLayout:
        """Layout of the pruned model."""
        return self.materials.layout()

    @property
    def heldout(self) -> torch.Tensor:
        """Token ids of a trial's text, ``(n_sequences, length)``."""
        return self.materials.corpus().heldout


def pruned_demo(home: Path, source: str = "demo") -> Subject:
    """Return a model pruned by the product's own line, with its defaults.

    Args:
        home: Empty folder for the run.
        source: The model.
    """
    spec = RunSpec(
        model=ModelSpec(source=source),
        importance=ImportanceSpec(criteria=("flap",)),
        pruning=PruningSpec(ratio=RATIO),
        search=SearchSpec(precisions=PRECISIONS, memory_budget="1.0"),
    )
    store = RunStore(home)
    run_id = store.create(spec).run_id
    device = pick_device()
    line = Line(store, run_id, device)
    steps = ("load", "score", "prune")
    line.begin(spec, steps)
    for step in steps:
        line.step(step)
    materials = Materials(
        line.record, device, lambda artifact: store.read_arrays(run_id, artifact)
    )
    return Subject(line.record(), materials, line)


def plan_of(layout: ModelLayout, index: int) -> PrecisionPlan:
    """Return the plan with that index: its bits choose the layers' precisions."""
    bits = f"{index:0{layout.n_layers}b}"
    return PrecisionPlan.by_layer(layout, [PRECISIONS[int(bit)] for bit in bits])


class Walk:
    """Depth first over all plans, one batch of text at a time."""

    def __init__(self, bank: Bank) -> None:
        self._bank = bank
        self._layers = [
            [li.name for li in bank.layout.linears if li.layer == layer]
            for layer in range(bank.layout.n_layers)
        ]

    @torch.no_grad()
    def losses(self, ids: torch.Tensor) -> NDArray[np.float32]:
        """Return the loss of every plan on every sequence, ``(n_plans, n_sequences)``."""
        n_plans = len(PRECISIONS) ** len(self._layers)
        found = np.empty((n_plans, len(ids)), dtype=np.float32)
        first = 0
        for batch in torch.split(ids, SEQUENCES_PER_BATCH):
            inputs = first_inputs(self._bank.model, self._bank.layout, batch)
            for index, hidden in enumerate(self._below(0, inputs)):
                values = sequence_losses(self._bank.model, hidden, batch)
                found[index, first : first + len(batch)] = values.numpy()
            first += len(batch)
        self._bank.restore()
        return found

    def _below(self, layer: int, inputs: LayerInputs) -> Iterator[torch.Tensor]:
        """Give the states after the last layer for all choices from a layer on, in order."""
        if layer == len(self._layers):
            yield inputs.hidden
            return
        bank = self._bank
        for precision in PRECISIONS:
            for name in self._layers[layer]:
                bank.set(name, precision)
            hidden = run_layers(bank.model, bank.layout, inputs, layer, layer + 1)
            yield from self._below(layer + 1, inputs.at(hidden))


def table_bytes(layout: ModelLayout, bank: Bank) -> NDArray[np.int64]:
    """Return the packed bytes of every plan, ``(n_plans,)``."""
    n_plans = len(PRECISIONS) ** layout.n_layers
    sizes = [bank.packed_bytes(plan_of(layout, index)) for index in range(n_plans)]
    return np.array(sizes, dtype=np.int64)


def measure(arguments: argparse.Namespace) -> form.Report:
    """Walk the tree, compare some of its rows with the model's own forward, keep the table."""
    torch.set_num_threads(arguments.threads)
    with TemporaryDirectory() as home:
        subject = pruned_demo(Path(home), arguments.model)
        layout, ids = subject.layout, subject.heldout
        if arguments.quick:
            ids = ids[:2]
        bank = subject.materials.bank(PRECISIONS)
        started = perf_counter()
        losses = Walk(bank).losses(ids)
        walked = perf_counter() - started
        sizes = table_bytes(layout, bank)
        checked = _checked(bank, layout, ids, losses.mean(axis=1, dtype=np.float64))
    if arguments.keep:
        _write(Path(arguments.keep), losses, sizes, _about(subject.record, ids, walked))
    worst = max(abs(row["walked_nats"] - row["forward_nats"]) for row in checked)
    naive = len(losses) * sum(row["forward_seconds"] for row in checked) / len(checked)
    targets = (
        form.Target(
            name="walked loss over that of the model's forward, largest difference in nats",
            value=worst,
            target=TOLERANCE,
        ),
        form.Target(
            name="seconds of the walk over one forward per plan", value=walked / naive, target=0.6
        ),
    )
    return form.Report(name="true_front", rows=checked, targets=targets)


def _checked(
    bank: Bank, layout: ModelLayout, ids: torch.Tensor, losses: NDArray[np.float64]
) -> list[dict[str, float]]:
    """Return ten plans measured by the model's own forward as well."""
    rows = []
    for index in np.random.default_rng(0).choice(len(losses), size=10, replace=False):
        bank.apply(plan_of(layout, int(index)))
        started = perf_counter()
        own = text_loss(bank.model, ids)
        seconds = perf_counter() - started
        rows.append(
            {
                "plan": int(index),
                "walked_nats": float(losses[index]),
                "forward_nats": own,
                "forward_seconds": seconds,
            }
        )
    bank.restore()
    return rows


def _about(record: RunRecord, ids: torch.Tensor, walked: float) -> str:
    pruned = record.prune
    return json.dumps(
        {
            "command": "python benchmarks/true_front.py --keep benchmarks/true_front.npz",
            "date": datetime.now(UTC).date().isoformat(),
            "model": record.spec.model.source,
            "ratio": RATIO,
            "parameters": pruned.parameters_after if pruned is not None else 0,
            "precisions": PRECISIONS,
            "sequences": list(ids.shape),
            "seconds": round(walked, 1),
            "machine": form.machine(),
            "versions": form.versions(),
        }
    )


def _write(path: Path, losses: NDArray[np.float32], sizes: NDArray[np.int64], about: str) -> None:
    np.savez_compressed(path, sequence_losses=losses, weight_bytes=sizes, about=np.array(about))


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """The stored table."""

    sequence_losses: NDArray[np.float32]
    """``(n_plans, n_sequences)``; nats per predicted token."""
    weight_bytes: NDArray[np.int64]
    """``(n_plans,)``."""
    about: dict[str, object]
    """Command, date, machine and versions that made it."""

    @property
    def losses(self) -> NDArray[np.float64]:
        """Loss of every plan, ``(n_plans,)``; nats per predicted token."""
        means: NDArray[np.float64] = self.sequence_losses.mean(axis=1, dtype=np.float64)
        return means


def read(path: Path = TABLE) -> Truth:
    """Return the stored table."""
    with np.load(path, allow_pickle=False) as stored:
        return Truth(
            sequence_losses=stored["sequence_losses"],
            weight_bytes=stored["weight_bytes"],
            about=json.loads(str(stored["about"])),
        )


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="demo", help="the model; the demo by default")
    parser.add_argument("--keep", help="write the table to this file")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")


if __name__ == "__main__":
    sys.exit(form.main(measure, "Every plan of a small search space, measured.", _arguments))
