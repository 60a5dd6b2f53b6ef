"""The form of every benchmark: one document on stdout, an exit code that tells whether targets
are met."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import argparse

FILE = Path(__file__).parents[3] / "benchmarks" / "form.py"


@pytest.fixture(scope="module")
def form() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_form", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmark_form"] = module
    spec.loader.exec_module(module)
    return module


def run(form: ModuleType, *arguments: str, value: float = 1.0) -> int:
    def measure(given: argparse.Namespace) -> object:
        sys.stdout.write("a library talks\n")
        rows = [{"what": "a", "seconds": 0.123456}, {"what": "bc", "seconds": 2.0}]
        target = form.Target(name="ratio", value=value, target=1.1)
        quick = form.Target(name="quick", value=float(given.quick), target=0.0, at_most=False)
        return form.Report(name="example", rows=rows, targets=(target, quick))

    return int(form.main(measure, "An example.", arguments=arguments))


def test_json_is_one_document_and_nothing_else(
    form: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(form, "--json", "--quick") == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert set(document) == {"name", "machine", "versions", "rows", "targets"}
    assert document["name"] == "example"
    assert document["targets"] == [
        {"name": "ratio", "value": 1.0, "target": 1.1, "met": True},
        {"name": "quick", "value": 1.0, "target": 0.0, "met": True},
    ]
    assert document["machine"]["cores"] >= 1
    assert "python" in document["versions"]
    assert "a library talks" in printed.err


def test_a_missed_target_ends_with_code_one(
    form: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(form, value=1.2) == 1
    assert "MISSED  ratio: 1.2 (<= 1.1)" in capsys.readouterr().out


def test_a_value_that_is_not_a_number_never_meets_its_target(form: ModuleType) -> None:
    for at_most in (True, False):
        target = form.Target(name="x", value=float("nan"), target=1.0, at_most=at_most)
        assert not target.is_met


def test_the_table_is_aligned(form: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    run(form)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "example"
    assert len({len(line) for line in lines[1:4]}) == 1
    assert "0.1235" in lines[2]
