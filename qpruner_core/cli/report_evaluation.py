"""What `evaluate` prints of what it measured beside the line."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from qpruner_core.domain.footprint import format_bytes
from qpruner_core.domain.harness import HarnessOutcome
from qpruner_core.domain.metrics import Metrics, TaskResult
from qpruner_core.domain.speed import Rate, Speed
from qpruner_core.domain.text_result import TextResult


def harness_document(outcome: HarnessOutcome) -> dict[str, Any]:
    """Return what the harness said."""
    return {
        **asdict(outcome),
        "tasks": {
            task.name: {
                "version": task.version,
                "n_items": task.n_items,
                **{
                    score.metric: {"value": score.value, "standard_error": score.standard_error}
                    for score in task.scores
                },
            }
            for task in outcome.tasks
        },
    }


def harness_lines(outcome: HarnessOutcome) -> list[str]:
    """Return what the harness said, a number a line."""
    lines = [f"lm-evaluation-harness {outcome.harness_version}, on {outcome.device}:"]
    for task in outcome.tasks:
        for score in task.scores:
            error = score.standard_error
            sure = "" if error is None else f" ± {error:.4f}"
            version = f", version {task.version}" if task.version else ""
            lines.append(
                f"  {task.name}: {score.metric} {score.value:.4f}{sure} "
                f"({task.n_items} items{version})"
            )
    return lines


def text_document(found: TextResult) -> dict[str, Any]:
    """Return how a text was read and what came of it."""
    return {
        **asdict(found.spec),
        "n_tokens": found.n_tokens,
        "n_predicted": found.n_predicted,
        "n_windows": found.n_windows,
        "loss": found.loss,
        "standard_error": found.standard_error,
        "perplexity": found.perplexity,
        "word_perplexity": found.word_perplexity,
        "byte_perplexity": found.byte_perplexity,
        "bits_per_byte": found.bits_per_byte,
    }


def text_lines(source: str, found: TextResult) -> list[str]:
    """Return the perplexity of a text and how it was read."""
    spec = found.spec
    how = {
        "blocks": f"windows of {spec.length} tokens without overlap",
        "stride": f"windows of {spec.length} tokens, one every {spec.stride}",
        "rolling": f"rolling windows of {spec.length} tokens, every token counts",
    }[spec.kind]
    lines = [
        f"perplexity {found.perplexity:.4f} on {source} (loss {found.loss:.4f} ± "
        f"{found.standard_error:.4f} nats, {found.n_predicted:,} of {found.n_tokens:,} tokens)",
        f"  {how}",
    ]
    if found.word_perplexity is not None:
        lines.append(
            f"  per word {found.word_perplexity:.4f}, per byte {found.byte_perplexity:.4f}, "
            f"{found.bits_per_byte:.4f} bits per byte"
        )
    return lines


def speed_lines(found: Speed, weight_bytes: int) -> list[str]:
    """Return the two speeds with their spread, and the memory."""
    spec = found.spec
    memory = f"weights {format_bytes(weight_bytes)}"
    if found.kv_cache_bytes is not None:
        memory += f", KV cache of the prompt {format_bytes(found.kv_cache_bytes)}"
    if found.peak_memory_bytes is not None:
        memory += f", peak {format_bytes(found.peak_memory_bytes)}"
    return [
        f"batch {spec.batch}, context {spec.context}, {spec.n_decoded} tokens written, "
        f"{spec.n_repetitions} repetitions after one to warm up (median, quartiles):",
        f"  prefill {_rate(found.prefill)} tokens/s",
        f"  decode {_rate(found.decode)} tokens/s",
        f"  {memory}",
    ]


def _rate(rate: Rate) -> str:
    return f"{rate.median:,.1f} ({rate.lower:,.1f} to {rate.upper:,.1f})"


def accuracy_words(metrics: Metrics) -> str:
    """Return the mean accuracy, ``acc``, with its standard error; ``-`` without tasks."""
    if not metrics.tasks:
        return "-"
    return f"{100 * metrics.accuracy:.1f} ± {100 * metrics.standard_error:.1f} %"


def metrics_lines(metrics: Metrics) -> list[str]:
    """Return loss, both accuracies of lm-evaluation-harness with their standard errors, and the
    bytes of the weights.
    """
    lines = [f"loss {metrics.loss:.4f}, perplexity {metrics.perplexity:.3f}"]
    for name, result in metrics.tasks.items():
        lines.append(f"  {name}: {_accuracies(result)} ({result.n_items} items)")
    if metrics.tasks:
        lines.append(f"mean: {_accuracies(metrics)}")
    return [*lines, f"weights {format_bytes(metrics.weight_bytes)}"]


def _accuracies(found: Metrics | TaskResult) -> str:
    return (
        f"acc {found.accuracy:.1%} ± {found.standard_error:.1%}, acc_norm "
        f"{found.accuracy_normalized:.1%} ± {found.standard_error_normalized:.1%}"
    )
