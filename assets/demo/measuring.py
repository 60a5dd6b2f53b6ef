"""Measures the demo: task accuracy, held-out loss, and what low precision and pruning cost."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

IGNORED = -100

NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The 16 levels of NormalFloat4, Dettmers et al., arXiv:2305.14314, appendix E."""

Encoded = tuple[list[int], list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one variant of the model does on the held-out data."""

    accuracies: dict[str, float]
    """Task -> share of items whose right choice has the highest summed log-likelihood."""
    loss: float
    """Mean negative log-likelihood of the held-out text; nats per token."""

    @property
    def accuracy(self) -> float:
        """Mean of the task accuracies; fraction in [0, 1]."""
        return sum(self.accuracies.values()) / len(self.accuracies)


@torch.no_grad()
def _log_likelihoods(
    model: LlamaForCausalLM, pairs: Sequence[Encoded], batch: int = 128
) -> list[float]:
    """Return the summed log-likelihood of every target after its context, in nats."""
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
    scores = [0.0] * len(pairs)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        width = max(len(pairs[i][0]) + len(pairs[i][1]) for i in chosen)
        ids = torch.zeros(len(chosen), width, dtype=torch.long)
        targets = torch.full((len(chosen), width), IGNORED)
        for row, i in enumerate(chosen):
            context, target = pairs[i]
            end = len(context) + len(target)
            ids[row, :end] = torch.tensor(context + target)
            targets[row, len(context) : end] = torch.tensor(target)
        logits = model(input_ids=ids.to(model.device), use_cache=False).logits[:, :-1].float()
        losses = functional.cross_entropy(
            logits.transpose(1, 2), targets[:, 1:].to(model.device), reduction="none"
        )  # (rows, width - 1)
        for row, i in enumerate(chosen):
            scores[i] = -float(losses[row].sum())
    return scores


def _encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    encoded: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return encoded


def task_accuracy(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, items: Sequence[dict[str, Any]]
) -> float:
    """Return the share of items whose gold choice is the likeliest; fraction in [0, 1]."""
    contexts = _encode(tokenizer, [item["context"] for item in items])
    pairs: list[Encoded] = []
    for item, context in zip(items, contexts, strict=True):
        pairs += [(context, choice) for choice in _encode(tokenizer, item["choices"])]
    scores = iter(_log_likelihoods(model, pairs))
    n_right = 0
    for item in items:
        own = [next(scores) for _ in item["choices"]]
        n_right += own.index(max(own)) == item["gold"]
    return n_right / len(items)


def text_loss(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]
) -> float:
    """Return the mean negative log-likelihood of documents, end token included; nats per token."""
    end = [int(tokenizer.eos_token_id)]
    pairs = [(ids[:1], ids[1:] + end) for ids in _encode(tokenizer, list(texts))]
    return -sum(_log_likelihoods(model, pairs)) / sum(len(target) for _, target in pairs)


def measure(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tasks: dict[str, list[dict[str, Any]]],
    texts: Sequence[str],
) -> Measured:
    """Measure a model on tasks and held-out text."""
    model.train(False)
    return Measured(
        accuracies={name: task_accuracy(model, tokenizer, items) for name, items in tasks.items()},
        loss=text_loss(model, tokenizer, texts),
    )


def int8(weight: torch.Tensor) -> torch.Tensor:
    """Round to 255 levels per row, scaled by the row's largest magnitude."""
    scale = weight.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 127.0
    return (weight / scale).round() * scale


def nf4(weight: torch.Tensor, block: int = 64) -> torch.Tensor:
    """Round to NormalFloat4 in blocks of 64 along the rows, scaled by each block's absmax."""
    blocks = weight.reshape(-1, block)
    scale = blocks.abs().amax(dim=1, keepdim=True).clamp_min(1e-12)
    levels = torch.tensor(NF4_LEVELS, device=weight.device, dtype=weight.dtype)
    bounds = (levels[1:] + levels[:-1]) / 2
    return (levels[torch.bucketize(blocks / scale, bounds)] * scale).reshape(weight.shape)


@torch.no_grad()
def quantised(model: LlamaForCausalLM, precision: str) -> LlamaForCausalLM:
    """Return a copy whose layer Linears are rounded to ``int8`` or ``nf4`` and back."""
    rounding = {"int8": int8, "nf4": nf4}[precision]
    copied = copy.deepcopy(model)
    for module in copied.model.layers.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.copy_(rounding(module.weight))
    return copied


def _lowest(scores: torch.Tensor, ratio: float) -> torch.Tensor:
    return scores.argsort()[: round(ratio * len(scores))]


@torch.no_grad()
def pruned(model: LlamaForCausalLM, ratio: float) -> LlamaForCausalLM:
    """Return a copy without the units of lowest magnitude, first and last layer kept whole.

    Units are KV heads with their query heads, and MLP channels; removed ones are zeroed, which
    gives the same logits as leaving them out.
    """
    copied = copy.deepcopy(model)
    config = copied.config
    n_kv = config.num_key_value_heads
    for layer in list(copied.model.layers)[1:-1]:
        mlp, attention = layer.mlp, layer.self_attn
        views = (mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight.T)
        channels = _lowest(sum(view.square().sum(dim=1) for view in views), ratio)
        mlp.down_proj.weight[:, channels] = 0.0
        output = attention.o_proj.weight.view(config.hidden_size, n_kv, -1)
        scores = output.square().sum(dim=(0, 2))
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            scores = scores + projection.weight.view(n_kv, -1).square().sum(dim=1)
        output[:, _lowest(scores, ratio)] = 0.0
    return copied
