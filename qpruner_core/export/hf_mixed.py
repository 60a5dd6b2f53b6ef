"""Hugging Face folder with packed weights, every Linear at its own precision.

Stock transformers opens it with ``trust_remote_code=True``: the folder ships the reader of its
packed weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.export import ExportFacts
from qpruner_core.export.checkpoint import Flavour, write_checkpoint
from qpruner_core.models.files.quantizer_qpruner import FORMAT_VERSION, METHOD

CODE = ("modeling_qpruner_mixed", "modeling_qpruner", "quantizer_qpruner")


class MixedExporter:
    """Packed bitsandbytes layouts of nf4, fp4 and int8 beside bf16; see
    `files/quantizer_qpruner.py`.
    """

    def plan_written(self, layout: ModelLayout, plan: PrecisionPlan) -> PrecisionPlan:
        """Return the plan: every precision is stored as it is."""
        del layout
        return plan

    def export(self, model: nn.Module, tokenizer: Any, facts: ExportFacts, folder: Path) -> None:
        """Write the folder whole, or leave nothing; see `Exporter.export`."""
        write_checkpoint(model, tokenizer, facts, mixed_flavour(facts), folder)


def mixed_flavour(facts: ExportFacts) -> Flavour:
    """Return what the format adds to a plain checkpoint: its reader and the plan."""
    quantization = {
        "quant_method": METHOD,
        "format_version": FORMAT_VERSION,
        "precisions": dict(facts.plan.precisions),
    }
    return Flavour(format_name="hf_mixed", code=CODE, config={"quantization_config": quantization})


EXPORTER = MixedExporter()
