"""An adapter read back from disk: beside the weights of a model, and compared with its sum."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from qpruner_core.errors import NotReadyError
from qpruner_core.recovery.adapter import WEIGHTS
from qpruner_core.recovery.initialization import Factors

_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


def read_adapter(folder: Path) -> dict[str, Factors]:
    """Return Linear name -> the factors of its adapter, as PEFT stores them.

    Raises:
        NotReadyError: The adapter is gone.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise NotReadyError(
            f"The adapter of this run should lie in {folder}, but is gone. Run the recovery "
            f"again, or export without the adapter."
        )
    tensors = load_file(path)
    names = [key.removesuffix(_A) for key in tensors if key.endswith(_A)]
    return {
        name.removeprefix(_PREFIX): Factors(
            a=tensors[name + _A].float(), b=tensors[name + _B].float()
        )
        for name in names
    }


@contextmanager
def beside(model: nn.Module, adapter: Mapping[str, tuple[Factors, float]]) -> Iterator[None]:
    """Let a model compute with an adapter beside its weights, ``W x + s B A x``.

    Args:
        model: Its Linears may be dense or packed; they are unchanged.
        adapter: Linear name -> factors, and their scaling s.
    """
    handles = [
        model.get_submodule(name).register_forward_hook(_adding(factors, scaling))
        for name, (factors, scaling) in adapter.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def relative_error(before: torch.Tensor, after: torch.Tensor) -> float:
    """Return |after - before| / |before| in Frobenius norms; inf where ``after`` is not finite."""
    wanted = before.double()
    error = float((after.double() - wanted).norm() / wanted.norm())
    return error if isfinite(error) else float("inf")


def _adding(factors: Factors, scaling: float) -> Any:
    def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: Any) -> torch.Tensor:
        del module
        x = inputs[0].float()
        a, b = factors.a.to(x.device), factors.b.to(x.device)
        added: torch.Tensor = output + (scaling * (x @ a.T @ b.T)).to(output.dtype)
        return added

    return hook
