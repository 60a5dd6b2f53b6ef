"""The pruned model or one of its plans, measured beside the line: by the harness, on a text of the
person's own, for speed, or on all items.

A plan is packed as it would be exported; where the run's recovery trained on it, the adapter
stands beside its weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter

from qpruner_core.data.whole import whole_text
from qpruner_core.domain.harness import HarnessOutcome, HarnessSpec
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.progress import OnProgress, silent
from qpruner_core.domain.record import RunRecord, Trial
from qpruner_core.domain.recovered import RecoveryOutcome
from qpruner_core.domain.speed import Speed, SpeedSpec
from qpruner_core.domain.text_result import TextResult, WindowSpec
from qpruner_core.errors import BadInputError, NotReadyError
from qpruner_core.evaluation.harness import check_installed, harness_version, run_harness
from qpruner_core.evaluation.windows import measure_text
from qpruner_core.models.loader import LoadedModel
from qpruner_core.pipeline.materials import Materials, bytes_16_bit
from qpruner_core.pipeline.merging import shift_
from qpruner_core.pipeline.out_of_memory import OUT_OF_MEMORY_BESIDE, out_of_memory_as
from qpruner_core.pipeline.starting import with_scalings
from qpruner_core.quantization.packing import pack_, packed_bytes
from qpruner_core.recovery.adapter import WEIGHTS
from qpruner_core.recovery.merging import beside, read_adapter
from qpruner_core.recovery.shifts import read_shift


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shown:
    """A model that is ready to be measured."""

    loaded: LoadedModel
    layout: ModelLayout
    weight_bytes: int
    """As packed, an adapter included."""
    with_adapter: bool


class Evaluating:
    """One model of a run, built once and measured as often as asked.

    Every measurement raises `DeviceMemoryError` where memory runs out.
    """

    def __init__(
        self,
        record: RunRecord,
        materials: Materials,
        trial: Trial | None = None,
        *,
        items: bool = False,
        on_progress: OnProgress = silent,
    ) -> None:
        """Take what is to be measured.

        Args:
            record: A run that has been pruned.
            materials: Of the run; a plan takes its pruned model over.
            trial: The plan; None: the pruned 16-bit model.
            items: Whether `metrics` will be asked for, which needs all items tokenised.
            on_progress: Told how far reading a text is.
        """
        self._record, self._materials, self._trial = record, materials, trial
        self._items, self._on_progress = items, on_progress
        self._built: Shown | None = None

    @property
    def with_adapter(self) -> bool:
        """Whether the plan is measured with the run's recovery adapter."""
        return self._recovered() is not None

    @out_of_memory_as(OUT_OF_MEMORY_BESIDE)
    def harness(self, spec: HarnessSpec) -> HarnessOutcome:
        """Let lm-evaluation-harness score the model.

        Raises:
            QPrunerError: As `run_harness` says.
        """
        check_installed()
        started = perf_counter()
        with self._shown() as shown:
            tasks = run_harness(shown.loaded.model, shown.loaded.tokenizer, spec)
        return HarnessOutcome(
            spec=spec,
            trial=self._trial.number if self._trial is not None else None,
            with_adapter=shown.with_adapter,
            tasks=tasks,
            harness_version=harness_version(),
            device=shown.loaded.device.name,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=perf_counter() - started,
        )

    @out_of_memory_as(OUT_OF_MEMORY_BESIDE)
    def text(self, source: str, spec: WindowSpec) -> TextResult:
        """Return the perplexity of a text.

        Args:
            source: As `whole_text` takes it.
            spec: How it is cut into windows.

        Raises:
            BadInputError: There is no such text, or the model cannot read so long a window.
            DataTooShortError: It has fewer than two tokens.
            NonFiniteLossError: The loss is not a number.
        """
        text = whole_text(source)
        with self._shown() as shown:
            self._check_positions(shown, spec.length, f"A window of {spec.length} tokens was")
            loaded = shown.loaded
            return measure_text(loaded.model, loaded.tokenizer, text, spec, self._on_progress)

    @out_of_memory_as(OUT_OF_MEMORY_BESIDE)
    def speed(self, spec: SpeedSpec) -> tuple[Speed, int]:
        """Return tokens per second, and the bytes of the weights as packed.

        Raises:
            BadInputError: The model has no positions for so many tokens.
        """
        with self._shown() as shown:
            n_tokens = spec.context + spec.n_decoded
            words = f"{spec.context} tokens and {spec.n_decoded} behind them were"
            self._check_positions(shown, n_tokens, words)
            speed = self._materials.suite().speed(shown.loaded.model, spec)
            per_value = shown.loaded.device.compute_dtype.itemsize
        cache = spec.batch * shown.layout.kv_cache_bytes(spec.context, per_value)
        return replace(speed, kv_cache_bytes=cache), shown.weight_bytes

    @out_of_memory_as(OUT_OF_MEMORY_BESIDE)
    def metrics(self) -> Metrics:
        """Return what the *evaluate* step measures, of this model: all items of all tasks.

        Raises:
            NonFiniteLossError: The loss is not a number.
        """
        with self._shown() as shown:
            return self._materials.full_suite().evaluate(
                shown.loaded.model,
                weight_bytes=shown.weight_bytes,
                device_name=shown.loaded.device.name,
                speed=True,
            )

    def _check_positions(self, shown: Shown, n_tokens: int, words: str) -> None:
        most = shown.loaded.card.max_positions
        if n_tokens > most:
            raise BadInputError(
                f"{words} asked for, but the model has positions for {most} tokens. Ask for fewer."
            )

    @contextmanager
    def _shown(self) -> Iterator[Shown]:
        found = self._built = self._built or self._build()
        recovered = self._recovered()
        if recovered is None:
            yield found
            return
        factors = read_adapter(Path(recovered.adapter))
        adapter = with_scalings(factors, found.layout, recovered.spec)
        with beside(found.loaded.model, adapter):
            yield found

    def _build(self) -> Shown:
        if self._trial is None:
            loaded, layout = self._materials.pruned(), self._materials.layout()
            size = bytes_16_bit(layout)
            return Shown(loaded=loaded, layout=layout, weight_bytes=size, with_adapter=False)
        plan, recovered = self._trial.plan, self._recovered()
        layout = self._materials.layout(plan.levels)
        self._materials.pruned(plan.levels)
        # While the model whose tokenizer they need is still in memory.
        self._materials.suite()
        if self._items:
            self._materials.full_suite()
        loaded = self._materials.take_pruned(plan.levels)
        if recovered is not None and recovered.shift:
            factors = read_shift(Path(recovered.shift))
            shift_(loaded.model, with_scalings(factors, layout, recovered.spec))
        pack_(loaded.model, layout, plan, loaded.device.compute_dtype)
        size = packed_bytes(loaded.model)
        if recovered is not None:
            size += (Path(recovered.adapter) / WEIGHTS).stat().st_size
        return Shown(
            loaded=loaded,
            layout=layout,
            weight_bytes=size,
            with_adapter=recovered is not None,
        )

    def _recovered(self) -> RecoveryOutcome | None:
        """Return the recovery whose adapter belongs to the plan."""
        found = self._record.recover
        if self._trial is None or found is None or not found.adapter:
            return None
        return found if found.spec.trial == self._trial.number else None


def measured_trial(record: RunRecord, number: int | None) -> Trial:
    """Return a measured plan of a run; None for the chosen one.

    Raises:
        NotReadyError: Nothing has been searched.
        BadInputError: There is no such plan.
    """
    if record.search is None:
        raise NotReadyError("This run has no measured plans yet. Search first.")
    wanted = record.search.chosen if number is None else number
    for trial in (*record.search.trials, *record.search.baselines):
        if trial.number == wanted and trial.metrics is not None:
            return trial
    raise BadInputError(
        f"This run has no measured plan number {wanted}. Choose one of those on the Results "
        f"page or of 'qpruner runs {record.run_id} --json'."
    )
