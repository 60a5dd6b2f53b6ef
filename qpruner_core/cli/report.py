"""What a command prints: one JSON document, or a few lines for a person."""

from __future__ import annotations

import sys
from typing import Any

from qpruner_core.cli.compress import compression_document, compression_lines
from qpruner_core.cli.report_evaluation import accuracy_words, harness_document
from qpruner_core.cli.report_pruning import (
    comparison_document,
    comparison_lines,
    pruning_document,
    what_stays,
)
from qpruner_core.cli.report_recovery import recovery_document, recovery_lines
from qpruner_core.cli.report_search import search_document, search_lines
from qpruner_core.domain import reproduction_table
from qpruner_core.domain.footprint import dense_bytes, format_bytes, plan_bytes
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.record import (
    STEPS,
    ExportOutcome,
    ModelCard,
    PruningOutcome,
    RunRecord,
)
from qpruner_core.domain.recovered import RecoveryOutcome


def write(text: str) -> None:
    """Write a line to stdout."""
    sys.stdout.write(text + "\n")


def card_document(card: ModelCard, formats: dict[str, Any]) -> dict[str, Any]:
    """Return what ``inspect`` says: sizes per precision are computed, not measured."""
    layout = card.layout
    return {
        "model": card.source,
        "revision": card.revision,
        "architecture": layout.model_type,
        "layers": layout.n_layers,
        "hidden_size": layout.hidden_size,
        "query_heads": layout.n_heads,
        "kv_heads": layout.n_kv_heads,
        "head_dim": layout.head_dim,
        "vocabulary": layout.vocab_size,
        "max_positions": card.max_positions,
        "parameters": card.parameters,
        "file_bytes": card.file_bytes,
        "dtype": card.dtype,
        "dense_16_bit_bytes": dense_bytes(layout),
        "estimated_bytes": {
            name: plan_bytes(layout, PrecisionPlan.uniform(layout, name), formats)
            for name in formats
        },
        "kv_cache_bytes_per_token": layout.kv_cache_bytes(1),
    }


def run_document(record: RunRecord) -> dict[str, Any]:
    """Return what is known of a run; every number was measured unless its key says otherwise."""
    document: dict[str, Any] = {
        "run_id": record.run_id,
        "name": record.spec.name,
        "created_at": record.created_at,
        "model": record.spec.model.source,
        "next_step": record.next_step,
        "seconds": {step: round(seconds, 3) for step, seconds in record.seconds.items()},
    }
    if record.prune is not None:
        document["pruning"] = _pruning(record, record.prune)
    if record.comparison is not None:
        document["comparison"] = comparison_document(record.comparison)
    if record.evaluate is not None:
        document["evaluation"] = metrics_document(record.evaluate)
    if record.search is not None:
        document |= search_document(record.search)
    if record.recover is not None:
        document["recovery"] = _recovery(record.recover)
    if record.export is not None:
        document["export"] = _export(record.export)
    if record.harness:
        document["harness"] = [harness_document(outcome) for outcome in record.harness]
    if record.compressed is not None:
        document["compressed"] = compression_document(record.compressed)
    if record.reproduction is not None:
        document["reproduction"] = reproduction_table.document(record.reproduction)
    return document


def _pruning(record: RunRecord, pruned: PruningOutcome) -> dict[str, Any]:
    return {
        **pruning_document(record),
        "before": metrics_document(pruned.before),
        "after": metrics_document(pruned.after),
        "warnings": list(pruned.warnings),
    }


def _recovery(recovered: RecoveryOutcome) -> dict[str, Any]:
    return {
        **recovery_document(recovered),
        "before": metrics_document(recovered.before),
        "after": metrics_document(recovered.after),
    }


def _export(written: ExportOutcome) -> dict[str, Any]:
    return {
        "path": written.path,
        "format": written.spec.format,
        "trial": written.spec.trial,
        "bytes": written.size_bytes,
        "planned_bytes": written.planned_bytes,
        "reload_logits_equal": written.reload_logits_equal,
        "max_logit_difference": written.max_logit_difference,
        "merge_error": written.merge_error,
        "files": dict(written.files),
    }


def metrics_document(metrics: Metrics) -> dict[str, Any]:
    """Return measured numbers by name; where nothing else is said, an accuracy is ``acc``."""
    return {
        "loss": metrics.loss,
        "perplexity": metrics.perplexity,
        "accuracy": metrics.accuracy if metrics.tasks else None,
        "standard_error": metrics.standard_error if metrics.tasks else None,
        "tasks": {name: result.accuracy for name, result in metrics.tasks.items()},
        "task_standard_errors": {
            name: result.standard_error for name, result in metrics.tasks.items()
        },
        "acc_norm": metrics.accuracy_normalized if metrics.tasks else None,
        "standard_error_acc_norm": metrics.standard_error_normalized if metrics.tasks else None,
        "tasks_acc_norm": {
            name: result.accuracy_normalized for name, result in metrics.tasks.items()
        },
        "task_standard_errors_acc_norm": {
            name: result.standard_error_normalized for name, result in metrics.tasks.items()
        },
        "weight_bytes": metrics.weight_bytes,
        "prefill_tokens_per_second": metrics.prefill_tokens_per_second,
        "decode_tokens_per_second": metrics.decode_tokens_per_second,
        "peak_memory_bytes": metrics.peak_memory_bytes,
        "device": metrics.device,
    }


def card_lines(document: dict[str, Any]) -> list[str]:
    """Return a model card for a person."""
    lines = [
        f"{document['model']}: {document['architecture']}, {document['layers']} layers, "
        f"hidden {document['hidden_size']}, {document['query_heads']} query heads and "
        f"{document['kv_heads']} KV heads of {document['head_dim']}",
        f"{document['parameters']:,} parameters, {format_bytes(document['file_bytes'])} on disk "
        f"({document['dtype']})",
        "Estimated weight memory, scales and tables included:",
    ]
    lines += [
        f"  {name:<6}{format_bytes(size):>12}"
        for name, size in document["estimated_bytes"].items()
    ]
    per_token = format_bytes(document["kv_cache_bytes_per_token"])
    return [*lines, f"KV cache per token: {per_token}"]


def _stands_at(record: RunRecord) -> str:
    """Return the step that comes next, or how far the table of a run is that is there for it
    alone: of the line it has at most been loaded.
    """
    made, n_done = record.reproduction, sum(getattr(record, step) is not None for step in STEPS)
    if made is not None and n_done < 2:
        return f"table: {len(made.rows)} of {made.n_rows} rows"
    missing = [*record.missing_before("export"), *(["export"] if record.export is None else [])]
    return f"next step: {missing[0] if missing else 'none'}"


def run_lines(record: RunRecord) -> list[str]:
    """Return what is known of a run for a person."""
    lines = [f"{record.run_id}  {record.spec.model.source}  {_stands_at(record)}"]
    if record.score is not None:
        lines += list(record.score.warnings)
    if record.prune is not None:
        pruned = record.prune
        lines.append(
            f"pruned {pruned.spec.ratio:.0%} by {pruned.spec.criterion}: "
            f"{pruned.parameters_before:,} -> {pruned.parameters_after:,} parameters, "
            f"loss {pruned.before.loss:.3f} -> {pruned.after.loss:.3f}, "
            f"accuracy {accuracy_words(pruned.before)} -> {accuracy_words(pruned.after)}"
        )
        lines += [words for words in (what_stays(record),) if words]
        lines += list(pruned.warnings)
    if record.comparison is not None:
        lines += comparison_lines(record.comparison)
    if record.search is not None:
        lines += search_lines(record)
    if record.recover is not None:
        lines += recovery_lines(record.recover)
    if record.export is not None:
        written = record.export
        proof = "same logits" if written.reload_logits_equal else "LOGITS DIFFER"
        lines.append(
            f"exported {format_bytes(written.size_bytes)} to {written.path} (reloaded: {proof})"
        )
        if written.merge_error is not None:
            lines.append(
                f"the adapter is merged: logits moved by {written.merge_error:.3g} of their norm, "
                f"{written.spec.merge_tolerance:g} was allowed"
            )
    if record.compressed is not None:
        lines += ["beside the line, layer by layer:"]
        lines += [f"  {line}" for line in compression_lines(record.compressed)]
    if record.reproduction is not None:
        table = record.reproduction
        lines.append(
            f"the paper's table, setting {table.spec.setting}: {len(table.rows)} of "
            f"{table.n_rows} rows"
        )
    return lines
