"""The header of a safetensors file: names, dtypes and shapes of its tensors, checked against the
file's size.

Format: 8 bytes of header length (unsigned, little endian), that many bytes of JSON, then the
    tensors' bytes without gaps. A file that passes here is complete, although none of its weights
    was read.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from qpruner_core.errors import BadInputError

MAX_HEADER_BYTES = 100_000_000
"""The limit that the format itself sets."""

DTYPE_BITS: Mapping[str, int] = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}
"""Bits per value of every dtype the format knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorHeader:
    """One tensor as its file describes it."""

    name: str
    """Full name, as in ``state_dict()``."""
    dtype: str
    """As safetensors names it, such as ``BF16``."""
    shape: tuple[int, ...]
    """Extent of every axis; empty for a scalar."""
    file: str
    """Name of the file inside the model's folder."""
    begin: int = 0
    """First byte of the tensor, counted from the end of the file's header."""

    @property
    def n_values(self) -> int:
        """Entries of the tensor."""
        return prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor in the file."""
        return self.n_values * DTYPE_BITS[self.dtype] // 8


def read_header(path: Path) -> dict[str, TensorHeader]:
    """Return tensor name -> header of one local file.

    Raises:
        BadInputError: The file is not safetensors, is truncated, or its header and size disagree.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
            raise _damaged(path, f"is {size} bytes long and announces a header of {length} bytes")
        raw = file.read(length)
    return parse_header(raw, payload_bytes=size - 8 - length, path=path)


def parse_header(raw: bytes, *, payload_bytes: int, path: Path) -> dict[str, TensorHeader]:
    """Return tensor name -> header from the JSON of a file that holds ``payload_bytes`` of
    tensors.

    Raises:
        BadInputError: The JSON is damaged or does not describe exactly those bytes.
    """
    try:
        stated = json.loads(raw)
    except ValueError as error:
        raise _damaged(path, "has a header that is not JSON") from error
    if not isinstance(stated, dict):
        raise _damaged(path, "has a header that is not a table of tensors")
    entries = {name: entry for name, entry in stated.items() if name != "__metadata__"}
    headers, end = {}, 0
    for name, entry in entries.items():
        headers[name], tensor_end = _tensor(name, entry, path)
        end = max(end, tensor_end)
    if end != payload_bytes:
        raise _damaged(
            path, f"holds {payload_bytes} bytes of tensors where its header describes {end}"
        )
    return headers


def _tensor(name: str, entry: Any, path: Path) -> tuple[TensorHeader, int]:
    """Return one checked entry and where its bytes end."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"describes {name!r} without dtype, shape or offsets") from error
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _damaged(path, f"stores {name!r} as {dtype!r}, which is no known dtype,")
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise _damaged(path, f"describes {name!r} with numbers that are not counts")
    header = TensorHeader(name=name, dtype=dtype, shape=shape, file=path.name, begin=begin)
    if end - begin != header.size_bytes:
        raise _damaged(
            path,
            f"gives {name!r} {end - begin} bytes where {dtype} of shape {list(shape)} takes "
            f"{header.size_bytes}",
        )
    return header, end


def _damaged(path: Path, found: str) -> BadInputError:
    return BadInputError(
        f"The file {path.name!r} {found}; a complete safetensors file is needed. It is probably "
        f"truncated: copy or download it again."
    )
