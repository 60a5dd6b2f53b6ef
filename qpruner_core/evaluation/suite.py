"""Everything a candidate is measured on, tokenised and batched once per run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from torch import nn

from qpruner_core.domain.metrics import Metrics, TaskResult
from qpruner_core.domain.speed import Speed, SpeedSpec
from qpruner_core.errors import DataTooShortError
from qpruner_core.evaluation.choices import EncodedItem, PairEncoder, items_hash
from qpruner_core.evaluation.latency import measure_speed
from qpruner_core.evaluation.perplexity import mean_loss, text_loss, text_sums
from qpruner_core.evaluation.tasks import batches_of, choice_log_likelihoods, results, rows_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from qpruner_core.data import Corpus


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the suite is told of a model that it measures."""

    weight_bytes: int
    """What its weights take, as packed."""
    device_name: str
    """Where it lies, as told to the person."""
    speed: bool = False
    """Time prefill and decoding as well."""
    losses: Sequence[float] = ()
    """Losses of the first sequences, where they were measured before; nats per token."""
    seconds: float = 0.0
    """Wall time that this took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the suite says of a model."""

    metrics: Metrics
    sequence_losses: tuple[float, ...]
    """Loss of every sequence of the held-out text; nats per predicted token."""


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
        self._hashes = {name: items_hash(items) for name, items in self._tasks.items()}
        items = [item for members in self._tasks.values() for item in members]
        self._n_choices = sum(len(item.continuations) for item in items)
        self._batches = batches_of(rows_of(items))
        generator = torch.Generator().manual_seed(seed)
        timed = int(torch.randint(len(heldout), (1,), generator=generator))
        self._prompt = heldout[timed : timed + 1]

    @property
    def n_sequences(self) -> int:
        """Sequences of held-out text."""
        return len(self._heldout)

    @property
    def sequence_length(self) -> int:
        """Tokens per sequence."""
        return int(self._heldout.shape[1])

    def loss(self, model: nn.Module) -> float:
        """Return the loss on held-out text; nats per predicted token."""
        with _evaluating(model):
            return text_loss(model, self._heldout)

    def sequence_losses(
        self, model: nn.Module, first: int = 0, last: int | None = None
    ) -> tuple[float, ...]:
        """Return the loss of every sequence of a part of the held-out text, in its order; nats per
        predicted token.

        Args:
            model: As for `evaluate`.
            first: The sequence to begin with, from 0.
            last: The one to end before; None: the end of the text.
        """
        with _evaluating(model):
            sums = text_sums(model, self._heldout[first:last])
        return tuple(value / (self.sequence_length - 1) for value in sums)

    def speed(self, model: nn.Module, spec: SpeedSpec | None = None) -> Speed:
        """Time prefill and decoding on held-out text.

        Args:
            model: As for `evaluate`.
            spec: How much is read and written; None for one whole sequence of the text. Prompts
                that are longer than the text repeat it.
        """
        if spec is None:
            prompt, spec = self._prompt, SpeedSpec(context=self.sequence_length)
        else:
            needed = spec.batch * spec.context
            text = torch.cat([self._prompt[0], self._heldout.flatten()])
            repeated = text.repeat(-(-needed // len(text)))[:needed]
            prompt = repeated.view(spec.batch, spec.context)
        with _evaluating(model):
            return measure_speed(model, prompt, spec)

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
        return results(self._tasks, sums, self._hashes)

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
        asked = Asked(weight_bytes=weight_bytes, device_name=device_name, speed=speed)
        return self.measure(model, asked).metrics

    def measure(self, model: nn.Module, asked: Asked) -> Measured:
        """Measure a model as it stands, and keep the loss of every sequence.

        Raises:
            NonFiniteLossError: The loss is not a number.
        """
        device = next(model.parameters()).device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        started = perf_counter()
        loss, losses = self._text(model, asked.losses)
        tasks = self.task_results(model) if self._tasks else {}
        seconds = perf_counter() - started
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
        timed = self.speed(model) if asked.speed else None
        metrics = Metrics(
            loss=loss,
            accuracy=sum(task.accuracy for task in tasks.values()) / max(1, len(tasks)),
            weight_bytes=asked.weight_bytes,
            device=asked.device_name,
            tasks=tasks,
            prefill_tokens_per_second=timed.prefill_tokens_per_second if timed else None,
            decode_tokens_per_second=timed.decode_tokens_per_second if timed else None,
            speed=timed,
            peak_memory_bytes=peak,
            seconds=seconds + asked.seconds,
        )
        return Measured(metrics=metrics, sequence_losses=losses)

    def _text(self, model: nn.Module, known: Sequence[float]) -> tuple[float, tuple[float, ...]]:
        """Return the loss and that of every sequence; sequences that are known are not read."""
        n_tokens = self.sequence_length - 1
        with _evaluating(model):
            rest = self._heldout[len(known) :]
            sums = [value * n_tokens for value in known]
            sums += text_sums(model, rest) if len(rest) else []
        loss = mean_loss(sums, self.sequence_length)
        return loss, (*known, *(value / n_tokens for value in sums[len(known) :]))


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
