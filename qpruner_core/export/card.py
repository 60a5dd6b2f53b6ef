"""The words and figures beside the weights: a model card for people, a manifest for programs."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from qpruner_core.catalog import precision_formats
from qpruner_core.domain.footprint import bits_per_weight, dense_bytes, format_bytes, plan_bytes
from qpruner_core.domain.layout import KINDS, ModelLayout, opens_plainly
from qpruner_core.domain.metrics import Metrics
from qpruner_core.export import ExportFacts
from qpruner_core.export.snippets import ADAPTER_FOLDER, install_line, snippet

MANIFEST = "qpruner.json"
"""Name of the manifest inside the folder."""
MANIFEST_VERSION = 1


def manifest(
    facts: ExportFacts, format_name: str, weight_bytes: int, files: Mapping[str, Any]
) -> str:
    """Return the JSON text that lists every other file and says how the checkpoint was made.

    Args:
        facts: What is known of the model.
        format_name: Catalogue name of the export format.
        weight_bytes: Bytes of all weight files on disk.
        files: Path inside the folder -> its SHA-256 and bytes.
    """
    values = {
        "manifest_version": MANIFEST_VERSION,
        "made_with": f"qpruner-studio {version('qpruner-studio')}",
        "command": facts.command,
        "format": format_name,
        "base_model": {"title": facts.card.title, "revision": facts.card.revision},
        "parameters": {
            "before": facts.card.layout.parameters,
            "after": facts.layout.parameters,
        },
        "pruning": asdict(facts.pruning),
        "plan": dict(facts.plan.precisions),
        "planned_bytes": plan_bytes(facts.layout, facts.plan, precision_formats()),
        "weight_bytes": weight_bytes,
        "measured": {label: asdict(metrics) for label, metrics in facts.measured.items()},
        "files": dict(files),
    }
    if facts.notes:
        values["notes"] = list(facts.notes)
    return json.dumps(values, indent=2) + "\n"


def model_card(facts: ExportFacts, format_name: str, folder_name: str, weight_bytes: int) -> str:
    """Return the text of ``README.md``: how the checkpoint was made, what it measures, how it is
    opened.
    """
    code = snippet(
        format_name,
        folder_name,
        uniform=opens_plainly(facts.layout),
        adapter=facts.adapter is not None,
    )
    parts = [
        *_front_matter(facts),
        f"# {facts.card.title}, compressed with QPruner Studio",
        _summary(facts, weight_bytes),
        "## Open it",
        f"```\n{install_line(format_name, adapter=facts.adapter is not None)}\n```",
        f"```python\n{code}\n```",
        *_adapter_words(facts),
        "## How it was made",
        _pruning_words(facts),
        "Linears of the decoder layers by precision; embeddings, norms and biases stay at 16 bit:",
        "\n".join(_plan_table(facts)),
        *facts.notes,
        *_measured(facts),
    ]
    if facts.command:
        parts += ["## Make it again", f"```\n{facts.command}\n```"]
    return "\n\n".join([*parts, f"`{MANIFEST}` lists every file with its SHA-256.\n"])


def _front_matter(facts: ExportFacts) -> list[str]:
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    source = facts.card.source
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not Path(source).exists():
        lines.append(f"base_model: {source}")
    return ["\n".join([*lines, "tags:", "- qpruner", "- pruned", "- quantized", "---"])]


def _summary(facts: ExportFacts, weight_bytes: int) -> str:
    before = dense_bytes(facts.card.layout)
    bits = bits_per_weight(facts.layout, weight_bytes)
    return (
        f"{facts.layout.parameters:,} of {facts.card.layout.parameters:,} parameters, "
        f"{format_bytes(weight_bytes)} on disk instead of {format_bytes(before)} at 16 bit "
        f"({weight_bytes / before:.1%}), {bits:.2f} bits per weight with scales."
    )


def _adapter_words(facts: ExportFacts) -> list[str]:
    if facts.adapter is None:
        return []
    return [
        f"`{ADAPTER_FOLDER}/` holds the LoRA adapter of the recovery step, trained on this model. "
        f"Keep it apart: merging it into packed weights would quantise them again."
    ]


def _pruning_words(facts: ExportFacts) -> str:
    if facts.layout.parameters == facts.card.layout.parameters:
        return "Nothing was pruned."
    share = 1.0 - facts.layout.parameters / facts.card.layout.parameters
    words = [
        f"{share:.1%} of all parameters were removed as whole units ({facts.pruning.shape} "
        "widths); query heads leave with their KV head.",
    ]
    if facts.pruning.dropped_layers:
        gone = ", ".join(map(str, facts.pruning.dropped_layers))
        words.append(f"Layers {gone} of the original left whole.")
    if facts.pruning.biases:
        words.append(
            f"The biases of {len(facts.pruning.biases)} projections take what the removed units "
            "gave on average."
        )
    return "\n".join([" ".join(words), "", *_width_rows(facts.layout)])


def _width_rows(layout: ModelLayout) -> Iterator[str]:
    """Yield one row per kind of unit: its numbers by layer, those of experts as a range."""
    for kind, words in KINDS.items():
        by_layer: dict[int, list[int]] = {}
        for group in layout.groups:
            if group.kind == kind:
                by_layer.setdefault(group.layer, []).append(group.n_units)
        spans = (
            str(min(units)) if min(units) == max(units) else f"{min(units)} to {max(units)}"
            for units in by_layer.values()
        )
        if by_layer:
            yield f"- {words} by layer: {', '.join(spans)}"


def _plan_table(facts: ExportFacts) -> Iterator[str]:
    yield "| layer | precisions of its Linears |"
    yield "|---|---|"
    for layer in range(facts.layout.n_layers):
        names = [linear.name for linear in facts.layout.linears if linear.layer == layer]
        counts = Counter(facts.plan.precisions[name] for name in names)
        yield f"| {layer} | {', '.join(f'{count} x {name}' for name, count in counts.items())} |"


def _measured(facts: ExportFacts) -> list[str]:
    if not facts.measured:
        return []
    rows = [_measured_row(label, metrics) for label, metrics in facts.measured.items()]
    head = "| model | perplexity | loss, nats per token | accuracy | items | weights | device |"
    words = (
        "Perplexity and loss are on held-out text. Accuracy is the mean over the tasks, with one "
        "standard error over their items."
    )
    table = "\n".join([head, "|---|---|---|---|---|---|---|", *rows])
    return ["## Measured", words, table, *_by_task(facts)]


def _measured_row(label: str, metrics: Metrics) -> str:
    n_items = sum(task.n_items for task in metrics.tasks.values())
    accuracy = _share(metrics.accuracy, metrics.standard_error) if n_items else "not scored"
    return (
        f"| {label} | {metrics.perplexity:.3f} | {metrics.loss:.4f} | {accuracy} | {n_items} "
        f"| {format_bytes(metrics.weight_bytes)} | {metrics.device} |"
    )


def _by_task(facts: ExportFacts) -> list[str]:
    rows = [
        f"| {label} | {task} | {_share(found.accuracy, found.standard_error)} | {found.n_items} |"
        for label, metrics in facts.measured.items()
        for task, found in metrics.tasks.items()
    ]
    if not rows:
        return []
    return ["\n".join(["| model | task | accuracy (acc) | items |", "|---|---|---|---|", *rows])]


def _share(accuracy: float, standard_error: float) -> str:
    return f"{accuracy:.1%} ± {standard_error:.1%}"
