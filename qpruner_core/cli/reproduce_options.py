"""What the paper's table is asked for on the command line."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qpruner_core.cli.recover_options import recover_options
from qpruner_core.cli.specs import model_spec, overlay
from qpruner_core.domain.checks import require
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.domain.reproduction import (
    SETTINGS,
    STARTUP,
    ReproductionSpec,
    usual_recover_steps,
    usual_recovery,
    usual_startup,
)
from qpruner_core.domain.spec import DataSpec, RunSpec

_TABLE: Mapping[str, tuple[str, type, str]] = {
    "trials": ("n_trials", int, "plans that refine QPruner-2 at every ratio"),
    "int8_share": (
        "int8_share",
        float,
        "share of the way from nf4 everywhere to int8 everywhere that the memory budget pays for",
    ),
    "items_per_task": ("items_per_task", int, "items per task that a row is judged by; 0 for all"),
    "seed": ("seed", int, "seed of everything random"),
}
"""Argument -> field of the table, what it is, and its help."""
_OF_THE_TABLE = ("tasks", "items_per_task", "trials")
"""Arguments that mean something else here than for a run."""
_DATA = ("calibration", "training", "heldout", "sequence_length", "calibration_tokens")


def words(text: str) -> tuple[str, ...]:
    """Read a list of names such as ``boolq,piqa``; none for ``all``."""
    found = tuple(word.strip() for word in text.split(",") if word.strip())
    return () if found == ("all",) else found


def ratios(text: str) -> tuple[float, ...]:
    """Read pruning ratios such as ``0.2,0.3``."""
    try:
        return tuple(float(word) for word in text.split(",") if word.strip())
    except ValueError:
        raise ArgumentTypeError(
            f"{text!r} is no list of pruning ratios; give shares such as 0.2,0.3,0.5"
        ) from None


def reproduce_options(parser: ArgumentParser) -> None:
    """Add what the table is made of; texts are asked as elsewhere."""
    _rows(parser)
    _items(parser)
    _search(parser)
    recover_options(parser)
    parser.epilog = (
        "All rows are recovered alike: by default with the paper's settings, scaled down for "
        "models as small as the demo, whatever defaults are named here for a run."
    )


def reproduction_spec(arguments: Namespace, dense_bytes: int) -> ReproductionSpec:
    """Return the table that was asked for.

    Args:
        arguments: As parsed.
        dense_bytes: The model at 16 bit; bytes.

    Raises:
        BadInputError: A number is out of range, or says nothing in the setting.
    """
    recovery = _recovery(arguments, dense_bytes)
    asked = {field: getattr(arguments, name) for name, (field, _, _) in _TABLE.items()}
    steps = arguments.recover_steps
    if steps is None:
        steps = usual_recover_steps(arguments.setting, recovery)
    return ReproductionSpec(
        setting=arguments.setting,
        ratios=arguments.ratios,
        recovery=recovery,
        n_startup=_startup(arguments),
        recover_steps=steps,
        **asked,
    )


def _startup(arguments: Namespace) -> int:
    """Return how many plans the Gaussian process does not choose.

    Raises:
        BadInputError: It was given in a setting that has no such process.
    """
    default = ReproductionSpec(setting=arguments.setting)
    given: int | None = arguments.startup
    if default.has_startup:
        return usual_startup(arguments.trials) if given is None else given
    require(
        given is None,
        f"--startup {given} was given, and the search of the setting {arguments.setting} has no "
        f"first plans that no model of it chooses",
        "Leave --startup out, or choose another --setting.",
    )
    return default.n_startup


def data_spec(arguments: Namespace) -> DataSpec:
    """Return texts and items that were asked for; the items of the trials, not of the rows."""
    given: dict[str, Any] = {
        name: value for name in _DATA if (value := getattr(arguments, name, None)) is not None
    }
    items = arguments.items
    if items not in ("demo", "none"):
        items = str(Path(items).expanduser().absolute())
    return DataSpec(
        **given,
        heldout_tokens=arguments.heldout_tokens,
        tasks=items,
        task_names=arguments.tasks,
        items_per_task=arguments.trial_items,
    )


def _recovery(arguments: Namespace, dense_bytes: int) -> RecoverySpec:
    """Return the recovery of the rows: what suits the model, or a preset, with what was given."""
    given = {name: value for name, value in vars(arguments).items() if name not in _OF_THE_TABLE}
    usual = RunSpec(model=model_spec(arguments), recovery=usual_recovery(dense_bytes))
    return overlay(usual, Namespace(**given)).recovery


def _rows(parser: ArgumentParser) -> None:
    default = ReproductionSpec()
    parser.add_argument(
        "--setting",
        choices=SETTINGS,
        default=default.setting,
        help="as the paper says, as its public script does it, or as this studio does it; "
        f"default {default.setting}",
    )
    parser.add_argument(
        "--ratios",
        type=ratios,
        default=default.ratios,
        metavar="RATIO,...",
        help=f"pruning ratios, ascending; default {','.join(map(str, default.ratios))}",
    )


def _items(parser: ArgumentParser) -> None:
    usual = DataSpec()
    parser.add_argument(
        "--tasks",
        type=words,
        default=(),
        metavar="NAME,...",
        help="tasks of the source of items; default all",
    )
    parser.add_argument(
        "--items",
        default=usual.tasks,
        help=f"source of the items: 'demo', 'none' or a folder of *.jsonl; default {usual.tasks}",
    )
    parser.add_argument(
        "--trial-items",
        type=int,
        default=usual.items_per_task,
        help="items per task that a plan of the search is judged by; 0 for all; default "
        f"{usual.items_per_task}",
    )


def _search(parser: ArgumentParser) -> None:
    default = ReproductionSpec()
    for name, (field, kind, says) in _TABLE.items():
        usual = getattr(default, field)
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=kind,
            default=usual,
            help=f"{says}; default {usual}",
        )
    parser.add_argument(
        "--startup",
        type=int,
        help="of the trials, the first that the Gaussian process does not choose; default a "
        f"fifth of the trials, at most {STARTUP}; not in the setting ours",
    )
    parser.add_argument(
        "--recover-steps",
        type=int,
        help="steps of recovery in each trial; by default a twentieth of a row's in the setting "
        "paper, and none in the others",
    )
