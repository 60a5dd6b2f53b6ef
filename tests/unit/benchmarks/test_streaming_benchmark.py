"""The benchmark of compressing layer by layer asks for all that decides its figures."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from qpruner_core.cli.compress import compress_spec
from qpruner_core.cli.parser import build_parser

FOLDER = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec = importlib.util.spec_from_file_location("benchmark_streaming", FOLDER / "streaming.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "benchmark_streaming", found)
    spec.loader.exec_module(found)
    return found


def test_defaults_do_not_move_what_is_measured(benchmark: ModuleType) -> None:
    words = benchmark._options(2048)
    named = {word.partition("=")[0] for word in words}
    assert {"--criterion", "--scope", "--pruning-ratio", "--precisions"} <= named
    spec = compress_spec(build_parser().parse_args(["compress", "demo", "--out=x", *words]))
    assert (spec.pruning.criterion, spec.pruning.scope) == ("wanda", "per-layer")
