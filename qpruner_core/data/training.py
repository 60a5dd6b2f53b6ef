"""What recovery reads: rows of tokens, and which of them it learns."""

from __future__ import annotations

from dataclasses import dataclass

import torch

IGNORED = -100
"""Label of a token that is read and not learned, as PyTorch's cross-entropy ignores it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingSet:
    """Rows of equal length; int64, on the CPU."""

    ids: torch.Tensor
    """Token ids, ``(n, length)``."""
    labels: torch.Tensor
    """``(n, length)``: the token itself where it is learned, else `IGNORED`. The label of a
    token is what the token before it predicts, as transformers shifts labels."""
    positions: torch.Tensor | None = None
    """``(n, length)``: position of every token in its own example, starting again at 0 with each;
    tokens see only their own example. None: a row is one text from its beginning to its end."""
    remarks: tuple[str, ...] = ()
    """Sentences for the person, such as how many examples were cut."""

    @classmethod
    def of_text(cls, ids: torch.Tensor) -> TrainingSet:
        """Return rows of plain text, all of it learned."""
        return cls(ids=ids, labels=ids)

    def __len__(self) -> int:
        return int(self.ids.shape[0])
