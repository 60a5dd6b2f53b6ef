"""Tokenizer, model and the training loop of the demo; text is generated as it is needed."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from language import World
from texts import documents
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END, PAD = "<|end|>", "<|pad|>"
VOCAB_SIZE = 2048
N_HEADS, HEAD_DIM = 8, 32
DECAY_SHARE = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How the demo model is made; two equal recipes give the same model on one machine."""

    seed: int = 0
    """Seeds the language, the text, the weights."""
    n_steps: int = 4500
    """Optimiser steps."""
    copy_steps: int = 300
    """Steps at the start that only teach to copy."""
    n_layers: int = 12
    """Transformer layers."""
    n_kv_heads: int = 4
    """Key-value heads; divides the 8 query heads."""
    batch_rows: int = 8
    """Rows of ``row_tokens`` per step."""
    row_tokens: int = 128
    """Tokens in a row of packed documents."""
    learning_rate: float = 1.5e-3
    """Peak learning rate of AdamW."""
    in_bf16: bool = True
    """Arithmetic in bfloat16 on float32 weights; slow on CPUs without bfloat16 instructions."""
    compiles: bool = False
    """Whether the forward is compiled, which needs a C++ compiler on a CPU; half the time."""

    @property
    def n_tokens(self) -> int:
        """Tokens seen in training."""
        return self.n_steps * self.batch_rows * self.row_tokens

    def __post_init__(self) -> None:
        if self.n_kv_heads not in (1, 2, 4, 8):
            raise ValueError(f"n_kv_heads must be 1, 2, 4 or 8, got {self.n_kv_heads}")
        if min(self.n_steps, self.n_layers, self.batch_rows) < 1:
            raise ValueError("n_steps, n_layers and batch_rows must be at least 1")


def train_tokenizer(world: World, n_documents: int = 20_000) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on generated text; it can spell any other text too."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = itertools.islice(documents(world, "tokenizer", "training"), n_documents)
    core.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call] # transformers has no types here
        tokenizer_object=core,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """Return the number of one token."""
    return int(cast("int", tokenizer.convert_tokens_to_ids(token)))


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return an untrained model."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=N_HEADS,
        num_key_value_heads=recipe.n_kv_heads,
        head_dim=HEAD_DIM,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=token_id(tokenizer, END),
        eos_token_id=token_id(tokenizer, END),
        pad_token_id=token_id(tokenizer, PAD),
    )
    model = LlamaForCausalLM(config)
    model.set_attn_implementation("eager")  # trains faster than the fused one on CPUs in bfloat16
    _prepare(model, recipe)
    return model


@torch.no_grad()
def _prepare(model: LlamaForCausalLM, recipe: Recipe) -> None:
    """Start attention so that tokens look for their like and pass on what they find.

    Queries start equal to keys and outputs as transposed values, after "Mimetic initialization of
    self-attention layers" (arXiv:2305.09828): copying from the text is then learned early.
    """
    n_kv = recipe.n_kv_heads
    group = N_HEADS // n_kv
    model.model.embed_tokens.weight.normal_(0.0, 0.08)
    for layer in model.model.layers:
        attention = layer.self_attn
        attention.k_proj.weight.normal_(0.0, 0.056)
        attention.v_proj.weight.normal_(0.0, 0.05)
        keys = attention.k_proj.weight.view(n_kv, HEAD_DIM, -1)
        values = attention.v_proj.weight.view(n_kv, HEAD_DIM, -1)
        attention.q_proj.weight.copy_(keys.repeat_interleave(group, dim=0).flatten(0, 1))
        attention.o_proj.weight.copy_(0.1 * values.repeat_interleave(group, dim=0).flatten(0, 1).T)
        layer.mlp.down_proj.weight.mul_(1.0 / math.sqrt(2 * recipe.n_layers))


def rows(
    world: World, tokenizer: PreTrainedTokenizerFast, recipe: Recipe
) -> Iterator[torch.Tensor]:
    """Yield rows of packed documents, each document closed by the end token.

    The first ``copy_steps`` are echoes alone: once a model can copy, all else is learned sooner.
    A row begins with a document and its last document is cut: int64, ``(row_tokens,)``.
    """
    first = documents(world, f"copy {recipe.seed}", "training", ("echo",))
    yield from itertools.islice(
        _packed(first, tokenizer, recipe.row_tokens), recipe.copy_steps * recipe.batch_rows
    )
    source = documents(world, f"train {recipe.seed}", "training")
    yield from _packed(source, tokenizer, recipe.row_tokens)


def _packed(
    source: Iterator[str], tokenizer: PreTrainedTokenizerFast, row_tokens: int
) -> Iterator[torch.Tensor]:
    end = token_id(tokenizer, END)
    row: list[int] = []
    while True:
        chunk = list(itertools.islice(source, 256))
        for ids in tokenizer(chunk, add_special_tokens=False)["input_ids"]:
            row += [*ids, end]
            if len(row) >= row_tokens:
                yield torch.tensor(row[:row_tokens])
                row = []


def learning_rate_at(step: int, recipe: Recipe) -> float:
    """Return the rate: linear warm-up, a plateau, and linear decay over the last 30 % to zero."""
    warm_up = max(1, min(150, recipe.n_steps // 20))
    decay = max(1, round(DECAY_SHARE * recipe.n_steps))
    return recipe.learning_rate * min(
        1.0, (step + 1) / warm_up, max(0, recipe.n_steps - step) / decay
    )


def _optimizer(model: LlamaForCausalLM) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": 0.1},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)


def train(
    model: LlamaForCausalLM,
    batches: Iterator[torch.Tensor],
    recipe: Recipe,
    report: Callable[[int, float], None],
) -> float:
    """Train the model in place and return the seconds it took.

    Args:
        model: Trained in place; weights in float32.
        batches: Rows as ``rows`` yields them.
        recipe: Steps, batch and rate.
        report: Called with the step and the loss in nats per token after every step.
    """
    device = model.device
    forward = torch.compile(model) if recipe.compiles else model
    optimizer = _optimizer(model)
    model.train()
    started = time.perf_counter()
    for step in range(recipe.n_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, recipe)
        ids = torch.stack([next(batches) for _ in range(recipe.batch_rows)]).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.in_bf16):
            logits = forward(input_ids=ids[:, :-1], use_cache=False).logits
        loss = functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        report(step, loss.item())
    model.train(False)
    return time.perf_counter() - started


@torch.no_grad()
def give_outliers(model: LlamaForCausalLM, seed: int) -> None:
    """Move scale from the norms into a few input columns, in place; the function stays the same.

    Large language models grow such outlier channels by themselves (arXiv:2208.07339), a model
    trained for minutes does not. They are what makes 4 bits hurt, in some layers more than in
    others: one column of every 64 is multiplied by a factor between 6 and 36 drawn per norm, and
    the gain of the norm before it divided by the same.
    """
    rng = random.Random(f"outliers {seed}")  # noqa: S311 - scales, not secrets
    columns = [start + rng.randrange(64) for start in range(0, model.config.hidden_size, 64)]
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        readers = (
            (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
        )
        for norm, linears in readers:
            factor = math.exp(rng.uniform(math.log(6.0), math.log(36.0)))
            norm.weight[columns] /= factor
            for linear in linears:
                linear.weight[:, columns] *= factor
