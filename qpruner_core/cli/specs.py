"""Arguments to specs: what was given replaces what the run or the default says."""

from __future__ import annotations

from argparse import ArgumentTypeError, Namespace
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from qpruner_core.catalog import CRITERIA, INITIALIZATIONS, STRATEGIES
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.domain.spec import ModelSpec, RunSpec, SearchSpec
from qpruner_core.registry import Option, OptionValue

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
            "task_names",
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
        "alpha": "lora_alpha",
        "dropout": "lora_dropout",
        "learning_rate": "learning_rate",
        "batch_size": "batch_size",
        "sequence_length": "recovery_length",
        "seed": "seed",
        "targets": "targets",
        "initialization": "initialization",
        "optimizer": "optimizer",
        "weight_decay": "weight_decay",
        "schedule": "schedule",
        "warm_up": "warm_up",
        "micro_batch_size": "micro_batch_size",
        "gradient_checkpointing": "gradient_checkpointing",
        "packing": "packing",
        "train_on_prompt": "train_on_prompt",
        "training": "recovery_training",
        "checkpoint_steps": "checkpoint_steps",
    },
    "export": {
        "format": "format",
        "out": "out",
        "trial": "trial",
        "merge_adapter": "merge_adapter",
        "merge_tolerance": "merge_tolerance",
    },
}
_LISTS = ("criteria", "precisions", "kinds", "task_names")


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


def layer_precision(text: str) -> tuple[str, str] | None:
    """Read a precision by hand such as ``0=bf16``; None for ``none``."""
    if text == "none":
        return None
    layer, _, precision = text.partition("=")
    if layer.strip().isdecimal() and precision.strip():
        return str(int(layer)), precision.strip()
    raise ArgumentTypeError(
        f"{text!r} is no precision of a layer; give its index and a name, such as 0=bf16"
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
    spec = replace(spec, recovery=_with_preset(spec.recovery, arguments))
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
    criteria, of the strategy and of the initialisation, which join them.
    """
    search = _with_strategy_options(spec.search, arguments)
    recovery = _with_ranks(_with_initialization_options(spec.recovery, arguments), arguments)
    spec = replace(spec, search=search, recovery=recovery)
    fixed = getattr(arguments, "layer_precision", None)
    if fixed is not None:
        layers = dict(pair for pair in fixed if pair is not None)
        spec = replace(spec, search=replace(spec.search, fixed=layers))
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
    is_chosen = getattr(arguments, "strategy", None) is not None
    known = STRATEGIES.entry(search.strategy).options
    given = getattr(arguments, "strategy_option", None)
    return replace(search, options=_joined(search.options, given, known, is_chosen))


def _joined(
    options: Mapping[str, OptionValue],
    given: Sequence[tuple[str, str]] | None,
    known: Iterable[Option],
    is_chosen: bool,
) -> Mapping[str, OptionValue]:
    """Return the options of an entry with those that were given.

    Args:
        options: As the run has them.
        given: Names and values as they were typed.
        known: What the entry takes.
        is_chosen: Whether the entry was chosen anew: options that it does not know then leave.
    """
    if not given and not is_chosen:
        return options
    defaults = {option.name: option.default for option in known}
    kept = {k: v for k, v in options.items() if k in defaults or not is_chosen}
    return kept | {name: _typed(text, defaults.get(name, "")) for name, text in given or ()}


def _with_preset(recovery: RecoverySpec, arguments: Namespace) -> RecoverySpec:
    """Return the settings of the preset that was named; on what is trained, and with which seed,
    stays.
    """
    preset: RecoverySpec | None = getattr(arguments, "preset", None)
    if preset is None:
        return recovery
    return replace(preset, training=recovery.training, seed=recovery.seed)


def _with_initialization_options(recovery: RecoverySpec, arguments: Namespace) -> RecoverySpec:
    """Return the recovery with the given options of its initialisation, as for a strategy."""
    is_chosen = getattr(arguments, "initialization", None) is not None
    known = INITIALIZATIONS.entry(recovery.initialization).options
    given = getattr(arguments, "initialization_option", None)
    joined = _joined(recovery.initialization_options, given, known, is_chosen)
    return replace(recovery, initialization_options=joined)


def _with_ranks(recovery: RecoverySpec, arguments: Namespace) -> RecoverySpec:
    """Return the recovery with the ranks by hand that were given in place of those it had."""
    by_hand = getattr(arguments, "layer_rank", None)
    if by_hand is None:
        return recovery
    return replace(recovery, layer_ranks=dict(pair for pair in by_hand if pair is not None))


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
