"""A model larger than memory, pruned and written layer by layer from its shards.

    scores (layer by layer) -> selection -> biases -> precisions -> weights (tensor by tensor)

Held at a time are one decoder layer, the hidden states of the calibration text and one tensor on
its way into a file. Many hidden states lie in a file, but not while biases are found
(compensation): then those of the whole text are in memory, in the compute dtype. What is written
is what the line in memory would write for the same plans, bit for bit. The model is never
evaluated: its precision plan is asked for or predicted, and card and record say so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from qpruner_core.catalog import check_spec, precision_formats
from qpruner_core.data.corpus import pack
from qpruner_core.data.texts import read_texts
from qpruner_core.domain.compression import CompressionOutcome
from qpruner_core.domain.footprint import dense_bytes, parse_budget, plan_bytes
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PrecisionPlan, PruningPlan
from qpruner_core.domain.progress import OnProgress, Progress, never, silent
from qpruner_core.domain.spec import DataSpec, RunSpec
from qpruner_core.errors import BadInputError, StoppedError
from qpruner_core.export import ExportFacts
from qpruner_core.export.card import MANIFEST
from qpruner_core.export.checkpoint import Flavour, Source, Weights, fill_checkpoint
from qpruner_core.export.folder import refuse_existing
from qpruner_core.export.hf_16bit import sixteen_bit_flavour
from qpruner_core.export.hf_mixed import mixed_flavour
from qpruner_core.export.verify import weight_file_bytes
from qpruner_core.models.device import Device
from qpruner_core.models.host_memory import (
    keeping_small,
    peak_resident_bytes,
    release,
    reset_peak,
)
from qpruner_core.models.inputs import InputStats
from qpruner_core.models.loader import check_tokenizer, load_tokenizer
from qpruner_core.models.skeleton import Skeleton
from qpruner_core.pipeline.asked import compress_command
from qpruner_core.pipeline.beginning import widths_are_known
from qpruner_core.pipeline.streamed_scores import (
    Seen,
    Wanted,
    check_streams,
    one_layer,
    see_layers,
)
from qpruner_core.pipeline.streamed_weights import (
    Slicing,
    WeightStream,
    quantisation_errors,
    storage_dtype_of,
)
from qpruner_core.pruning.compensation import (
    bias_remarks,
    bias_values,
    settled_statistics,
    with_biases,
)
from qpruner_core.pruning.selection import Selection, select
from qpruner_core.pruning.surgery import prune_
from qpruner_core.quantization.shapes import check_plan, check_shapes
from qpruner_core.search.knapsack import best_under, front
from qpruner_core.search.space import SearchSpace

OnFilled = Callable[[CompressionOutcome], None]
"""Told what a folder holds before it has its name."""

FLAVOURS: Mapping[str, Callable[[ExportFacts], Flavour]] = {
    "hf_mixed": mixed_flavour,
    "hf_16bit": sixteen_bit_flavour,
}
"""Export formats that are written tensor by tensor."""
PREDICTED = (
    "The precisions of the Linears are predicted, not measured: under the memory budget they make "
    "the rounding of weights, weighted by what enters them on calibration text, least."
)
UNMEASURED = (
    "This model was pruned and written layer by layer, without being loaded whole: neither it nor "
    "the original was evaluated."
)


def compress(
    spec: RunSpec,
    out: Path,
    device: Device,
    on_progress: OnProgress = silent,
    should_stop: Callable[[], bool] = never,
    on_filled: OnFilled = lambda outcome: None,
) -> CompressionOutcome:
    """Prune and quantise a model that need not fit into memory, and write it as a checkpoint.

    One precision in ``spec.search.precisions`` is given to every Linear; of several, the memory
    budget chooses per unit of ``spec.search.tie``. The format is that of ``spec.export``.

    Args:
        spec: Model, calibration text, criterion options, pruning, precisions and format.
        out: Folder to create.
        device: Where calibration text goes through the layers; weights are packed on the CPU.
        on_progress: Told after every layer of every pass.
        should_stop: Asked between layers.
        on_filled: Told what was written just before the folder gets its name; the time of the
            last pass is not known yet.

    Raises:
        QPrunerError: What is asked for cannot work for this model; nothing is left behind.
        StoppedError: It was asked to stop.
    """
    with keeping_small():
        return _Compression(spec, out, device, on_progress, should_stop).run(on_filled)


def check_compression(spec: RunSpec, layout: ModelLayout) -> None:
    """Refuse what cannot work, from config and headers alone.

    Raises:
        QPrunerError: A criterion that needs gradients, several rounds, a format that does not
            stream, a ratio, widths or a budget that no plan reaches.
    """
    check_spec(spec)
    check_streams(spec.pruning.criterion, layout, spec.data.sequence_length)
    if spec.pruning.iterations > 1:
        raise BadInputError(
            f"{spec.pruning.iterations} rounds of scoring and pruning were asked for, but layer "
            "by layer there is one. Set the iterations to 1, or use 'qpruner run' on a machine "
            "that holds the model."
        )
    if spec.export.format not in FLAVOURS:
        raise BadInputError(
            f"The format {spec.export.format!r} was asked for, but layer by layer only "
            f"{' and '.join(FLAVOURS)} are written. Choose one of these."
        )
    plan = select(layout, None, spec.pruning).plan
    wanted = spec.pruning.compensation == "bias"
    pruned = layout.pruned(with_biases(layout, plan) if wanted else plan)
    if spec.export.format == "hf_mixed":
        if widths_are_known(spec.pruning):
            check_shapes(pruned, spec.search.precisions)
        if len(spec.search.precisions) > 1:
            reference = dense_bytes(layout)
            budget = parse_budget(spec.search.memory_budget, reference)
            SearchSpace(pruned, spec.search.precisions, spec.search.tie).check_budget(
                budget, reference
            )


def calibration_ids(data: DataSpec, tokenizer: Any) -> torch.Tensor:
    """Return the calibration text of a run as `data.load_corpus` gives it, int64 (n, T)."""
    texts = read_texts(
        {"calibration": data.calibration, "training": data.training, "heldout": data.heldout}
    )
    use = "calibration"
    return pack(tokenizer, texts[use], use, data.sequence_length, data.calibration_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decided:
    """A pruning decided in full, with the values of its biases."""

    selection: Selection
    plan: PruningPlan
    layout: ModelLayout
    biases: Mapping[str, torch.Tensor]


class _Compression:
    """The passes of one compression, in order."""

    def __init__(
        self,
        spec: RunSpec,
        out: Path,
        device: Device,
        on_progress: OnProgress,
        should_stop: Callable[[], bool],
    ) -> None:
        self._counts_peak = reset_peak()
        self._spec, self._out = spec, out
        self._on_progress, self._should_stop = on_progress, should_stop
        self._skeleton = Skeleton(spec.model, device)
        self._dense = self._skeleton.layout
        self._seconds: dict[str, float] = {}
        self._tokenizer = load_tokenizer(spec.model, self._skeleton.folder)

    def run(self, on_filled: OnFilled) -> CompressionOutcome:
        """Carry all passes out."""
        refuse_existing(self._out)
        check_compression(self._spec, self._dense)
        check_tokenizer(self._tokenizer, self._dense)
        wanted = self._wanted()
        ids = torch.empty(0, 0, dtype=torch.int64)
        if wanted.needs_forward or self._spec.pruning.compensation == "bias":
            ids = calibration_ids(self._spec.data, self._tokenizer)
        seen = self._timed("score", lambda tell: self._see(ids, wanted, tell))
        decided = self._timed("compensate", lambda tell: self._decide(seen, ids, tell))
        slicing = Slicing(self._dense, decided.plan, decided.biases)
        plan = self._timed(
            "quantize", lambda tell: self._precisions(decided.layout, slicing, seen.inputs, tell)
        )
        check_plan(decided.layout, plan)
        facts = self._facts(decided, plan)
        outcome = partial(self._outcome, facts, decided, ids.numel(), seen.warnings)

        def filled(folder: Path) -> None:
            on_filled(outcome(folder))

        self._timed("export", lambda tell: self._write(facts, slicing, decided, tell, filled))
        return outcome(self._out)

    @property
    def _is_mixed(self) -> bool:
        """Whether a budget chooses among precisions."""
        return self._spec.export.format == "hf_mixed" and len(self._spec.search.precisions) > 1

    def _wanted(self) -> Wanted:
        return Wanted(
            criterion=self._spec.pruning.criterion,
            spec=self._spec.importance,
            layers_leave=self._spec.pruning.drop_layers > 0,
            keep_inputs=self._is_mixed,
        )

    def _see(self, ids: torch.Tensor, wanted: Wanted, tell: Callable[[int], None]) -> Seen:
        self._out.parent.mkdir(parents=True, exist_ok=True)
        return see_layers(self._skeleton, ids, wanted, self._out.parent, tell)

    def _decide(self, seen: Seen, ids: torch.Tensor, tell: Callable[[int], None]) -> _Decided:
        influence = None if seen.layer_scores is None else [float(x) for x in seen.layer_scores]
        chosen = select(self._dense, seen.unit_scores, self._spec.pruning, layer_scores=influence)
        plan, biases = chosen.plan, dict[str, torch.Tensor]()
        if self._spec.pruning.compensation == "bias":
            plan = with_biases(self._dense, plan)
            biases = self._bias_values(plan, ids, tell) if plan.biases else {}
        layout = self._dense.pruned(plan)
        return _Decided(selection=chosen, plan=plan, layout=layout, biases=biases)

    def _bias_values(
        self, plan: PruningPlan, ids: torch.Tensor, tell: Callable[[int], None]
    ) -> dict[str, torch.Tensor]:
        skeleton, values = self._skeleton, dict[str, torch.Tensor]()
        with skeleton.embedding(ids) as places, skeleton.walking() as go_to:

            def next_layer(layer: int) -> None:
                go_to(layer + 1)
                release()
                tell(layer)

            stats = settled_statistics(skeleton.model, self._dense, plan, places, next_layer)
        for layer in range(self._dense.n_layers):
            layout = one_layer(self._dense, layer)
            with skeleton.layer(layer):
                values |= bias_values(skeleton.model, layout, plan, stats)
        release()
        return values

    def _precisions(
        self,
        pruned: ModelLayout,
        slicing: Slicing,
        inputs: Mapping[str, InputStats],
        tell: Callable[[int], None],
    ) -> PrecisionPlan:
        """Return the plan that is asked for, or the best predicted one under the budget."""
        search = self._spec.search
        if self._spec.export.format == "hf_16bit":
            return PrecisionPlan.uniform(pruned, "bf16")
        if not self._is_mixed:
            return PrecisionPlan.uniform(pruned, search.precisions[0])
        reference = dense_bytes(self._dense)
        budget = parse_budget(search.memory_budget, reference)
        space = SearchSpace(pruned, search.precisions, search.tie, reference)
        space.check_budget(budget, reference)
        cells = quantisation_errors(self._skeleton, slicing, space, inputs, tell)
        return best_under(front(space, cells), budget, reference).plan

    def _facts(self, decided: _Decided, plan: PrecisionPlan) -> ExportFacts:
        notes = (UNMEASURED, PREDICTED) if self._is_mixed else (UNMEASURED,)
        return ExportFacts(
            card=self._skeleton.card,
            layout=decided.layout,
            pruning=decided.plan,
            plan=plan,
            notes=notes,
            command=compress_command(self._at_commit()),
        )

    def _at_commit(self) -> RunSpec:
        """Return the spec with the commit that its model was read at; a branch moves."""
        revision = self._skeleton.card.revision or self._spec.model.revision
        return replace(self._spec, model=replace(self._spec.model, revision=revision))

    def _write(
        self,
        facts: ExportFacts,
        slicing: Slicing,
        decided: _Decided,
        tell: Callable[[int], None],
        filled: Callable[[Path], None],
    ) -> None:
        """Prune the empty model, so that config and names are those of the pruned one, and write
        the folder.
        """
        skeleton = self._skeleton
        dtype = storage_dtype_of(skeleton, slicing)
        stream = WeightStream(skeleton, slicing, dtype)
        prune_(skeleton.model, self._dense, decided.plan)
        flavour = FLAVOURS[self._spec.export.format](facts)
        planned = stream.planned(decided.layout, facts.plan, published=not flavour.code)
        weights = Weights(
            sum(item.nbytes for item in planned.values()),
            partial(stream.write, facts.plan, planned, on_layer=tell),
        )
        source = Source(model=skeleton.model, tokenizer=self._tokenizer, dtype=dtype)
        fill_checkpoint(source, facts, flavour, self._out, weights, filled)

    def _outcome(
        self,
        facts: ExportFacts,
        decided: _Decided,
        n_tokens: int,
        said: tuple[str, ...],
        folder: Path,
    ) -> CompressionOutcome:
        """Return what was written, which lies in a folder of another name at first."""
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return CompressionOutcome(
            spec=self._spec,
            path=str(self._out.absolute()),
            pruning=decided.plan,
            layout=decided.layout,
            plan=facts.plan,
            parameters_before=self._dense.parameters,
            parameters_after=decided.layout.parameters,
            planned_bytes=plan_bytes(decided.layout, facts.plan, precision_formats()),
            size_bytes=weight_file_bytes(folder),
            largest_layer_bytes=largest_layer_bytes(self._dense),
            peak_memory_bytes=peak_resident_bytes() if self._counts_peak else None,
            device=self._skeleton.device.name,
            n_tokens=n_tokens,
            files={name: str(entry["sha256"]) for name, entry in listed.items()},
            seconds=self._seconds,
            warnings=(
                *said,
                *decided.selection.warnings,
                *bias_remarks(self._dense, decided.plan),
                *facts.notes,
            ),
        )

    def _timed(self, name: str, work: Callable[[Callable[[int], None]], Any]) -> Any:
        """Do a pass; its layers are reported, and between them it may stop."""
        started = perf_counter()

        def tell(layer: int) -> None:
            step = "prune" if name == "compensate" else name
            total = self._dense.n_layers
            words = f"layer {layer + 1} of {total}: {_WORDS[name]}"
            self._on_progress(Progress(step=step, done=layer + 1, total=total, message=words))
            if self._should_stop():
                raise StoppedError(
                    f"Stopped while {_WORDS[name]}, after layer {layer + 1} of {total}. Nothing "
                    "was written; start it again to go on from the beginning."
                )

        found = work(tell)
        self._seconds[name] = perf_counter() - started
        return found


_WORDS = {
    "score": "scoring",
    "compensate": "finding what the biases take",
    "quantize": "weighing precisions",
    "export": "writing",
}


def largest_layer_bytes(layout: ModelLayout) -> int:
    """Return the bytes of the largest decoder layer at 16 bit."""
    return 2 * max(layout.layer_parameters)
