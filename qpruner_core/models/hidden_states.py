"""Hidden states of the calibration text between two layers: on the host, or in a file where they
are many.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import torch

HOST_BYTES = 32 * 2**20
"""Most bytes of hidden states that are held; more go to a file beside what is written."""


class HiddenStates:
    """The states (B, T, H) of every micro-batch, each replaced by those after the next layer.

    Bound: ``n_tokens x H`` values of the compute dtype, in memory up to `HOST_BYTES` and else in
    a nameless file of that size.
    """

    def __init__(self, shapes: Sequence[torch.Size], dtype: torch.dtype, file: IO[bytes] | None):
        self._shapes = shapes
        self._dtype = dtype
        self._file = file
        self._held: list[torch.Tensor | None] = [None] * len(shapes)
        sizes = [shape.numel() * dtype.itemsize for shape in shapes]
        self._offsets = [sum(sizes[:i]) for i in range(len(sizes))]

    def __len__(self) -> int:
        return len(self._shapes)

    def read(self, index: int) -> torch.Tensor:
        """Return the states of one micro-batch, on the host."""
        held = self._held[index]
        if self._file is None:
            if held is None:
                raise ValueError(f"micro-batch {index} has no hidden states yet")
            return held
        states = torch.empty(self._shapes[index], dtype=self._dtype)
        self._file.seek(self._offsets[index])
        self._file.readinto(_bytes(states))  # type: ignore[attr-defined]
        return states

    def write(self, index: int, states: torch.Tensor) -> None:
        """Take the states of one micro-batch in place of those before."""
        on_host = states.detach().to("cpu", self._dtype).contiguous()
        if self._file is None:
            self._held[index] = on_host
            return
        self._file.seek(self._offsets[index])
        self._file.write(_bytes(on_host))


@contextmanager
def hidden_states(
    shapes: Sequence[torch.Size], dtype: torch.dtype, folder: Path, host_bytes: int = HOST_BYTES
) -> Iterator[HiddenStates]:
    """Yield an empty place for hidden states of those shapes; a file of it is gone afterwards.

    Args:
        shapes: (B, T, H) of every micro-batch.
        dtype: The compute dtype; states are kept bit for bit.
        folder: Where a file may be made.
        host_bytes: What may be held in memory.
    """
    if sum(shape.numel() for shape in shapes) * dtype.itemsize <= host_bytes:
        yield HiddenStates(shapes, dtype, None)
        return
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        yield HiddenStates(shapes, dtype, cast("IO[bytes]", file))


def _bytes(states: torch.Tensor) -> Any:
    return memoryview(cast("Any", states.view(-1).view(torch.uint8).numpy()))
