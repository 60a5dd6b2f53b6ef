"""What lies in the weight files: the packed tensors of every Linear as they are, the rest at 16
bit, no tensor twice.

The layout of a packed Linear is written down where it is read, in `files/quantizer_qpruner.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from qpruner_core.catalog import ARCHITECTURES
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.models.tensor_file import write_tensors

SHARD_BYTES = 2 * 10**9
"""Largest weight file."""
FOUR_BIT = ("nf4", "fp4")


class Sized(Protocol):
    """A tensor of a weight file, at hand or only planned."""

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        ...


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a weight file; it is converted and brought to the host only while its shard is
    written.
    """

    tensor: torch.Tensor
    dtype: torch.dtype
    """Dtype in the file."""

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.tensor.numel() * self.dtype.itemsize

    def read(self) -> torch.Tensor:
        """Return the tensor as it is written: on the host, contiguous, sharing nothing."""
        return self.tensor.detach().to("cpu", self.dtype).contiguous()


def stored_tensors(model: nn.Module, plan: PrecisionPlan, dtype: torch.dtype) -> dict[str, Stored]:
    """Return name in the file -> tensor, in the order of the model's parameters.

    Args:
        model: Decoder whose Linears are packed by the plan.
        plan: Precision of every Linear of the decoder layers.
        dtype: 16-bit dtype of everything the plan does not name: embeddings, norms, biases, output
            head.
    """
    stored: dict[str, Stored] = {}
    packed = set()
    for name, precision in plan.precisions.items():
        linear = model.get_submodule(name)
        packed.add(f"{name}.weight")
        for leaf, item in packed_weight(name, linear, precision).items():
            stored[f"{name}.{leaf}"] = item
            packed.add(f"{name}.{leaf}")
    rest = {
        name: Stored(tensor, dtype) for name, tensor in kept_tensors(model) if name not in packed
    }
    return rest | stored


def as_published(stored: Mapping[str, Stored], model_type: str) -> dict[str, Stored]:
    """Return the tensors under the names that checkpoints of the family's stock class carry.

    Folders that ship our code keep the names of the model in memory instead.
    """
    family = ARCHITECTURES.target(model_type)
    return {family.disk_name(name): item for name, item in stored.items()}


def kept_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield parameters (tied ones once, under their first name) and the buffers that checkpoints
    keep.
    """
    yield from model.named_parameters(remove_duplicate=True)
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, buffer


def packed_weight(name: str, linear: Any, precision: str) -> dict[str, Stored]:
    """Return leaf name -> tensor of one Linear's weight.

    Raises:
        ValueError: The module is not what the plan says, so the caller packed by another plan.
    """
    weight = linear.weight
    if precision in FOUR_BIT:
        state = getattr(weight, "quant_state", None)
        if state is None or state.quant_type != precision or not state.nested:
            raise ValueError(
                f"{name} is to be {precision}, but is not packed as double-quantised {precision}"
            )
        if getattr(state, "packing_format_for_cpu", False):
            raise ValueError(f"the weight of {name} was repacked by a forward on the CPU")
        nested = torch.cat([state.state2.absmax.float(), state.offset.float().view(1)])
        return {
            "weight": Stored(weight.data, torch.uint8),
            "absmax": Stored(state.absmax, torch.uint8),
            "nested": Stored(nested, torch.float32),
        }
    if precision == "int8":
        if weight.dtype != torch.int8:
            raise ValueError(f"{name} is to be int8, but holds {weight.dtype}")
        return {
            "weight": Stored(weight.data, torch.int8),
            "SCB": Stored(linear.SCB, torch.float32),
        }
    if precision != "bf16" or not weight.dtype.is_floating_point:
        raise ValueError(f"{name} is to be {precision}, but holds {weight.dtype}")
    return {"weight": Stored(weight.data, torch.bfloat16)}


def total_bytes(stored: Mapping[str, Sized]) -> int:
    """Return the bytes of all tensors, without the headers of their files."""
    return sum(item.nbytes for item in stored.values())


def shards(stored: Mapping[str, Sized], shard_bytes: int = SHARD_BYTES) -> list[list[str]]:
    """Return the names of each weight file, in order; a tensor larger than a shard gets one of its
    own.
    """
    files: list[list[str]] = [[]]
    used = 0
    for name, item in stored.items():
        if files[-1] and used + item.nbytes > shard_bytes:
            files.append([])
            used = 0
        files[-1].append(name)
        used += item.nbytes
    return files


def write_weights(
    stored: Mapping[str, Stored], folder: Path, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write ``model.safetensors``, or numbered shards with their index."""
    files = weight_files(stored, shard_bytes)
    for file, names in files.items():
        _write(stored, names, folder / file)
    write_index(files, stored, folder)


def weight_files(
    stored: Mapping[str, Sized], shard_bytes: int = SHARD_BYTES
) -> dict[str, list[str]]:
    """Return file name -> names of its tensors: ``model.safetensors``, or numbered shards."""
    files = shards(stored, shard_bytes)
    if len(files) == 1:
        return {"model.safetensors": files[0]}
    return {
        f"model-{number:05d}-of-{len(files):05d}.safetensors": names
        for number, names in enumerate(files, start=1)
    }


def write_index(
    files: Mapping[str, Iterable[str]], stored: Mapping[str, Sized], folder: Path
) -> None:
    """Write the index of numbered shards; one file alone needs none."""
    if len(files) == 1:
        return
    weight_map = {name: file for file, names in files.items() for name in names}
    index = {"metadata": {"total_size": total_bytes(stored)}, "weight_map": weight_map}
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _write(stored: Mapping[str, Stored], names: Iterable[str], path: Path) -> None:
    write_tensors({name: stored[name].read() for name in names}, path)
