"""How a compressed model is trained back, and the settings that have a name.

Names of catalogue entries are checked where the catalogue is known (`catalog.check_spec`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import PurePath
from typing import ClassVar

from qpruner_core.domain.checks import is_index, require

STRICT = {"extra": "forbid"}
SCHEDULES = ("linear", "cosine", "constant")
UPLOADS = "uploads"
"""Folder of a run with the files that a person gave to it, each below a folder that is named by
its contents."""
HASH_CHARACTERS = 16
"""Of such a folder's name: the beginning of a SHA-256, hexadecimal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoverySpec:
    """LoRA training after compression."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    steps: int = 60
    """Optimiser steps; 0 skips recovery."""
    rank: int = 8
    """Rank of every adapter; >= 1."""
    alpha: float = 16.0
    """LoRA alpha; the update is scaled by alpha / rank; > 0."""
    dropout: float = 0.0
    """Dropout before the adapter; in [0, 1)."""
    learning_rate: float = 1e-3
    """Peak learning rate; > 0."""
    batch_size: int = 8
    """Sequences per optimiser step; >= 1."""
    sequence_length: int = 128
    """Tokens per sequence; >= 8."""
    seed: int = 0
    """Seed of initialisation, dropout and batch order."""
    trial: int | None = None
    """Number of the measured plan to train on; None for the chosen one."""
    layer_ranks: Mapping[str, int] = field(default_factory=dict)
    """Ranks given by hand: index of a layer, as text -> rank of its adapters, >= 0; 0 gives the
    layer none."""
    targets: tuple[str, ...] = ()
    """Roles of the Linears that get an adapter, such as ``q_proj``; empty for all of the decoder
    layers."""
    initialization: str = "default"
    """Catalogue name: where adapters start, and what the frozen weights keep."""
    initialization_options: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    """Options of the initialisation."""
    optimizer: str = "adamw"
    """Catalogue name."""
    weight_decay: float = 0.0
    """Decoupled weight decay of the adapters; >= 0."""
    schedule: str = "linear"
    """How the learning rate falls after warming up: ``"linear"`` or ``"cosine"`` to 0, or
    ``"constant"``."""
    warm_up: float = 0.1
    """Share of the steps in which the learning rate rises linearly from 0; in [0, 1)."""
    micro_batch_size: int = 0
    """Sequences per forward pass, whose gradients are added up to those of a batch; 0 for the
    whole batch at once. It divides the batch."""
    gradient_checkpointing: bool = False
    """Keep only what enters each layer and compute the rest again in the backward pass, logits
    in pieces: less memory for about a third more time."""
    packing: bool = True
    """Several instruction examples share a sequence, none seeing another; without it each has a
    padded sequence of its own. Plain text is always packed."""
    train_on_prompt: bool = False
    """Learn the instruction too, not only the answer; plain text is learned whole."""
    training: str = ""
    """Text that recovery trains on, as in `DataSpec.training`, or an instruction file (``.json``
    or ``.jsonl``); empty for that of the run."""
    checkpoint_steps: int = 20
    """Optimiser steps between checkpoints of the training, from which a killed or cancelled one
    goes on; 0 for none."""

    def __post_init__(self) -> None:
        for name in ("steps", "micro_batch_size", "checkpoint_steps", "weight_decay"):
            value = getattr(self, name)
            words = name.replace("_", " ")
            require(
                0 <= value < inf,
                f"The number for {words} is {value}",
                "Give a finite number, 0 or more.",
            )
        for name in ("rank", "batch_size"):
            require(
                getattr(self, name) >= 1, f"{name} is {getattr(self, name)}", "Give 1 or more."
            )
        require(
            self.sequence_length >= 8,
            f"The sequence length is {self.sequence_length} tokens",
            "Give 8 or more.",
        )
        for name in ("alpha", "learning_rate"):
            value = getattr(self, name)
            require(0.0 < value < inf, f"{name} is {value}", "Give a finite number above 0.")
        for name in ("dropout", "warm_up"):
            value = getattr(self, name)
            require(
                0.0 <= value < 1.0,
                f"The {name.replace('_', '-')} is {value}",
                "It is a share in [0, 1); choose one in that range.",
            )
        require(
            self.schedule in SCHEDULES,
            f"The schedule of the learning rate is {self.schedule!r}",
            f"Choose one of {', '.join(SCHEDULES)}.",
        )
        require(
            not self.micro_batch_size or self.batch_size % self.micro_batch_size == 0,
            f"A batch of {self.batch_size} sequences was to be read {self.micro_batch_size} at a "
            f"time, which leaves {self.batch_size % max(1, self.micro_batch_size)} over",
            "Give a micro-batch that divides the batch, or 0 for the whole batch at once.",
        )
        for layer, rank in self.layer_ranks.items():
            require(
                is_index(layer) and rank >= 0,
                f"A rank by hand of {rank} for layer {layer!r}",
                "Give the index of a layer, from 0, and a rank of 0 or more.",
            )

    @property
    def forward_sequences(self) -> int:
        """Sequences of one forward pass."""
        return self.micro_batch_size or self.batch_size

    @property
    def training_name(self) -> str:
        """What the text is called wherever its run is copied to: of a file that the run was given,
        the end of the path, which tells its contents; else as in ``training``.
        """
        end = PurePath(self.training).parts[-3:]
        is_given = len(end) == 3 and end[0] == UPLOADS and _is_hash(end[1])
        return "/".join(end) if is_given else self.training

    @property
    def memory(self) -> list[object]:
        """What of it decides how much memory it takes, for the name of a study that weighs that;
        what older records did not know only where it is not as usual.
        """
        later: dict[str, object] = {
            "checkpointing": self.gradient_checkpointing,
            "drops": self.dropout > 0.0,
            "layer_ranks": dict(self.layer_ranks),
            "optimizer": "" if self.optimizer == "adamw" else self.optimizer,
            "targets": sorted(self.targets),
        }
        unusual = {name: value for name, value in later.items() if value}
        known: list[object] = [self.rank, self.forward_sequences, self.sequence_length]
        return [*known, unusual] if unusual else known

    def rank_of(self, layer: int, role: str) -> int:
        """Return the rank of a Linear's adapter; 0 where it gets none."""
        if self.targets and role not in self.targets:
            return 0
        return self.layer_ranks.get(str(layer), self.rank)


def _is_hash(name: str) -> bool:
    return len(name) == HASH_CHARACTERS and set(name) <= set("0123456789abcdef")


_PAPER = RecoverySpec(
    steps=200,
    rank=8,
    alpha=16.0,
    dropout=0.05,
    learning_rate=3e-4,
    batch_size=128,
    micro_batch_size=4,
    sequence_length=256,
    warm_up=0.5,
    targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
)

PRESETS: Mapping[str, RecoverySpec] = {
    "usual": RecoverySpec(),
    "paper": _PAPER,
    "low memory": replace(
        RecoverySpec(),
        micro_batch_size=1,
        gradient_checkpointing=True,
        optimizer="adamw_8bit",
        initialization="loftq",
    ),
}
"""Settings by name. ``paper`` holds the public settings of QPruner (arXiv:2412.11629) as its
post-training script has them: 200 steps, of which 100 warm up."""
