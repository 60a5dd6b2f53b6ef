"""What the config of a pruned model says, so that loading builds its shapes again."""

from __future__ import annotations

from typing import Any

from qpruner_core.catalog import ARCHITECTURES
from qpruner_core.domain.layout import BIASES_KEY, WIDTHS_KEY, ModelLayout, opens_plainly
from qpruner_core.models.files.modeling_qpruner import MODULES_KEY

OWN_KEYS = (WIDTHS_KEY, BIASES_KEY, MODULES_KEY)
"""Config keys of ours: units per group and added biases for the layout, modules for the class."""


def module_table(pruned: ModelLayout) -> dict[str, dict[str, Any]]:
    """Return module name -> shape, attributes and config entries, as `modeling_qpruner` reads
    them.
    """
    architecture = ARCHITECTURES.target(pruned.model_type)
    table: dict[str, dict[str, Any]] = {
        group.name: {key: dict(values) for key, values in told.items()}
        for group in pruned.groups
        if (told := architecture.told(pruned, group))
    }
    whole = architecture.told_model(pruned)
    if whole:
        table[""] = {key: dict(values) for key, values in whole.items()}
    for linear in pruned.linears:
        shape = [linear.out_features, linear.in_features]
        table[linear.name] = {"shape": shape, "bias": linear.has_bias}
    return table


def config_entries(pruned: ModelLayout) -> dict[str, Any]:
    """Return the config entries that state the widths of a layout: the config's own where the
    stock class opens it, else ours.
    """
    if opens_plainly(pruned):
        return ARCHITECTURES.target(pruned.model_type).stock_config(pruned)
    entries: dict[str, Any] = {
        WIDTHS_KEY: {group.name: group.n_units for group in pruned.groups},
        MODULES_KEY: module_table(pruned),
    }
    return entries | ({BIASES_KEY: list(pruned.added_biases)} if pruned.added_biases else {})


def tell_config_(config: Any, pruned: ModelLayout) -> None:
    """Write the widths of a layout into a live config, in place."""
    for key in OWN_KEYS:
        if hasattr(config, key):
            delattr(config, key)
    for key, value in config_entries(pruned).items():
        setattr(config, key, value)
