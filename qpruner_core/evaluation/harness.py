"""lm-evaluation-harness on a model in memory, with its own definitions of its tasks.

It is an extra: nothing else needs it. Its tasks' data come from the model hub or its cache.
"""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from qpruner_core.domain.harness import HarnessScore, HarnessSpec, HarnessTask
from qpruner_core.errors import (
    BadInputError,
    HubUnreachableError,
    NotReadyError,
    UnknownNameError,
)
from qpruner_core.registry import nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PACKAGE = "lm_eval"
ROWS_PER_BATCH = 8
"""The harness keeps the logits of a whole batch."""
N_BOOTSTRAPS = 1000
"""For standard errors that have no formula, such as that of a perplexity."""


def check_installed() -> None:
    """Refuse to go on without the harness, before any model is loaded.

    Raises:
        NotReadyError: It is not installed.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise NotReadyError(
            "lm-evaluation-harness was asked for and is not installed. Install the extra "
            "'harness': pip install -e '.[harness]'."
        )


def harness_version() -> str:
    """Return the version of the harness that is installed."""
    return importlib.metadata.version(PACKAGE)


def run_harness(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, spec: HarnessSpec
) -> tuple[HarnessTask, ...]:
    """Return what the harness says of a model, task by task.

    Args:
        model: A causal language model; it is left in evaluation mode.
        tokenizer: Its own.
        spec: Tasks, and how many items of each.

    Raises:
        NotReadyError: The harness is not installed.
        UnknownNameError: It knows no such task.
        BadInputError: The folder of own tasks is none, or a task's data are not where they should
            be.
        HubUnreachableError: A task's data are not in the cache and the hub does not answer.
    """
    check_installed()
    with _quiet(), _in_sentences(spec):
        import lm_eval  # noqa: PLC0415 - an extra, and slow to import
        from lm_eval.models.huggingface import HFLM  # noqa: PLC0415

        manager = _manager(spec)
        found = lm_eval.simple_evaluate(
            # A copy: the harness chooses a padding token for a tokenizer that has none.
            model=HFLM(
                pretrained=model,
                tokenizer=copy.deepcopy(tokenizer),
                batch_size=ROWS_PER_BATCH,
            ),
            tasks=list(spec.tasks),
            num_fewshot=spec.n_shots,
            task_manager=manager,
            limit=spec.limit or None,
            bootstrap_iters=N_BOOTSTRAPS,
            log_samples=False,
        )
    return tuple(_task(name, numbers, found) for name, numbers in found["results"].items())


def _manager(spec: HarnessSpec) -> Any:
    """Return the harness's list of tasks: the person's own, and all of its own where needed."""
    from lm_eval.tasks import TaskManager  # noqa: PLC0415

    if spec.include_path:
        folder = Path(spec.include_path).expanduser()
        if not folder.is_dir():
            raise BadInputError(
                f"The folder {spec.include_path!r}, given for tasks of your own, does not exist. "
                f"Give one with the harness's YAML files."
            )
        own = TaskManager(include_path=str(folder), include_defaults=False)
        if set(spec.tasks) <= set(own.all_tasks):
            return own
    # All of the harness's thousands of files are read for their names; that takes seconds.
    every = TaskManager(include_path=spec.include_path or None)
    known = set(every.all_tasks)
    for name in spec.tasks:
        if name not in known:
            raise UnknownNameError(
                f"lm-evaluation-harness {harness_version()} knows no task {name!r}. "
                f"{nearest(name, known)}'lm-eval ls tasks' lists all."
            )
    return every


@contextmanager
def _quiet() -> Iterator[None]:
    """Let the harness say only what is wrong; its bars of progress stay."""
    logger = logging.getLogger(PACKAGE)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _in_sentences(spec: HarnessSpec) -> Iterator[None]:
    try:
        yield
    except ConnectionError as error:
        raise HubUnreachableError(
            f"The data of {', '.join(spec.tasks)} are not all in the cache, and the hub did not "
            f"answer ({_first_line(error)}). Connect to it once (without HF_HUB_OFFLINE), or "
            f"score items of your own: 'qpruner run --tasks FOLDER'."
        ) from error
    except FileNotFoundError as error:
        raise BadInputError(
            f"The data of {', '.join(spec.tasks)} were not found: {_first_line(error)}. Correct "
            f"the task's dataset_path, or get access to it and set HF_TOKEN."
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")


def _task(name: str, numbers: Mapping[str, Any], found: Mapping[str, Any]) -> HarnessTask:
    counted = found.get("n-samples", {}).get(name, {})
    return HarnessTask(
        name=name,
        version=str(found["versions"].get(name, "")),
        n_items=int(counted.get("effective", numbers.get("sample_len", 0))),
        scores=tuple(_scores(numbers)),
    )


def _scores(numbers: Mapping[str, Any]) -> Iterator[HarnessScore]:
    """Yield the numbers of a task; the harness names them ``metric,filter``."""
    for key, value in numbers.items():
        metric, comma, kept = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = numbers.get(f"{metric}_stderr,{kept}")
        yield HarnessScore(
            metric=metric if kept == "none" else f"{metric} ({kept})",
            value=float(value),
            standard_error=float(error) if isinstance(error, int | float) else None,
        )
