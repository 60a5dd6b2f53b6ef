"""What every command that recovers asks about recovery."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, BooleanOptionalAction
from pathlib import Path

from qpruner_core.catalog import INITIALIZATIONS, OPTIMIZERS
from qpruner_core.domain.recovery import PRESETS, SCHEDULES, RecoverySpec

ALL = "all"
"""Said of roles: no choice among them."""
OF_THE_RUN = "run"
"""Said of the training text: that of the run."""


def recover_options(parser: ArgumentParser, *further_names: str) -> None:
    """Add what recovery asks.

    Args:
        parser: Of the command.
        further_names: Other names of the option for recovery's own text, where they are free.
    """
    _what_is_read(parser, further_names)
    _how_it_is_laid(parser)
    _adapters(parser)
    _steps(parser)
    _memory(parser)


def preset(text: str) -> RecoverySpec:
    """Read the name of a preset; a hyphen may stand for a space."""
    name = text.replace("-", " ")
    if name not in PRESETS:
        raise ArgumentTypeError(
            f"there is no preset {text!r}; choose one of {', '.join(preset_names())}"
        )
    return PRESETS[name]


def preset_names() -> tuple[str, ...]:
    """Return the names of all presets as one word each."""
    return tuple(name.replace(" ", "-") for name in PRESETS)


def training_text(text: str) -> str:
    """Read a source of training text; a path becomes absolute, as a worker may run elsewhere."""
    if text == OF_THE_RUN:
        return ""
    if text in ("demo", "wikitext2"):
        return text
    return str(Path(text).expanduser().absolute())


def roles(text: str) -> tuple[str, ...]:
    """Read roles of Linears such as ``q_proj,v_proj``; none for ``all``."""
    if text == ALL:
        return ()
    found = tuple(word.strip() for word in text.split(",") if word.strip())
    if not found:
        raise ArgumentTypeError(f"no role is named; give some such as q_proj,v_proj, or {ALL}")
    return found


def layer_rank(text: str) -> tuple[str, int] | None:
    """Read a rank by hand such as ``3=16``; None for ``none``."""
    if text == "none":
        return None
    layer, equals, rank = text.partition("=")
    if equals and layer.strip().isdecimal() and rank.strip().isdecimal():
        return str(int(layer)), int(rank)
    raise ArgumentTypeError(
        f"{text!r} is no rank of a layer; give its index and a rank, such as 3=16"
    )


def initialization_option(text: str) -> tuple[str, str]:
    """Read an option of an initialisation such as ``iterations=5``."""
    name, equals, value = text.partition("=")
    if not (equals and name.strip()):
        raise ArgumentTypeError(
            f"{text!r} is no option of an initialisation; give its name and a value, such as "
            f"iterations=5"
        )
    return name.strip(), value


def _what_is_read(parser: ArgumentParser, further_names: tuple[str, ...]) -> None:
    parser.add_argument(
        "--preset",
        type=preset,
        metavar="NAME",
        help=f"begin with settings of that name instead of the run's: {', '.join(preset_names())};"
        " text and seed stay, and other options go on top",
    )
    parser.add_argument(
        "--recovery-training",
        *further_names,
        dest="recovery_training",
        type=training_text,
        metavar="TEXT",
        help="what recovery trains on: 'demo', 'wikitext2', a UTF-8 text file, instructions "
        f"(.json or .jsonl with instruction, input, output), or '{OF_THE_RUN}' for the run's own; "
        f"default {OF_THE_RUN}",
    )
    parser.add_argument(
        "--train-on-prompt",
        action=BooleanOptionalAction,
        help="learn instructions too, not only answers",
    )


def _how_it_is_laid(parser: ArgumentParser) -> None:
    default = RecoverySpec()
    parser.add_argument(
        "--packing",
        action=BooleanOptionalAction,
        help="several instruction examples share a sequence, none seeing another; default yes",
    )
    parser.add_argument(
        "--recovery-length",
        type=int,
        help=f"tokens of a training sequence; default {default.sequence_length}",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        help=f"sequences of an optimiser step; default {default.batch_size}",
    )


def _adapters(parser: ArgumentParser) -> None:
    default = RecoverySpec()
    parser.add_argument("--lora-rank", type=int, help=f"default {default.rank}")
    parser.add_argument("--lora-alpha", type=float, help=f"default {default.alpha:g}")
    parser.add_argument("--lora-dropout", type=float, help=f"default {default.dropout:g}")
    parser.add_argument(
        "--targets",
        type=roles,
        metavar="ROLE,...",
        help="roles of the Linears that get an adapter, such as q_proj,v_proj; default "
        f"'{ALL}' of the decoder layers",
    )
    parser.add_argument(
        "--layer-rank",
        action="append",
        type=layer_rank,
        metavar="LAYER=RANK",
        help="rank of one layer by hand, such as 3=16, 0 for no adapter; may be repeated; 'none' "
        "takes back those of the run",
    )
    parser.add_argument(
        "--initialization",
        choices=INITIALIZATIONS.names(),
        help=f"where adapters start; default {default.initialization}",
    )
    parser.add_argument(
        "--initialization-option",
        action="append",
        type=initialization_option,
        metavar="OPTION=VALUE",
        help="an option of the initialisation, such as iterations=5; may be repeated",
    )


def _steps(parser: ArgumentParser) -> None:
    default = RecoverySpec()
    parser.add_argument(
        "--recovery-steps", type=int, help=f"optimiser steps, 0 skips; default {default.steps}"
    )
    parser.add_argument("--learning-rate", type=float, help=f"default {default.learning_rate}")
    parser.add_argument("--schedule", choices=SCHEDULES, help=f"default {default.schedule}")
    parser.add_argument(
        "--warm-up",
        type=float,
        help=f"share of the steps in which the rate rises; default {default.warm_up}",
    )
    parser.add_argument(
        "--optimizer", choices=OPTIMIZERS.names(), help=f"default {default.optimizer}"
    )
    parser.add_argument(
        "--weight-decay", type=float, help=f"of the adapters; default {default.weight_decay:g}"
    )


def _memory(parser: ArgumentParser) -> None:
    default = RecoverySpec()
    parser.add_argument(
        "--micro-batch-size",
        type=int,
        help="sequences of a forward pass, gradients are added up; default 0, the whole batch",
    )
    parser.add_argument(
        "--gradient-checkpointing",
        action=BooleanOptionalAction,
        help="keep what enters each layer and compute the rest again: less memory, more time",
    )
    parser.add_argument(
        "--checkpoint-steps",
        type=int,
        help="steps between checkpoints, from which a stopped training goes on; 0 for none; "
        f"default {default.checkpoint_steps}",
    )
