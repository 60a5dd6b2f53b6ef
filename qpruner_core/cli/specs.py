"""Arguments to specs: what was given replaces what the run or the default says."""

from __future__ import annotations

from argparse import ArgumentTypeError, Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from qpruner_core.catalog import CRITERIA, STRATEGIES
from qpruner_core.domain.spec import ModelSpec, RunSpec, SearchSpec
from qpruner_core.registry import OptionValue

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
        "kinds": "pruning_kinds",
        "drop_layers": "drop_layers",
        "iterations": "pruning_iterations",
        "compensation": "compensation",
        "protect_first": "protect_first",
        "protect_last": "protect_last",
        "width_multiple": "width_multiple",
    },
    "search": {
        "memory_budget": "memory_budget",
        "precisions": "precisions",
        "tie": "tie",
        "objective": "objective",
        "cost": "cost",
        "signal": "signal",
        "information": "information",
        "strategy": "strategy",
        "n_trials": "trials",
        "patience": "patience",
        "rungs": "rungs",
        "signal_tokens": "signal_tokens",
        "recover_steps": "recover_steps",
        "joint": "joint",
        "ratios": "joint_ratios",
        "seed": "seed",
    },
    "recovery": {
        "steps": "recovery_steps",
        "rank": "lora_rank",
        "learning_rate": "learning_rate",
        "seed": "seed",
    },
    "export": {
        "format": "format",
        "out": "out",
        "trial": "trial",
        "merge_adapter": "merge_adapter",
        "merge_tolerance": "merge_tolerance",
    },
}
_LISTS = ("criteria", "precisions", "kinds")


def layer_ratio(text: str) -> tuple[str, float] | None:
    """Read a ratio by hand such as ``3=0.5``; None for ``none``."""
    if text == "none":
        return None
    layer, equals, ratio = text.partition("=")
    try:
        if equals and layer.strip().isdecimal():
            return str(int(layer)), float(ratio)
    except ValueError:
        pass
    raise ArgumentTypeError(
        f"{text!r} is no ratio of a layer; give its index and a share, such as 3=0.5"
    )


def criterion_option(text: str) -> tuple[str, str, OptionValue]:
    """Read an option of a criterion such as ``taylor.aggregation=vector``."""
    where, equals, value = text.partition("=")
    criterion, point, name = where.partition(".")
    if not (equals and point and criterion in CRITERIA):
        raise ArgumentTypeError(
            f"{text!r} is no option of a criterion; give one such as taylor.aggregation=vector, "
            f"of {', '.join(CRITERIA.names())}"
        )
    defaults = {option.name: option.default for option in CRITERIA.entry(criterion).options}
    return criterion, name, _typed(value, defaults.get(name, ""))


def strategy_option(text: str) -> tuple[str, str]:
    """Read an option of a search strategy such as ``draws=5``."""
    name, equals, value = text.partition("=")
    if not (equals and name.strip()):
        raise ArgumentTypeError(
            f"{text!r} is no option of a strategy; give its name and a value, such as draws=5"
        )
    return name.strip(), value


def _typed(text: str, default: OptionValue) -> OptionValue:
    """Return a text as the type that an option takes; as it is where it is none, which the
    catalogue then refuses with a sentence.
    """
    if isinstance(default, bool):
        return {"true": True, "false": False}.get(text.lower(), text)
    if isinstance(default, int | float):
        for number in (int, float):
            try:
                return number(text)
            except ValueError:
                continue
    return text


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
    spec = _with_tables(replace(spec, **changed), arguments)
    if arguments.command == "recover":
        # The plan is the one to train on; what is exported later is asked for then.
        number = spec.export.trial
        recovery = replace(spec.recovery, trial=number)
        spec = replace(spec, recovery=recovery, export=replace(spec.export, trial=None))
    return spec


def _with_tables(spec: RunSpec, arguments: Namespace) -> RunSpec:
    """Return the spec with ratios by hand, which replace those it had, and with options of
    criteria and of the strategy, which join them.
    """
    spec = replace(spec, search=_with_strategy_options(spec.search, arguments))
    by_hand = getattr(arguments, "layer_ratio", None)
    if by_hand is not None:
        ratios = dict(pair for pair in by_hand if pair is not None)
        spec = replace(spec, pruning=replace(spec.pruning, layer_ratios=ratios))
    given = getattr(arguments, "criterion_option", None) or ()
    options = {name: dict(values) for name, values in spec.importance.options.items()}
    for criterion, name, value in given:
        options.setdefault(criterion, {})[name] = value
    return replace(spec, importance=replace(spec.importance, options=options)) if given else spec


def _with_strategy_options(search: SearchSpec, arguments: Namespace) -> SearchSpec:
    """Return the search with the given options of its strategy; another strategy than the run's
    keeps those of the old one that it knows too.
    """
    given = dict(getattr(arguments, "strategy_option", None) or ())
    is_chosen = getattr(arguments, "strategy", None) is not None
    if not given and not is_chosen:
        return search
    defaults = {o.name: o.default for o in STRATEGIES.entry(search.strategy).options}
    kept = {k: v for k, v in search.options.items() if k in defaults or not is_chosen}
    typed = {name: _typed(text, defaults.get(name, "")) for name, text in given.items()}
    return replace(search, options={**kept, **typed})


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
