from __future__ import annotations

from dataclasses import replace

from app import charts_reproduction, tables_reproduction
from qpruner_core.domain.metrics import Metrics, TaskResult
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.recovered import RecoveryOutcome
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.domain.reproduction import (
    VARIANTS,
    Reproduction,
    ReproductionRow,
    ReproductionSpec,
)

SIXTEEN, FIRST, SECOND, THIRD = VARIANTS
PRECISIONS = ("bf16", "nf4", "int8", "fp4")


def answers(*n_right: int, n_items: int = 60) -> Metrics:
    """Return metrics of one task per number, whose first so many items are right."""
    tasks = {
        f"task{place}": TaskResult(
            n_items=n_items,
            accuracy=n / n_items,
            accuracy_normalized=n / n_items,
            correct=(True,) * n + (False,) * (n_items - n),
        )
        for place, n in enumerate(n_right)
    }
    mean = sum(task.accuracy for task in tasks.values()) / len(tasks) if tasks else 0.0
    return Metrics(loss=1.5, accuracy=mean, weight_bytes=2_000_000, device="cpu", tasks=tasks)


def row(
    variant: str, after: Metrics, peak: int | None = 10_000_000, ratio: float = 0.2
) -> ReproductionRow:
    return ReproductionRow(
        ratio=ratio,
        variant=variant,
        run_id="20260101-000000-x-0000",
        trial=0,
        plan=PrecisionPlan(precisions={"a": PRECISIONS[VARIANTS.index(variant)]}),
        recovery=RecoveryOutcome(
            spec=RecoverySpec(steps=2),
            before=after,
            after=after,
            losses=(2.0, 1.9),
            adapter="adapter",
            trainable_parameters=10,
            estimated_memory_bytes=11_000_000,
            peak_memory_bytes=peak,
        ),
        weight_bytes=1_900_000,
        seconds=10.0,
    )


def table(*rows: ReproductionRow, **changes: object) -> Reproduction:
    return Reproduction(**{"spec": ReproductionSpec(ratios=(0.2,)), "rows": rows, **changes})


def of(made: Reproduction) -> tables_reproduction.RatioTable:
    return tables_reproduction.tables_of(made)[0]


def test_the_dense_model_comes_first_and_missing_rows_are_dashes():
    made = of(table(row(SIXTEEN, answers(30)), dense=answers(50)))
    assert [name.replace("\N{NO-BREAK SPACE}", " ") for name in made.summary["Row"]] == [
        tables_reproduction.DENSE,
        *VARIANTS,
    ]
    assert made.n_rows == 1
    assert made.summary.loc[2, "Mean accuracy, %"] == tables_reproduction.NOTHING
    assert made.tasks.loc[0, "task0"].startswith("83.3")


def test_the_best_is_bold_where_it_is_told_apart_from_every_other():
    rows = [row(SIXTEEN, answers(30)), row(FIRST, answers(31)), row(THIRD, answers(50))]
    made = of(table(*rows))
    column = made.summary["Mean accuracy, %"]
    assert made.is_told_apart
    assert [cell.startswith("**") for cell in column] == [False, False, False, False, True]
    assert made.tasks.loc[4, "task0"].startswith("**")


def test_nothing_is_bold_where_the_second_best_is_not_told_apart():
    rows = [row(SIXTEEN, answers(30)), row(FIRST, answers(48)), row(THIRD, answers(50))]
    made = of(table(*rows))
    assert not made.is_told_apart
    assert not any("**" in cell for cell in made.summary.to_numpy().ravel())


def test_a_task_may_be_told_apart_where_the_mean_is_not():
    rows = [row(FIRST, answers(20, 50)), row(THIRD, answers(50, 20))]
    made = of(table(*rows))
    assert not made.is_told_apart
    assert made.tasks.loc[4, "task0"].startswith("**")
    assert made.tasks.loc[2, "task1"].startswith("**")


def test_what_is_saved_is_the_share_of_the_16_bit_row():
    rows = [row(SIXTEEN, answers(30), 20_000_000), row(FIRST, answers(30), 13_000_000)]
    made = of(table(*rows))
    # Both are estimated at the same bytes.
    wanted = "35.0\N{NO-BREAK SPACE}% (0.0\N{NO-BREAK SPACE}%)"
    assert made.summary.loc[2, "Saved"] == wanted
    assert made.summary.loc[1, "Saved"] == tables_reproduction.NOTHING


def test_without_counted_memory_nothing_is_said_to_be_saved():
    rows = [row(name, answers(30), None) for name in VARIANTS]
    made = of(table(*rows))
    assert "Saved" not in made.summary
    assert "less memory" not in tables_reproduction.findings(table(*rows))[0]


def test_the_test_of_qpruner_3_says_how_sure_it_is():
    rows = [row(FIRST, answers(50)), row(SECOND, answers(30)), row(THIRD, answers(49))]
    cells = of(table(*rows)).summary[f"{THIRD} against it"]
    assert "not told apart" in cells[2]
    assert "differs" in cells[3]
    assert "0.001" in cells[3]
    assert cells[4] == tables_reproduction.NOTHING


def test_findings_say_memory_and_accuracy_of_every_finished_ratio():
    rows = [row(SIXTEEN, answers(50), 20_000_000), row(THIRD, answers(30), 10_000_000)]
    assert tables_reproduction.findings(table(*rows)) == [
        f"Pruned by 20 %, {THIRD} trains in 50.0 % less memory than {SIXTEEN}; its mean accuracy "
        "is 33.3 points lower, over all items together (p\N{NO-BREAK SPACE}<\N{NO-BREAK SPACE}"
        "0.001)."
    ]
    assert tables_reproduction.findings(table(rows[0])) == []


def test_without_tasks_the_loss_stands_in_for_accuracy():
    made = table(*(row(name, answers()) for name in VARIANTS), dense=answers())
    assert tables_reproduction.LOSS in of(made).summary
    assert len(of(made).tasks.columns) == 0
    figure = charts_reproduction.memory_accuracy(made, charts_reproduction.TRAINING)
    assert figure.layout.yaxis.title.text.startswith("Loss")


def test_rows_of_the_same_plan_are_bold_together():
    first, twin = row(SECOND, answers(50)), row(THIRD, answers(50))
    same = replace(twin, plan=first.plan)
    column = of(table(row(FIRST, answers(20)), first, same)).summary["Mean accuracy, %"]
    assert [cell.startswith("**") for cell in column[2:]] == [False, True, True]


def test_a_remark_of_several_rows_is_told_once():
    first, second = row(SIXTEEN, answers(30)), row(FIRST, answers(30))
    told = replace(first.recovery, remarks=("A step was skipped.",))
    rows = [replace(each, recovery=told) for each in (first, second)]
    assert tables_reproduction.remarks(table(*rows, row(THIRD, answers(3)))) == [
        f"A step was skipped. ({SIXTEEN} at 20 %, {FIRST} at 20 %)"
    ]


def test_the_picture_draws_every_row_that_has_memory():
    rows = [row(name, answers(30 + place)) for place, name in enumerate(VARIANTS)]
    rows[1] = row(FIRST, answers(31), None)
    made = table(*rows, dense=answers(50))
    drawn = {
        memory: [
            mark
            for trace in charts_reproduction.memory_accuracy(made, memory).data
            for mark in (trace.x if trace.x[0] is not None else ())
        ]
        for memory in charts_reproduction.MEMORIES
    }
    assert drawn[charts_reproduction.TRAINING] == [10_000_000] * 3
    assert drawn[charts_reproduction.INFERENCE] == [2_000_000] * 4


def test_colour_tells_the_ratio_and_symbol_the_variant():
    rows = [row(name, answers(30), ratio=ratio) for ratio in (0.2, 0.5) for name in VARIANTS]
    made = table(*rows, spec=ReproductionSpec(ratios=(0.2, 0.5)))
    figure = charts_reproduction.memory_accuracy(made, charts_reproduction.TRAINING)
    marks = [trace for trace in figure.data if trace.x[0] is not None]
    assert len({trace.marker.color for trace in marks}) == 2
    assert {tuple(trace.marker.symbol) for trace in marks} == {
        tuple(charts_reproduction.SYMBOLS.values())
    }


def uneven(few: int, many: int) -> Metrics:
    """Return metrics of a task of ten items and one of a thousand."""
    small, large = answers(few, n_items=10), answers(many, n_items=1000)
    tasks = {"few": small.tasks["task0"], "many": large.tasks["task0"]}
    return replace(small, tasks=tasks, accuracy=(few / 10 + many / 1000) / 2)


def test_no_direction_is_claimed_where_means_and_items_disagree():
    made = table(row(SIXTEEN, uneven(5, 600)), row(THIRD, uneven(9, 550)))
    (told,) = tables_reproduction.findings(made)
    assert "neither is called better" in told
    assert "higher" not in told
    cell = of(made).summary.loc[1, f"{THIRD} against it"].replace("\N{NO-BREAK SPACE}", " ")
    assert cell.startswith("+17.5 points, all items together -4.6 points, differs")
    assert not of(made).is_told_apart


def test_a_saving_below_the_papers_is_said_as_it_is():
    rows = [row(SIXTEEN, answers(30), 20_000_000), row(THIRD, answers(30), 18_000_000)]
    (told,) = tables_reproduction.findings(table(*rows))
    assert "trains in 10.0 % less memory" in told
    assert "below the paper's 30 %" in told


def test_weights_that_are_held_are_not_called_packed():
    made = table(row(THIRD, answers(30)))
    script = replace(made, spec=replace(made.spec, setting="script"))
    assert "Packed weights, no adapter" in tables_reproduction.training(made)
    assert "Held weights, no adapter" in tables_reproduction.training(script)
