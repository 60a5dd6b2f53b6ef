"""Arguments to specs: what was given replaces what the run or the default says."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from qpruner_core.domain.spec import ModelSpec, RunSpec

S = TypeVar("S")

_FIELDS: dict[str, dict[str, str]] = {
    "data": {
        name: name
        for name in (
            "calibration",
            "training",
            "heldout",
            "tasks",
            "sequence_length",
            "calibration_tokens",
            "heldout_tokens",
            "items_per_task",
        )
    },
    "importance": {"criteria": "criteria", "seed": "seed"},
    "pruning": {
        "ratio": "pruning_ratio",
        "criterion": "criterion",
        "scope": "scope",
        "shape": "shape",
        "protect_first": "protect_first",
        "protect_last": "protect_last",
        "width_multiple": "width_multiple",
    },
    "search": {
        "memory_budget": "memory_budget",
        "precisions": "precisions",
        "tie": "tie",
        "objective": "objective",
        "strategy": "strategy",
        "n_trials": "trials",
        "seed": "seed",
    },
    "recovery": {
        "steps": "recovery_steps",
        "rank": "lora_rank",
        "learning_rate": "learning_rate",
        "seed": "seed",
    },
    "export": {"format": "format", "out": "out", "trial": "trial"},
}
_LISTS = ("criteria", "precisions")


def model_spec(arguments: Namespace) -> ModelSpec:
    """Return the model that was named."""
    return ModelSpec(
        source=arguments.model,
        revision=arguments.revision,
        trust_remote_code=arguments.trust_remote_code,
    )


def run_spec(arguments: Namespace) -> RunSpec:
    """Return the spec of a new run.

    A criterion chosen for pruning is scored even where the list of criteria does not name it.
    """
    spec = overlay(RunSpec(model=model_spec(arguments), name=arguments.name), arguments)
    if spec.pruning.criterion not in spec.importance.criteria:
        criteria = (*spec.importance.criteria, spec.pruning.criterion)
        spec = replace(spec, importance=replace(spec.importance, criteria=criteria))
    return spec


def overlay(spec: RunSpec, arguments: Namespace) -> RunSpec:
    """Return the spec with every given argument in its place.

    The number of a plan counts for the command it was given to, and for no later one.
    """
    spec = replace(
        spec,
        recovery=replace(spec.recovery, trial=None),
        export=replace(spec.export, trial=None),
    )
    changed = {part: _overlay_part(getattr(spec, part), part, arguments) for part in _FIELDS}
    spec = replace(spec, **changed)
    if arguments.command == "recover":
        # The plan is the one to train on; what is exported later is asked for then.
        number = spec.export.trial
        recovery = replace(spec.recovery, trial=number)
        spec = replace(spec, recovery=recovery, export=replace(spec.export, trial=None))
    return spec


def _overlay_part(part: Any, name: str, arguments: Namespace) -> Any:
    given: dict[str, Any] = {}
    for field, argument in _FIELDS[name].items():
        value: Any = getattr(arguments, argument, None)
        if value is None:
            continue
        if field in _LISTS:
            value = tuple(word.strip() for word in str(value).split(",") if word.strip())
        given[field] = str(Path(value).expanduser().absolute()) if field == "out" else value
    return replace(part, **given)
