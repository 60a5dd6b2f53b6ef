"""What every command that prunes asks about pruning."""

from __future__ import annotations

from argparse import ArgumentParser

from qpruner_core.catalog import CRITERIA
from qpruner_core.cli.specs import layer_ratio
from qpruner_core.domain.layout import KINDS
from qpruner_core.domain.spec import COMPENSATIONS, SCOPES, SHAPES, PruningSpec


def prune_options(parser: ArgumentParser, words: str = "scored before") -> None:
    """Add what pruning by one criterion asks.

    Args:
        parser: Of the command.
        words: What has to be known of a criterion here.
    """
    units = [entry.name for entry in CRITERIA if entry.facts["scores"] == "units"]
    parser.add_argument(
        "--criterion", choices=units, help=f"default {PruningSpec().criterion}; {words}"
    )
    shared_prune_options(parser)


def shared_prune_options(parser: ArgumentParser) -> None:
    """Add what all rows of a comparison share."""
    _what_leaves(parser)
    _layers_by_hand(parser)
    _how_it_leaves(parser)


def _what_leaves(parser: ArgumentParser) -> None:
    default = PruningSpec()
    parser.add_argument(
        "--pruning-ratio",
        "--ratio",
        type=float,
        help="share of the parameters of the layers that leaves, in [0, 1); default "
        f"{default.ratio}",
    )
    parser.add_argument(
        "--scope",
        "--pruning-scope",
        choices=SCOPES,
        help=f"what units are ranked within; default {default.scope}",
    )
    parser.add_argument(
        "--shape",
        "--pruning-shape",
        choices=SHAPES,
        help=f"widths of every layer's own, or one for all; default {default.shape}",
    )
    parser.add_argument(
        "--pruning-kinds",
        help=f"units that may leave, comma-separated, of: {', '.join(KINDS)}; default "
        f"{','.join(default.kinds)}",
    )


def _layers_by_hand(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--layer-ratio",
        action="append",
        type=layer_ratio,
        metavar="LAYER=RATIO",
        help="ratio of one layer by hand, such as 3=0.5; may be repeated; 'none' takes back those "
        "of the run",
    )
    parser.add_argument(
        "--drop-layers",
        type=int,
        help=f"whole layers that leave by Block Influence; default {PruningSpec().drop_layers}",
    )
    parser.add_argument("--protect-first", type=int, help="first layers that lose nothing")
    parser.add_argument("--protect-last", type=int, help="last layers that lose nothing")


def _how_it_leaves(parser: ArgumentParser) -> None:
    default = PruningSpec()
    parser.add_argument(
        "--pruning-iterations",
        type=int,
        help=f"rounds of scoring and pruning; default {default.iterations}",
    )
    parser.add_argument(
        "--compensation",
        choices=COMPENSATIONS,
        help="'bias': the mean of what left goes into biases (when comparing: each without and "
        f"with); default {default.compensation}",
    )
    parser.add_argument(
        "--width-multiple",
        type=int,
        help=f"kept MLP channels are a multiple of this; default {default.width_multiple}",
    )
