"""A training that was killed or stopped goes on from here as if it never had been.

A checkpoint is one file of tensors (adapter, optimiser state, random numbers) and one of JSON that
names it and holds the rest. The JSON is replaced last, so that there is always one whole
checkpoint, however the process ends.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from qpruner_core.models.tensor_file import write_tensors
from qpruner_core.recovery.adapter import full_disk_as_sentence
from qpruner_core.recovery.randomness import RandomState

_STATE = "checkpoint.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a training stands."""

    losses: tuple[float, ...] = ()
    """Of every step so far; nats per token."""
    speeds: tuple[float, ...] = ()
    """Tokens per second of every step so far."""
    peak_bytes: int = 0
    """Largest memory so far."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Learning:
    """What changes while a model is trained."""

    parameters: Mapping[str, torch.nn.Parameter]
    """Name -> what is trained, in the order in which the optimiser has them."""
    optimizer: torch.optim.Optimizer
    device: torch.device
    """Whose random numbers are drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoints:
    """The folder of one training."""

    folder: Path
    """Made when it is first needed."""
    identity: str
    """What the training depends on, as text; a checkpoint of another one is not taken up."""

    def save(self, learning: Learning, standing: Standing) -> None:
        """Write where a training stands, in place of where it stood before.

        Raises:
            StorageFullError: The disk does not hold it; the checkpoint before it stays.
        """
        tensors, places = _collected(learning)
        # Two trainings may take turns in one folder: neither writes into a file of the other.
        whose = sha256(self.identity.encode()).hexdigest()[:8]
        name = f"{whose}-step-{len(standing.losses)}.safetensors"
        state = {
            "identity": self.identity,
            "tensors": name,
            "places": places,
            "losses": standing.losses,
            "speeds": standing.speeds,
            "peak_bytes": standing.peak_bytes,
        }
        with full_disk_as_sentence("checkpoint of the training", self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = self.folder / f".{name}"
            write_tensors(tensors, partial)
            os.replace(partial, self.folder / name)
            partial = self.folder / f".{_STATE}"
            partial.write_text(json.dumps(state), encoding="utf-8")
            os.replace(partial, self.folder / _STATE)
        for old in self.folder.glob("*.safetensors"):
            if old.name != name:
                old.unlink()

    def restore_(self, learning: Learning) -> Standing:
        """Put a training where it stood, and return that; at its beginning where nothing of this
        training was kept.
        """
        state = self._state()
        if state is None:
            return Standing()
        tensors = load_file(self.folder / state["tensors"])
        _hand_out_(learning, tensors, state["places"])
        return Standing(
            losses=tuple(state["losses"]),
            speeds=tuple(state["speeds"]),
            peak_bytes=state["peak_bytes"],
        )

    def _state(self) -> dict[str, Any] | None:
        path = self.folder / _STATE
        if not path.is_file():
            return None
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if state["identity"] != self.identity or not (self.folder / state["tensors"]).is_file():
            return None
        return state


def remove_checkpoint(folder: Path) -> None:
    """Delete the checkpoint in a folder, if there is one: its training has ended, and what it made
    is kept elsewhere.
    """
    # First what names the other file: a process may end between the two.
    (folder / _STATE).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _collected(learning: Learning) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Return the tensors by name, and for every parameter its optimiser's state: a number, or the
    name of a tensor.

    A tensor that several parameters share, such as the levels of 8-bit moments, is kept once.
    """
    tensors = {f"adapter.{name}": _on_host(p) for name, p in learning.parameters.items()}
    random = RandomState.now(learning.device)
    tensors["random.cpu"] = random.cpu
    if random.cuda is not None:
        tensors["random.cuda"] = random.cuda
    names: dict[int, str] = {}
    places: list[dict[str, Any]] = []
    for index, parameter in enumerate(learning.parameters.values()):
        place: dict[str, Any] = {}
        for key, value in learning.optimizer.state.get(parameter, {}).items():
            if not torch.is_tensor(value):
                place[key] = value
                continue
            name = names.setdefault(value.data_ptr(), f"optimizer.{index}.{key}")
            tensors.setdefault(name, _on_host(value))
            place[key] = name
        places.append(place)
    return tensors, places


def _on_host(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


@torch.no_grad()
def _hand_out_(
    learning: Learning, tensors: Mapping[str, torch.Tensor], places: Sequence[Mapping[str, Any]]
) -> None:
    for name, parameter in learning.parameters.items():
        parameter.copy_(tensors[f"adapter.{name}"])
    for parameter, place in zip(learning.parameters.values(), places, strict=True):
        if place:
            _remember_(learning.optimizer, parameter, dict(_filled(place, tensors)))
    RandomState(
        cpu=tensors["random.cpu"], cuda=tensors.get("random.cuda"), device=learning.device
    ).restore()


def _filled(
    place: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, Any]]:
    for key, value in place.items():
        yield key, tensors[value] if isinstance(value, str) else value


def _remember_(
    optimizer: Any, parameter: torch.nn.Parameter, remembered: Mapping[str, Any]
) -> None:
    """Give an optimiser back what it knew of one parameter."""
    state = optimizer.state[parameter]
    if hasattr(optimizer, "init_state"):
        # bitsandbytes: moments may lie in paged memory, and parameters share their levels.
        group = optimizer.param_groups[0]
        index = next(i for i, other in enumerate(group["params"]) if other is parameter)
        optimizer.init_state(group, parameter, 0, index)
        for key, value in remembered.items():
            if torch.is_tensor(value):
                state[key].copy_(value)
            else:
                state[key] = value
        return
    for key, value in remembered.items():
        # The count of steps is a tensor without dimensions, which stays on the host.
        moved = value.to(parameter.device) if torch.is_tensor(value) and value.dim() else value
        state[key] = moved
