"""The proof of an export: another process, without our package, opens the folder and gives the
same logits.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

_SCRIPT = Path(__file__).with_name("reopen.py")
TIMEOUT_SECONDS = 1800.0
"""Longest wait for the other process; a checkpoint of many GB is read from a slow disk within it.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadCheck:
    """What the other process answered."""

    equal: bool
    """Whether all logits are equal bit for bit."""
    max_difference: float
    """Largest absolute difference; 0 when equal."""


@torch.no_grad()
def reference_logits(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Return what `reload_check` expects: logits (batch, tokens, vocabulary) of the in-memory
    reference.

    Args:
        model: Dense fake-quantised decoder on the CPU in float32, in eval mode.
        ids: Token ids (batch, tokens), int64.
    """
    logits: torch.Tensor = model(input_ids=ids.cpu(), use_cache=False).logits
    return logits.float()


def reload_check(
    folder: Path, ids: torch.Tensor, expected: torch.Tensor, *, trust_remote_code: bool = True
) -> ReloadCheck:
    """Open the folder with stock transformers in a fresh process, on the CPU in float32, and
    compare logits.

    Args:
        folder: An exported folder.
        ids: Token ids (batch, tokens), int64.
        expected: Logits (batch, tokens, vocabulary), float32, of `reference_logits` on the same
            ids: another batch shape would sum in another order.
        trust_remote_code: What the person would pass.

    Raises:
        RuntimeError: The other process could not open the folder; the message ends with its own
            words.
    """
    with tempfile.TemporaryDirectory(prefix="qpruner-reload-") as name:
        exchange = Path(name)
        save_file({"ids": ids.cpu().contiguous()}, exchange / "ids.safetensors")
        _reopen(folder, exchange, trust_remote_code)
        found = load_file(exchange / "logits.safetensors")["logits"]
    expected = expected.detach().float().cpu()
    if found.shape != expected.shape:
        raise ValueError(
            f"logits of shape {tuple(expected.shape)} expected, got {tuple(found.shape)}"
        )
    difference = float((found - expected).abs().max())
    return ReloadCheck(equal=torch.equal(found, expected), max_difference=difference)


def _reopen(folder: Path, exchange: Path, trust_remote_code: bool) -> None:
    trust, threads = "yes" if trust_remote_code else "no", str(torch.get_num_threads())
    finished = subprocess.run(  # noqa: S603 - our own interpreter and script
        [sys.executable, "-I", str(_SCRIPT), str(folder), str(exchange), trust, threads],
        env=_environment(exchange),
        cwd=exchange,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    if finished.returncode:
        words = "\n".join(finished.stderr.strip().splitlines()[-15:])
        raise RuntimeError(f"{folder} did not open in a fresh process:\n{words}")


def _environment(exchange: Path) -> dict[str, str]:
    """Return the environment of a machine without network, GPU, hub token or cached code."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PYTHON", "HF_", "HUGGING", "QPRUNER_"))
    }
    return kept | {
        "HF_HOME": str(exchange / "hub"),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


def weight_file_bytes(folder: Path) -> int:
    """Return the bytes of all weight files of an export as they lie on disk, headers included,
    adapter not.
    """
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
