"""What the Hugging Face formats share: one folder with weights, config, tokenizer, card and
manifest.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qpruner_core.export import ExportFacts
from qpruner_core.export.card import MANIFEST, manifest, model_card
from qpruner_core.export.config import auto_map, config_values, storage_dtype
from qpruner_core.export.folder import SLACK_BYTES, hashes, new_folder
from qpruner_core.export.snippets import ADAPTER_FOLDER
from qpruner_core.export.verify import weight_file_bytes
from qpruner_core.export.weights import (
    as_published,
    stored_tensors,
    total_bytes,
    write_weights,
)
from qpruner_core.models.files import modeling_qpruner

FILES = Path(modeling_qpruner.__file__).parent
"""Our code that travels with a checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flavour:
    """What one format adds to a plain checkpoint."""

    format_name: str
    """Catalogue name."""
    code: tuple[str, ...] = ()
    """Files of `models/files/` to ship, without ``.py``; the first is named in ``auto_map``. Empty
    for none.
    """
    config: Mapping[str, Any] = field(default_factory=dict)
    """Further entries of ``config.json``."""


def write_checkpoint(
    model: nn.Module, tokenizer: Any, facts: ExportFacts, flavour: Flavour, folder: Path
) -> None:
    """Write the folder whole, or leave nothing; see `Exporter.export`."""
    dtype = storage_dtype(facts.card.dtype, _unplanned(model, facts))
    stored = stored_tensors(model, facts.plan, dtype)
    if not flavour.code:
        stored = as_published(stored, facts.layout.model_type)
    source = Source(model=model, tokenizer=tokenizer, dtype=dtype)
    weights = Weights(total_bytes(stored), lambda partial: write_weights(stored, partial))
    fill_checkpoint(source, facts, flavour, folder, weights)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """What a folder's files besides the weights are taken from."""

    model: nn.Module
    """The pruned model; its weights are not looked at and may be on the meta device."""
    tokenizer: Any
    """What the tokenizer files are saved from; None for none."""
    dtype: torch.dtype
    """Dtype of what no precision plan names."""


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """How the weight files come into a folder."""

    size_bytes: int
    """Bytes of all tensors."""
    write: Callable[[Path], None]
    """Writes the files into the folder it is given."""


def fill_checkpoint(
    source: Source,
    facts: ExportFacts,
    flavour: Flavour,
    folder: Path,
    weights: Weights,
    on_filled: Callable[[Path], None] = lambda partial: None,
) -> None:
    """Write the folder whole, or leave nothing, with weights from wherever they come.

    ``on_filled`` is told where everything lies just before it gets its name.
    """
    values = config_values(source.model, facts.layout, source.dtype) | dict(flavour.config)
    if flavour.code:
        values["auto_map"] = auto_map(facts.layout.model_type, flavour.code[0])
    needed = weights.size_bytes + _folder_bytes(facts.adapter) + SLACK_BYTES
    with new_folder(folder, needed) as partial:
        weights.write(partial)
        _write_json(partial / "config.json", values)
        _write_companions(source.model, source.tokenizer, facts, partial)
        for name in flavour.code:
            shutil.copyfile(FILES / f"{name}.py", partial / f"{name}.py")
        size = weight_file_bytes(partial)
        card = model_card(facts, flavour.format_name, folder.name, size)
        (partial / "README.md").write_text(card, encoding="utf-8")
        listed = manifest(facts, flavour.format_name, size, hashes(partial))
        (partial / MANIFEST).write_text(listed, encoding="utf-8")
        on_filled(partial)


def _unplanned(model: nn.Module, facts: ExportFacts) -> list[torch.Tensor]:
    """Return the parameters that no precision plan names."""
    modules = set(facts.plan.precisions)
    return [
        parameter
        for name, parameter in model.named_parameters()
        if name.rpartition(".")[0] not in modules
    ]


def _write_companions(model: nn.Module, tokenizer: Any, facts: ExportFacts, folder: Path) -> None:
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        generation.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    if facts.adapter is not None:
        # What was taken from the weights for it has been taken: nobody needs it to open them.
        ignored = shutil.ignore_patterns(".*", "README.md", "shift.safetensors")
        shutil.copytree(facts.adapter, folder / ADAPTER_FOLDER, ignore=ignored)


def _folder_bytes(folder: Path | None) -> int:
    if folder is None:
        return 0
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
