"""What pruning costs in loss, ours against the peers: same model, ratio and calibration tokens.

Every method prunes a fresh copy of one dense model, in turns in one process. LLM-Pruner is its
published settings expressed in our options (`PUBLISHED`). FLAP stands twice: as its authors run it
(`flap_peer`), and as our options say it, with the first and last layers protected, which helps it.
torch-pruning is the package, driven as its own example for language models drives it, its ratio
searched so that as many parameters leave (`torch_pruning_peer`). It cannot prune the grouped-query
demo: that is tried too, under a time limit, and stands as a row.
"""

from __future__ import annotations

import argparse
import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("MALLOC_ARENA_MAX", "2")

import copy
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter

sys.path.insert(0, str(Path(__file__).resolve().parent))

import flap_peer
import form
import torch
import torch_pruning_peer
from memory import peak_memory
from multi_head import multi_head_folder
from torch import nn

from qpruner_core.catalog import CRITERIA
from qpruner_core.data import load_corpus
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.spec import DataSpec, ImportanceSpec, ModelSpec, PruningSpec
from qpruner_core.evaluation import Suite, build_suite
from qpruner_core.importance import score
from qpruner_core.models.device import pick_device
from qpruner_core.models.loader import load
from qpruner_core.pruning.compensation import bias_values, settled_statistics, with_biases
from qpruner_core.pruning.selection import select
from qpruner_core.pruning.surgery import prune_

RATIOS = (0.2, 0.3, 0.5)
DEFAULT = "ours, the default"
UNGROUPED_LAYERS = 4
"""Layers of the grouped-query model that torch-pruning is given to try."""

_SINGLE = {"width_multiple": 1}
PUBLISHED = {
    # arXiv:2305.11627, section 4.1 and the authors' script: element-wise first-order Taylor
    # ("param_first"), summed over a group, the same ratio in every block but the first and last.
    "LLM-Pruner": PruningSpec(criterion="taylor", scope="per-layer", **_SINGLE),
    # The same with the second-order term ("param_mix").
    "LLM-Pruner, mixed": PruningSpec(criterion="taylor_mixed", scope="per-layer", **_SINGLE),
}
"""Peer -> its published settings, the ratio apart."""


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """One dense model with what it is scored and measured on."""

    name: str
    model: nn.Module
    layout: ModelLayout
    ids: torch.Tensor
    """Calibration tokens, (n, length)."""
    suite: Suite


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What one method left of a subject."""

    metrics: Metrics
    parameters: int
    seconds: float
    """Scoring, selection, surgery and compensation; median of the repetitions."""
    peak_bytes: int
    """Most memory held above the loaded model while it was pruned."""


Prune = Callable[[nn.Module, Subject], None]
"""Prunes a copy of the subject's model, in place."""
Method = tuple[str, str, Prune]
"""Whose it is (``ours`` or ``peer``), its name, and what it does."""


def subject(name: str, folder: str, *, quick: bool) -> Subject:
    """Return the model of a folder with the demo's own text and items."""
    device = pick_device("cpu")
    loaded = load(ModelSpec(source=folder), device)
    data = DataSpec(items_per_task=20 if quick else 100)
    if quick:
        data = replace(data, calibration_tokens=2048, heldout_tokens=4096)
    corpus = load_corpus(data, loaded.tokenizer)
    suite = build_suite(loaded.tokenizer, corpus)
    return Subject(name, loaded.model, loaded.layout, corpus.calibration, suite)


def by_spec(spec: PruningSpec) -> Prune:
    """Return what prunes by a spec: one criterion scored, units selected, removed, compensated."""

    def prune(model: nn.Module, given: Subject) -> None:
        asked = ImportanceSpec(criteria=(spec.criterion,))
        scores = score(model, given.layout, given.ids, asked)
        plan = select(given.layout, scores.unit_scores[spec.criterion], spec).plan
        biases = None
        if spec.compensation == "bias":
            plan = with_biases(given.layout, plan)
            stats = settled_statistics(model, given.layout, plan, given.ids)
            biases = bias_values(model, given.layout, plan, stats)
        prune_(model, given.layout, plan, biases)

    return prune


def methods(given: Subject, ratio: float) -> Iterator[Method]:
    """Yield our default, the peers that can prune the model, and ours by every criterion."""
    default = replace(PruningSpec(), ratio=ratio)
    yield "ours", DEFAULT, by_spec(default)
    for name, spec in PUBLISHED.items():
        yield "peer", name, by_spec(replace(spec, ratio=ratio))
    yield (
        "peer",
        "FLAP",
        lambda model, subject: flap_peer.flap_(model, subject.layout, subject.ids, ratio),
    )
    ours_of_flap = PruningSpec(criterion="flap", scope="standardised", compensation="bias")
    yield "peer", "FLAP, ends protected", by_spec(replace(ours_of_flap, ratio=ratio, **_SINGLE))
    if given.layout.n_heads == given.layout.n_kv_heads:
        target = int(ratio * sum(given.layout.layer_parameters))
        chosen = torch_pruning_peer.ratio_for(given.model, given.ids[:1], target)
        yield (
            "peer",
            "torch-pruning",
            lambda model, subject: torch_pruning_peer.step_(model, subject.ids[:1], chosen),
        )
    for entry in CRITERIA:
        if entry.facts["scores"] == "units":
            for compensation in ("none", "bias"):
                spec = replace(default, criterion=entry.name, compensation=compensation)
                words = entry.name if compensation == "none" else f"{entry.name} + bias"
                yield "ours", words, by_spec(spec)


def outcomes(
    given: Subject, tried: Sequence[Method], repetitions: int
) -> dict[tuple[str, str], Outcome]:
    """Prune fresh copies of the model by every method in turns, and measure each once."""
    seconds: dict[tuple[str, str], list[float]] = {}
    found: dict[tuple[str, str], Outcome] = {}
    for repetition in range(repetitions + 1):  # the first warms up and is measured, not timed
        for whose, words, prune in tried:
            model = copy.deepcopy(given.model)
            with peak_memory() as peak:
                started = perf_counter()
                prune(model, given)
                taken = perf_counter() - started
            seconds.setdefault((whose, words), []).append(taken)
            if repetition == 0:
                metrics = given.suite.evaluate(model, weight_bytes=0, device_name="cpu")
                parameters = sum(parameter.numel() for parameter in model.parameters())
                found[whose, words] = Outcome(metrics, parameters, taken, peak.bytes)
                say(given.name, whose, words, metrics.loss, taken)
    return {key: replace(found[key], seconds=median(times[1:])) for key, times in seconds.items()}


def say(*words: object) -> None:
    """Tell the person how far it is."""
    print(*words, file=sys.stderr, flush=True)


def measure(arguments: argparse.Namespace) -> form.Report:
    """Run every method at every ratio on both models."""
    quick = arguments.quick
    rows: list[dict[str, form.Cell]] = []
    targets: list[form.Target] = []
    folders = {
        "demo": "demo",
        "multi-head": str(arguments.multi_head or multi_head_folder(100 if quick else 3000)),
    }
    for name, folder in folders.items():
        given = subject(name, folder, quick=quick)
        dense = given.suite.evaluate(given.model, weight_bytes=0, device_name="cpu")
        rows.append(_row(given, 0.0, "", "dense", Outcome(dense, given.layout.parameters, 0, 0)))
        for ratio in RATIOS[1:2] if quick else RATIOS:
            found = outcomes(
                given, [*methods(given, ratio)], arguments.repetitions or (1 if quick else 3)
            )
            rows += [_row(given, ratio, *key, result) for key, result in found.items()]
            targets += _targets(given, ratio, found)
    rows.append(grouped_query_row(60 if quick else 480))
    return form.Report(name="pruning_peers", rows=rows, targets=targets)


def grouped_query_row(limit: int) -> dict[str, form.Cell]:
    """Return what becomes of torch-pruning on the first layers of the grouped-query demo."""
    command = [sys.executable, torch_pruning_peer.__file__, str(UNGROUPED_LAYERS)]
    started = perf_counter()
    try:
        ended = subprocess.run(command, check=False, timeout=limit, capture_output=True, text=True)  # noqa: S603 - our own script
        words = ended.stderr.strip().splitlines()[-1][:80] if ended.returncode else "ended"
    except subprocess.TimeoutExpired:
        words = f"no end within {limit} s"
    return {
        "model": f"demo, first {UNGROUPED_LAYERS} layers",
        "ratio": 0.2,
        "whose": "peer",
        "method": f"torch-pruning: {words}",
        **dict.fromkeys(("loss", "accuracy", "parameters")),
        "seconds": perf_counter() - started,
        "peak MiB": None,
    }


def _targets(
    given: Subject, ratio: float, found: dict[tuple[str, str], Outcome]
) -> list[form.Target]:
    """Return our default's loss over the best peer's, and its time over that peer's."""
    ours = found["ours", DEFAULT]
    peers = {words: result for (whose, words), result in found.items() if whose == "peer"}
    best = min(peers, key=lambda words: peers[words].metrics.loss)
    where = f"{given.name}, {ratio:.0%}: our default over the best peer ({best})"
    return [
        form.Target(
            name=f"{where}, loss",
            value=ours.metrics.loss / peers[best].metrics.loss,
            target=1.0,
        ),
        form.Target(
            name=f"{where}, seconds", value=ours.seconds / peers[best].seconds, target=1.0
        ),
    ]


def _row(
    given: Subject, ratio: float, whose: str, words: str, result: Outcome
) -> dict[str, form.Cell]:
    return {
        "model": given.name,
        "ratio": ratio,
        "whose": whose,
        "method": words,
        "loss": round(result.metrics.loss, 4),
        "accuracy": round(result.metrics.accuracy or 0.0, 4),
        "parameters": result.parameters,
        "seconds": round(result.seconds, 3),
        "peak MiB": round(result.peak_bytes / 2**20, 1),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark can be told."""
    parser.add_argument(
        "--multi-head", type=Path, help="folder of a multi-head variant; default: train one"
    )
    parser.add_argument("--repetitions", type=int, help="times that every method is timed")


if __name__ == "__main__":
    sys.exit(form.main(measure, __doc__.splitlines()[0], add_arguments))
