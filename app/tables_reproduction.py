"""The paper's table as rows of text, and which of its numbers the paired test tells apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from app import wording
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.paired import LEVEL, Paired
from qpruner_core.domain.reproduction import VARIANTS, Reproduction, ReproductionRow
from qpruner_core.domain.reproduction_lines import (
    CLAIMED_SAVING,
    REFERENCE,
    SUBJECT,
    Compared,
    Line,
    compared,
    lines,
    task_names,
    weights_words,
)

NOTHING = "\N{EN DASH}"
"""Longer than elsewhere, as Markdown makes a list of a hyphen."""
DENSE = "Before pruning (16 bit)"
LOSS = "Loss, nats/token"
SUMMARY = (
    "Row",
    "Mean accuracy, %",
    LOSS,
    "Training memory",
    "Estimated before",
    "Saved",
    "To run",
    f"{SUBJECT} against it",
)
BOLD_WORDS = (
    "Bold is the best accuracy of a ratio, where the exact McNemar test over all items together "
    f"tells it apart from every other row, with the same sign (p < {LEVEL:g}); ± is one standard "
    f"error. {SUBJECT} against it: the difference of the mean accuracies, and that test."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioTable:
    """One ratio of the table, as text; cells are Markdown."""

    ratio: float
    n_rows: int
    """Rows that are measured; in [0, 4]."""
    summary: pd.DataFrame
    """Rows x what a variant costs and how well it answers; the loss where there are no tasks."""
    tasks: pd.DataFrame
    """Rows x tasks, accuracy with its standard error; percent. Empty without tasks."""
    is_told_apart: bool
    """Whether the best mean accuracy differs from that of every other row."""


def tables_of(reproduction: Reproduction) -> tuple[RatioTable, ...]:
    """Return one table per ratio, the dense model first; what is missing is a dash."""
    found = {(line.ratio, line.variant): line for line in lines(reproduction)}
    names = task_names(reproduction)
    return tuple(
        _table_of(
            ratio,
            [row for row in reproduction.rows if row.ratio == ratio],
            {name: found[ratio, name] for name in VARIANTS if (ratio, name) in found},
            reproduction.dense,
            names,
        )
        for ratio in reproduction.spec.ratios
    )


def _table_of(
    ratio: float,
    rows: Sequence[ReproductionRow],
    lines: Mapping[str, Line],
    dense: Metrics | None,
    names: Sequence[str],
) -> RatioTable:
    best, leaders = _best(rows), {name: _best(rows, name) for name in names}
    summary = [_dense_summary(dense)]
    tasks = [_task_cells(DENSE, dense, {})]
    for variant in VARIANTS:
        line = lines.get(variant)
        summary.append(_summary(variant, line, is_best=variant in best))
        bold = {name: variant in leaders[name] for name in names}
        tasks.append(_task_cells(variant, line.metrics if line is not None else None, bold))
    return RatioTable(
        ratio=ratio,
        n_rows=len(lines),
        summary=_filled(summary, [name for name in SUMMARY if name != LOSS or not names]),
        tasks=_filled(tasks, ("Row", *names)) if names else pd.DataFrame(),
        is_told_apart=bool(best),
    )


def findings(reproduction: Reproduction) -> list[str]:
    """Return in a sentence per ratio what QPruner-3 saves against LLM-Pruner, and at what
    accuracy; ratios that lack one of both are left out.
    """
    found = {(line.ratio, line.variant): line for line in lines(reproduction)}
    said = []
    for ratio in reproduction.spec.ratios:
        subject, reference = found.get((ratio, SUBJECT)), found.get((ratio, REFERENCE))
        if subject is not None and reference is not None:
            parts = [_memory_words(subject.saving), _answer_words(subject, reference)]
            told = "; ".join(part for part in parts if part)
            said.append(f"Pruned by {ratio_words(ratio)}, {SUBJECT} {told}.")
    return said


def ratio_words(ratio: float) -> str:
    """Return a pruning ratio as percent, without digits that say nothing."""
    return f"{100.0 * ratio:g} %"


def _memory_words(share: float | None) -> str:
    if share is None:
        return ""
    word = "less" if share >= 0 else "more"
    below = f", below the paper's {100 * CLAIMED_SAVING:g} %" if share < CLAIMED_SAVING else ""
    return f"trains in {wording.percent(abs(share))} {word} memory than {REFERENCE}{below}"


def _answer_words(subject: Line, reference: Line) -> str:
    """Return how both answer; without tasks, how their losses stand."""
    held = reference.compared
    if held is None:
        change = subject.metrics.loss - reference.metrics.loss
        word = "higher" if change > 0 else "lower"
        return f"its loss is {wording.nats(abs(change))} per token {word}"
    means = wording.points(held.mean)
    if not held.test.differs:
        return (
            f"their accuracies are not told apart over all items together {_p_words(held.test)}; "
            f"the means differ by {means}"
        )
    if not held.agrees:
        return (
            f"their accuracies differ over all items together {_p_words(held.test)}, by "
            f"{wording.points(held.test.difference)}, but their means by {means}, so that neither "
            f"is called better"
        )
    word = "higher" if held.mean > 0 else "lower"
    points = f"{100 * abs(held.mean):.1f} points"
    return f"its mean accuracy is {points} {word}, over all items together {_p_words(held.test)}"


def training(reproduction: Reproduction) -> pd.DataFrame:
    """Return how every measured row was trained; all but the estimate is measured."""
    return pd.DataFrame(
        [
            {
                "Pruned": ratio_words(row.ratio),
                "Row": row.variant,
                "Steps": f"{len(row.recovery.losses)} of {row.recovery.spec.steps}",
                "Loss before": wording.nats(row.recovery.before.loss),
                "Loss after": wording.nats(row.recovery.after.loss),
                "Accuracy before": _accuracy(row.recovery.before),
                "Accuracy after": _accuracy(row.recovery.after),
                "Trainable": wording.count(row.recovery.trainable_parameters),
                f"{weights_words(reproduction).capitalize()} weights, no adapter": wording.size(
                    row.weight_bytes
                ),
                "Memory estimated before": wording.size(row.recovery.estimated_memory_bytes),
                "Training": wording.speed(row.recovery.tokens_per_second),
                "Time": wording.seconds(row.seconds),
            }
            for row in reproduction.rows
        ]
    )


def remarks(reproduction: Reproduction) -> list[str]:
    """Return what the table and its rows say of themselves, each sentence once."""
    of_rows = {
        f"{row.variant} at {ratio_words(row.ratio)}": row.recovery.remarks
        for row in reproduction.rows
    }
    told: dict[str, list[str]] = {}
    for name, sentences in of_rows.items():
        for sentence in sentences:
            told.setdefault(sentence, []).append(name)
    named = [
        sentence
        if len(names) == len(reproduction.rows) > 1
        else f"{sentence} ({', '.join(names)})"
        for sentence, names in told.items()
    ]
    return [*reproduction.remarks, *named]


def _best(rows: Sequence[ReproductionRow], task: str = "") -> frozenset[str]:
    """Return the variant of the best accuracy where it is told apart from all other rows, with
    those that have the same plan; else nothing.

    Args:
        rows: The measured rows of a ratio.
        task: The task that is looked at; empty for all.
    """
    measured = [(row, _of_task(row.recovery.after, task)) for row in rows]
    measured = [(row, metrics) for row, metrics in measured if metrics.tasks]
    if not measured:
        return frozenset()
    first, answers = max(measured, key=lambda pair: pair[1].accuracy)
    others = [metrics for row, metrics in measured if row.plan.key != first.plan.key]
    tests = [compared(answers, other) for other in others]
    if not tests or not all(test is not None and test.differs for test in tests):
        return frozenset()
    return frozenset(row.variant for row, _ in measured if row.plan.key == first.plan.key)


def _of_task(metrics: Metrics, task: str) -> Metrics:
    """Return the metrics of one task alone, or all of them."""
    if not task:
        return metrics
    found = metrics.tasks.get(task)
    return replace(
        metrics,
        tasks={} if found is None else {task: found},
        accuracy=0.0 if found is None else found.accuracy,
    )


def _summary(variant: str, line: Line | None, *, is_best: bool) -> dict[str, str]:
    """Return one row; only its name where it is not measured yet."""
    if line is None:
        return {"Row": _unbroken(variant)}
    peak, before = line.training_bytes, line.estimated_training_bytes
    return {
        "Row": _unbroken(variant),
        "Mean accuracy, %": _bold(_mean(line.metrics), is_best),
        LOSS: f"{line.metrics.loss:.3f}",
        "Training memory": _size(peak) if peak is not None else "not counted",
        "Estimated before": _size(before) if before is not None else NOTHING,
        "Saved": _saved(line),
        "To run": _size(line.inference_bytes),
        f"{SUBJECT} against it": _test(line.compared),
    }


def _dense_summary(dense: Metrics | None) -> dict[str, str]:
    if dense is None:
        return {"Row": _unbroken(DENSE)}
    return {
        "Row": _unbroken(DENSE),
        "Mean accuracy, %": _mean(dense),
        LOSS: f"{dense.loss:.3f}",
        "To run": _size(dense.weight_bytes),
    }


def _task_cells(name: str, metrics: Metrics | None, bold: dict[str, bool]) -> dict[str, str]:
    results = metrics.tasks if metrics is not None else {}
    cells = {
        task: _bold(_plus_minus(result.accuracy, result.standard_error), bold.get(task, False))
        for task, result in results.items()
    }
    return {"Row": _unbroken(name), **cells}


def _mean(metrics: Metrics) -> str:
    if not metrics.tasks:
        return NOTHING
    return _plus_minus(metrics.accuracy, metrics.standard_error)


def _accuracy(metrics: Metrics) -> str:
    if not metrics.tasks:
        return NOTHING
    return wording.accuracy(metrics.accuracy, metrics.standard_error)


def _plus_minus(share: float, error: float) -> str:
    return _unbroken(f"{100 * share:.1f} ± {100 * error:.1f}")


def _test(found: Compared | None) -> str:
    """Return the difference of the means beside what the test says over all items together."""
    if found is None:
        return NOTHING
    verdict = "not told apart"
    if found.test.differs:
        against = _unbroken(wording.points(found.test.difference))
        verdict = "differs" if found.agrees else f"all items together {against}, differs"
    return f"{_unbroken(wording.points(found.mean))}, {verdict} {_p_words(found.test)}"


def _p_words(test: Paired) -> str:
    value = test.p_value
    words = "< 0.001" if value < 0.001 else f"= {value:.3f}" if value < 0.1 else f"= {value:.2f}"
    return _unbroken(f"(p {words})")


def _saved(line: Line) -> str:
    """Return the measured saving, and the estimate's beside it."""
    if line.saving is None:
        return NOTHING
    measured = _unbroken(wording.percent(line.saving))
    if line.estimated_saving is None:
        return measured
    return f"{measured} {_unbroken(f'({wording.percent(line.estimated_saving)})')}"


def _size(size_bytes: int) -> str:
    return _unbroken(wording.size(size_bytes))


def _unbroken(text: str) -> str:
    """Return a short text whose words stay on one line."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _bold(text: str, is_so: bool) -> str:
    return f"**{text}**" if is_so else text


def _filled(rows: list[dict[str, str]], columns: Sequence[str]) -> pd.DataFrame:
    """Return the rows with a dash where nothing is known; columns without anything are left
    out.
    """
    frame = pd.DataFrame([{name: row.get(name, NOTHING) for name in columns} for row in rows])
    return frame.drop(columns=[n for n in frame if (frame[n] == NOTHING).all()])
