"""A home folder with hand-made runs, one for each face of the pages; no model is computed."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np

from qpruner_core.catalog import ARCHITECTURES, precision_formats
from qpruner_core.domain.compression import CompressionOutcome
from qpruner_core.domain.footprint import dense_bytes, plan_bytes
from qpruner_core.domain.joint import Level
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.metrics import Metrics, TaskResult
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.progress import Progress
from qpruner_core.domain.record import (
    STEPS,
    Agreement,
    ComparedPruning,
    Comparison,
    ExportOutcome,
    ImportanceCell,
    ImportanceOutcome,
    ModelCard,
    PruningOutcome,
    QuantizationOutcome,
    RecoveryOutcome,
    RunRecord,
    SearchOutcome,
    SensitivityCell,
    Trial,
)
from qpruner_core.domain.spec import ModelSpec, PruningSpec, RunSpec, SearchSpec
from qpruner_core.pruning.selection import select
from qpruner_core.search.knapsack import front, predict
from qpruner_core.search.pareto import best_measured, front_numbers
from qpruner_core.search.presets import QPRUNER_3, baselines, qpruner_3
from qpruner_core.search.space import SearchSpace
from qpruner_core.store.records import RunStore

DEVICE = "cpu"
TASKS = ("boolean", "physics", "ending", "pronoun", "easy", "challenge", "facts")
CONFIG = {
    "model_type": "llama",
    "hidden_size": 192,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "intermediate_size": 512,
    "vocab_size": 2048,
    "tie_word_embeddings": True,
    "max_position_embeddings": 512,
}


SMALL = {**CONFIG, "num_hidden_layers": 4, "hidden_size": 64, "head_dim": 8}
CONFIGS = {
    "llama": CONFIG,
    "mixtral": {
        **SMALL,
        "model_type": "mixtral",
        "intermediate_size": 64,
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
    },
    # Its norm over all query heads together keeps heads from leaving.
    "olmo2": {**SMALL, "model_type": "olmo2", "num_key_value_heads": 8},
}
MODULES = {"kv_heads": "attention", "experts": "experts"}
UNIT_CRITERIA = ("taylor", "magnitude", "random")


def dense_layout(family: str = "llama") -> ModelLayout:
    """Return the layout of a model shaped like the demo, or of a small one of another family."""
    return ARCHITECTURES.target(family).layout(CONFIGS[family])


def card_of(source: str) -> ModelCard:
    """Return the card of a model; sources that name no family have the demo's."""
    layout = dense_layout(source if source in CONFIGS else "llama")
    return ModelCard(
        source=source,
        revision=None,
        title="Demo model" if source == "demo" else source,
        layout=layout,
        parameters=layout.parameters,
        file_bytes=dense_bytes(layout),
        dtype="F16",
        max_positions=512,
    )


def metrics(loss: float, size: int, *, speed: bool = False) -> Metrics:
    """Return metrics whose accuracy falls as the loss rises."""
    mean = min(0.97, max(0.3, 0.96 - 0.55 * (loss - 1.2)))
    tasks = {
        name: TaskResult(
            n_items=40,
            accuracy=min(1.0, mean + 0.02 * (i - 3)),
            accuracy_normalized=mean,
            correct=answers(name, min(1.0, mean + 0.02 * (i - 3))),
        )
        for i, name in enumerate(TASKS)
    }
    return Metrics(
        loss=loss,
        accuracy=sum(task.accuracy for task in tasks.values()) / len(tasks),
        weight_bytes=size,
        device=DEVICE,
        tasks=tasks,
        prefill_tokens_per_second=8200.0 if speed else None,
        decode_tokens_per_second=61.0 if speed else None,
        seconds=1.4,
    )


def answers(task: str, accuracy: float) -> tuple[bool, ...]:
    """Return which of 40 items are right: the easy ones, which are the same for every plan."""
    hardness = np.random.default_rng(len(task)).permutation(40)
    return tuple(bool(each < round(40 * accuracy)) for each in hardness)


def with_latency(store: RunStore, record: RunRecord) -> RunRecord:
    """Return the run with a time per generated token at all its plans, less for smaller ones."""

    def timed(trial: Trial) -> Trial:
        if trial.metrics is None:
            return trial
        speed = 2e8 / trial.metrics.weight_bytes
        return replace(trial, metrics=replace(trial.metrics, decode_tokens_per_second=speed))

    found = record.search
    made = replace(
        found,
        baselines=tuple(map(timed, found.baselines)),
        trials=tuple(map(timed, found.trials)),
    )
    made = replace(record, search=made)
    store.write(made)
    return made


def with_ended(store: RunStore, record: RunRecord) -> RunRecord:
    """Return the run with a failed and a stopped trial, and a remark of its search."""
    last = record.search.trials[-1]
    ended = tuple(
        replace(last, number=last.number + i, metrics=None, state=state, reason=reason)
        for i, (state, reason) in enumerate(
            (("failed", "The loss is not finite."), ("stopped", "Trial 3 is better and smaller.")),
            start=1,
        )
    )
    search = replace(
        record.search,
        trials=(*record.search.trials, *ended),
        remarks=("The evaluation text is too small to tell 3 neighbours apart.",),
    )
    made = replace(record, search=search)
    store.write(made)
    return made


def joint_run(store: RunStore, joint: str, name: str = "Joint") -> RunRecord:
    """Return a run whose search chose among three pruning ratios, finished."""
    record = make_run(store, "quantize", name=name)
    ratios = (0.0, 0.4)
    levels = [Level(ratio=0.2, plan=record.prune.plan, layout=record.prune.layout)]
    for ratio in ratios:
        chosen = select(record.load.layout, None, PruningSpec(ratio=ratio))
        levels.append(Level(ratio=ratio, plan=chosen.plan, layout=chosen.layout))
    rises = {0.2: 0.0, 0.0: -0.01, 0.4: 0.03}
    cells = tuple(
        replace(cell, level=i, loss_increase=cell.loss_increase + rises[level.ratio])
        for i, level in enumerate(levels)
        for cell in record.quantize.sensitivities
    )
    spec = replace(record.spec.search, joint=joint, ratios=ratios)
    record = replace(
        record,
        spec=replace(record.spec, search=spec),
        quantize=replace(record.quantize, sensitivities=cells, levels=tuple(levels)),
    )
    space = SearchSpace(
        record.layout,
        spec.precisions,
        spec.tie,
        levels=[x.layout for x in levels[1:]],
        joint=joint,
    )
    rng, trials = np.random.default_rng(7), []
    codes = [[int(rng.integers(n)) for n in space.parameters.values()] for _ in range(24)]
    for number, code in enumerate(codes):
        plan = space.decode(tuple(code))
        loss = 1.47 + predict(space, cells, plan)
        measured = metrics(loss, space.bytes(plan))
        trials.append(Trial(number=number, name="", plan=plan, metrics=measured))
    uniform = PrecisionPlan.uniform(record.layout, "nf4")
    known = Trial(
        number=-1, name="QPruner-1", plan=uniform, metrics=metrics(1.9, space.bytes(uniform))
    )
    outcome = SearchOutcome(
        spec=spec,
        budget_bytes=int(0.45 * dense_bytes(record.load.layout)),
        study_name=record.study_name,
        baselines=(known,),
        trials=tuple(trials),
        front=front_numbers((known, *trials), "loss"),
        chosen=min(trials, key=lambda trial: trial.metrics.loss).number,
    )
    made = replace(record, evaluate=metrics(1.47, 10**7), search=outcome)
    store.write(made)
    return made


def make_run(
    store: RunStore,
    upto: str | None,
    *,
    name: str = "Demo",
    seed: int = 0,
    source: str = "demo",
    pruning: PruningSpec | None = None,
) -> RunRecord:
    """Create a run whose slots are filled up to a step; None leaves all of them empty."""
    spec = RunSpec(
        model=ModelSpec(source=source), name=name, pruning=pruning or PruningSpec(ratio=0.2)
    )
    record = store.create(spec)
    fill = {
        "load": _load,
        "score": _score,
        "prune": _prune,
        "quantize": _quantize,
        "evaluate": _evaluate,
        "search": _search,
        "recover": _recover,
        "export": _export,
    }
    for step in STEPS[: STEPS.index(upto) + 1] if upto else ():
        outcome = fill[step](store, record, np.random.default_rng([seed, STEPS.index(step)]))
        record = replace(record, **{step: outcome}, seconds={**record.seconds, step: 2.0})
    store.write(record)
    return record


def _load(store: RunStore, record: RunRecord, rng: np.random.Generator) -> ModelCard:
    return card_of(record.spec.model.source)


def _score(store: RunStore, record: RunRecord, rng: np.random.Generator) -> ImportanceOutcome:
    layout, cells, arrays = record.load.layout, [], {}
    for criterion in UNIT_CRITERIA:
        for group in layout.groups:
            scale = 1.0 if criterion == "random" else 0.4 + abs(group.layer - 6) / 6
            scores = (rng.gamma(2.0, scale, group.n_units)).astype(np.float32)
            arrays[f"{criterion}/{group.name}"] = scores
            module = MODULES.get(group.kind, "mlp")
            cells.append(
                ImportanceCell(
                    layer=group.layer,
                    module=module,
                    criterion=criterion,
                    value=float(scores.mean()),
                )
            )
    for criterion in ("mutual_information", "block_influence"):
        for layer in range(layout.n_layers):
            value = 0.2 + 0.05 * layer + 0.1 * float(rng.random())
            cells.append(
                ImportanceCell(layer=layer, module="layer", criterion=criterion, value=value)
            )
    return ImportanceOutcome(
        spec=record.spec.importance,
        cells=tuple(cells),
        unit_scores=store.write_arrays(record.run_id, "unit_scores", arrays),
        n_tokens=8192,
        device=DEVICE,
        agreement=agreement(layout),
    )


def agreement(layout: ModelLayout) -> tuple[Agreement, ...]:
    """Return rank correlations of every two unit criteria on every kind of a model."""
    kinds = dict.fromkeys(group.kind for group in layout.groups)
    values = {("taylor", "magnitude"): 0.71, ("taylor", "random"): -0.02}
    return tuple(
        Agreement(
            first=first, second=second, kind=kind, correlation=values.get((first, second), 0.04)
        )
        for kind in kinds
        for first, second in combinations(UNIT_CRITERIA, 2)
    )


def with_comparison(store: RunStore, record: RunRecord) -> RunRecord:
    """Return the run with its criteria measured side by side."""
    layout = record.load.layout
    rows = tuple(
        ComparedPruning(
            criterion=criterion,
            compensation=compensation,
            parameters=int(0.8 * layout.parameters),
            metrics=metrics(loss - (0.1 if compensation == "bias" else 0.0), 900_000),
            seconds=2.5,
        )
        for criterion, loss in zip(UNIT_CRITERIA, (1.5, 1.4, 1.9), strict=True)
        for compensation in ("none", "bias")
    )
    compared = Comparison(spec=PruningSpec(ratio=0.2), dense=metrics(1.21, 10**6), rows=rows)
    made = replace(record, comparison=compared)
    store.write(made)
    return made


def with_compressed(store: RunStore, record: RunRecord, folder: Path) -> RunRecord:
    """Return the run with its model pruned and written layer by layer into a folder."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    layout = record.load.layout
    chosen = select(layout, None, record.spec.pruning)
    written = CompressionOutcome(
        spec=replace(record.spec, pruning=replace(record.spec.pruning, criterion="magnitude")),
        path=str(folder),
        pruning=chosen.plan,
        layout=chosen.layout,
        plan=PrecisionPlan.uniform(chosen.layout, "nf4"),
        parameters_before=layout.parameters,
        parameters_after=chosen.layout.parameters,
        planned_bytes=2**20,
        size_bytes=2**20,
        largest_layer_bytes=10**6,
        peak_memory_bytes=2**30,
        device=DEVICE,
        n_tokens=0,
        files={"config.json": "0" * 64},
        seconds={"score": 1.0, "export": 2.0},
        warnings=("The precisions are predicted, not measured.",),
    )
    made = replace(record, compressed=written)
    store.write(made)
    return made


def _prune(store: RunStore, record: RunRecord, rng: np.random.Generator) -> PruningOutcome:
    layout = record.load.layout
    arrays = store.read_arrays(record.run_id, record.score.unit_scores)
    scores = {k.split("/", 1)[1]: v for k, v in arrays.items() if k.startswith("taylor/")}
    chosen = select(layout, scores, record.spec.pruning)
    return PruningOutcome(
        spec=record.spec.pruning,
        plan=chosen.plan,
        layout=chosen.layout,
        parameters_before=layout.parameters,
        parameters_after=chosen.layout.parameters,
        before=metrics(1.21, dense_bytes(layout)),
        after=metrics(1.47, dense_bytes(chosen.layout)),
        samples=(
            ("The red lantern hangs", "above the quiet harbour door.", "above the door door."),
            ("Mira gives the seed", "to Tomas, who plants it.", "to Tomas, who the it."),
        ),
        warnings=chosen.warnings,
    )


def _quantize(store: RunStore, record: RunRecord, rng: np.random.Generator) -> QuantizationOutcome:
    space = SearchSpace(record.prune.layout, record.spec.search.precisions, record.spec.search.tie)
    base = {"nf4": 0.02, "fp4": 0.03, "int8": 0.0012, "bf16": 0.0}
    cells = tuple(
        _cell(unit, name, base[name], rng) for unit in space.units for name in space.precisions
    )
    return QuantizationOutcome(
        tie=space.tie,
        precisions=space.precisions,
        sensitivities=cells,
        loss_16_bit=1.46,
        mutual_information=tuple(float(x) for x in rng.random(record.prune.layout.n_layers)),
        device=DEVICE,
        information_stability=0.87,
    )


def _cell(unit: str, precision: str, base: float, rng: np.random.Generator) -> SensitivityCell:
    increase = base * float(rng.gamma(2.0, 0.5))
    return SensitivityCell(
        unit=unit, precision=precision, loss_increase=increase, kl=0.9 * increase, seconds=1e-4
    )


def _evaluate(store: RunStore, record: RunRecord, rng: np.random.Generator) -> Metrics:
    return metrics(1.47, dense_bytes(record.prune.layout), speed=True)


def _search(store: RunStore, record: RunRecord, rng: np.random.Generator) -> SearchOutcome:
    spec = record.spec.search
    space = SearchSpace(record.prune.layout, spec.precisions, spec.tie)
    budget = int(0.45 * dense_bytes(record.load.layout))

    def measure(number: int, name: str, plan: PrecisionPlan) -> Trial:
        increase = predict(space, record.quantize.sensitivities, plan)
        loss = 1.47 + 1.1 * increase + 0.004 * abs(float(rng.standard_normal()))
        return Trial(number=number, name=name, plan=plan, metrics=metrics(loss, space.bytes(plan)))

    presets = baselines(space, record.prune.layout, record.quantize.mutual_information, budget)
    known = [measure(-1 - i, name, plan) for i, (name, plan) in enumerate(presets.items())]
    plans = [point.plan for point in front(space, record.quantize.sensitivities).thinned(14)]
    codes = rng.integers(len(space.precisions), size=(10, len(space.units)))
    plans += [space.decode(tuple(int(c) for c in code)) for code in codes]
    trials = tuple(measure(i, "", plan) for i, plan in enumerate(plans))
    refined = qpruner_3((*known, *trials), record.prune.layout, budget, spec.objective)
    if refined is not None:
        known.append(replace(refined, number=known[-1].number - 1, name=QPRUNER_3))
    chosen = best_measured((*trials, *known), spec.objective, budget)
    return SearchOutcome(
        spec=spec,
        budget_bytes=budget,
        study_name=record.study_name,
        baselines=tuple(known),
        trials=trials,
        front=front_numbers((*known, *trials), spec.objective),
        chosen=chosen.number,
    )


def _recover(store: RunStore, record: RunRecord, rng: np.random.Generator) -> RecoveryOutcome:
    found = record.search
    chosen = next(t for t in (*found.trials, *found.baselines) if t.number == found.chosen)
    steps = np.arange(60)
    losses = 1.3 + 0.4 * np.exp(-steps / 15) + 0.03 * rng.standard_normal(60)
    return RecoveryOutcome(
        spec=replace(record.spec.recovery, trial=chosen.number),
        before=chosen.metrics,
        after=metrics(1.31, chosen.metrics.weight_bytes + 400_000),
        losses=tuple(float(x) for x in losses),
        adapter=str(store.folder(record.run_id) / "artifacts" / "adapter-1"),
        trainable_parameters=190_000,
        estimated_memory_bytes=210 << 20,
        peak_memory_bytes=188 << 20,
    )


def _export(store: RunStore, record: RunRecord, rng: np.random.Generator) -> ExportOutcome:
    folder = store.folder(record.run_id) / "artifacts" / "export-1"
    folder.mkdir()
    contents = {
        "config.json": b"{}",
        "model.safetensors": rng.bytes(300_000),
        "manifest.json": b"{}",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    found = record.search
    chosen = next(t for t in (*found.trials, *found.baselines) if t.number == found.chosen)
    planned = plan_bytes(record.prune.layout, chosen.plan, precision_formats())
    return ExportOutcome(
        spec=record.spec.export,
        path=str(folder),
        size_bytes=planned + 12_000,
        planned_bytes=planned,
        reload_logits_equal=True,
        max_logit_difference=0.0,
        files=dict.fromkeys(contents, "0" * 64),
    )


def report(store: RunStore, run_id: str, step: str, n: int, total: int) -> None:
    """Append the reports of a step that has come to its n-th piece."""
    for done in range(n + 1):
        values = {"loss": 1.9 - 0.02 * done} if step == "recover" and done else {}
        store.append_event(
            run_id, Progress(step=step, done=done, total=total, message="at work", values=values)
        )


def home_of(folder: Path) -> RunStore:
    """Return the store of a folder."""
    return RunStore(folder)


def search_spec(**changes: object) -> SearchSpec:
    """Return the default search with changes."""
    return replace(SearchSpec(), **changes)


def with_search(store: RunStore, record: RunRecord, **changes: object) -> RunRecord:
    """Return the run with some of what its search found changed."""
    made = replace(record, search=replace(record.search, **changes))
    store.write(made)
    return made


def with_quantize(store: RunStore, record: RunRecord, **changes: object) -> RunRecord:
    """Return the run with some of what was measured of every unit changed."""
    made = replace(record, quantize=replace(record.quantize, **changes))
    store.write(made)
    return made
