"""The harness on its own task definitions: numbers, and what it says when it cannot."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from harness_reference import write_task
from test_suite import corpus_of, draw_items

from qpruner_core.domain.harness import HarnessOutcome, HarnessSpec, still_true
from qpruner_core.domain.record import STEPS
from qpruner_core.errors import (
    BadInputError,
    HubUnreachableError,
    NotReadyError,
    UnknownNameError,
)
from qpruner_core.evaluation import build_suite
from qpruner_core.evaluation.harness import run_harness

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

Loaded = tuple["LlamaForCausalLM", "PreTrainedTokenizerFast"]


@pytest.fixture(autouse=True)
def calm() -> Iterator[None]:
    """Warnings of the harness and of what it imports are its own affair."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lm_eval.models.huggingface  # noqa: F401

        yield


@pytest.fixture
def loaded(tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> Loaded:
    return tiny_model, tiny_tokenizer


def asked(folder: Path, *tasks: str, **more: Any) -> HarnessSpec:
    return HarnessSpec(tasks=tasks, include_path=str(folder), **more)


def test_its_accuracies_and_standard_errors_are_those_of_the_same_items(
    loaded: Loaded, tmp_path: Path
) -> None:
    items = draw_items(3, 12, 4)
    write_task(tmp_path, "mine", items)
    (task,) = run_harness(*loaded, asked(tmp_path, "ours_mine"))
    suite = build_suite(loaded[1], corpus_of(torch.ones(1, 8, dtype=torch.long), mine=items))
    expected = suite.task_results(loaded[0])["mine"]
    scores = {score.metric: score for score in task.scores}
    assert (task.name, task.n_items, task.version) == ("ours_mine", 12, "1.0")
    assert scores["acc"].value == expected.accuracy
    assert scores["acc"].standard_error == pytest.approx(expected.standard_error)
    assert scores["acc_norm"].value == expected.accuracy_normalized


def test_a_limit_takes_the_first_items_of_every_task(loaded: Loaded, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_task(tmp_path, name, draw_items(3, 12, 4))
    found = run_harness(*loaded, asked(tmp_path, "ours_one", "ours_two", limit=5))
    assert [(task.name, task.n_items) for task in found] == [("ours_one", 5), ("ours_two", 5)]


def test_the_tokenizer_that_it_is_given_stays_as_it_is(loaded: Loaded, tmp_path: Path) -> None:
    loaded[1].pad_token = None
    write_task(tmp_path, "mine", draw_items(3, 2, 2))
    run_harness(*loaded, asked(tmp_path, "ours_mine"))
    assert loaded[1].pad_token is None


@pytest.fixture
def only_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The harness knows the tasks of a folder as if they were all it has."""
    from lm_eval import tasks

    whole = tasks.TaskManager

    def manager(include_path: str | None = None, include_defaults: bool = False) -> Any:
        return whole(include_path=include_path or str(tmp_path), include_defaults=False)

    monkeypatch.setattr(tasks, "TaskManager", manager)
    return tmp_path


def test_data_that_are_neither_cached_nor_to_be_had_are_said_in_one_sentence(
    loaded: Loaded, only_own: Path
) -> None:
    task = {
        "task": "far",
        "dataset_path": "nobody/has-this",
        "dataset_kwargs": {"cache_dir": str(only_own / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "context",
        "doc_to_target": "gold",
        "doc_to_choice": "choices",
        "metric_list": [{"metric": "acc"}],
    }
    (only_own / "far.yaml").write_text(json.dumps(task))
    with pytest.raises(HubUnreachableError, match=r"data of far .* Connect to it once") as caught:
        run_harness(*loaded, HarnessSpec(tasks=("far",)))
    assert "\n" not in str(caught.value)


def test_a_data_file_that_is_missing_is_named(loaded: Loaded, tmp_path: Path) -> None:
    write_task(tmp_path, "mine", draw_items(3, 2, 2))
    (tmp_path / "mine.jsonl").unlink()
    with pytest.raises(BadInputError, match=r"mine\.jsonl"):
        run_harness(*loaded, asked(tmp_path, "ours_mine"))


def test_an_unknown_task_is_answered_with_the_nearest(loaded: Loaded, only_own: Path) -> None:
    write_task(only_own, "mine", draw_items(3, 2, 2))
    with pytest.raises(UnknownNameError, match="Did you mean 'ours_mine'"):
        run_harness(*loaded, HarnessSpec(tasks=("our_mine",)))


def test_a_folder_of_own_tasks_that_is_none_is_said(loaded: Loaded, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="does not exist"):
        run_harness(*loaded, asked(tmp_path / "gone", "x"))


def test_without_the_harness_the_extra_is_named(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NotReadyError, match="extra 'harness'"):
        run_harness(*loaded, HarnessSpec(tasks=("boolq",)))


@pytest.mark.parametrize("given", [{"tasks": ()}, {"tasks": ("a",), "limit": -1}])
def test_what_makes_no_sense_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(BadInputError):
        HarnessSpec(**given)


def test_what_was_said_of_a_model_goes_with_the_model() -> None:
    def outcome(trial: int | None, with_adapter: bool) -> HarnessOutcome:
        return HarnessOutcome(
            spec=HarnessSpec(tasks=("a",)),
            trial=trial,
            with_adapter=with_adapter,
            tasks=(),
            harness_version="0.4.13",
            device="cpu",
            created_at="",
            seconds=0.0,
        )

    pruned, plan, recovered = outcome(None, False), outcome(3, False), outcome(3, True)
    every = (pruned, plan, recovered)
    left = {step: still_true(every, step, STEPS) for step in STEPS}
    assert left["score"] == left["prune"] == ()
    assert left["evaluate"] == left["search"] == (pruned,)
    assert left["recover"] == (pruned, plan)
    assert left["export"] == every
