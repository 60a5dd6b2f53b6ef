"""Everything a candidate is measured on, tokenised and batched once per run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from torch import nn

from qpruner_core.domain.metrics import Metrics, TaskResult
from qpruner_core.errors import DataTooShortError
from qpruner_core.evaluation.choices import EncodedItem, PairEncoder
from qpruner_core.evaluation.latency import measure_speed
from qpruner_core.evaluation.perplexity import text_loss
from qpruner_core.evaluation.tasks import batches_of, choice_log_likelihoods, results, rows_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from qpruner_core.data import Corpus


class Suite:
    """Held-out text and tasks; evaluates any causal language model of the same tokenizer."""

    def __init__(
        self,
        heldout: torch.Tensor,
        tasks: Mapping[str, Sequence[EncodedItem]],
        seed: int = 0,
    ) -> None:
        """Batch text and items (see `build_suite`, which tokenises them)."""
        self._heldout = heldout
        self._tasks = {name: tuple(items) for name, items in tasks.items()}
        items = [item for members in self._tasks.values() for item in members]
        self._n_choices = sum(len(item.continuations) for item in items)
        self._batches = batches_of(rows_of(items))
        generator = torch.Generator().manual_seed(seed)
        timed = int(torch.randint(len(heldout), (1,), generator=generator))
        self._prompt = heldout[timed : timed + 1]

    def loss(self, model: nn.Module) -> float:
        """Return the loss on held-out text; nats per predicted token."""
        with _evaluating(model):
            return text_loss(model, self._heldout)

    def log_likelihoods(self, model: nn.Module) -> dict[str, list[list[float]]]:
        """Return task -> item -> summed log-likelihood of every choice; nats."""
        with _evaluating(model):
            flat = choice_log_likelihoods(model, self._batches, self._n_choices).tolist()
        values = iter(flat)
        return {
            task: [[next(values) for _ in item.continuations] for item in items]
            for task, items in self._tasks.items()
        }

    def task_results(self, model: nn.Module) -> dict[str, TaskResult]:
        """Return the accuracy of every task."""
        with _evaluating(model):
            sums = choice_log_likelihoods(model, self._batches, self._n_choices)
        return results(self._tasks, sums)

    def evaluate(
        self, model: nn.Module, *, weight_bytes: int, device_name: str, speed: bool = False
    ) -> Metrics:
        """Measure a model as it stands.

        Args:
            model: A causal language model; it is put into evaluation mode and back.
            weight_bytes: What its weights take, as packed.
            device_name: Where it lies, as told to the person.
            speed: Time prefill and decoding as well.

        Raises:
            NonFiniteLossError: The loss is not a number.
        """
        device = next(model.parameters()).device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        started = perf_counter()
        loss = self.loss(model)
        tasks = self.task_results(model) if self._tasks else {}
        seconds = perf_counter() - started
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
        with _evaluating(model):
            timed = measure_speed(model, self._prompt) if speed else None
        return Metrics(
            loss=loss,
            accuracy=sum(task.accuracy for task in tasks.values()) / max(1, len(tasks)),
            weight_bytes=weight_bytes,
            device=device_name,
            tasks=tasks,
            prefill_tokens_per_second=timed.prefill_tokens_per_second if timed else None,
            decode_tokens_per_second=timed.decode_tokens_per_second if timed else None,
            peak_memory_bytes=peak,
            seconds=seconds,
        )


def build_suite(
    tokenizer: PreTrainedTokenizerBase,
    corpus: Corpus,
    seed: int = 0,
    max_length: int | None = None,
) -> Suite:
    """Return the suite of a corpus: its held-out text and all its items, tokenised and batched.

    Args:
        tokenizer: Of the model that will be evaluated.
        corpus: Text and items; calibration and training text are not touched.
        seed: Picks the sequence that is timed.
        max_length: Longest input of an item; longer contexts are cut from the left. None: what the
            tokenizer states.

    Raises:
        DataTooShortError: There is no held-out text.
        BadInputError: An item has an empty choice or a gold index out of range.
    """
    if corpus.heldout.ndim != 2 or corpus.heldout.shape[0] == 0 or corpus.heldout.shape[1] < 2:
        raise DataTooShortError(
            f"The held-out text has the shape {tuple(corpus.heldout.shape)} in tokens; at least "
            f"one sequence of 2 tokens is needed. Give more held-out text or shorter sequences."
        )
    encoder = PairEncoder(tokenizer, max_length)
    tasks = {
        name: [encoder.item(item, name) for item in items]
        for name, items in corpus.tasks.items()
        if items
    }
    return Suite(corpus.heldout, tasks, seed)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout and the like off for the time being."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
