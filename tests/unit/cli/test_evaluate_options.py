"""`qpruner evaluate` beside the line: what it prints, keeps and refuses."""

from __future__ import annotations

import json
import shlex
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from qpruner_core.cli import main
from qpruner_core.cli.evaluate_options import is_beside
from qpruner_core.cli.parser import build_parser
from qpruner_core.store.records import RunStore

Evaluate = Callable[..., Any]
WORDS = tuple(c + v for v in "aei" for c in "bcdfghjklmnpqrstvwxyz")
"""Words that the tiny tokenizer knows."""


@pytest.fixture
def tiny_config(tiny_config: LlamaConfig) -> LlamaConfig:
    """Heads of 32, so that a KV head with its two query heads is one block of 64 columns."""
    tiny_config.head_dim = 32
    return tiny_config


@pytest.fixture
def evaluate(
    tiny_folder: Path, tiny_data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[Evaluate]:
    """A run that was recovered, and the command on it: words of the shell -> its document."""
    texts = ("calibration", "training", "heldout", "tasks")
    given = [word for name in texts for word in (f"--{name}", getattr(tiny_data, name))]
    home = f"--home={tmp_path / 'home'}"
    words = shlex.split(
        "--sequence-length 16 --calibration-tokens 256 --heldout-tokens 256 --items-per-task 4 "
        "--criteria magnitude --criterion magnitude --pruning-ratio 0.25 --scope per-layer "
        "--protect-first 0 --protect-last 1 --memory-budget 0.9 --trials 2 --strategy random "
        "--recovery-steps 2 --lora-rank 2 --initialization loftq "
        "--initialization-option iterations=3 --quiet --json"
    )
    out = f"--out={tmp_path / 'out'}"
    assert main(["run", home, f"--model={tiny_folder}", *given, *words, out]) == 0
    run_id = json.loads(capsys.readouterr().out)["run_id"]

    def command(line: str, expected: int = 0) -> Any:
        found = main(["evaluate", run_id, home, "--quiet", "--json", *shlex.split(line)])
        said = capsys.readouterr()
        assert found == expected, said.err
        return json.loads(said.out) if expected == 0 else said.err

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the harness and its imports warn of
        yield command


@pytest.fixture
def task(tmp_path: Path) -> str:
    """A task of the harness in a folder of the person's own."""
    items = [
        {"context": WORDS[i], "choices": [WORDS[i + 1], WORDS[i + 2]], "gold": i % 2}
        for i in range(6)
    ]
    data = tmp_path / "yaml" / "mine.jsonl"
    data.parent.mkdir()
    data.write_text("".join(json.dumps(item) + "\n" for item in items))
    stated = {
        "task": "mine",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(data)},
            "cache_dir": str(tmp_path / "cache"),
        },
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "context",
        "doc_to_target": "gold",
        "doc_to_choice": "choices",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        "metadata": {"version": 2.0},
    }
    (data.parent / "mine.yaml").write_text(json.dumps(stated))
    return f"--harness lm-eval --tasks mine --include-path {data.parent}"


def test_all_that_is_measured_beside_the_line(
    evaluate: Evaluate, task: str, tmp_path: Path
) -> None:
    whole = evaluate("--trial 0")["metrics"]
    recovered = RunStore(tmp_path / "home").list()[0].recover
    assert recovered is not None
    number = recovered.spec.trial

    # The plan with its adapter is what recovery measured, its shifted weights included.
    found = evaluate(f"--trial {number}")
    assert found["with_adapter"]
    assert found["metrics"]["loss"] == pytest.approx(recovered.after.loss, abs=1e-5)
    assert found["metrics"]["weight_bytes"] == recovered.after.weight_bytes
    assert number == 0 or whole["loss"] != found["metrics"]["loss"]

    # The harness: kept in the record, with what it was measured on.
    plain, plan = evaluate(task), evaluate(f"{task} --trial {number} --limit 4")
    assert plain["harness"]["tasks"]["mine"]["n_items"] == 6
    assert plan["harness"]["tasks"]["mine"]["n_items"] == 4
    assert {"value", "standard_error"} == set(plan["harness"]["tasks"]["mine"]["acc"])
    kept = RunStore(tmp_path / "home").list()[0].harness
    assert [(each.trial, each.with_adapter) for each in kept] == [(None, False), (number, True)]
    assert kept[0].tasks[0].version == "2.0"

    # A text: by default windows as long as the model reads; its own numbers per convention.
    text = tmp_path / "text.txt"
    text.write_text(" ".join(WORDS * 3))
    blocks = evaluate(f"--perplexity {text}")["text"]
    assert (blocks["kind"], blocks["length"], blocks["word_perplexity"]) == ("blocks", 256, None)
    strides = evaluate(f"--perplexity {text} --window 64 --stride 16")["text"]
    assert strides["n_predicted"] == strides["n_tokens"] - 1
    rolling = evaluate(f"--perplexity {text} --window 64 --rolling")["text"]
    assert rolling["n_predicted"] == rolling["n_tokens"]
    assert rolling["word_perplexity"] == pytest.approx(rolling["perplexity"])
    assert "positions for 256" in evaluate(f"--perplexity {text} --window 400", expected=2)

    # Speed at a chosen batch and context, on a packed plan.
    timed = evaluate("--trial -1 --batch 2 --context 20 --decode 3 --repetitions 2")["speed"]
    assert timed["spec"] == {"batch": 2, "context": 20, "n_decoded": 3, "n_repetitions": 2}
    assert timed["prefill"]["lower"] <= timed["prefill"]["median"] <= timed["prefill"]["upper"]
    record = RunStore(tmp_path / "home").list()[0]
    assert record.layout is not None
    assert record.search is not None
    (baseline,) = (each for each in record.search.baselines if each.number == -1)
    assert baseline.metrics is not None
    assert timed["kv_cache_bytes"] == 2 * record.layout.kv_cache_bytes(20, bytes_per_value=4)
    assert timed["weight_bytes"] == baseline.metrics.weight_bytes

    assert "no measured plan number 77" in evaluate("--trial 77", expected=2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--tasks boolq", "Add --harness lm-eval"),
        ("--harness lm-eval", "No task of the harness was named"),
        ("--window 12", "Add --perplexity"),
        ("--perplexity gone.txt --rolling --stride 4", "Give one"),
        ("--batch 0", "batch 0"),
    ],
)
def test_arguments_that_do_not_fit_together_are_refused_before_anything_is_loaded(
    tiny_data: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: str,
    said: str,
) -> None:
    from qpruner_core.domain.spec import ModelSpec, RunSpec

    store = RunStore(tmp_path / "home")
    run_id = store.create(RunSpec(model=ModelSpec(source="demo"), data=tiny_data)).run_id
    line = ["evaluate", run_id, f"--home={tmp_path / 'home'}", *shlex.split(words)]
    assert main(line) == 2
    assert said in capsys.readouterr().err


def test_without_such_options_it_is_the_step_of_the_line() -> None:
    parser = build_parser()
    assert not is_beside(parser.parse_args(["evaluate", "some-run", "--device", "cpu"]))
    assert is_beside(parser.parse_args(["evaluate", "some-run", "--trial", "0"]))
    assert is_beside(parser.parse_args(["evaluate", "some-run", "--speed"]))
