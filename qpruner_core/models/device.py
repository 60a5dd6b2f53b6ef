"""Where tensors live and in which dtype they are computed: CUDA in bf16 when there is one, else
the CPU in fp32.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from qpruner_core.errors import BadInputError

KINDS = ("auto", "cpu", "cuda")


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One place to compute."""

    kind: str
    """``"cpu"`` or ``"cuda"``."""
    index: int
    """Number of the card; 0 on the CPU."""
    name: str
    """``"cpu"``, or the card's name as its driver tells it; stands beside every measured
    number."""
    compute_dtype: torch.dtype
    """Dtype of weights and activations outside packed storage."""

    @property
    def torch(self) -> torch.device:
        """The same place as torch names it."""
        return torch.device("cpu") if self.kind == "cpu" else torch.device(self.kind, self.index)


def pick_device(kind: str = "auto") -> Device:
    """Return the CUDA card of this process when there is one, else the CPU.

    Args:
        kind: ``"auto"``, ``"cpu"`` or ``"cuda"``. Cards are chosen by ``CUDA_VISIBLE_DEVICES``:
            one worker sees one.

    Raises:
        BadInputError: The kind is unknown, or CUDA was asked for and is not there.
    """
    if kind not in KINDS:
        raise BadInputError(f"There is no device {kind!r}. Choose one of {', '.join(KINDS)}.")
    if kind == "cuda" and not torch.cuda.is_available():
        raise BadInputError(
            "The device 'cuda' was asked for, but torch finds no CUDA card. Choose 'cpu' or "
            "'auto', or check the driver with nvidia-smi."
        )
    if kind == "cpu" or not torch.cuda.is_available():
        # bf16 is several times slower than fp32 on CPUs without AVX512_BF16, fp16 on all of them.
        return Device(kind="cpu", index=0, name="cpu", compute_dtype=torch.float32)
    index = torch.cuda.current_device()
    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    name = torch.cuda.get_device_name(index)
    return Device(kind="cuda", index=index, name=name, compute_dtype=dtype)


def memory_bytes(device: Device) -> int:
    """Return the memory of a card, or the main memory that this process may use; bytes."""
    if device.kind != "cpu":
        return int(torch.cuda.get_device_properties(device.index).total_memory)
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([installed, *_container_limits()])


def _container_limits() -> list[int]:
    """Return the limits that a container sets on its memory, of either version of cgroups."""
    places = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
    stated = [Path(place).read_text().strip() for place in places if Path(place).exists()]
    return [int(text) for text in stated if text.isdecimal()]
