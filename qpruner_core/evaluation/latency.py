"""Tokens per second: reading a prompt, and generating behind it with the KV cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median, quantiles
from time import perf_counter

import torch
from torch import nn

from qpruner_core.domain.speed import Rate, Speed, SpeedSpec


@torch.no_grad()
def measure_speed(
    model: nn.Module,
    prompt: torch.Tensor,
    spec: SpeedSpec,
    clock: Callable[[], float] = perf_counter,
) -> Speed:
    """Time a model in evaluation mode on one prompt per sequence.

    Every repetition reads the prompt into an empty cache and writes greedily behind it, whatever
    comes, so that all repetitions and all models do the same work. The first is not counted.

    Args:
        model: A causal language model.
        prompt: Token ids, ``(spec.batch, spec.context)``.
        spec: How much is read and written, and how often.
        clock: Returns seconds.
    """
    device = next(model.parameters()).device
    ids = prompt.to(device)
    state: dict[str, object] = {}

    def prefill() -> None:
        state["out"] = model(input_ids=ids, use_cache=True, logits_to_keep=1)

    def decode() -> None:
        out: object = state["out"]
        for _ in range(spec.n_decoded):
            token = out.logits[:, -1:].argmax(-1)  # type: ignore[attr-defined]
            out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)  # type: ignore[attr-defined]

    def seconds(work: Callable[[], None]) -> float:
        _wait(device)
        started = clock()
        work()
        _wait(device)
        return clock() - started

    prefill()
    decode()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    timed = [(seconds(prefill), seconds(decode)) for _ in range(spec.n_repetitions)]
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return Speed(
        spec=spec,
        prefill=_rate(spec.batch * spec.context, [reading for reading, _ in timed]),
        decode=_rate(spec.batch * spec.n_decoded, [writing for _, writing in timed]),
        peak_memory_bytes=peak,
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _rate(n_tokens: int, seconds: Sequence[float]) -> Rate:
    fast, _, slow = quantiles(seconds, n=4, method="inclusive")
    return Rate(median=n_tokens / median(seconds), lower=n_tokens / slow, upper=n_tokens / fast)
