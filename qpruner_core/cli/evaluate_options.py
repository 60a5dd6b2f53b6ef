"""What ``qpruner evaluate`` measures beside the line: by lm-evaluation-harness, on a text, for
speed, or of one plan or one row of the paper's table.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from contextlib import nullcontext, redirect_stderr
from dataclasses import asdict, dataclass, replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpruner_core.cli.report import metrics_document
from qpruner_core.cli.report_evaluation import (
    harness_document,
    harness_lines,
    metrics_lines,
    speed_lines,
    text_document,
    text_lines,
)
from qpruner_core.domain.checks import require
from qpruner_core.domain.harness import HarnessOutcome, HarnessSpec
from qpruner_core.domain.record import RunRecord
from qpruner_core.domain.speed import SpeedSpec
from qpruner_core.domain.text_result import WindowSpec
from qpruner_core.errors import BadInputError
from qpruner_core.store.records import RunStore

if TYPE_CHECKING:
    from qpruner_core.pipeline import Line
    from qpruner_core.pipeline.evaluating import Evaluating, Subject

HARNESSES = ("lm-eval",)
_SPEED = {
    "batch": "batch",
    "context": "context",
    "decode": "n_decoded",
    "repetitions": "n_repetitions",
}
_HARNESS = ("tasks", "limit", "shots", "include_path")
_WINDOWS = ("window", "stride", "rolling")


def evaluate_options(parser: ArgumentParser) -> None:
    """Add what may be measured instead of what the *evaluate* step measures."""
    parser.add_argument(
        "--trial", type=int, help="number of a plan, measured instead of the pruned 16-bit model"
    )
    row = parser.add_argument_group("a row of the paper's table, of the run that holds it")
    row.add_argument(
        "--row", metavar="NAME", help="such as QPruner-3: its plan with its own adapter"
    )
    row.add_argument("--ratio", type=float, help="its pruning ratio, where there are several")
    harness = parser.add_argument_group("by lm-evaluation-harness (the extra 'harness')")
    harness.add_argument("--harness", choices=HARNESSES, help="use its own task definitions")
    harness.add_argument("--tasks", help="comma-separated names of its tasks or groups")
    harness.add_argument("--limit", type=int, help="first so many items of every task")
    harness.add_argument("--shots", type=int, help="solved examples before every item")
    harness.add_argument("--include-path", help="folder with YAML tasks of your own")
    text = parser.add_argument_group("perplexity of a text")
    text.add_argument("--perplexity", metavar="TEXT", help="'wikitext2' or a UTF-8 file")
    usual = WindowSpec()
    text.add_argument(
        "--window",
        type=int,
        help=f"tokens that are read at once; default {usual.length}, or as many as the model has "
        f"positions for",
    )
    text.add_argument(
        "--stride",
        type=int,
        help="tokens from one window to the next, so that windows overlap; by default they do "
        "not, and what is left at the end is dropped",
    )
    text.add_argument(
        "--rolling",
        action="store_true",
        default=None,
        help="count every token, the first one too, as lm-evaluation-harness does; gives "
        "perplexity per word and per byte as well",
    )
    _speed_options(parser)


def _speed_options(parser: ArgumentParser) -> None:
    speed, usual = parser.add_argument_group("speed and memory"), SpeedSpec()
    speed.add_argument("--speed", action="store_true", help="time it; also given by any of these")
    for name, words in (
        ("batch", "sequences at a time"),
        ("context", "tokens of each prompt"),
        ("decode", "tokens written behind it"),
        ("repetitions", "timed repetitions after one that warms up"),
    ):
        default = getattr(usual, _SPEED[name])
        speed.add_argument(f"--{name}", type=int, help=f"{words}; default {default}")


def is_beside(arguments: Namespace) -> bool:
    """Whether something else is asked for than the *evaluate* step of the line."""
    given = ("trial", "row", "ratio", "harness", *_HARNESS, "perplexity", *_WINDOWS, *_SPEED)
    return arguments.speed or any(getattr(arguments, name) is not None for name in given)


def run_evaluate(
    arguments: Namespace, store: RunStore, line_of: Callable[[str], Line]
) -> tuple[dict[str, Any], list[str]]:
    """Measure what was asked for; return the JSON document and the lines for a person.

    Args:
        arguments: As parsed.
        store: Where the run lies.
        line_of: Returns the line of a run on the device that was asked for.

    Raises:
        QPrunerError: Arguments do not fit together, or what they ask for cannot be measured.
    """
    record, subject = _subject(arguments, store)
    asked = _Asked(
        harness=_harness_spec(arguments),
        text=_window_spec(arguments, record),
        speed=_speed_spec(arguments),
    )
    from qpruner_core.evaluation.harness import check_installed  # noqa: PLC0415 - loads torch
    from qpruner_core.pipeline.evaluating import Evaluating  # noqa: PLC0415 - loads torch

    if asked.harness is not None:
        check_installed()
    line = line_of(record.run_id)
    evaluating = Evaluating(
        record, line.materials, subject, items=asked.nothing, on_progress=line.on_progress
    )
    document, lines = _measured(arguments, store, evaluating, asked)
    about = {
        "run_id": arguments.run_id,
        "trial": subject.trial if subject is not None else None,
        "with_adapter": evaluating.with_adapter,
        "device": line.materials.device.name,
    }
    if subject is not None and subject.row:
        ratio = record.prune.spec.ratio if record.prune is not None else None
        about |= {"row": subject.row, "ratio": ratio, "row_run_id": record.run_id}
    return {**about, **document}, [_what(evaluating.with_adapter, subject), *lines]


def _subject(arguments: Namespace, store: RunStore) -> tuple[RunRecord, Subject | None]:
    """Return the run whose model is measured, and which plan of it; None: its pruned model."""
    record = store.read(arguments.run_id)
    if arguments.row is None:
        require(
            arguments.ratio is None,
            f"--ratio {arguments.ratio} names a row of the paper's table, and no row was given",
            "Add --row.",
        )
        if arguments.trial is None:
            return record, None
        from qpruner_core.pipeline.evaluating import plan_of_line  # noqa: PLC0415 - loads torch

        return record, plan_of_line(record, arguments.trial)
    require(
        arguments.trial is None,
        "Both --row and --trial were given, which name two plans",
        "Give one.",
    )
    from qpruner_core.pipeline.evaluating_rows import (  # noqa: PLC0415 - loads torch
        row_of_table,
        subject_of_row,
    )

    table, row = row_of_table(record, arguments.row, arguments.ratio)
    return store.read(row.run_id), subject_of_row(store, table, row)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What is measured of the model; what is None is not."""

    harness: HarnessSpec | None
    text: WindowSpec | None
    speed: SpeedSpec | None

    @property
    def nothing(self) -> bool:
        """Whether nothing in particular is asked: then all items of the run's tasks are."""
        return self.harness is None and self.text is None and self.speed is None


def _measured(
    arguments: Namespace, store: RunStore, evaluating: Evaluating, asked: _Asked
) -> tuple[dict[str, Any], list[str]]:
    document: dict[str, Any] = {}
    lines: list[str] = []
    if asked.harness is not None:
        outcome = _kept(arguments, store, evaluating, asked.harness)
        document["harness"] = harness_document(outcome)
        lines += harness_lines(outcome)
    if asked.text is not None:
        found = evaluating.text(arguments.perplexity, asked.text)
        document["text"] = {"source": arguments.perplexity, **text_document(found)}
        lines += text_lines(arguments.perplexity, found)
    if asked.speed is not None:
        timed, weight_bytes = evaluating.speed(asked.speed)
        document["speed"] = {**asdict(timed), "weight_bytes": weight_bytes}
        lines += speed_lines(timed, weight_bytes)
    if asked.nothing:
        metrics = evaluating.metrics()
        document["metrics"] = metrics_document(metrics)
        lines += metrics_lines(metrics)
    return document, lines


def _kept(
    arguments: Namespace, store: RunStore, evaluating: Evaluating, spec: HarnessSpec
) -> HarnessOutcome:
    """Return what the harness says, which the record of the measured run keeps: of a row, that of
    its ratio.
    """
    # Its bars of progress know no other way to be silent.
    silence = redirect_stderr(StringIO()) if arguments.quiet else nullcontext()
    with store.writing(evaluating.run_id):
        with silence:
            outcome = evaluating.harness(spec)
        record = store.read(evaluating.run_id)
        store.write(replace(record, harness=(*record.harness, outcome)))
    return outcome


def _what(with_adapter: bool, subject: Subject | None) -> str:
    if subject is None:
        return "the pruned model at 16 bit"
    row = f"{subject.row}: " if subject.row else ""
    return f"{row}plan {subject.trial}{' with its recovery adapter' if with_adapter else ''}"


def _harness_spec(arguments: Namespace) -> HarnessSpec | None:
    given = [name for name in _HARNESS if getattr(arguments, name) is not None]
    if arguments.harness is None:
        if given:
            raise BadInputError(
                f"--{given[0].replace('_', '-')} is for tasks of lm-evaluation-harness, which was "
                f"not asked for. Add --harness lm-eval."
            )
        return None
    folder = arguments.include_path
    return HarnessSpec(
        tasks=tuple(name.strip() for name in (arguments.tasks or "").split(",") if name.strip()),
        limit=arguments.limit or 0,
        n_shots=arguments.shots,
        include_path=str(Path(folder).expanduser().absolute()) if folder else "",
    )


def _window_spec(arguments: Namespace, record: RunRecord) -> WindowSpec | None:
    given = [name for name in _WINDOWS if getattr(arguments, name) is not None]
    if arguments.perplexity is None:
        if given:
            raise BadInputError(
                f"--{given[0]} says how a text is read, and no text was given. Add --perplexity."
            )
        return None
    if arguments.rolling and arguments.stride is not None:
        raise BadInputError(
            "Both --rolling and --stride were given, which count tokens differently. Give one."
        )
    kind = "blocks" if arguments.stride is None else "stride"
    usual = WindowSpec().length
    most = min(usual, record.load.max_positions) if record.load is not None else usual
    length = most if arguments.window is None else arguments.window
    return WindowSpec(
        kind="rolling" if arguments.rolling else kind,
        length=length,
        stride=arguments.stride or 0,
    )


def _speed_spec(arguments: Namespace) -> SpeedSpec | None:
    given = {
        field: getattr(arguments, name)
        for name, field in _SPEED.items()
        if getattr(arguments, name) is not None
    }
    return SpeedSpec(**given) if given or arguments.speed else None
