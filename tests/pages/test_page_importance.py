from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import sample_home

from app import charts_importance, tables_importance
from qpruner_core.domain.record import Agreement, ImportanceCell


def test_without_a_run_it_says_what_to_do(open_page):
    at = open_page("importance")
    assert "Open the Runs page" in at.info[0].value


def test_without_scores_it_offers_to_score_from_the_first_missing_step(open_page, run_at, jobs):
    record = run_at(None)
    at = open_page("importance", record)
    at.button(key="start/score").click().run()
    (_, (run_id, steps, spec)) = jobs.asked[0]
    assert (run_id, steps) == (record.run_id, ("load", "score"))
    assert spec.importance.criteria == record.spec.importance.criteria


def test_no_criterion_is_answered_with_a_sentence(open_page, run_at):
    at = open_page("importance", run_at(None))
    at.multiselect[0].set_value([]).run()
    assert "Choose at least one" in at.error[0].value


def test_scored_it_draws_heatmap_and_the_units_of_the_chosen_cell(open_page, run_at, said):
    at = open_page("importance", run_at("score"), row="taylor/mlp", layer="3")
    assert len(at.get("plotly_chart")) >= 2
    assert "Layer 3: MLP channels by Taylor, first order" in said(at)
    assert "Sensitivities are measured by the search" in said(at)


def test_the_cell_can_be_chosen_without_clicking_and_goes_into_the_address(open_page, run_at):
    at = open_page("importance", run_at("score"))
    at.number_input(key="importance/layer").set_value(5).run()
    assert at.query_params["layer"] in ("5", ["5"])


def test_sensitivities_are_shown_once_they_are_measured(open_page, run_at, said):
    at = open_page("importance", run_at("quantize"))
    assert "minus the loss at 16 bit" in said(at)


def test_a_layer_in_the_address_that_does_not_exist_falls_back(open_page, run_at):
    at = open_page("importance", run_at("score"), layer="99", row="nonsense")
    assert at.number_input(key="importance/layer").value == 11


def test_a_click_carries_row_and_layer(run_at):
    rows = tables_importance.rows(run_at("score").score, ["taylor"])
    figure = charts_importance.heatmap(rows, 12)
    targets = figure.data[1]
    assert len(targets.customdata) == 12 * len(rows)
    assert targets.customdata[13] == f"{rows[1].key}@1"


@pytest.mark.parametrize(
    ("criterion", "shown"), [("mutual_information_gaussian", "0.5 nats"), ("taylor", "0.5")]
)
def test_a_value_carries_the_unit_of_its_criterion(run_at, criterion, shown):
    cell = ImportanceCell(layer=0, module="layer", criterion=criterion, value=0.5)
    outcome = replace(run_at("score").score, cells=(cell,))
    assert tables_importance.rows(outcome, [criterion])[0].text(0) == shown


def test_rank_agreement_is_one_on_the_diagonal_and_minus_one_for_the_opposite_order():
    up = tables_importance.Row(key="a", title="up", values={i: float(i) for i in range(6)})
    down = tables_importance.Row(key="b", title="down", values={i: -float(i) for i in range(6)})
    table = tables_importance.rank_agreement([up, down])
    np.testing.assert_allclose(np.diag(table), 1.0)
    np.testing.assert_allclose(table.loc["up", "down"], -1.0)


def test_criteria_are_compared_by_the_units_they_rank(open_page, run_at, said):
    at = open_page("importance", run_at("score"))
    text = said(at)
    assert (
        "“Taylor, first order” and “Weight magnitude” rank the KV heads most alike (0.71); "
        "“Taylor, first order” and “Random (control)” least (-0.02)."
    ) in text


def test_pairs_that_tie_are_named_by_one_of_them():
    found = [
        Agreement(first=first, second=second, kind="experts", correlation=value)
        for first, second, value in (
            ("taylor", "wanda", 0.9),
            ("taylor", "flap", 0.9),
            ("wanda", "flap", 0.1),
        )
    ]
    said = tables_importance.agreement_words(found, "experts")
    assert "“Taylor, first order” and “Wanda” rank the experts most alike (0.90, among" in said
    assert said.endswith("least (0.10).")


def test_while_it_scores_the_empty_half_says_what_will_come(open_page, run_at, jobs, said):
    record = run_at("load")
    jobs.running(record.run_id, "score", 1, 3)
    assert "appears once" in said(open_page("importance", record))


def test_agreement_is_symmetric_with_ones_on_the_diagonal():
    found = sample_home.agreement(sample_home.dense_layout("mixtral"))
    tables = tables_importance.unit_agreement(found)
    assert list(tables) == ["kv_heads", "expert_channels", "experts"]
    for table in tables.values():
        np.testing.assert_allclose(table, table.T)
        np.testing.assert_allclose(np.diag(table), 1.0)


def test_one_pair_of_criteria_is_told_in_one_clause():
    pair = Agreement(first="taylor", second="magnitude", kind="experts", correlation=0.5)
    assert tables_importance.agreement_words([pair], "experts") == (
        "“Taylor, first order” and “Weight magnitude” rank the experts most alike (0.50)."
    )
    assert tables_importance.agreement_words([pair], "kv_heads") == ""


def test_the_channels_of_an_expert_are_shown_by_choosing_it(open_page, run_at, said):
    record = run_at("score", source="mixtral")
    at = open_page("importance", record, row="taylor/mlp", layer="2")
    at.selectbox(key="importance/expert").select(4).run()
    assert "Layer 2: expert channels by Taylor, first order" in said(at)
    assert "64 units" in said(at)


def test_whole_experts_have_a_row_of_their_own(open_page, run_at, said):
    record = run_at("score", source="mixtral")
    at = open_page("importance", record, row="taylor/experts", layer="1")
    assert "Layer 1: experts by Taylor, first order" in said(at)
    assert "6 units" in said(at)


def test_warnings_of_the_scoring_are_shown(open_page, run_at, store):
    record = run_at("score")
    sentence = "Expert 3 of layer 1 saw no token. Give more calibration text."
    store.write(replace(record, score=replace(record.score, warnings=(sentence,))))
    assert open_page("importance", record).warning[0].value == sentence
