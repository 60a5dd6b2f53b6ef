"""The state of the random numbers that training draws from, taken and given back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RandomState:
    """Where torch's generators stand."""

    cpu: torch.Tensor
    """State of the host's generator, uint8."""
    cuda: torch.Tensor | None = None
    """State of the card's generator, uint8, on the host; None on the CPU."""
    device: torch.device
    """Whose generators these are."""

    @classmethod
    def now(cls, device: torch.device) -> RandomState:
        """Return where the generators of a device and of the host stand."""
        on_card = device.type == "cuda"
        return cls(
            cpu=torch.get_rng_state(),
            cuda=torch.cuda.get_rng_state(device) if on_card else None,
            device=device,
        )

    def restore(self) -> None:
        """Let the generators go on from here."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Draw in a block what was drawn from here on; afterwards all goes on as before."""
        with forked(self.device):
            self.restore()
            yield


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Give the block seeded random numbers of its own; those of the process go on unchanged."""
    with forked(device):
        torch.manual_seed(seed)
        yield


@contextmanager
def forked(device: torch.device) -> Iterator[None]:
    """Leave the generators of a device and of the host, after the block, as they are now."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
