"""Arguments of a search beside its plans: what is weighed, how plans are found, when it ends."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError

from qpruner_core.catalog import CRITERIA, STRATEGIES
from qpruner_core.cli.specs import layer_precision, strategy_option
from qpruner_core.domain import signals
from qpruner_core.domain.record import RunRecord
from qpruner_core.domain.spec import COSTS, JOINTS, OBJECTIVES, SIGNALS, RunSpec, SearchSpec


def ratios(text: str) -> tuple[float, ...]:
    """Read pruning ratios such as ``0.3,0.4``; none for ``none``."""
    if text == "none":
        return ()
    try:
        return tuple(float(word) for word in text.split(",") if word.strip())
    except ValueError:
        raise ArgumentTypeError(
            f"{text!r} is no list of pruning ratios; give shares such as 0.3,0.4, or none"
        ) from None


def answers(record: RunRecord, spec: RunSpec) -> bool:
    """Whether the sensitivities of a run answer what a search asks (see `signals.answers`)."""
    found, asked = record.quantize, spec.search
    if found is None:
        return False
    # A run pruned anew measures its sensitivities anew, whatever the search asks.
    is_cut_so = not found.levels or found.levels[0].ratio == spec.pruning.ratio
    return signals.answers(found, asked) and (asked.joint == "none" or is_cut_so)


def search_options(parser: ArgumentParser) -> None:
    """Add the options of a search that say neither budget nor precisions."""
    _goals(parser)
    _ways(parser)
    _ends(parser)


def _goals(parser: ArgumentParser) -> None:
    default = SearchSpec()
    parser.add_argument("--objective", choices=OBJECTIVES, help=f"default {default.objective}")
    parser.add_argument(
        "--cost",
        choices=COSTS,
        help="what the objective is weighed against: packed bytes, estimated memory of LoRA "
        "training, or measured seconds per generated token; the memory budget bounds the bytes "
        f"in all three; default {default.cost}",
    )


def _ways(parser: ArgumentParser) -> None:
    default = SearchSpec()
    layers = [entry.name for entry in CRITERIA if entry.facts["scores"] == "layers"]
    parser.add_argument(
        "--strategy", choices=STRATEGIES.names(), help=f"default {default.strategy}"
    )
    parser.add_argument(
        "--strategy-option",
        action="append",
        type=strategy_option,
        metavar="OPTION=VALUE",
        help="an option of the strategy, such as draws=5; may be repeated",
    )
    parser.add_argument(
        "--signal",
        choices=SIGNALS,
        help=f"which sensitivities the predicted front adds up; default {default.signal}",
    )
    parser.add_argument(
        "--information",
        choices=layers,
        help="layer signal by which the baseline QPruner-2 spends its budget; default "
        f"{default.information}",
    )
    parser.add_argument(
        "--joint",
        choices=JOINTS,
        help="search pruning ratio and precision together: one ratio for the model (global), or "
        f"one per layer, with ties by layer; default {default.joint}",
    )
    parser.add_argument(
        "--joint-ratios",
        type=ratios,
        metavar="RATIO,...",
        help="pruning ratios of a joint search besides the run's own, ascending, such as 0.3,0.4; "
        "'none' takes them back",
    )
    parser.add_argument(
        "--layer-precision",
        action="append",
        type=layer_precision,
        metavar="LAYER=PRECISION",
        help="precision of one layer by hand, such as 0=bf16, which the search leaves alone; may "
        "be repeated; 'none' takes back those of the run",
    )


def _ends(parser: ArgumentParser) -> None:
    default = SearchSpec()
    parser.add_argument("--trials", type=int, help=f"plans to measure; default {default.n_trials}")
    parser.add_argument(
        "--patience",
        type=int,
        help="end when that many trials in a row have not moved the measured front; 0 for never; "
        f"default {default.patience}",
    )
    parser.add_argument(
        "--rungs",
        type=int,
        help="measure plans on 1/2^(RUNGS-1) of the text first and on twice as much in every rung "
        "after, and stop those that a paired comparison calls dominated; 1 measures all of it; "
        f"default {default.rungs}",
    )
    parser.add_argument(
        "--recover-steps",
        type=int,
        help="steps of LoRA training that every plan gets before it is measured, otherwise as "
        f"recovery is asked for; 0 measures plans as quantised; default {default.recover_steps}",
    )
    parser.add_argument(
        "--signal-tokens",
        type=int,
        help="calibration tokens that sensitivities are measured on; 0 for as many as the signal "
        f"needs; default {default.signal_tokens}",
    )
