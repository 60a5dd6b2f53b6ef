"""What criteria, kinds of unit and ways to prune are called on screen."""

from __future__ import annotations

from qpruner_core.catalog import ARCHITECTURES, CRITERIA
from qpruner_core.domain.layout import KINDS, ModelLayout
from qpruner_core.domain.spec import PruningSpec
from qpruner_core.registry import Entry

SHAPES = {
    "per-layer": "Every layer its own widths",
    "uniform": "One width for all layers",
}
SCOPES = {
    "per-layer": "Same share in every layer",
    "global": "Least important of all layers",
    "balanced": "Least against the mean of its layer",
    "standardised": "Least in deviations from its layer",
}
COMPENSATIONS = {"none": "none", "bias": "bias"}
COMPENSATION_CHOICES = {
    "none": "None",
    "bias": "Bias: mean of what leaves",
}
COMPENSATED = {"none": "as cut", "bias": "with bias compensation"}
NEEDS = {
    "weights": "reads weights alone",
    "gradients": "needs gradients, and so the whole model in memory",
    "inputs": "reads what enters every layer over the calibration text",
    "activations": "reads what enters every layer over the calibration text",
}


def criterion(name: str) -> str:
    """Return the title of a criterion; its name where a newer version of us wrote the record."""
    return CRITERIA.entry(name).title if name in CRITERIA else name


def unit_criteria() -> list[Entry]:
    """Return the criteria that score units, in the order of the catalogue."""
    return [entry for entry in CRITERIA if entry.facts["scores"] == "units"]


def streams(entry: Entry) -> bool:
    """Whether a criterion works with one layer in memory at a time."""
    return bool(entry.facts.get("streams", entry.facts["needs"] != "gradients"))


def needs(entry: Entry) -> str:
    """Return in words what a criterion needs."""
    return NEEDS.get(str(entry.facts["needs"]), str(entry.facts["needs"]))


def kind(name: str) -> str:
    """Return a kind of unit as a choice, such as ``MLP channels``."""
    return KINDS[name][:1].upper() + KINDS[name][1:]


def asked(spec: PruningSpec) -> str:
    """Return what a pruning spec asks for in one line."""
    words = [f"{100 * spec.ratio:.0f} %", SCOPES[spec.scope].lower(), SHAPES[spec.shape].lower()]
    if spec.drop_layers:
        words.append(f"{spec.drop_layers} whole layer{'s' if spec.drop_layers > 1 else ''}")
    if spec.iterations > 1:
        words.append(f"{spec.iterations} rounds")
    return ", ".join(words)


def family(model_type: str) -> str:
    """Return the name of a model family."""
    known = model_type in ARCHITECTURES
    return ARCHITECTURES.entry(model_type).title if known else model_type


def heads(layout: ModelLayout) -> str:
    """Return in words how many heads a layer has."""
    if layout.n_heads == layout.n_kv_heads:
        return f"{layout.n_heads} heads of {layout.head_dim}"
    return f"{layout.n_heads} query and {layout.n_kv_heads} KV heads of {layout.head_dim}"
