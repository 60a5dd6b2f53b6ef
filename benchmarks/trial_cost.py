"""What a search trial costs over the bare evaluation forward.

A trial points the model at a plan's candidates and evaluates it; the bare forward evaluates the
plain dense model and does nothing else. Both run in turns in one process, so that whatever else
the machine does falls on both. What sensitivities cost is measured by `sensitivity_cost.py`.
"""

from __future__ import annotations

import argparse
import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "2")

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parent))

import form
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from qpruner_core.data import load_corpus
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.spec import DataSpec, ModelSpec
from qpruner_core.evaluation import Suite, build_suite
from qpruner_core.evaluation.choices import EncodedItem
from qpruner_core.models.architectures import llama
from qpruner_core.models.device import Device, pick_device
from qpruner_core.models.loader import load
from qpruner_core.quantization.bank import Bank

T = TypeVar("T")
PRECISIONS = ("nf4", "int8", "bf16")
TRIAL_TARGET = 1.10


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """What is measured: a model, its layout and the suite of a study."""

    model: nn.Module
    layout: ModelLayout
    suite: Suite
    ids: torch.Tensor
    """Calibration tokens, ``(n, length)``."""
    device: Device


def demo_subject() -> Subject:
    """Return the demo model with its own text and tasks."""
    device = pick_device()
    loaded = load(ModelSpec(source="demo"), device)
    corpus = load_corpus(DataSpec(), loaded.tokenizer)
    suite = build_suite(loaded.tokenizer, corpus)
    return Subject(loaded.model, loaded.layout, suite, corpus.calibration, device)


def random_subject() -> Subject:
    """Return a random model of the demo's shape, with text and items of the demo's lengths."""
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=12,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        tie_word_embeddings=True,
        max_position_embeddings=256,
    )
    torch.manual_seed(0)
    device = pick_device()
    model = LlamaForCausalLM(config).half().to(device.torch, device.compute_dtype).eval()

    def tokens(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(2048, (n,)).tolist())

    def item(n_choices: int, n_tokens: int) -> EncodedItem:
        return EncodedItem(
            contexts=(tokens(24),) * n_choices,
            continuations=tuple(tokens(n_tokens) for _ in range(n_choices)),
            n_characters=(6,) * n_choices,
            gold=0,
        )

    kinds = {"boolq": (2, 1), "piqa": (2, 4), "hellaswag": (4, 5), "winogrande": (2, 3)}
    kinds |= dict.fromkeys(("arc_easy", "arc_challenge", "openbookqa"), (4, 1))
    tasks = {name: [item(*kind) for _ in range(40)] for name, kind in kinds.items()}
    suite = Suite(torch.randint(2048, (96, 128)), tasks)
    layout = llama.layout(config.to_dict())
    return Subject(model, layout, suite, torch.randint(2048, (64, 128)), device)


@dataclass(frozen=True, slots=True)
class Cost:
    """What one repetition took."""

    seconds: float
    """Wall time."""
    cpu_seconds: float
    """Processor time of this process, all threads; other processes hardly change it."""


def measure(arguments: argparse.Namespace) -> form.Report:
    """Time bare evaluations and trials in turns."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    quick = arguments.quick
    subject = random_subject() if arguments.random else demo_subject()
    built, bank = timed(lambda: Bank(subject.model, subject.layout, PRECISIONS, subject.device))
    bare, trial, applied = _in_turns(subject, bank, n_pairs=9 if quick else 25)
    ratio = _median(trial) / _median(bare)
    rows = [
        _row("bare evaluation forward", bare),
        _row("trial: apply a random plan, evaluate", trial),
        _row("bank.apply alone", applied),
        _row("bank built once", [built]),
    ]
    targets = (form.Target(name="trial over bare forward", value=ratio, target=TRIAL_TARGET),)
    return form.Report(name="trial_cost", rows=rows, targets=targets)


def _in_turns(
    subject: Subject, bank: Bank, n_pairs: int
) -> tuple[list[Cost], list[Cost], list[Cost]]:
    """Return the costs of bare evaluations, of trials, and of ``bank.apply`` within them."""
    bare, trial, applied = [], [], []

    def evaluate() -> None:
        subject.suite.evaluate(subject.model, weight_bytes=0, device_name=subject.device.name)

    def try_plan(plan: PrecisionPlan) -> None:
        applied.append(timed(lambda: bank.apply(plan))[0])
        evaluate()

    evaluate()  # warms up
    for seed in range(n_pairs):
        plan = random_plan(subject.layout, seed)
        for is_trial in (seed % 2 == 0, seed % 2 == 1):  # neither always goes first
            bank.restore()
            if is_trial:
                trial.append(timed(lambda plan=plan: try_plan(plan))[0])
            else:
                bare.append(timed(evaluate)[0])
    bank.restore()
    return bare, trial, applied


def random_plan(layout: ModelLayout, seed: int) -> PrecisionPlan:
    """Return a plan with a precision drawn for every Linear."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(PRECISIONS), (len(layout.linears),), generator=generator).tolist()
    pairs = zip(layout.linears, drawn, strict=True)
    return PrecisionPlan(precisions={linear.name: PRECISIONS[i] for linear, i in pairs})


def now() -> tuple[float, float]:
    """Return wall and processor time once the device has nothing left to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return perf_counter(), process_time()


def since(started: tuple[float, float]) -> Cost:
    """Return what has been spent since `now` gave that."""
    seconds, cpu_seconds = now()
    return Cost(seconds - started[0], cpu_seconds - started[1])


def timed(work: Callable[[], T]) -> tuple[Cost, T]:
    """Return what some work costs, and what it gives."""
    started = now()
    found = work()
    return since(started), found


def _median(costs: list[Cost]) -> float:
    return median(cost.seconds for cost in costs)


def _row(what: str, costs: list[Cost]) -> dict[str, form.Cell]:
    seconds = [cost.seconds for cost in costs]
    return {
        "what": what,
        "median_seconds": median(seconds),
        "lowest_seconds": min(seconds),
        "highest_seconds": max(seconds),
        "median_cpu_seconds": median(cost.cpu_seconds for cost in costs),
        "repetitions": len(costs),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what both benchmarks of the demo model take."""
    parser.add_argument(
        "--random",
        action="store_true",
        help="a random model of the demo's shape, no assets needed",
    )
    parser.add_argument("--threads", type=int, default=2, help="torch threads; 0 for torch's own")


if __name__ == "__main__":
    sys.exit(form.main(measure, "Seconds of a search trial over the bare forward.", add_arguments))
