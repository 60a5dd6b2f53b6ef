from __future__ import annotations

import ast
import dataclasses
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from qpruner_core.domain.metrics import Metrics, TaskResult
from qpruner_core.export.card import model_card
from qpruner_core.export.snippets import needs_remote_code, snippet

METRICS = Metrics(
    loss=1.5,
    accuracy=0.75,
    weight_bytes=2**20,
    device="cpu",
    tasks={"plural": TaskResult(n_items=8, accuracy=0.75, accuracy_normalized=0.75)},
)


def test_the_card_says_how_it_was_made_what_it_measures_and_how_it_opens(
    sample: Callable[..., Any],
) -> None:
    facts = dataclasses.replace(sample().facts, measured={"dense, 16 bit": METRICS})
    text = model_card(facts, "hf_mixed", "out", 123_456)
    assert text.startswith("---\nlibrary_name: transformers\n")
    assert "base_model: org/tiny" in text
    assert "trust_remote_code=True" in text
    assert "pip install torch transformers accelerate bitsandbytes\n" in text
    assert "| 0 | 2 x nf4, 2 x int8, 2 x bf16, 1 x fp4 |" in text
    # Eight items, three in four right: sqrt(3/4 * 1/4 / 7) = 16.4 %.
    row = "| dense, 16 bit | 4.482 | 1.5000 | 75.0% ± 16.4% | 8 | 1.00 MiB | cpu |"
    assert row in text
    assert "| dense, 16 bit | plural | 75.0% ± 16.4% | 8 |" in text
    assert "qpruner run --model org/tiny" in text
    assert "KV heads by layer: 2, 1" in text


def test_what_was_not_scored_shows_no_accuracy(sample: Callable[..., Any]) -> None:
    unscored = dataclasses.replace(METRICS, tasks={}, accuracy=0.0)
    facts = dataclasses.replace(sample().facts, measured={"dense, 16 bit": unscored})
    text = model_card(facts, "hf_mixed", "out", 1)
    assert "| not scored | 0 | 1.00 MiB | cpu |" in text
    assert "| task |" not in text


def test_the_card_of_a_local_model_names_no_folder(sample: Callable[..., Any]) -> None:
    facts = sample().facts
    local = dataclasses.replace(facts, card=dataclasses.replace(facts.card, source="/private/m"))
    assert "/private" not in model_card(local, "hf_mixed", "out", 1)


@pytest.mark.parametrize("format_name", ["hf_mixed", "hf_16bit"])
@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("adapter", [False, True])
def test_the_snippet_is_python_and_trusts_code_only_where_needed(
    format_name: str, uniform: bool, adapter: bool
) -> None:
    text = snippet(format_name, "my/folder", uniform=uniform, adapter=adapter)
    ast.parse(text)
    trusts = "trust_remote_code=True" in text
    assert trusts == needs_remote_code(format_name, uniform=uniform)
    assert ("PeftModel" in text) == adapter


def test_showing_a_snippet_loads_no_torch() -> None:
    code = "import sys, qpruner_core.export.snippets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
