"""Tensors of a safetensors folder, read one by one, or a few rows of one, with plain reads.

Mapped pages count as resident memory for as long as the kernel likes; what is read here is held by
nobody but the caller.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import torch

from qpruner_core.errors import BadInputError, UnsupportedModelError
from qpruner_core.inspection.folders import read_headers
from qpruner_core.inspection.headers import TensorHeader

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Name in a safetensors header -> dtype, of what models hold and exports store."""


class Shards:
    """The weight files of one folder; only their headers are in memory.

    Raises:
        ModelNotFoundError, UnsupportedModelError, BadInputError: As
            `inspection.folders.read_headers`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._headers = read_headers(folder)
        self._starts = {
            file: _payload_start(folder / file)
            for file in {header.file for header in self._headers.values()}
        }

    def __contains__(self, name: object) -> bool:
        return name in self._headers

    def __iter__(self) -> Iterator[str]:
        return iter(self._headers)

    def header(self, name: str) -> TensorHeader:
        """Return what the file says of a tensor.

        Raises:
            BadInputError: No file holds it.
        """
        if name not in self._headers:
            raise BadInputError(
                f"The weight files lack the tensor {name!r}, which the model needs. Copy or "
                "download the complete checkpoint."
            )
        return self._headers[name]

    def read(self, name: str) -> torch.Tensor:
        """Return a whole tensor on the host, in the dtype of the file."""
        header = self.header(name)
        return self._read(header, 0, header.size_bytes).view(header.shape)

    def read_rows(self, name: str, rows: Iterable[int]) -> torch.Tensor:
        """Return some rows of a matrix, (n, columns), in the order given; each is read alone."""
        header = self.header(name)
        row_bytes = header.size_bytes // header.shape[0]
        found = [self._read(header, row * row_bytes, row_bytes) for row in rows]
        return torch.stack(found).view(-1, *header.shape[1:])

    def chunks(self, name: str, most_bytes: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield a tensor in runs of whole rows of about that many bytes, each after its first
        row.
        """
        header = self.header(name)
        if not header.shape or header.size_bytes <= most_bytes:
            yield 0, self.read(name)
            return
        row_bytes = header.size_bytes // header.shape[0]
        step = max(1, most_bytes // row_bytes)
        for first in range(0, header.shape[0], step):
            count = min(step, header.shape[0] - first)
            flat = self._read(header, first * row_bytes, count * row_bytes)
            yield first, flat.view(count, *header.shape[1:])

    def _read(self, header: TensorHeader, first: int, size: int) -> torch.Tensor:
        """Return ``size`` bytes of a tensor from its byte ``first``, flat, in its dtype."""
        if header.dtype not in DTYPES:
            raise UnsupportedModelError(
                f"The tensor {header.name!r} is stored as {header.dtype}, but compression starts "
                f"from one of {', '.join(DTYPES)}. Choose the original checkpoint instead."
            )
        raw = torch.empty(size, dtype=torch.uint8)
        into = memoryview(cast("Any", raw.numpy()))
        with (self._folder / header.file).open("rb", buffering=0) as file:
            file.seek(self._starts[header.file] + header.begin + first)
            done = 0
            while done < size:  # the system gives at most 2 GiB at a time
                got = file.readinto(into[done:])
                if not got:
                    raise BadInputError(
                        f"The file {header.file!r} ends inside the tensor {header.name!r}: it has "
                        "been cut since it was opened. Copy or download it again."
                    )
                done += got
        return raw.view(DTYPES[header.dtype])


def _payload_start(path: Path) -> int:
    """Return where the tensors of a checked file begin."""
    with path.open("rb") as file:
        length: int = struct.unpack("<Q", file.read(8))[0]
    return 8 + length
