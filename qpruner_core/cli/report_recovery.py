"""What a command prints of a recovery: estimated and measured memory, before and after."""

from __future__ import annotations

from typing import Any

from qpruner_core.domain.footprint import format_bytes
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.paired import Paired, paired
from qpruner_core.domain.recovered import RecoveryOutcome
from qpruner_core.store.codec import to_plain


def recovery_document(recovered: RecoveryOutcome) -> dict[str, Any]:
    """Return what training took and brought; bytes are measured unless a key says otherwise."""
    test = paired(recovered.after, recovered.before)
    return {
        "steps": len(recovered.losses),
        "is_complete": recovered.is_complete,
        "trial": recovered.spec.trial,
        "settings": to_plain(recovered.spec),
        "losses": list(recovered.losses),
        "adapter": recovered.adapter,
        "trainable_parameters": recovered.trainable_parameters,
        "estimated_memory_bytes": recovered.estimated_memory_bytes,
        "peak_memory_bytes": recovered.peak_memory_bytes,
        "tokens_per_second": recovered.tokens_per_second,
        "adapter_bytes": recovered.after.weight_bytes - recovered.before.weight_bytes,
        "paired_test": None if test is None else _test_document(test),
        "remarks": list(recovered.remarks),
    }


def _test_document(test: Paired) -> dict[str, Any]:
    return {
        "items": test.n_items,
        "right_after_only": test.first_only,
        "right_before_only": test.second_only,
        "p_value": test.p_value,
        "differs": test.differs,
    }


def recovery_lines(recovered: RecoveryOutcome) -> list[str]:
    """Return the same for a person."""
    if not recovered.adapter:
        return ["recovery was skipped: no step was asked for"]
    before, after = recovered.before, recovered.after
    accuracy = f", accuracy {_accuracy(before)} -> {_accuracy(after)}" if after.tasks else ""
    lines = [
        f"recovered: loss {before.loss:.3f} -> {after.loss:.3f}{accuracy}, "
        f"{format_bytes(after.weight_bytes)} with the adapter",
        f"  {len(recovered.losses)} of {recovered.spec.steps} steps; {_memory(recovered)}",
    ]
    test = paired(after, before)
    if test is not None:
        lines.append(f"  {_test_words(test)}")
    return lines + [f"  {remark}" for remark in recovered.remarks]


def _accuracy(metrics: Metrics) -> str:
    return f"{metrics.accuracy:.1%} ± {100 * metrics.standard_error:.1f}"


def _memory(recovered: RecoveryOutcome) -> str:
    estimate = f"training memory {format_bytes(recovered.estimated_memory_bytes)} estimated"
    if recovered.peak_memory_bytes is None:
        return estimate
    return f"{estimate}, {format_bytes(recovered.peak_memory_bytes)} measured"


def _test_words(test: Paired) -> str:
    called = "called different" if test.differs else "not called different"
    return (
        f"of {test.n_items:,} items {test.first_only:,} are right only after, "
        f"{test.second_only:,} only before: p = {test.p_value:.2g}, {called}"
    )
