"""Hugging Face folder with every weight at 16 bit.

With the same widths in every layer that stock configs accept it is a plain checkpoint; otherwise
it ships the file that resizes the layers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from qpruner_core.domain.layout import ModelLayout, opens_plainly
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.errors import BadInputError
from qpruner_core.export import ExportFacts
from qpruner_core.export.checkpoint import Flavour, write_checkpoint


class SixteenBitExporter:
    """The pruned model before any precision search."""

    def plan_written(self, layout: ModelLayout, plan: PrecisionPlan) -> PrecisionPlan:
        """Return bf16 everywhere: what the format can store, whatever plan was chosen."""
        del plan
        return PrecisionPlan.uniform(layout, "bf16")

    def export(self, model: nn.Module, tokenizer: Any, facts: ExportFacts, folder: Path) -> None:
        """Write the folder whole, or leave nothing; see `Exporter.export`."""
        packed = sorted(set(facts.plan.precisions.values()) - {"bf16"})
        if packed:
            raise BadInputError(
                f"The plan gives Linears {', '.join(packed)}, but 16-bit folders hold bf16 only. "
                f"Choose the mixed format, or write the plan with bf16 everywhere."
            )
        write_checkpoint(model, tokenizer, facts, sixteen_bit_flavour(facts), folder)


def sixteen_bit_flavour(facts: ExportFacts) -> Flavour:
    """Return what the format adds to a plain checkpoint: the file that resizes uneven layers."""
    code = () if opens_plainly(facts.layout) else ("modeling_qpruner",)
    return Flavour(format_name="hf_16bit", code=code)


EXPORTER = SixteenBitExporter()
