"""``qpruner compress``: a model of any size, pruned and written layer by layer."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpruner_core.catalog import PRECISIONS
from qpruner_core.cli.specs import model_spec, overlay
from qpruner_core.domain.footprint import format_bytes
from qpruner_core.domain.progress import OnProgress, silent
from qpruner_core.domain.spec import ExportSpec, RunSpec
from qpruner_core.errors import BadInputError

if TYPE_CHECKING:
    from qpruner_core.domain.compression import CompressionOutcome


def compress_options(parser: ArgumentParser) -> None:
    """Add what only this command asks; model, text and pruning are asked as elsewhere."""
    parser.add_argument(
        "--precision",
        choices=PRECISIONS.names(),
        help="of every Linear; without it the memory budget chooses layer by layer",
    )
    parser.add_argument("--out", required=True, help="folder to create; it must not exist yet")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random")


def compress_spec(arguments: Namespace) -> RunSpec:
    """Return what the arguments ask for.

    Raises:
        BadInputError: A precision and a budget were both given.
    """
    spec = overlay(RunSpec(model=model_spec(arguments)), arguments)
    if arguments.precision is None:
        return replace(spec, export=replace(spec.export, format="hf_mixed"))
    if arguments.memory_budget is not None or arguments.precisions is not None:
        raise BadInputError(
            f"The precision {arguments.precision} was given for every Linear, and a memory budget "
            "or a choice of precisions beside it. Give one or the other."
        )
    plain = PRECISIONS.entry(arguments.precision).facts["bits"] == 16
    return replace(
        spec,
        search=replace(spec.search, precisions=(arguments.precision,), memory_budget="1.0"),
        export=replace(spec.export, format="hf_16bit" if plain else ExportSpec().format),
    )


def run_compress(arguments: Namespace, show: OnProgress) -> tuple[dict[str, Any], list[str]]:
    """Compress a model; return the JSON document and the lines for a person."""
    spec = compress_spec(arguments)
    kind, _, card = arguments.device.partition(":")
    if card:
        os.environ["CUDA_VISIBLE_DEVICES"] = card
    from qpruner_core.models.device import pick_device  # noqa: PLC0415 - loads torch
    from qpruner_core.pipeline.streaming import compress  # noqa: PLC0415 - loads torch

    out = Path(str(spec.export.out))
    told = silent if arguments.quiet else show
    outcome = compress(spec, out, pick_device(kind), told)
    return compression_document(outcome), compression_lines(outcome)


def compression_document(outcome: CompressionOutcome) -> dict[str, Any]:
    """Return what was written; ``planned_bytes`` is computed, all other bytes were measured."""
    return {
        "path": outcome.path,
        "model": outcome.spec.model.source,
        "criterion": outcome.spec.pruning.criterion,
        "ratio": outcome.spec.pruning.ratio,
        "parameters_before": outcome.parameters_before,
        "parameters_after": outcome.parameters_after,
        "bytes": outcome.size_bytes,
        "planned_bytes": outcome.planned_bytes,
        "largest_layer_bytes": outcome.largest_layer_bytes,
        "peak_memory_bytes": outcome.peak_memory_bytes,
        "device": outcome.device,
        "n_tokens": outcome.n_tokens,
        "pruning": asdict(outcome.pruning),
        "plan": dict(outcome.plan.precisions),
        "seconds": {name: round(value, 3) for name, value in outcome.seconds.items()},
        "warnings": list(outcome.warnings),
        "files": dict(outcome.files),
    }


def compression_lines(outcome: CompressionOutcome) -> list[str]:
    """Return what was written for a person."""
    counts = {name: 0 for name in dict.fromkeys(outcome.plan.precisions.values())}
    for name in outcome.plan.precisions.values():
        counts[name] += 1
    layer = f"the largest layer takes {format_bytes(outcome.largest_layer_bytes)}"
    peak = outcome.peak_memory_bytes
    return [
        f"pruned {outcome.spec.pruning.ratio:.0%} by {outcome.spec.pruning.criterion}: "
        f"{outcome.parameters_before:,} -> {outcome.parameters_after:,} parameters",
        f"precisions: {', '.join(f'{count} x {name}' for name, count in counts.items())}",
        f"wrote {format_bytes(outcome.size_bytes)} to {outcome.path}",
        layer if peak is None else f"peak memory {format_bytes(peak)}, {layer}",
        *outcome.warnings,
    ]
