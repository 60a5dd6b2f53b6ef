"""Safetensors files written tensor by tensor: sizes are planned first, headers follow from them,
and every tensor goes straight to its place, in any order.

The files are those that `safetensors` would write, byte for byte: its order (wide dtypes first,
then names) and its header, so that a reader or a checksum cannot tell which way they were made.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, cast

import torch

from qpruner_core.models.shards import DTYPES

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ORDER = ("F64", "I64", "F32", "I32", "BF16", "F16", "I16", "I8", "U8", "BOOL")
"""How safetensors sorts dtypes inside a file."""
_ALIGNMENT = 8
"""Headers are padded with spaces to a multiple of this many bytes."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A tensor that will be written."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class _Place:
    path: Path
    offset: int
    planned: Planned


class ShardedWriter:
    """Fills files that were laid out beforehand; nothing is held between two calls.

    Args:
        folder: Where the files are made.
        files: File name -> names of its tensors.
        planned: Name -> shape and dtype of every tensor.
    """

    def __init__(
        self, folder: Path, files: Mapping[str, Sequence[str]], planned: Mapping[str, Planned]
    ) -> None:
        self._places: dict[str, _Place] = {}
        self._open: dict[str, int] = {}
        for file, names in files.items():
            self._lay_out(folder / file, {name: planned[name] for name in names})

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Write a whole tensor, of the planned shape and dtype.

        Raises:
            ValueError: Shape or dtype are not those planned, or the tensor was written already.
        """
        if tensor.shape != self._places[name].planned.shape:
            raise ValueError(f"{name} was planned {self._places[name].planned}: {tensor.shape}")
        self._put(name, 0, tensor)

    def write_rows(self, name: str, first: int, rows: torch.Tensor) -> None:
        """Write some rows of a tensor from row ``first``; see `write`."""
        shape = self._places[name].planned.shape
        if rows.shape[1:] != shape[1:]:
            raise ValueError(f"{name} was planned with rows of {shape[1:]}: {rows.shape[1:]}")
        self._put(name, first * prod(shape[1:]), rows)

    def finish(self) -> None:
        """Make sure that every planned byte was written.

        Raises:
            ValueError: Some tensors were not.
        """
        if self._open:
            raise ValueError(
                f"{len(self._open)} tensors were never written: {list(self._open)[:3]}"
            )

    def _lay_out(self, path: Path, planned: Mapping[str, Planned]) -> None:
        """Make a file of its final size, with its header."""
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        begin, begins = 0, {}
        for name in sorted(planned, key=lambda n: (_ORDER.index(_NAMES[planned[n].dtype]), n)):
            item = planned[name]
            end = begin + item.nbytes
            entries[name] = {
                "dtype": _NAMES[item.dtype],
                "shape": list(item.shape),
                "data_offsets": [begin, end],
            }
            begins[name], begin = begin, end
        header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        header += b" " * (-len(header) % _ALIGNMENT)
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            file.truncate(8 + len(header) + begin)
        for name, offset in begins.items():
            self._places[name] = _Place(path, 8 + len(header) + offset, planned[name])
            self._open[name] = planned[name].nbytes

    def _put(self, name: str, first_value: int, values: torch.Tensor) -> None:
        place = self._places[name]
        if values.dtype != place.planned.dtype:
            raise ValueError(f"{name} was planned {place.planned.dtype}: {values.dtype}")
        flat = values.detach().to("cpu").contiguous().view(-1)
        left = self._open.get(name, 0) - flat.numel() * flat.element_size()
        if left < 0:
            raise ValueError(f"more was written to {name} than was planned")
        with place.path.open("r+b", buffering=0) as file:
            file.seek(place.offset + first_value * place.planned.dtype.itemsize)
            rest = memoryview(cast("Any", flat.view(torch.uint8).numpy()))
            while rest:
                rest = rest[file.write(rest) :]
        self._open[name] = left
        if not left:
            del self._open[name]
