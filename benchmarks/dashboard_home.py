"""A home folder with one finished run whose study holds as many trials as asked; nothing is
computed with weights.

Sensitivities, losses and answers are drawn at random, but all that lies on disk has the size and
the form of a real search: the demo's own layout and headers, one answer per item and one loss per
sequence for every trial. The study is written in bulk into the tables that Optuna made, as its own
way in takes minutes.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
from numpy.typing import NDArray

from qpruner_core.catalog import ARCHITECTURES
from qpruner_core.domain.footprint import dense_bytes
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.metrics import Metrics, TaskResult
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.record import (
    ImportanceCell,
    ImportanceOutcome,
    ModelCard,
    PruningOutcome,
    QuantizationOutcome,
    RunRecord,
    SearchOutcome,
    SensitivityCell,
    Trial,
)
from qpruner_core.domain.spec import ModelSpec, PruningSpec, RunSpec, SearchSpec
from qpruner_core.inspection import inspect_model
from qpruner_core.pruning.selection import select
from qpruner_core.search import rows
from qpruner_core.search.knapsack import front
from qpruner_core.search.pareto import best_measured, front_numbers
from qpruner_core.search.presets import QPRUNER_3, baselines, qpruner_3
from qpruner_core.search.reading import sqlite_path, storage_url
from qpruner_core.search.space import SearchSpace
from qpruner_core.search.storage import open_storage
from qpruner_core.store.records import RunStore

TASKS = (
    "boolq",
    "piqa",
    "hellaswag",
    "winogrande",
    "arc_easy",
    "arc_challenge",
    "openbookqa",
)
N_ITEMS = 40
"""Items per task, as in a run of the demo."""
BASE_INCREASE = {"nf4": 0.02, "int8": 0.0012, "bf16": 0.0}
"""Mean loss increase of a layer at each precision; nats per token, as the demo has them."""
LOSS_16_BIT = 1.47
CRITERIA = ("taylor", "magnitude")
DEEP = {
    "model_type": "llama",
    "hidden_size": 192,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "intermediate_size": 512,
    "vocab_size": 2048,
    "tie_word_embeddings": True,
}


N_FORESEEN = 40
"""Trials that are points of the predicted front; the others are drawn."""


def demo_card() -> ModelCard:
    """Return what the demo's headers say: 12 layers."""
    return inspect_model(ModelSpec(source="demo"))


def deep_card(n_layers: int = 26) -> ModelCard:
    """Return the card of a model of the demo's shape with more layers; it has no files."""
    demo = demo_card()
    layout = ARCHITECTURES.target("llama").layout({**DEEP, "num_hidden_layers": n_layers})
    return replace(demo, title=f"{n_layers} layers", layout=layout, parameters=layout.parameters)


def make_home(folder: Path, n_trials: int, card: ModelCard, tie: str, seed: int = 0) -> RunRecord:
    """Write a home folder with one run, finished up to its search, and return its record.

    Args:
        folder: Where; made if it is not there.
        n_trials: Trials in its study, all different plans; at most half of all plans.
        card: The model.
        tie: What shares one precision, as in `SearchSpec.tie`.
        seed: Seed of all that is drawn.
    """
    store = RunStore(folder)
    rng = np.random.default_rng(seed)
    spec = RunSpec(
        model=ModelSpec(source="demo"),
        name=f"{n_trials} trials",
        pruning=PruningSpec(ratio=0.2),
        search=SearchSpec(n_trials=n_trials, tie=tie),
    )
    record = replace(store.create(spec), load=card)
    record = replace(record, score=_scores(store, record, rng))
    record = replace(record, prune=_pruned(record))
    record = replace(record, quantize=_sensitivities(record, rng), evaluate=_dense(record, rng))
    found = _searched(record, n_trials, rng)
    _write_study(store.study_url(), record, found.trials)
    store.write_value(record.run_id, record.baselines_name, found.baselines)
    seconds = dict.fromkeys(("load", "score", "prune", "quantize", "evaluate", "search"), 2.0)
    record = replace(record, search=found, seconds=seconds)
    store.write(record)
    return record


def _layout(record: RunRecord) -> ModelLayout:
    if record.layout is None:
        raise ValueError("the record has no model yet")
    return record.layout


def _scores(store: RunStore, record: RunRecord, rng: np.random.Generator) -> ImportanceOutcome:
    layout = _layout(record)
    arrays = {
        f"{criterion}/{group.name}": rng.gamma(2.0, 1.0, group.n_units).astype(np.float32)
        for criterion in CRITERIA
        for group in layout.groups
    }
    cells = [
        ImportanceCell(
            layer=group.layer,
            module="attention" if group.kind == "kv_heads" else "mlp",
            criterion=criterion,
            value=float(arrays[f"{criterion}/{group.name}"].mean()),
        )
        for criterion in CRITERIA
        for group in layout.groups
    ]
    return ImportanceOutcome(
        spec=record.spec.importance,
        cells=tuple(cells),
        unit_scores=store.write_arrays(record.run_id, "unit_scores", arrays),
        n_tokens=8192,
        device="cpu",
    )


def _pruned(record: RunRecord) -> PruningOutcome:
    layout, spec = _layout(record), replace(record.spec.pruning, criterion="taylor")
    chosen = select(layout, None, spec)
    size = dense_bytes(chosen.layout)
    return PruningOutcome(
        spec=spec,
        plan=chosen.plan,
        layout=chosen.layout,
        parameters_before=layout.parameters,
        parameters_after=chosen.layout.parameters,
        before=Metrics(loss=1.21, accuracy=0.95, weight_bytes=dense_bytes(layout), device="cpu"),
        after=Metrics(loss=LOSS_16_BIT, accuracy=0.8, weight_bytes=size, device="cpu"),
    )


def _sensitivities(record: RunRecord, rng: np.random.Generator) -> QuantizationOutcome:
    layout = _layout(record)
    return QuantizationOutcome(
        tie=record.spec.search.tie,
        precisions=record.spec.search.precisions,
        sensitivities=drawn_cells(space_of(record), rng),
        loss_16_bit=LOSS_16_BIT - 0.01,
        mutual_information=tuple(float(x) for x in rng.random(layout.n_layers)),
        device="cpu",
    )


def drawn_cells(space: SearchSpace, rng: np.random.Generator) -> tuple[SensitivityCell, ...]:
    """Return a drawn sensitivity for every unit of a space at every precision."""
    drawn = {
        (unit, name): BASE_INCREASE[name] * float(rng.gamma(2.0, 0.5))
        for unit in space.units
        for name in space.precisions
    }
    return tuple(
        SensitivityCell(unit=unit, precision=name, loss_increase=value, kl=value)
        for (unit, name), value in drawn.items()
    )


def space_of(record: RunRecord) -> SearchSpace:
    """Return the search space of the run."""
    search = record.spec.search
    return SearchSpace(_layout(record), search.precisions, search.tie)


def _dense(record: RunRecord, rng: np.random.Generator) -> Metrics:
    return drawn_metrics(LOSS_16_BIT, dense_bytes(_layout(record)), rng)


def drawn_metrics(loss: float, size: int, rng: np.random.Generator) -> Metrics:
    """Return metrics of that loss with answers to every item, fewer right ones as it rises."""
    right = rng.random((len(TASKS), N_ITEMS)) < min(0.97, max(0.3, 0.96 - 0.55 * (loss - 1.2)))
    means = right.mean(axis=1)
    tasks = {
        name: TaskResult(
            n_items=N_ITEMS,
            accuracy=float(means[i]),
            accuracy_normalized=float(means[i]),
            correct=tuple(right[i].tolist()),
        )
        for i, name in enumerate(TASKS)
    }
    return Metrics(
        loss=loss,
        accuracy=float(means.mean()),
        weight_bytes=size,
        device="cpu",
        tasks=tasks,
        seconds=1.4,
    )


def _searched(record: RunRecord, n_trials: int, rng: np.random.Generator) -> SearchOutcome:
    """Return the slot of search with every plan measured, so to speak."""
    spec, space, layout = record.spec.search, space_of(record), _layout(record)
    measured = record.quantize
    if record.load is None or measured is None:
        raise ValueError("the record lacks what a search starts from")
    budget = int(0.45 * dense_bytes(record.load.layout))
    costs = np.array([cell.loss_increase for cell in measured.sensitivities])
    costs = costs.reshape(len(space.units), len(space.precisions))
    noise = rng.standard_normal(n_trials)
    presets = baselines(space, layout, measured.mutual_information, budget)
    known = tuple(
        _trial(-1 - i, name, plan, drawn_metrics(1.5 + 0.1 * i, space.bytes(plan), rng))
        for i, (name, plan) in enumerate(presets.items())
    )
    trials = []
    for number, code in enumerate(_codes(record, n_trials, rng)):
        increase = float(costs[np.arange(len(code)), code].sum())
        loss = LOSS_16_BIT + 1.1 * increase + 0.004 * abs(float(noise[number]))
        chosen = tuple(code.tolist())
        metrics = drawn_metrics(loss, space.code_bytes(chosen), rng)
        trials.append(_trial(number, "", space.decode(chosen), metrics))
    everything = (*trials, *known)
    best = best_measured(everything, spec.objective, budget)
    refined = qpruner_3(everything, layout, budget, spec.objective)
    if refined is not None:
        known = (*known, replace(refined, number=known[-1].number - 1, name=QPRUNER_3))
    if best is None:
        raise ValueError("no drawn plan fits the budget; draw more trials")
    return SearchOutcome(
        spec=spec,
        budget_bytes=budget,
        study_name=record.study_name,
        baselines=known,
        trials=tuple(trials),
        front=front_numbers((*trials, *known), spec.objective),
        chosen=best.number,
    )


def _trial(number: int, name: str, plan: PrecisionPlan, metrics: Metrics) -> Trial:
    return Trial(number=number, name=name, plan=plan, metrics=metrics)


def _codes(record: RunRecord, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return that many different codes, shape ``(n, n_units)``: first some of the predicted front,
    then drawn ones.
    """
    space, measured = space_of(record), record.quantize
    if measured is None:
        raise ValueError("the record lacks its sensitivities")
    foreseen = front(space, measured.sensitivities).thinned(min(N_FORESEEN, n))
    codes = np.array([space.code(point.plan) for point in foreseen])
    while len(codes) < n:
        drawn = rng.integers(len(space.precisions), size=(n, len(space.units)))
        together = np.concatenate((codes, drawn))
        first = np.unique(together, axis=0, return_index=True)[1]
        codes = together[np.sort(first)]
    return codes[:n]


def _write_study(url: str, record: RunRecord, trials: Sequence[Trial]) -> None:
    """Write a study as a finished search leaves it, through the tables that Optuna made."""
    path = sqlite_path(storage_url(url))
    if path is None:
        raise ValueError(f"this benchmark keeps its study in SQLite, not in {url}")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage, _ = open_storage(url)
    study = optuna.create_study(
        storage=storage, study_name=record.study_name, directions=["minimize", "minimize"]
    )
    space = space_of(record)
    study.set_user_attr(rows.SPACE, rows.StoredSpace.of(space).text)
    study_id = storage.get_study_id_from_name(record.study_name)
    storage.remove_session()
    storage.engine.dispose()
    with closing(sqlite3.connect(path)) as database, database:
        database.executemany(
            "INSERT INTO trials (trial_id, number, study_id, state, datetime_start, "
            "datetime_complete) VALUES (?, ?, ?, 'COMPLETE', ?, ?)",
            ((t.number + 1, t.number, study_id, *(2 * ["2026-01-01 00:00:00"])) for t in trials),
        )
        database.executemany(
            "INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (?, ?, ?)",
            _attributes(space, trials),
        )
        database.executemany(
            "INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json) "
            "VALUES (?, ?, ?, ?)",
            _parameters(space, trials),
        )
        database.executemany(
            "INSERT INTO trial_values (trial_id, objective, value, value_type) "
            "VALUES (?, ?, ?, 'FINITE')",
            _values(trials),
        )


def _attributes(space: SearchSpace, trials: Sequence[Trial]) -> Iterator[tuple[int, str, str]]:
    for trial in trials:
        if trial.metrics is None:
            continue
        values = {
            rows.SLOT: trial.number,
            rows.PLAN: rows.plan_to_text(space, trial.plan),
            rows.ORIGIN: "strategy",
            rows.METRICS: rows.metrics_to_text(trial.metrics),
        }
        for key, value in values.items():
            yield trial.number + 1, key, json.dumps(value)


def _parameters(
    space: SearchSpace, trials: Sequence[Trial]
) -> Iterator[tuple[int, str, float, str]]:
    high = len(space.precisions) - 1
    text = optuna.distributions.distribution_to_json(optuna.distributions.IntDistribution(0, high))
    for trial in trials:
        for unit, choice in zip(space.units, space.code(trial.plan), strict=True):
            yield trial.number + 1, unit, float(choice), text


def _values(trials: Sequence[Trial]) -> Iterator[tuple[int, int, float]]:
    for trial in trials:
        if trial.metrics is not None:
            yield trial.number + 1, 0, trial.metrics.loss
            yield trial.number + 1, 1, float(trial.metrics.weight_bytes)
