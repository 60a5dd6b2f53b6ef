"""What a run is calibrated and measured on, as token ids `(n, length)` and items."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import torch

from qpruner_core.data.tasks import Item, read_tasks
from qpruner_core.data.texts import Text, read_texts
from qpruner_core.domain.spec import DataSpec
from qpruner_core.errors import DataTooShortError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_TRAINING_TOKENS = 2**22
"""Recovery trains for minutes, not epochs: of longer text only the first part is read."""
CHARACTERS_PER_TOKEN = 16
"""More than any tokenizer needs on average; text beyond so many characters is not tokenised."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Corpus:
    """What a run is calibrated and measured on, tokenised; int64, on the CPU. What recovery trains
    on is read when it is needed (`load_training`).
    """

    calibration: torch.Tensor
    """What criteria and signals see, ``(n, length)``."""
    heldout: torch.Tensor
    """What evaluation sees, ``(n, length)``."""
    tasks: Mapping[str, tuple[Item, ...]]
    """Task name -> items; empty without tasks."""


def load_corpus(data: DataSpec, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> Corpus:
    """Read, tokenise and pack what a run is calibrated and measured on.

    Documents follow each other, each closed by the end-of-text token (a newline where the
    tokenizer has none), cut into sequences without overlap; what is left over at the end is
    dropped. Calibration and held-out text are the first so many tokens of their source, or all of
    it where it is shorter.

    Args:
        data: Which sources and how much of them.
        tokenizer: The model's own.
        seed: Seed of the choice of task items.

    Raises:
        BadInputError: A source is unknown, missing, not UTF-8, or an item does not fit.
        DataTooShortError: A text does not fill one sequence.
        HubUnreachableError: ``wikitext2`` is not cached and the hub does not answer.
    """
    sources = {
        "calibration": data.calibration,
        "training": data.training,
        "heldout": data.heldout,
    }
    limits = {"calibration": data.calibration_tokens, "heldout": data.heldout_tokens}
    packed = {
        use: pack(tokenizer, text, use, data.sequence_length, limits[use])
        for use, text in read_texts(sources, tuple(limits)).items()
    }
    tasks = read_tasks(data.tasks, data.items_per_task, seed, data.task_names)
    return Corpus(calibration=packed["calibration"], heldout=packed["heldout"], tasks=tasks)


def pack(
    tokenizer: PreTrainedTokenizerBase, text: Text, use: str, length: int, max_tokens: int
) -> torch.Tensor:
    """Return the documents of a text as sequences ``(n, length)``, at most ``max_tokens`` in all.

    Raises:
        DataTooShortError: They do not fill one sequence.
    """
    documents = list(head(text.documents, max_tokens * CHARACTERS_PER_TOKEN))
    ids = tokenizer(documents, add_special_tokens=False, verbose=False)["input_ids"]
    end = end_ids(tokenizer)
    stream = list(chain.from_iterable([*document, *end] for document in ids))[:max_tokens]
    n_sequences = len(stream) // length
    if not n_sequences:
        raise DataTooShortError(
            f"The {use} text {text.source!r} has {len(stream)} tokens in {len(documents)} "
            f"documents, but one sequence takes {length}. Give a longer text or a shorter "
            "sequence length."
        )
    return torch.tensor(stream[: n_sequences * length], dtype=torch.int64).view(-1, length)


def head(documents: Iterable[str], n_characters: int) -> Iterable[str]:
    """Yield documents until they hold so many characters; the last one is cut there."""
    for document in documents:
        if n_characters <= 0:
            return
        yield document[:n_characters]
        n_characters -= len(document)


def end_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return what closes a document: the end-of-text token, a newline where there is none."""
    if tokenizer.eos_token_id is not None:
        return [int(tokenizer.eos_token_id)]
    return list(tokenizer("\n", add_special_tokens=False)["input_ids"])
