"""Tokens per second: reading a prompt, and generating behind it with the KV cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch
from torch import nn

N_DECODED = 32
"""Tokens generated per repetition."""
N_REPETITIONS = 5
"""Timed repetitions after one that warms up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Medians over the repetitions, one sequence at a time."""

    prefill_tokens_per_second: float
    """Prompt tokens read per second."""
    decode_tokens_per_second: float
    """Tokens generated per second with the KV cache."""


@torch.no_grad()
def measure_speed(model: nn.Module, prompt: torch.Tensor) -> Speed:
    """Time a model in evaluation mode on one prompt.

    Args:
        model: A causal language model.
        prompt: Token ids, ``(1, length)``.
    """
    ids = prompt.to(next(model.parameters()).device)
    state: dict[str, object] = {}

    def prefill() -> None:
        state["out"] = model(input_ids=ids, use_cache=True, logits_to_keep=1)

    def decode() -> None:
        out: object = state["out"]
        for _ in range(N_DECODED):
            token = out.logits[:, -1:].argmax(-1)  # type: ignore[attr-defined]
            out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)  # type: ignore[attr-defined]

    timed = [(_seconds(prefill, ids), _seconds(decode, ids)) for _ in range(1 + N_REPETITIONS)][1:]
    return Speed(
        prefill_tokens_per_second=ids.shape[1] / median(seconds for seconds, _ in timed),
        decode_tokens_per_second=N_DECODED / median(seconds for _, seconds in timed),
    )


def _seconds(work: Callable[[], None], ids: torch.Tensor) -> float:
    if ids.is_cuda:
        torch.cuda.synchronize(ids.device)
    started = perf_counter()
    work()
    if ids.is_cuda:
        torch.cuda.synchronize(ids.device)
    return perf_counter() - started
