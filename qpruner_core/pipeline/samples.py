"""Short greedy continuations, so that a person can read what a model still says."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

N_PROMPT_TOKENS = 16
N_NEW_TOKENS = 24


def prompts_from(ids: torch.Tensor, tokenizer: PreTrainedTokenizerBase, n: int = 2) -> list[str]:
    """Return the first tokens of n sequences as text; ids: (n_sequences, length)."""
    step = max(1, ids.shape[0] // n)
    rows = ids[::step][:n, :N_PROMPT_TOKENS]
    return [str(tokenizer.decode(row, skip_special_tokens=True)).strip() for row in rows]


@torch.no_grad()
def continue_text(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    n_tokens: int = N_NEW_TOKENS,
) -> str:
    """Return the greedy continuation of a prompt, without the prompt itself."""
    device = next(model.parameters()).device
    found = tokenizer(prompt)["input_ids"]
    # A text of which the tokenizer knows nothing is no tokens at all, and a model needs one.
    start = [tokenizer.bos_token_id or tokenizer.eos_token_id or 0]
    ids = torch.tensor([found or start], device=device)
    mask = torch.ones_like(ids)
    generated = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=n_tokens,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id or 0,
    )
    return str(tokenizer.decode(generated[0, ids.shape[1] :], skip_special_tokens=True)).strip()
