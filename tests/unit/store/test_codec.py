"""What is written comes back equal, stays standard JSON, and nothing unknown is read."""

import json
import math

import pytest

from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.progress import Progress
from qpruner_core.domain.record import RunRecord, Trial
from qpruner_core.domain.spec import ModelSpec, RunSpec, SearchSpec
from qpruner_core.errors import BadInputError
from qpruner_core.store.codec import from_json, from_plain, to_json, to_plain

RECORD = RunRecord(
    run_id="20261124-101500-demo-3f2a",
    created_at="2026-11-24T10:15:00.000+00:00",
    spec=RunSpec(
        model=ModelSpec(source="demo"), search=SearchSpec(options={"n": 3, "wide": True})
    ),
    seconds={"load": 0.1},
)


def refuse_constant(text: str) -> float:
    raise AssertionError(f"{text} is not standard JSON")


@pytest.mark.parametrize("indent", [None, 1])
def test_a_record_comes_back_equal(indent):
    assert from_json(RunRecord, to_json(RECORD, indent=indent)) == RECORD


def test_a_tuple_of_trials_comes_back_equal():
    plan = PrecisionPlan(precisions={"a": "nf4"})
    trials = (Trial(number=0, name="", plan=plan, metrics=None, state="running"),)
    assert from_json(tuple[Trial, ...], to_json(trials)) == trials


def test_plain_values_come_back_equal():
    plain = to_plain(RECORD)
    assert plain["spec"]["search"]["options"] == {"n": 3, "wide": True}
    assert from_plain(RunRecord, plain) == RECORD


def test_numbers_that_json_cannot_write_stay_standard_json_and_come_back():
    values = {"nan": math.nan, "up": math.inf, "down": -math.inf, "plain": 0.1}
    text = to_json(Progress(step="recover", done=0, total=1, values=values))
    json.loads(text, parse_constant=refuse_constant)
    back = from_json(Progress, text).values
    assert math.isnan(back["nan"])
    assert (back["up"], back["down"], back["plain"]) == (math.inf, -math.inf, 0.1)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda plain: plain.update(colour="red"), "colour"),
        (lambda plain: plain["spec"]["model"].update(colour="red"), "colour"),
        (lambda plain: plain.pop("created_at"), "created_at"),
        (lambda plain: plain.update(seconds={"load": "soon"}), "seconds"),
    ],
)
def test_a_key_too_many_too_few_or_wrong_is_refused_by_name(change, named):
    plain = to_plain(RECORD)
    change(plain)
    with pytest.raises(BadInputError, match=named):
        from_plain(RunRecord, plain)


def test_half_a_text_is_refused_with_a_sentence():
    with pytest.raises(BadInputError, match="holds no RunRecord"):
        from_json(RunRecord, to_json(RECORD)[:40])


def test_several_faults_are_counted():
    with pytest.raises(BadInputError, match=r"and \d more"):
        from_json(RunRecord, "{}")


def test_a_range_is_checked_when_a_value_is_read():
    plain = to_plain(RECORD)
    plain["spec"]["pruning"]["ratio"] = 1.5
    with pytest.raises(BadInputError, match=r"ratio is 1\.5"):
        from_plain(RunRecord, plain)
