"""The paper's table as CSV, Markdown, LaTeX and a document."""

from __future__ import annotations

import csv as reader
import io
import json
from dataclasses import replace
from math import comb

import pytest

from qpruner_core.domain import reproduction_table as written
from qpruner_core.domain.footprint import format_bytes
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
from qpruner_core.domain.reproduction_lines import DENSE, lines
from qpruner_core.domain.reproduction_notes import HELD_ON_CPU, ON_CPU, notes

N_ITEMS = 40
RIGHT = dict(zip(VARIANTS, (30, 20, 24, 34), strict=True))
"""Of the first task; items that are answered rightly come first."""
TRAINING = dict(zip(VARIANTS, (2_000_000, 1_000_000, 1_200_000, 1_300_000), strict=True))
RATIOS = (0.2, 0.5)
INFERENCE = "inference bytes: packed weights and float32 adapter"


def metrics(n_right: int, size: int) -> Metrics:
    correct = tuple(index < n_right for index in range(N_ITEMS))
    share = n_right / N_ITEMS
    result = TaskResult(
        n_items=N_ITEMS, accuracy=share, accuracy_normalized=share, correct=correct
    )
    half = TaskResult(n_items=N_ITEMS, accuracy=0.5, accuracy_normalized=0.5)
    return Metrics(
        loss=2.0,
        accuracy=(share + 0.5) / 2,
        weight_bytes=size,
        device="cpu",
        tasks={"bool_q": result, "pi|qa": half},
    )


def row(ratio: float, variant: str) -> ReproductionRow:
    after = metrics(RIGHT[variant], 700_000)
    outcome = RecoveryOutcome(
        spec=RecoverySpec(),
        before=after,
        after=after,
        losses=(1.0,),
        adapter="",
        trainable_parameters=5,
        estimated_memory_bytes=TRAINING[variant] + 1,
        peak_memory_bytes=TRAINING[variant],
    )
    return ReproductionRow(
        ratio=ratio,
        variant=variant,
        run_id=f"run-{ratio:g}",
        trial=-1,
        plan=PrecisionPlan(precisions={"x": "nf4"}),
        recovery=outcome,
        weight_bytes=600_000,
        seconds=2.0,
        counts_temporaries=True,
    )


@pytest.fixture
def table() -> Reproduction:
    return Reproduction(
        spec=ReproductionSpec(ratios=RATIOS, recover_steps=3),
        rows=tuple(row(ratio, name) for ratio in RATIOS for name in VARIANTS),
        dense=metrics(36, 3_000_000),
        model="a_model & more",
        begun_at="2025-01-02T03:04:05+00:00",
        version="9.9",
        remarks=("Something_to 100 % know.",),
    )


def read(table: Reproduction) -> list[dict[str, str]]:
    return list(reader.DictReader(io.StringIO(written.csv(table))))


def test_csv_has_the_dense_model_first_and_every_row_in_plain_numbers(table):
    rows = read(table)
    assert [each["row"] for each in rows] == [DENSE, *VARIANTS, *VARIANTS]
    for each in rows[1:]:
        assert float(each["bool_q"]) == RIGHT[each["row"]] / N_ITEMS
        assert int(each["training bytes, measured"]) == TRAINING[each["row"]]
        assert int(each[INFERENCE]) == 700_000
        assert each["run"] == f"run-{each['ratio']}"
    assert rows[0]["training bytes, measured"] == ""


def test_savings_are_those_against_llm_pruner_at_the_same_ratio(table):
    for each in read(table)[1:]:
        if each["row"] == VARIANTS[0]:
            assert each["training memory saved, measured"] == ""
            continue
        share = 1 - TRAINING[each["row"]] / TRAINING[VARIANTS[0]]
        assert float(each["training memory saved, measured"]) == pytest.approx(share)
        estimated = 1 - (TRAINING[each["row"]] + 1) / (TRAINING[VARIANTS[0]] + 1)
        assert float(each["training memory saved, estimated"]) == pytest.approx(estimated)


def test_qpruner_3_is_compared_item_by_item_with_every_other_row(table):
    def p_value(n_better: int) -> float:
        return min(1.0, 2 * sum(comb(n_better, k) for k in range(1)) / 2**n_better)

    for each in read(table)[1:]:
        if each["row"] == VARIANTS[3]:
            assert each["p value, all items together"] == ""
            continue
        more = RIGHT[VARIANTS[3]] - RIGHT[each["row"]]
        pooled = f"{VARIANTS[3]} minus this, all items together"
        assert float(each[pooled]) == pytest.approx(more / N_ITEMS)
        # The other task is answered alike, and has no answers to pair.
        assert float(each[f"{VARIANTS[3]} minus this, mean"]) == pytest.approx(more / N_ITEMS / 2)
        assert float(each["p value, all items together"]) == pytest.approx(p_value(more))


def test_markdown_is_one_table_whose_cells_hold_their_bars(table):
    text = written.markdown(table)
    lines = [line for line in text.split("\n") if line.startswith("|")]
    widths = {line.replace("\\|", "").count("|") for line in lines}
    assert len(lines) == 2 + 1 + 2 * len(VARIANTS)
    assert len(widths) == 1
    assert "pi\\|qa" in lines[0]
    assert format_bytes(1_300_000) in text
    assert "85.0 ± 5.7" in text
    assert "+17.5 (p < 0.001)*" in text


def test_latex_escapes_what_it_must_and_uses_booktabs(table):
    text = written.latex(table)
    shown = [line for line in text.split("\n") if not line.startswith("%")]
    columns = next(line for line in shown if "tabular" in line).rpartition("{")[2].rstrip("}")
    rows = [line for line in shown if line.endswith(r"\\")]
    assert {line.replace(r"\&", "").count("&") for line in rows} == {len(columns) - 1}
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 1
    assert text.count(r"\midrule") == 1 + len(RATIOS)
    assert r"bool\_q" in rows[0]
    assert r"20 \%" in text
    assert "±" not in "".join(rows)


def test_notes_say_what_was_done_with_what_and_when(table):
    told = " ".join(notes(table))
    for words in ("a_model & more", "paper", "9.9", "2025-01-02", "cpu", "50 trials", "25 %"):
        assert words in told
    for words in ("first 10", "acc of lm-evaluation-harness", "acc_norm", "selection", ON_CPU):
        assert words in told
    assert "each recovered for 3 steps" in told
    assert table.remarks[0] in told


def test_only_the_scripts_setting_warns_of_what_its_8_bit_layers_hold(table):
    script = replace(table, spec=replace(table.spec, setting="script"))
    assert any("hold 16-bit weights" in note for note in notes(script))
    assert not any("hold 16-bit weights" in note for note in notes(table))


def test_a_table_that_is_not_complete_says_so_and_shows_what_there_is(table):
    part = replace(table, rows=table.rows[:2], dense=None)
    assert [each["row"] for each in read(part)] == list(VARIANTS[:2])
    assert read(part)[1]["p value, all items together"] == ""
    assert "2 of 8 rows are measured so far." in notes(part)
    empty = replace(table, rows=(), dense=None)
    assert written.csv(empty).count("\n") == 1
    assert written.latex(empty)
    assert written.markdown(empty)


def test_without_tasks_the_loss_stands_where_the_mean_would(table):
    def bare(found: Metrics) -> Metrics:
        return replace(found, tasks={}, accuracy=0.0)

    rows = tuple(
        replace(each, recovery=replace(each.recovery, after=bare(each.recovery.after)))
        for each in table.rows
    )
    plain = replace(table, rows=rows, dense=bare(table.dense))
    assert "| Loss |" in written.markdown(plain)
    assert "2.0000" in written.markdown(plain)
    assert read(plain)[1]["mean accuracy"] == ""
    assert not any("acc_norm" in note or "McNemar" in note for note in notes(plain))


def test_the_document_is_json_and_holds_the_same_numbers(table):
    made = json.loads(json.dumps(written.document(table)))
    assert made["complete"]
    for mine, plain in zip(made["rows"], read(table), strict=True):
        assert mine["row"] == plain["row"]
        assert mine["inference_bytes"] == int(plain[INFERENCE])
        assert mine["tasks"]["bool_q"]["accuracy"] == float(plain["bool_q"])


def test_differences_of_means_and_of_all_items_may_disagree_and_then_nobody_is_called_better():
    def answered(few: int, many: int) -> Metrics:
        tasks = {
            name: TaskResult(
                n_items=n,
                accuracy=right / n,
                accuracy_normalized=0.25,
                correct=tuple(index < right for index in range(n)),
            )
            for name, right, n in (("few", few, 10), ("many", many, 1000))
        }
        mean = (few / 10 + many / 1000) / 2
        return Metrics(loss=2.0, accuracy=mean, weight_bytes=1, device="cuda", tasks=tasks)

    def measured(variant: str, after: Metrics) -> ReproductionRow:
        known = row(0.2, variant)
        return replace(known, recovery=replace(known.recovery, after=after))

    rows = (measured(VARIANTS[0], answered(5, 600)), measured(VARIANTS[3], answered(9, 550)))
    table = Reproduction(spec=ReproductionSpec(ratios=(0.2,)), rows=rows)
    first = lines(table)[0].compared
    assert first is not None
    assert first.mean == pytest.approx(0.175)
    assert first.test.difference == pytest.approx(-46 / 1010)
    assert first.test.differs
    assert not first.differs
    assert "+17.5 (p < 0.001) |" in written.markdown(table)
    cells = read(table)[0]
    assert float(cells["many acc_norm"]) == 0.25
    assert written.document(table)["rows"][0]["tasks"]["few"]["acc_norm"] == 0.25
    assert ON_CPU not in notes(table)


def test_what_training_memory_does_not_count_is_said_of_older_rows_as_it_was(table):
    assert ON_CPU in notes(table)
    assert HELD_ON_CPU not in notes(table)
    older = tuple(replace(each, counts_temporaries=False) for each in table.rows)
    assert HELD_ON_CPU in notes(replace(table, rows=older))
    assert ON_CPU not in notes(replace(table, rows=older))


def test_a_saving_below_what_the_paper_claims_is_said_as_it_is(table):
    told = " ".join(notes(table))
    assert "saves 35.0 % of the training memory of LLM-Pruner (16 bit), as the paper" in told
    small = tuple(
        replace(each, recovery=replace(each.recovery, peak_memory_bytes=1_900_000))
        if each.variant == VARIANTS[3]
        else each
        for each in table.rows
    )
    told = " ".join(notes(replace(table, rows=small)))
    assert "saves 5.0 % of the training memory of LLM-Pruner (16 bit), which is not what" in told


def test_a_remark_of_several_lines_leaves_no_comment_and_no_item(table):
    told = replace(table, remarks=("First_line\n\\end{document}\n| no | cell | 5 % <b>",))
    tex, md = written.latex(told), written.markdown(told)
    note = next(line for line in tex.split("\n") if "First" in line)
    assert note.startswith("% First\\_line \\textbackslash{}end\\{document\\}")
    assert "- First\\_line \\\\end{document} \\| no \\| cell \\| 5 % &lt;b>" in md
    assert [line for line in md.split("\n") if line][-1].startswith("- First")


def test_what_the_scripts_layers_hold_is_not_called_packed(table):
    script = replace(table, spec=replace(table.spec, setting="script"))
    assert "held weight bytes" in read(script)[0]
    assert "packed weight bytes" not in read(script)[0]
    assert written.document(script)["rows"][1]["held_weight_bytes"] == 600_000
    assert any("held weights and the adapter" in note for note in notes(script))
    assert any("packed weights and the adapter" in note for note in notes(table))


def test_in_our_setting_no_first_plans_are_told_and_the_choice_is_by_the_loss(table):
    ours = " ".join(notes(replace(table, spec=replace(table.spec, setting="ours"))))
    assert "startup" not in ours
    assert "chosen by the loss" in ours
