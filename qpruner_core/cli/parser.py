"""Arguments in, nothing else: names and help of every command."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, NoReturn

from qpruner_core import __version__
from qpruner_core.catalog import CRITERIA, EXPORTERS, PRECISIONS
from qpruner_core.cli.compress import compress_options
from qpruner_core.cli.evaluate_options import evaluate_options
from qpruner_core.cli.pruning_options import prune_options, shared_prune_options
from qpruner_core.cli.queued import jobs_options, workers_option
from qpruner_core.cli.recover_options import recover_options
from qpruner_core.cli.recovering import estimate_option
from qpruner_core.cli.replacing import copy_option
from qpruner_core.cli.reproduce import reproduce_arguments
from qpruner_core.cli.reproduce_options import reproduce_options
from qpruner_core.cli.search_options import search_options
from qpruner_core.cli.specs import criterion_option
from qpruner_core.domain.spec import TIES, DataSpec, ExportSpec, SearchSpec


class Parser(argparse.ArgumentParser):
    """Answers what it cannot read with one sentence instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        """Leave with exit code 2."""
        self.exit(2, f"{message[:1].upper()}{message[1:]}. See '{self.prog} --help'.\n")


if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[Parser]


_AS_THE_RUN = "What is not given stays as the run has it; defaults are those of a new run."
_TEXT = "'demo', 'wikitext2' or a UTF-8 text file"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of ``qpruner``."""
    parser = Parser(
        prog="qpruner",
        description="Prune, quantise and recover language models under a memory budget.",
    )
    parser.add_argument("--version", action="version", version=f"qpruner {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _inspect(commands)
    _run(commands)
    for name, words in _STEP_WORDS.items():
        _step(commands, name, words)
    _compare(commands)
    _compress(commands)
    _reproduce(commands)
    _runs(commands)
    jobs_options(_add(commands, "jobs", "list the queue's jobs, or steer a run's search"))
    _worker(commands)
    _add(commands, "doctor", "say what this machine has and what is missing")
    return parser


_STEP_WORDS = {
    "score": "score units and layers of a run",
    "prune": "prune a run's model",
    "evaluate": "measure a run's pruned model in full, or it or a plan as you ask",
    "search": "search precision plans for a run",
    "recover": "train LoRA adapters on a run's chosen plan",
    "export": "write a run's chosen plan as a checkpoint",
}


def _add(commands: _Commands, name: str, words: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=words, description=words.capitalize() + ".")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--home", help="home folder; default QPRUNER_HOME or ~/.qpruner")
    return parser


def _inspect(commands: _Commands) -> None:
    parser = _add(commands, "inspect", "say what a model is from its headers alone")
    parser.add_argument("model", help="'demo', a local folder or a hub id")
    _model_options(parser)


def _model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run Python files that come with the model",
    )


def _run(commands: _Commands) -> None:
    parser = _add(commands, "run", "go down the whole line")
    parser.add_argument("--model", default="demo", help="'demo', a local folder or a hub id")
    _model_options(parser)
    parser.add_argument("--name", default="", help="what you call the run")
    _data_options(parser)
    _compute_options(parser)
    _score_options(parser)
    prune_options(parser)
    _search_options(parser)
    recover_options(parser)
    _export_options(parser)
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of everything random (default 0)"
    )


def _step(commands: _Commands, name: str, words: str) -> None:
    parser = _add(commands, name, words)
    parser.epilog = _AS_THE_RUN
    parser.add_argument("run_id", help="id of the run, as 'qpruner runs' lists it")
    copy_option(parser)
    _compute_options(parser)
    options = {
        "score": _score_options,
        "prune": prune_options,
        "evaluate": evaluate_options,
        "search": _search_options,
        "export": _export_options,
    }
    if name in options:
        options[name](parser)
    if name == "recover":
        recover_options(parser, "--training")
        estimate_option(parser)
    if name == "search":
        workers_option(parser)
    if name in ("recover", "export"):
        parser.add_argument("--trial", type=int, help="number of the plan; default the chosen one")
    parser.add_argument("--seed", type=int, help="seed of everything random")


def _compare(commands: _Commands) -> None:
    parser = _add(
        commands, "compare", "prune a scored run's model by every unit criterion and measure each"
    )
    parser.epilog = _AS_THE_RUN
    parser.add_argument("run_id", help="id of the run, as 'qpruner runs' lists it")
    _compute_options(parser)
    shared_prune_options(parser)


def _compress(commands: _Commands) -> None:
    parser = _add(
        commands, "compress", "prune and write a model layer by layer, whatever its size"
    )
    parser.add_argument("model", help="'demo', a local folder or a hub id")
    _model_options(parser)
    _calibration_options(parser)
    _compute_options(parser)
    _criterion_options(parser)
    prune_options(parser, "one of gradients needs the whole model")
    _plan_options(parser)
    compress_options(parser)


def _reproduce(commands: _Commands) -> None:
    parser = _add(
        commands,
        "reproduce",
        "make the table of the paper on a model: its four rows at every pruning ratio, "
        "recovered and measured",
    )
    parser.add_argument("model", help="'demo', a local folder or a hub id")
    _model_options(parser)
    reproduce_arguments(parser)
    reproduce_options(parser)
    _calibration_options(parser)
    _numbers(parser, "heldout_tokens")
    _compute_options(parser)


def _compute_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def _calibration_options(parser: argparse.ArgumentParser) -> None:
    # A text that is named for several uses is divided among them, so that the other two decide
    # what is left for calibration even where nothing is trained or evaluated.
    parser.add_argument("--calibration", help=f"text that criteria see: {_TEXT}")
    parser.add_argument("--training", help=f"text kept for training: {_TEXT}")
    parser.add_argument("--heldout", help=f"text kept for evaluation: {_TEXT}")
    _numbers(parser, "sequence_length", "calibration_tokens")


def _data_options(parser: argparse.ArgumentParser) -> None:
    _calibration_options(parser)
    parser.add_argument("--tasks", help="'demo', 'none' or a folder of *.jsonl")
    parser.add_argument("--task-names", help="of these tasks only, comma-separated; default all")
    _numbers(parser, "heldout_tokens", "items_per_task")


def _numbers(parser: argparse.ArgumentParser, *names: str) -> None:
    default = DataSpec()
    for name in names:
        parser.add_argument(
            "--" + name.replace("_", "-"),
            type=int,
            default=getattr(default, name),
            help=f"default {getattr(default, name)}",
        )


def _score_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--criteria", help=f"comma-separated, of: {', '.join(CRITERIA.names())}")
    _criterion_options(parser)


def _criterion_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--criterion-option",
        action="append",
        type=criterion_option,
        metavar="CRITERION.OPTION=VALUE",
        help="an option of a criterion, such as taylor.aggregation=vector; may be repeated",
    )


def _plan_options(parser: argparse.ArgumentParser) -> None:
    default = SearchSpec()
    parser.add_argument(
        "--memory-budget",
        help="fraction of the dense 16-bit bytes, or bytes with a unit such as '6 GiB'; "
        f"default {default.memory_budget}",
    )
    parser.add_argument(
        "--precisions", help=f"comma-separated, of: {', '.join(PRECISIONS.names())}"
    )
    parser.add_argument("--tie", choices=TIES, help=f"default {default.tie}")


def _search_options(parser: argparse.ArgumentParser) -> None:
    _plan_options(parser)
    search_options(parser)


def _export_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=EXPORTERS.names(), help="default hf_mixed")
    parser.add_argument("--out", help="folder to create; it must not exist yet")
    parser.add_argument(
        "--merge-adapter",
        action=argparse.BooleanOptionalAction,
        help="add the recovery adapter to the weights, if the logits hold; default apart",
    )
    parser.add_argument(
        "--merge-tolerance",
        type=float,
        help="largest change of the logits by a merge, as a share of their norm; default "
        f"{ExportSpec().merge_tolerance}",
    )


def _runs(commands: _Commands) -> None:
    parser = _add(commands, "runs", "list runs, show one, or delete one")
    parser.add_argument("run_id", nargs="?", help="show this run")
    parser.add_argument("--delete", action="store_true", help="delete the named run and all of it")


def _worker(commands: _Commands) -> None:
    parser = _add(commands, "worker", "take jobs off the queue until stopped")
    parser.add_argument("--database", help="queue database URL; default SQLite in the home folder")
    parser.add_argument(
        "--device",
        default="auto",
        help="auto, cpu, cuda or cuda:N; cpu:N for one more on the same cores, each with its "
        "part by OMP_NUM_THREADS",
    )
