from __future__ import annotations

import pytest

from qpruner_core.cli.parser import build_parser
from qpruner_core.cli.specs import overlay
from qpruner_core.domain.spec import ExportSpec, ModelSpec, RunSpec
from qpruner_core.errors import BadInputError
from qpruner_core.pipeline.asked import options_of


def asked(spec, *words):
    arguments = build_parser().parse_args(["export", "20261124-101500-demo-3f2a", *words])
    return overlay(spec, arguments).export


def test_merging_is_asked_for_and_taken_back():
    usual = RunSpec(model=ModelSpec(source="demo"))
    assert not asked(usual).merge_adapter
    merging = asked(usual, "--merge-adapter", "--merge-tolerance", "0.05")
    assert (merging.merge_adapter, merging.merge_tolerance) == (True, 0.05)
    before = RunSpec(model=ModelSpec(source="demo"), export=merging)
    assert asked(before) == merging
    assert not asked(before, "--no-merge-adapter").merge_adapter


def test_a_tolerance_of_nothing_is_refused():
    with pytest.raises(BadInputError, match="Give a share above 0"):
        ExportSpec(merge_tolerance=0.0)


def test_the_command_that_makes_a_merged_export_again_says_so():
    spec = RunSpec(model=ModelSpec(source="demo"), export=ExportSpec(merge_adapter=True))
    words = options_of(spec)
    assert "--merge-adapter" in words
    assert "--merge-tolerance=0.02" in words
    again = build_parser().parse_args(["run", *words])
    assert overlay(RunSpec(model=ModelSpec(source="demo")), again).export == spec.export
