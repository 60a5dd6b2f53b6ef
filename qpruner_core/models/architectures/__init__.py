"""One file per family, torch-free: what a config says about units, and how widths are told back.

Each entry of the catalogue names a family's `Architecture`; `decoder` is what the files share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from qpruner_core.domain.layout import GroupLayout, ModelLayout

Told = Mapping[str, Mapping[str, Any]]
"""``attributes`` a module is given and ``config`` entries of a config of its own, as
`models/files/modeling_qpruner.py` reads them."""


class Architecture(Protocol):
    """What has to be known of a family; everything from `config.json` alone."""

    def class_name(self, model_type: str) -> str:
        """Return the name of the causal language model's class in transformers."""
        ...

    def layout(self, config: Mapping[str, Any]) -> ModelLayout:
        """Return the units and Linears that a config describes.

        Raises:
            UnsupportedModelError: A needed key is missing or a number does not fit.
        """
        ...

    def is_tied(self, config: Mapping[str, Any]) -> bool:
        """Whether the output head is the embedding itself."""
        ...

    def max_positions(self, config: Mapping[str, Any]) -> int | None:
        """Return the longest sequence in tokens; None where neither config nor family says."""
        ...

    def told(self, pruned: ModelLayout, group: GroupLayout) -> Told:
        """Return what the module of a group has to know of its number of units."""
        ...

    def told_model(self, pruned: ModelLayout) -> Told:
        """Return what the model as a whole has to know beyond its config; empty for most."""
        ...

    def stock_config(self, pruned: ModelLayout) -> dict[str, Any]:
        """Return the config entries by which the stock class builds a layout that opens plainly
        (`layout.opens_plainly`).
        """
        ...

    def fewer_layers(self, config: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
        """Return the config entries that change when only these layers stay, in this order."""
        ...

    def disk_name(self, name: str) -> str:
        """Return what checkpoints of the stock class call a tensor."""
        ...

    def shape_on_disk(
        self, name: str, shapes: Mapping[str, tuple[int, ...]]
    ) -> tuple[int, ...] | None:
        """Return the shape of a tensor in a checkpoint of those shapes, under whatever name it
        lies there; None when it is missing.
        """
        ...
