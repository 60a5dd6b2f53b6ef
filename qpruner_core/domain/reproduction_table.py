"""The paper's table as a person takes it along: CSV, Markdown, LaTeX and one JSON document.

CSV and the document hold plain numbers, shares and bytes; the other two say them in words. What is
measured and what is estimated is named in every form.
"""

from __future__ import annotations

import csv as _csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qpruner_core.domain.footprint import format_bytes
from qpruner_core.domain.metrics import Metrics, TaskResult
from qpruner_core.domain.paired import LEVEL, Paired, paired
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.domain.reproduction import VARIANTS, Reproduction, ReproductionRow, ratio_key

DENSE = "dense (16 bit)"
"""What the row before pruning is called."""
NOTHING = "-"
REFERENCE, SUBJECT = VARIANTS[0], VARIANTS[-1]
"""Whose training memory the others are held against, and who is compared with the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the table, whatever it is written as."""

    ratio: float
    variant: str
    metrics: Metrics
    """After recovery."""
    inference_bytes: int
    """What inference holds, the adapter included."""
    plan_bytes: int | None = None
    """Packed weights without the adapter; None for the dense model."""
    training_bytes: int | None = None
    """Measured; None where nothing was trained."""
    estimated_training_bytes: int | None = None
    saving: float | None = None
    """Share of the training memory of LLM-Pruner at the same ratio that is saved; below 0 where it
    takes more."""
    difference: Paired | None = None
    """QPruner-3 against this line, on the same items."""


def lines(table: Reproduction) -> tuple[Line, ...]:
    """Return what is measured so far: the dense model, then the rows by ratio."""
    found = [
        _line(table, row)
        for ratio in table.spec.ratios
        for name in VARIANTS
        if (row := table.row(ratio, name)) is not None
    ]
    if table.dense is None:
        return tuple(found)
    dense = Line(
        ratio=0.0,
        variant=DENSE,
        metrics=table.dense,
        inference_bytes=table.dense.weight_bytes,
    )
    return (dense, *found)


def task_names(table: Reproduction) -> tuple[str, ...]:
    """Return the tasks that some line was scored on, in order."""
    named = (name for line in lines(table) for name in line.metrics.tasks)
    return tuple(dict.fromkeys(named))


def csv(table: Reproduction) -> str:
    """Return the table as CSV: a line of names, then plain numbers; shares in [0, 1], bytes."""
    tasks = task_names(table)
    header = ["ratio", "row", "run", "trial", "loss"]
    header += [column for name in tasks for column in (name, f"{name} standard error")]
    header += [
        "mean accuracy",
        "standard error",
        "training bytes, measured",
        "training bytes, estimated",
        "training memory saved",
        "inference bytes",
        "packed weight bytes",
        f"{SUBJECT} minus this",
        "p value",
    ]
    out = io.StringIO()
    writer = _csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(_plain_cells(table, line, tasks) for line in lines(table))
    return out.getvalue()


def markdown(table: Reproduction) -> str:
    """Return the table as GitHub's Markdown, its notes below."""
    header, rows = _written(table)
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    ruler = ["---", "---", *["---:"] * (len(header) - 2)]
    text = [f"| {' | '.join(row)} |" for row in (escaped[0], ruler, *escaped[1:])]
    return "\n".join([*text, "", *(f"- {note}" for note in notes(table))]) + "\n"


def latex(table: Reproduction) -> str:
    """Return the table as LaTeX; needs the package booktabs. Its notes are comments above it."""
    header, rows = _written(table)
    body: list[str] = []
    last = rows[0][0] if rows else ""
    for row in rows:
        if row[0] != last:
            body.append("\\midrule")
        last = row[0]
        body.append(" & ".join(_tex(cell) for cell in row) + r" \\")
    return "\n".join(
        [
            *(f"% {note}" for note in notes(table)),
            r"% Needs \usepackage{booktabs}.",
            rf"\begin{{tabular}}{{rl{'r' * (len(header) - 2)}}}",
            r"\toprule",
            " & ".join(_tex(cell) for cell in header) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def document(table: Reproduction) -> dict[str, Any]:
    """Return the table as one JSON document."""
    return {
        "model": table.model,
        "setting": table.spec.setting,
        "begun_at": table.begun_at,
        "version": table.version,
        "complete": table.is_complete,
        "spec": asdict(table.spec),
        "rows": [_document(line) for line in lines(table)],
        "runs": dict(table.runs),
        "search_seconds": dict(table.search_seconds),
        "row_seconds": [
            {"ratio": row.ratio, "row": row.variant, "seconds": row.seconds} for row in table.rows
        ],
        "notes": list(notes(table)),
    }


def notes(table: Reproduction) -> tuple[str, ...]:
    """Return what a reader has to know beside the numbers, a sentence each."""
    spec, devices = table.spec, dict.fromkeys(line.metrics.device for line in lines(table))
    where = f", on {', '.join(devices)}" if devices else ""
    begun = f", begun {table.begun_at[:10]}" if table.begun_at else ""
    version = f" with QPruner Studio {table.version}" if table.version else ""
    trials = f"{spec.n_trials} trials a ratio"
    trained = f", each recovered for {spec.recover_steps} steps" if spec.recover_steps else ""
    found = [
        f"{table.model or 'The model'} in the setting {spec.setting}{version}{begun}{where}.",
        f"Search: {trials}{trained}; {SUBJECT} and {VARIANTS[2]} share a memory budget of "
        f"nf4 everywhere and {100.0 * spec.int8_share:g} % of the way to int8; seed {spec.seed}.",
        f"Recovery: {_recovery_words(spec.recovery)}.",
        "Accuracies are percent with one standard error; training memory is measured (estimated "
        "in brackets), savings are those of the measured training memory against "
        f"{REFERENCE} at the same ratio, and inference bytes hold the adapter.",
        f"The last column is {SUBJECT} minus the row in points, with the p-value of the exact "
        f"McNemar test on the same items; * marks p < {LEVEL:g}.",
    ]
    if spec.setting == "script":
        found.append(
            "As in the public script, the first and last layers of every QPruner row stay at "
            "16 bit, and 8-bit layers hold 16-bit weights; memory is counted as it is held."
        )
    if not table.is_complete:
        found.append(f"{len(table.rows)} of {table.n_rows} rows are measured so far.")
    return (*found, *table.remarks)


def _line(table: Reproduction, row: ReproductionRow) -> Line:
    reference, subject = table.row(row.ratio, REFERENCE), table.row(row.ratio, SUBJECT)
    after, saving, difference = row.recovery.after, None, None
    base = reference.training_bytes if reference is not None else None
    if base and row.training_bytes is not None and row.variant != REFERENCE:
        saving = 1.0 - row.training_bytes / base
    if subject is not None and row.variant != SUBJECT:
        difference = paired(subject.recovery.after, after)
    return Line(
        ratio=row.ratio,
        variant=row.variant,
        metrics=after,
        inference_bytes=after.weight_bytes,
        plan_bytes=row.weight_bytes,
        training_bytes=row.training_bytes,
        estimated_training_bytes=row.recovery.estimated_memory_bytes,
        saving=saving,
        difference=difference,
    )


def _written(table: Reproduction) -> tuple[list[str], list[list[str]]]:
    """Return header and cells as a person reads them."""
    tasks = task_names(table)
    header = ["Ratio", "Row", *tasks]
    header += ["Mean"] if tasks else ["Loss"]
    header += ["Training memory", "Saved", "Inference", f"{SUBJECT} minus row"]
    return header, [_words(line, tasks) for line in lines(table)]


def _words(line: Line, tasks: Sequence[str]) -> list[str]:
    found = line.metrics
    mean = _accuracy(found.accuracy, found.standard_error) if tasks else f"{found.loss:.4f}"
    training = NOTHING
    if line.training_bytes is not None and line.estimated_training_bytes is not None:
        estimated = format_bytes(line.estimated_training_bytes)
        training = f"{format_bytes(line.training_bytes)} ({estimated})"
    return [
        f"{100.0 * line.ratio:g} %",
        line.variant,
        *(_task_words(found.tasks.get(name)) for name in tasks),
        mean,
        training,
        NOTHING if line.saving is None else f"{100.0 * line.saving:.1f} %",
        format_bytes(line.inference_bytes),
        _difference_words(line.difference),
    ]


def _task_words(result: TaskResult | None) -> str:
    return NOTHING if result is None else _accuracy(result.accuracy, result.standard_error)


def _accuracy(share: float, error: float) -> str:
    return f"{100.0 * share:.1f} ± {100.0 * error:.1f}"


def _difference_words(found: Paired | None) -> str:
    if found is None:
        return NOTHING
    mark = "*" if found.differs else ""
    p_value = f"p = {found.p_value:.2g}" if found.p_value >= 0.001 else "p < 0.001"
    return f"{100.0 * found.difference:+.1f} ({p_value}){mark}"


def _plain_cells(table: Reproduction, line: Line, tasks: Iterable[str]) -> list[object]:
    row = table.row(line.ratio, line.variant)
    found, cells = line.metrics, list[object]()
    cells += [ratio_key(line.ratio), line.variant]
    cells += [row.run_id, row.trial] if row is not None else ["", ""]
    cells.append(found.loss)
    for name in tasks:
        result = found.tasks.get(name)
        cells += ["", ""] if result is None else [result.accuracy, result.standard_error]
    cells += [found.accuracy, found.standard_error] if found.tasks else ["", ""]
    numbers = (
        line.training_bytes,
        line.estimated_training_bytes,
        line.saving,
        line.inference_bytes,
        line.plan_bytes,
        line.difference.difference if line.difference is not None else None,
        line.difference.p_value if line.difference is not None else None,
    )
    return [*cells, *("" if number is None else number for number in numbers)]


def _document(line: Line) -> dict[str, Any]:
    found, compared = line.metrics, line.difference
    return {
        "ratio": line.ratio,
        "row": line.variant,
        "loss": found.loss,
        "tasks": {
            name: {
                "accuracy": result.accuracy,
                "standard_error": result.standard_error,
                "items": result.n_items,
            }
            for name, result in found.tasks.items()
        },
        "accuracy": found.accuracy if found.tasks else None,
        "standard_error": found.standard_error if found.tasks else None,
        "training_bytes": line.training_bytes,
        "estimated_training_bytes": line.estimated_training_bytes,
        "training_memory_saved": line.saving,
        "inference_bytes": line.inference_bytes,
        "packed_weight_bytes": line.plan_bytes,
        "compared": None
        if compared is None
        else {
            "difference": compared.difference,
            "p_value": compared.p_value,
            "differs": compared.differs,
            "items": compared.n_items,
        },
    }


def _recovery_words(spec: RecoverySpec) -> str:
    if spec.steps == 0:
        return "none"
    pieces = f" in micro-batches of {spec.micro_batch_size}" if spec.micro_batch_size else ""
    checkpointing = ", gradient checkpointing" if spec.gradient_checkpointing else ""
    return (
        f"{spec.steps} steps of LoRA, rank {spec.rank}, alpha {spec.alpha:g}, dropout "
        f"{spec.dropout:g}, learning rate {spec.learning_rate:g} ({spec.schedule}), batches of "
        f"{spec.batch_size} sequences{pieces} of {spec.sequence_length} tokens, optimiser "
        f"{spec.optimizer}, initialisation {spec.initialization}{checkpointing}"
    )


_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": r"$<$",
}


def _tex(text: str) -> str:
    """Return a text as LaTeX shows it."""
    return "".join(_TEX.get(letter, letter) for letter in text)
