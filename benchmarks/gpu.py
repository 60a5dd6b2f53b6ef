"""What a card holds and does: LoRA training, trials, generation and reloading of packed plans.

A randomly initialised model of LLaMA-7B's shape, in bf16 and pruned by 20 %, is trained by the
paper's public settings (batches read four sequences of 256 tokens at a time, adapters of rank 8 on
all seven projections) under 16 bit and under QPruner plans. Weights are random, so that nothing is
said of quality. Without a card the same is done at a tiny shape, which tests the script and proves
no figure.
"""

from __future__ import annotations

import argparse
import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "2")

import gc
import tempfile
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).resolve().parent))

import form
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from qpruner_core.catalog import EXPORTERS
from qpruner_core.data.training import TrainingSet
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.plan import PrecisionPlan, PruningPlan
from qpruner_core.domain.progress import Progress
from qpruner_core.domain.record import ModelCard
from qpruner_core.domain.recovery import PRESETS, RecoverySpec
from qpruner_core.domain.spec import PruningSpec
from qpruner_core.domain.speed import SpeedSpec
from qpruner_core.evaluation import Suite
from qpruner_core.evaluation.latency import measure_speed
from qpruner_core.export import ExportFacts
from qpruner_core.models.architectures import llama
from qpruner_core.models.device import Device, pick_device
from qpruner_core.pruning.selection import select
from qpruner_core.pruning.surgery import prune_
from qpruner_core.quantization.bank import Bank
from qpruner_core.quantization.packing import pack_, packed_bytes
from qpruner_core.recovery.lora import recover

RATIO = 0.2
SIXTEEN_BIT = "16 bit (LLM-Pruner)"
SAVED_TARGET = 0.70
ESTIMATE_TARGET = 0.10
TRIAL_TARGET = 1.10
PRECISION_NAMES = ("nf4", "int8", "bf16")
_CONTEXT = 512
_SHAPES: Mapping[str, Mapping[str, int]] = {
    "7b": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 2048,
    },
    "tiny": {
        "vocab_size": 128,
        "hidden_size": 256,
        "intermediate_size": 640,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 1024,
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What all rows share."""

    config: LlamaConfig
    device: Device
    pruning: PruningPlan
    layout: ModelLayout
    """Layout of the pruned model."""
    recovery: RecoverySpec
    n_repetitions: int
    """Trials and bare forwards timed."""

    def tokens(self, n_sequences: int, length: int) -> torch.Tensor:
        """Return seeded random token ids, on the CPU."""
        generator = torch.Generator().manual_seed(0)
        shape = (n_sequences, length)
        return torch.randint(self.config.vocab_size, shape, generator=generator)


def setup(shape: str, device: Device, quick: bool) -> Setup:
    """Return what all rows share at a shape."""
    config = LlamaConfig(**_SHAPES[shape], tie_word_embeddings=False)
    dense = llama.layout(config.to_dict())
    pruning = select(dense, None, PruningSpec(ratio=RATIO, scope="per-layer")).plan
    paper = PRESETS["paper"]
    recovery = replace(
        paper,
        steps=4 if quick else 8,
        batch_size=paper.forward_sequences,
        checkpoint_steps=0,
        sequence_length=256 if shape == "7b" else 32,
    )
    return Setup(
        config=config,
        device=device,
        pruning=pruning,
        layout=dense.pruned(pruning),
        recovery=recovery,
        n_repetitions=5 if quick else 15,
    )


def pruned_model(given: Setup) -> nn.Module:
    """Return a new random model on the device, pruned."""
    gc.collect()
    if given.device.kind == "cuda":
        torch.cuda.empty_cache()
    torch.manual_seed(0)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(given.device.compute_dtype)
    try:
        with given.device.torch:
            # Pruning writes the widths into the config: each model has one of its own.
            model = LlamaForCausalLM(deepcopy(given.config)).eval()
    finally:
        torch.set_default_dtype(usual)
    prune_(model, llama.layout(given.config.to_dict()), given.pruning)
    return model


def plans(layout: ModelLayout) -> dict[str, PrecisionPlan]:
    """Return row -> plan: 16 bit, the paper's variants, and all three precisions mixed."""
    quarter = range(0, layout.n_layers, 4)
    mixed = [PRECISION_NAMES[min(2, index % 4)] for index in range(layout.n_layers)]
    eight = ["int8" if index in quarter else "nf4" for index in range(layout.n_layers)]
    return {
        SIXTEEN_BIT: PrecisionPlan.uniform(layout, "bf16"),
        "QPruner-1 (nf4)": PrecisionPlan.uniform(layout, "nf4"),
        "int8 in every fourth layer": PrecisionPlan.by_layer(layout, eight),
        "uniform int8": PrecisionPlan.uniform(layout, "int8"),
        "nf4, int8, bf16 mixed": PrecisionPlan.by_layer(layout, mixed),
    }


def row_of(given: Setup, name: str, plan: PrecisionPlan) -> dict[str, form.Cell]:
    """Pack a plan, generate with it, train on it, and say what that took."""
    model = pruned_model(given)
    pack_(model, given.layout, plan, given.device.compute_dtype)
    cells: dict[str, form.Cell] = {"plan": name, "packed_bytes": packed_bytes(model)}
    cells |= _inference(given, model)
    return cells | _training(given, model, plan)


def _inference(given: Setup, model: nn.Module) -> dict[str, form.Cell]:
    """Time generation behind a prompt, one sequence."""
    asked = SpeedSpec(context=_CONTEXT, n_repetitions=given.n_repetitions)
    speed = measure_speed(model, given.tokens(1, _CONTEXT), asked)
    return {
        "inference_peak_bytes": speed.peak_memory_bytes,
        "prefill_tokens_per_second": speed.prefill.median,
        "decode_tokens_per_second": speed.decode.median,
    }


def _training(given: Setup, model: nn.Module, plan: PrecisionPlan) -> dict[str, form.Cell]:
    """Train adapters beside a plan, without evaluation around it.

    A step here is one micro-batch of the paper's preset: its own steps take 128 sequences.
    """
    spec = given.recovery
    told: list[float] = []

    def tell(progress: Progress) -> None:
        if progress.done:
            told.append(perf_counter())

    nothing = Metrics(loss=0.0, accuracy=0.0, weight_bytes=0, device=given.device.name)
    ids = given.tokens(spec.steps * spec.batch_size, spec.sequence_length)
    with tempfile.TemporaryDirectory(prefix="qpruner-gpu-") as folder:
        found = recover(
            model,
            given.layout,
            plan,
            spec,
            TrainingSet.of_text(ids),
            evaluate=lambda _model, _bytes: nothing,
            folder=Path(folder) / "adapter",
            on_progress=tell,
        )
    steps = [after - before for before, after in pairwise(told)]
    peak = found.peak_memory_bytes
    return {
        "training_peak_bytes": peak,
        "training_estimated_bytes": found.estimated_memory_bytes,
        "estimate_error": abs(found.estimated_memory_bytes - peak) / peak if peak else None,
        "seconds_per_micro_batch": median(steps),
    }


def trial_cost(given: Setup) -> dict[str, form.Cell]:
    """Time trials with the packed bank against the forward of the same plan, and of 16 bit."""
    model = pruned_model(given)
    bank = Bank(model, given.layout, PRECISION_NAMES, given.device, packed=True)
    suite = Suite(given.tokens(8, given.recovery.sequence_length), {})
    chosen = list(plans(given.layout).values())
    dense, bare, trial = [], [], []
    for index in range(given.n_repetitions + 1):
        plan, other = chosen[index % len(chosen)], chosen[(index + 1) % len(chosen)]
        bank.restore()
        dense.append(_seconds(given, lambda: suite.loss(model)))
        bank.apply(plan)
        bare.append(_seconds(given, lambda: suite.loss(model)))
        bank.apply(other)
        trial.append(_seconds(given, lambda plan=plan: _one_trial(bank, suite, plan)))
    bank.restore()
    # The first of each warms up: the same plans stand on both sides of the ratio.
    return {
        "trial_seconds": median(trial[1:]),
        "trial_over_forward": median(t / b for t, b in zip(trial[1:], bare[1:], strict=True)),
        "trial_over_16_bit_forward": median(trial[1:]) / median(dense[1:]),
    }


def _one_trial(bank: Bank, suite: Suite, plan: PrecisionPlan) -> None:
    bank.apply(plan)
    suite.loss(bank.model)


def _seconds(given: Setup, work: Callable[[], object]) -> float:
    wait = torch.cuda.synchronize if given.device.kind == "cuda" else lambda: None
    wait()
    started = perf_counter()
    work()
    wait()
    return perf_counter() - started


def weights_that_differ(device: Device) -> int:
    """Write a small mixed checkpoint on the CPU, open it on the device with stock transformers,
    and return how many Linears dequantise to another weight there.
    """
    on_cpu = setup("tiny", pick_device("cpu"), quick=True)
    plan = plans(on_cpu.layout)["nf4, int8, bf16 mixed"]
    model = pruned_model(on_cpu)
    pack_(model, on_cpu.layout, plan, torch.float32)
    dense = llama.layout(on_cpu.config.to_dict())
    card = ModelCard(
        source="random",
        revision=None,
        title="random",
        layout=dense,
        parameters=sum(p.numel() for p in model.parameters()),
        file_bytes=0,
        dtype="F32",
        max_positions=on_cpu.config.max_position_embeddings,
    )
    facts = ExportFacts(card=card, layout=on_cpu.layout, pruning=on_cpu.pruning, plan=plan)
    with tempfile.TemporaryDirectory(prefix="qpruner-gpu-") as folder:
        place = Path(folder) / "checkpoint"
        EXPORTERS.target("hf_mixed").export(model, None, facts, place)
        opened = AutoModelForCausalLM.from_pretrained(
            place, trust_remote_code=True, dtype=torch.float32, device_map={"": device.torch}
        )
    differing = 0
    for name in plan.precisions:
        ours, theirs = (_dense(m.get_submodule(name)) for m in (model, cast("Any", opened)))
        differing += not torch.equal(ours.cpu(), theirs.cpu())
    return differing


def _dense(module: nn.Module) -> torch.Tensor:
    """Return the weight that a packed module computes with, by multiplying the identity."""
    columns = cast("Any", module).in_features
    place = next(module.parameters()).device
    identity = torch.eye(columns, dtype=torch.float32, device=place)
    with torch.no_grad():
        bias = cast("Any", module).bias
        product: torch.Tensor = module(identity)
        return product if bias is None else product - bias


def measure(arguments: argparse.Namespace) -> form.Report:
    """Measure every plan, the bank and the reload."""
    device = pick_device(arguments.device)
    shape = arguments.shape or ("7b" if device.kind == "cuda" else "tiny")
    given = setup(shape, device, arguments.quick)
    beside = trial_cost(given)
    rows = [{**row_of(given, name, plan)} for name, plan in plans(given.layout).items()]
    sixteen = cast("int", rows[0]["training_peak_bytes"])
    for row in rows:
        row["training_over_16_bit"] = cast("int", row["training_peak_bytes"]) / sixteen
        row["shape"], row["device"] = shape, device.name
    rows[0] |= beside
    rows = [{**dict.fromkeys(rows[0]), **row} for row in rows]
    return form.Report(name="gpu", rows=rows, targets=_targets(rows, shape, device))


def _targets(rows: list[dict[str, form.Cell]], shape: str, device: Device) -> list[form.Target]:
    """Return the bounds; those of memory and time count at the real shape on a card alone."""
    differing = weights_that_differ(device)
    found = [
        form.Target(
            name="Linears of a CPU-made checkpoint that dequantise otherwise on the device",
            value=float(differing),
            target=0.0,
        )
    ]
    if shape != "7b" or device.kind != "cuda":
        return found
    quantised = [row for row in rows if row["plan"] in ("QPruner-1 (nf4)", rows[2]["plan"])]
    worst = max(cast("float", row["training_over_16_bit"]) for row in quantised)
    errors = max(cast("float", row["estimate_error"]) for row in rows)
    trial = cast("float", rows[0]["trial_over_forward"])
    return [
        *found,
        form.Target(name="training memory over 16 bit", value=worst, target=SAVED_TARGET),
        form.Target(name="estimate off the measured peak", value=errors, target=ESTIMATE_TARGET),
        form.Target(name="trial over forward", value=trial, target=TRIAL_TARGET),
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark takes."""
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--shape", choices=tuple(_SHAPES), help="default: 7b on a card, else tiny")


if __name__ == "__main__":
    sys.exit(form.main(measure, "Training, trials and generation of packed plans.", add_arguments))
