"""Export: one file per format; every format is a folder that stock tools open, with a manifest of
its files.

Nothing here imports torch until an exporter is called, so that the browser side may show snippets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.plan import PrecisionPlan, PruningPlan
from qpruner_core.domain.record import ModelCard

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportFacts:
    """What is known of the model that is written: enough for its config, its manifest and its
    model card.
    """

    card: ModelCard
    """The model that went in; its layout is the dense one."""
    layout: ModelLayout
    """Layout of the pruned model."""
    pruning: PruningPlan
    """Which units stayed."""
    plan: PrecisionPlan
    """Precision of every Linear of the pruned model, as it is packed; see `Exporter.plan_written`.
    """
    measured: Mapping[str, Metrics] = field(default_factory=dict)
    """Label for a person -> what was measured, such as ``"dense, 16 bit"``; in the order of the
    card.
    """
    adapter: Path | None = None
    """Folder with a PEFT adapter to put beside the weights; None for none."""
    notes: tuple[str, ...] = ()
    """Sentences that card and manifest carry, such as that nothing was measured."""
    command: str = ""
    """Command that makes the same checkpoint again; empty if there is none."""


class Exporter(Protocol):
    """One format."""

    def plan_written(self, layout: ModelLayout, plan: PrecisionPlan) -> PrecisionPlan:
        """Return the precisions that the format really stores when a plan is asked for.

        The model given to `export` is packed by this plan, and the reload is compared with it.
        """
        ...

    def export(self, model: nn.Module, tokenizer: Any, facts: ExportFacts, folder: Path) -> None:
        """Write the folder whole, or leave nothing.

        Args:
            model: Pruned decoder, packed by ``facts.plan``; it is read only and may lie on any
                device.
            tokenizer: What the folder's tokenizer files are saved from.
            facts: What the folder says about the model.
            folder: Folder to create.

        Raises:
            OutputExistsError: The folder is there already.
            StorageFullError: The disk does not hold it.
            BadInputError: The format cannot store the plan.
        """
        ...
