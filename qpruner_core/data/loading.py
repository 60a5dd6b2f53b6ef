"""What recovery trains on, read from disk: text or instructions, without anything that evaluation
sees.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

from qpruner_core.data.apart import RUN, Evaluated
from qpruner_core.data.corpus import CHARACTERS_PER_TOKEN, MAX_TRAINING_TOKENS, head, pack
from qpruner_core.data.instructions import Example, encoded
from qpruner_core.data.rows import shared_rows, training_set
from qpruner_core.data.tasks import read_tasks
from qpruner_core.data.texts import read_texts
from qpruner_core.data.training import TrainingSet
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.domain.spec import DataSpec
from qpruner_core.errors import DataTooShortError
from qpruner_core.inspection.instructions import (
    Instruction,
    is_instruction_file,
    no_answer,
    read_instructions,
)
from qpruner_core.inspection.sources import WIKITEXT, check_apart, place_of, training_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_COMPARED_CHARACTERS = 2**22
"""Held-out text up to here is kept out of training even where an evaluation reads less of it."""


def load_training(
    recovery: RecoverySpec, data: DataSpec, tokenizer: PreTrainedTokenizerBase
) -> TrainingSet:
    """Read, tokenise and lay into rows what recovery trains on.

    A text that is one of several uses of the same file is cut as the run's evaluation was. Beyond
    that, documents and examples that overlap with the held-out text or a task's items (see
    `Evaluated`) are left out and counted. The splits of ``wikitext2`` are taken as published. The
    demo's texts are of a language whose sentences repeat each other's phrases and were made apart:
    long runs of equal words do not count there.

    Args:
        recovery: What to train on, rows and seed.
        data: The run's own texts and tasks.
        tokenizer: The model's own.

    Raises:
        BadInputError: A source is unknown, missing, not UTF-8, has an entry that does not fit, or
            serves evaluation too.
        DataTooShortError: Nothing is left to learn.
        HubUnreachableError: ``wikitext2`` is not cached and the hub does not answer.
    """
    check_apart(recovery, data)
    source = training_source(recovery, data)
    if is_instruction_file(source):
        return _of_instructions(read_instructions(source), recovery, data, tokenizer)
    text = read_texts(_sources(replace(data, training=source)), ["training"])["training"]
    n_left_out = 0
    if source != WIKITEXT:
        documents = tuple(head(text.documents, MAX_TRAINING_TOKENS * CHARACTERS_PER_TOKEN))
        evaluated = _evaluated(data)
        is_demo = place_of("training", source) == place_of("training", "demo")
        seen = evaluated.holds if is_demo else evaluated.overlaps
        text = replace(text, documents=tuple(d for d in documents if not seen(d)))
        _check_some(len(text.documents), len(documents), source, "documents")
        n_left_out = len(documents) - len(text.documents)
    ids = pack(tokenizer, text, "training", recovery.sequence_length, MAX_TRAINING_TOKENS)
    return replace(
        TrainingSet.of_text(ids), remarks=_left_out(n_left_out, "document", "documents")
    )


def _sources(data: DataSpec) -> dict[str, str]:
    return {"calibration": data.calibration, "training": data.training, "heldout": data.heldout}


def _evaluated(data: DataSpec) -> Evaluated:
    heldout = read_texts(_sources(data), ["heldout"])["heldout"].documents
    n_characters = max(data.heldout_tokens * CHARACTERS_PER_TOKEN, _COMPARED_CHARACTERS)
    tasks = read_tasks(data.tasks, 0, names=data.task_names)
    return Evaluated(head(heldout, n_characters), chain.from_iterable(tasks.values()))


def _left_out(count: int, one: str, many: str) -> tuple[str, ...]:
    if not count:
        return ()
    words = f"1 {one} that stands" if count == 1 else f"{count:,} {many} that stand"
    return (
        f"{words} word for word in the held-out text or a task, or with {RUN} words in a row of "
        f"it: left out of training.",
    )


def _check_some(n_kept: int, n_all: int, source: str, words: str) -> None:
    if not n_kept:
        raise DataTooShortError(
            f"All {n_all:,} {words} of {source!r} stand in the held-out text or the tasks of this "
            f"run, which are never trained on. Give another training text."
        )


# Instructions


def _of_instructions(
    read: tuple[Instruction, ...],
    recovery: RecoverySpec,
    data: DataSpec,
    tokenizer: PreTrainedTokenizerBase,
) -> TrainingSet:
    source, evaluated = training_source(recovery, data), _evaluated(data)
    answered = [example for example in read if example.is_answered]
    if not answered:
        raise no_answer(source, len(read))
    first = list(_head(answered, MAX_TRAINING_TOKENS * CHARACTERS_PER_TOKEN))
    apart = [e for e in first if not evaluated.overlaps(e.instruction, e.input, e.output)]
    _check_some(len(apart), len(first), source, "examples")
    n_all = len(answered) - len(first) + len(apart)
    examples, told = _cut(encoded(tokenizer, apart), n_all, recovery, source)
    lengths = [len(example.ids) for example in examples]
    if recovery.packing:
        rows = shared_rows(lengths, recovery.sequence_length, recovery.seed)
    else:
        rows = [[index] for index in range(len(examples))]
    return training_set(
        examples,
        rows,
        pad=_pad_id(tokenizer),
        train_on_prompt=recovery.train_on_prompt,
        remarks=(
            *_without_answer(len(read) - len(answered)),
            *_left_out(len(first) - len(apart), "example", "examples"),
            *told,
        ),
    )


def _without_answer(count: int) -> tuple[str, ...]:
    if not count:
        return ()
    words = "1 example has" if count == 1 else f"{count:,} examples have"
    return (f"{words} no answer: left out of training.",)


def _head(examples: Iterable[Instruction], n_characters: int) -> Iterator[Instruction]:
    """Yield examples until they hold so many characters, as `head` does with documents."""
    for example in examples:
        if n_characters <= 0:
            return
        yield example
        n_characters -= len(example.instruction) + len(example.input) + len(example.output)


def _cut(
    encoded_examples: Iterable[Example], n_all: int, recovery: RecoverySpec, source: str
) -> tuple[list[Example], tuple[str, ...]]:
    """Return the examples that keep something to learn, none longer than a row, and what to tell
    of the others.
    """
    length = recovery.sequence_length
    kept: list[Example] = []
    n_read = n_tokens = n_long = 0
    for example in encoded_examples:
        if n_tokens >= MAX_TRAINING_TOKENS:
            break
        cut = example.cut(length)
        n_read, n_tokens = n_read + 1, n_tokens + len(cut.ids)
        n_long += len(cut.ids) < len(example.ids)
        if cut.first_learned(recovery.train_on_prompt) < len(cut.ids):
            kept.append(cut)
    if not kept:
        raise DataTooShortError(
            f"Of {n_read:,} examples in {source!r} none keeps a token to learn within "
            f"{length} tokens. Raise the sequence length of recovery, or shorten the instructions."
        )
    return kept, _told(n_all, n_read, n_long, n_read - len(kept), length)


def _told(n_all: int, n_read: int, n_long: int, n_lost: int, length: int) -> tuple[str, ...]:
    told = []
    if n_read < n_all:
        told.append(
            f"The first {n_read:,} of {n_all:,} examples are read, about "
            f"{MAX_TRAINING_TOKENS:,} tokens."
        )
    if n_long:
        told.append(
            f"{n_long:,} of {n_read:,} examples are longer than {length} tokens: cut there."
        )
    if n_lost:
        told.append(f"{n_lost:,} of {n_read:,} examples keep no token to learn: left out.")
    return tuple(told)


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return int(next((token for token in known if token is not None), 0))
