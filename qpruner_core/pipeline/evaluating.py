"""The pruned model or one of its plans, measured beside the line: by the harness, on a text of the
person's own, for speed, or on all items.

A plan is packed as it would be exported; where the run's recovery trained on it, the adapter
stands beside its weights. A row of the paper's table has an adapter of its own.
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
from qpruner_core.domain.measured import measured_trial
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.progress import OnProgress, silent
from qpruner_core.domain.record import RunRecord
from qpruner_core.domain.recovered import RecoveryOutcome
from qpruner_core.domain.speed import Speed, SpeedSpec
from qpruner_core.domain.text_result import TextResult, WindowSpec
from qpruner_core.errors import BadInputError
from qpruner_core.evaluation import Suite
from qpruner_core.evaluation.harness import check_installed, harness_version, run_harness
from qpruner_core.evaluation.windows import measure_text
from qpruner_core.models.loader import LoadedModel
from qpruner_core.pipeline.materials import Materials, bytes_16_bit
from qpruner_core.pipeline.out_of_memory import OUT_OF_MEMORY_BESIDE, out_of_memory_as
from qpruner_core.pipeline.recovering import Asked, packed_plan
from qpruner_core.pipeline.starting import Shifts, with_scalings
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A plan that is measured, and what stands beside its weights."""

    trial: int
    """Its number."""
    plan: PrecisionPlan
    recovery: RecoveryOutcome | None = None
    """Whose adapter, and shift, belong to the plan; None for none."""
    hold_16_bit: tuple[str, ...] = ()
    """Precisions whose Linears hold their 16-bit weight besides."""
    items_per_task: int = 0
    """How many items of every task it is judged by; 0 for all."""
    row: str = ""
    """Which row of the paper's table it is; empty for a plan of the line."""


class Evaluating:
    """One model of a run, built once and measured as often as asked.

    Every measurement raises `DeviceMemoryError` where memory runs out.
    """

    def __init__(
        self,
        record: RunRecord,
        materials: Materials,
        subject: Subject | None = None,
        *,
        items: bool = False,
        on_progress: OnProgress = silent,
    ) -> None:
        """Take what is to be measured.

        Args:
            record: A run that has been pruned.
            materials: Of the run; a plan takes its pruned model over.
            subject: The plan; None: the pruned 16-bit model.
            items: Whether `metrics` will be asked for, which needs its items tokenised.
            on_progress: Told how far reading a text is.
        """
        self._record, self._materials, self._subject = record, materials, subject
        self._items, self._on_progress = items, on_progress
        self._built: Shown | None = None

    @property
    def run_id(self) -> str:
        """The run whose model it is."""
        return self._record.run_id

    @property
    def with_adapter(self) -> bool:
        """Whether the plan is measured with a recovery adapter."""
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
            trial=self._subject.trial if self._subject is not None else None,
            row=self._subject.row if self._subject is not None else "",
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
        """Return what the *evaluate* step measures, of this model: all items of all tasks, of a
        row those that the table has.

        Raises:
            NonFiniteLossError: The loss is not a number.
        """
        with self._shown() as shown:
            return self._items_suite().evaluate(
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
        if self._subject is None:
            loaded, layout = self._materials.pruned(), self._materials.layout()
            size = bytes_16_bit(layout)
            return Shown(loaded=loaded, layout=layout, weight_bytes=size, with_adapter=False)
        plan, recovered = self._subject.plan, self._recovered()
        layout = self._materials.layout(plan.levels)
        self._materials.pruned(plan.levels)
        # While the model whose tokenizer they need is still in memory.
        self._materials.suite()
        if self._items:
            self._items_suite()
        shifts: Shifts = {}
        if recovered is not None and recovered.shift:
            shifts = with_scalings(read_shift(Path(recovered.shift)), layout, recovered.spec)
        spec = recovered.spec if recovered is not None else self._record.spec.recovery
        asked = Asked(plan=plan, spec=spec, hold_16_bit=self._subject.hold_16_bit)
        packed = packed_plan(self._materials, asked, shifts)
        size = packed.size_bytes
        if recovered is not None:
            size += (Path(recovered.adapter) / WEIGHTS).stat().st_size
        return Shown(
            loaded=packed.loaded,
            layout=layout,
            weight_bytes=size,
            with_adapter=recovered is not None,
        )

    def _items_suite(self) -> Suite:
        asked = self._subject.items_per_task if self._subject is not None else 0
        return self._materials.suite_of(asked)

    def _recovered(self) -> RecoveryOutcome | None:
        """Return the recovery whose adapter belongs to the plan."""
        found = self._subject.recovery if self._subject is not None else None
        return found if found is not None and found.adapter else None


def plan_of_line(record: RunRecord, number: int) -> Subject:
    """Return a measured plan with the run's adapter, where it was trained on it.

    Raises:
        NotReadyError: Nothing has been searched.
        BadInputError: There is no such plan.
    """
    trial, recovered = measured_trial(record, number), record.recover
    own = recovered is not None and recovered.spec.trial == trial.number
    return Subject(trial=trial.number, plan=trial.plan, recovery=recovered if own else None)
