"""What lm-evaluation-harness says of a model on items of ours, as a task of its own."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from qpruner_core.data import Item


@dataclass(frozen=True)
class Scored:
    """One item as the harness scored it."""

    log_likelihoods: tuple[float, ...]
    acc: bool
    acc_norm: bool


def harness_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Mapping[str, Sequence[Item]],
    folder: Path,
) -> dict[str, list[Scored]]:
    """Return task -> item by item, in their order."""
    for name, items in tasks.items():
        write_task(folder, name, items)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the harness and its imports warn of
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        found: Any = lm_eval.simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=16),
            tasks=[f"ours_{name}" for name in tasks],
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            bootstrap_iters=0,
        )
    return {name: _in_order(found["samples"][f"ours_{name}"]) for name in tasks}


def _in_order(samples: Sequence[Mapping[str, Any]]) -> list[Scored]:
    ordered = sorted(samples, key=lambda sample: sample["doc_id"])
    return [
        Scored(
            log_likelihoods=tuple(value for value, _ in sample["filtered_resps"]),
            acc=bool(sample["acc"]),
            acc_norm=bool(sample["acc_norm"]),
        )
        for sample in ordered
    ]


def write_task(folder: Path, name: str, items: Sequence[Item]) -> None:
    """Write the items as the harness's own tasks have theirs: the choices bare, and the space that
    joins them a setting of the task.
    """
    joined = all(choice.startswith(" ") for item in items for choice in item.choices)
    bare = [[choice.removeprefix(" " * joined) for choice in item.choices] for item in items]
    partial = any(item.contexts for item in items)
    lines = [
        {
            "context": item.context,
            "choices": list(item.contexts) if partial else choices,
            "continuation": choices[0],
            "gold": item.gold,
        }
        for item, choices in zip(items, bare, strict=True)
    ]
    folder.mkdir(exist_ok=True)
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    task = {
        "task": f"ours_{name}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "gold" if partial else "context",
        "doc_to_target": "continuation" if partial else "gold",
        "doc_to_choice": "choices",
        "target_delimiter": " " * joined,
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        "metadata": {"version": 1.0},
    }
    # JSON is YAML.
    (folder / f"{name}.yaml").write_text(json.dumps(task))
