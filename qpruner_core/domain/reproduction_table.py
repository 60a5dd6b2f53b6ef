"""The paper's table as a person takes it along: CSV, Markdown, LaTeX and one JSON document.

CSV and the document hold plain numbers, shares and bytes; the other two say them in words. What is
measured and what is estimated is named in every form.
"""

from __future__ import annotations

import csv as _csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from qpruner_core.domain.footprint import format_bytes
from qpruner_core.domain.metrics import TaskResult
from qpruner_core.domain.reproduction import Reproduction, ratio_key
from qpruner_core.domain.reproduction_lines import (
    SUBJECT,
    Compared,
    Line,
    lines,
    task_names,
    weights_words,
)
from qpruner_core.domain.reproduction_notes import notes

NOTHING = "-"


def csv(table: Reproduction) -> str:
    """Return the table as CSV: a line of names, then plain numbers; shares in [0, 1], bytes."""
    tasks = task_names(table)
    header = ["ratio", "row", "run", "trial", "loss"]
    parts = ("", " standard error", " acc_norm")
    header += [f"{name}{part}" for name in tasks for part in parts]
    header += [
        "mean accuracy",
        "standard error",
        "training bytes, measured",
        "training bytes, estimated",
        "training memory saved, measured",
        "training memory saved, estimated",
        f"inference bytes: {weights_words(table)} weights and float32 adapter",
        f"{weights_words(table)} weight bytes",
        f"{SUBJECT} minus this, mean",
        f"{SUBJECT} minus this, all items together",
        "p value, all items together",
    ]
    out = io.StringIO()
    writer = _csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(_plain_cells(table, line, tasks) for line in lines(table))
    return out.getvalue()


def markdown(table: Reproduction) -> str:
    """Return the table as GitHub's Markdown, its notes below."""
    header, rows = _written(table)
    escaped = [[_one_line(cell).replace("|", "\\|") for cell in row] for row in (header, *rows)]
    ruler = ["---", "---", *["---:"] * (len(header) - 2)]
    text = [f"| {' | '.join(row)} |" for row in (escaped[0], ruler, *escaped[1:])]
    return "\n".join([*text, "", *(f"- {_md(note)}" for note in notes(table))]) + "\n"


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
            *(f"% {_tex(note)}" for note in notes(table)),
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
        "rows": [_document(table, line) for line in lines(table)],
        "runs": dict(table.runs),
        "search_seconds": dict(table.search_seconds),
        "row_seconds": [
            {"ratio": row.ratio, "row": row.variant, "seconds": row.seconds} for row in table.rows
        ],
        "notes": list(notes(table)),
    }


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
        _saved_words(line),
        format_bytes(line.inference_bytes),
        _difference_words(line.compared),
    ]


def _task_words(result: TaskResult | None) -> str:
    return NOTHING if result is None else _accuracy(result.accuracy, result.standard_error)


def _accuracy(share: float, error: float) -> str:
    return f"{100.0 * share:.1f} ± {100.0 * error:.1f}"


def _saved_words(line: Line) -> str:
    if line.saving is None:
        return NOTHING
    estimated = line.estimated_saving
    beside = "" if estimated is None else f" ({100.0 * estimated:.1f} %)"
    return f"{100.0 * line.saving:.1f} %{beside}"


def _difference_words(found: Compared | None) -> str:
    if found is None:
        return NOTHING
    mark, value = "*" if found.differs else "", found.test.p_value
    p_value = f"p = {value:.2g}" if value >= 0.001 else "p < 0.001"
    return f"{100.0 * found.mean:+.1f} ({p_value}){mark}"


def _plain_cells(table: Reproduction, line: Line, tasks: Iterable[str]) -> list[object]:
    row = table.row(line.ratio, line.variant)
    found, cells = line.metrics, list[object]()
    cells += [ratio_key(line.ratio), line.variant]
    cells += [row.run_id, row.trial] if row is not None else ["", ""]
    cells.append(found.loss)
    for name in tasks:
        result = found.tasks.get(name)
        if result is None:
            cells += ["", "", ""]
        else:
            cells += [result.accuracy, result.standard_error, result.accuracy_normalized]
    cells += [found.accuracy, found.standard_error] if found.tasks else ["", ""]
    compared = line.compared
    numbers = (
        line.training_bytes,
        line.estimated_training_bytes,
        line.saving,
        line.estimated_saving,
        line.inference_bytes,
        line.plan_bytes,
        *((compared.mean, compared.test.difference, compared.test.p_value) if compared else ()),
    )
    cells += ["" if number is None else number for number in numbers]
    return [*cells, *([] if compared else [""] * 3)]


def _document(table: Reproduction, line: Line) -> dict[str, Any]:
    found = line.metrics
    return {
        "ratio": line.ratio,
        "row": line.variant,
        "loss": found.loss,
        "tasks": {
            name: {
                "accuracy": result.accuracy,
                "standard_error": result.standard_error,
                "acc_norm": result.accuracy_normalized,
                "items": result.n_items,
            }
            for name, result in found.tasks.items()
        },
        "accuracy": found.accuracy if found.tasks else None,
        "standard_error": found.standard_error if found.tasks else None,
        "training_bytes": line.training_bytes,
        "estimated_training_bytes": line.estimated_training_bytes,
        "training_memory_saved": line.saving,
        "estimated_training_memory_saved": line.estimated_saving,
        "inference_bytes": line.inference_bytes,
        f"{weights_words(table)}_weight_bytes": line.plan_bytes,
        "compared": _compared(line.compared),
    }


def _compared(found: Compared | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "mean_difference": found.mean,
        "all_items_difference": found.test.difference,
        "all_items_p_value": found.test.p_value,
        "differs": found.differs,
        "items": found.test.n_items,
    }


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


_MD = {**{letter: f"\\{letter}" for letter in "\\`*_[]|#"}, "<": "&lt;", "&": "&amp;"}


def _one_line(text: str) -> str:
    """Return a text without anything that would end the line it stands on."""
    return " ".join(text.split())


def _tex(text: str) -> str:
    """Return a text as LaTeX shows it, on one line."""
    return "".join(_TEX.get(letter, letter) for letter in _one_line(text))


def _md(text: str) -> str:
    """Return a text as Markdown shows it, on one line."""
    return "".join(_MD.get(letter, letter) for letter in _one_line(text))
