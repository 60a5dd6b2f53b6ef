"""Memory that runs out is a sentence, whatever torch calls it; other errors are bugs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import ref

import pytest
import torch

from qpruner_core.domain.speed import SpeedSpec
from qpruner_core.domain.text_result import WindowSpec
from qpruner_core.errors import DeviceMemoryError
from qpruner_core.pipeline.evaluating import Evaluating
from qpruner_core.pipeline.out_of_memory import out_of_memory_as


class Held:
    """Stands for the tensors of a step that ran out of memory."""


@dataclass
class NoMemory:
    """Materials of which nothing fits."""

    error: BaseException

    def pruned(self, *_: object) -> None:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    ],
)
def test_the_sentence_holds_on_to_nothing_of_what_failed(error: BaseException) -> None:
    held: list[ref[Held]] = []

    @out_of_memory_as("No memory. Take less.")
    def work() -> None:
        tensors = Held()
        held.append(ref(tensors))
        raise type(error)(*error.args)

    with pytest.raises(DeviceMemoryError, match=r"No memory\. Take less") as told:
        work()
    assert held[0]() is None
    assert told.value.__context__ is None


def test_another_error_comes_through() -> None:
    @out_of_memory_as("No memory.")
    def work(shape: str) -> None:
        raise RuntimeError(f"{shape} cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 cannot be multiplied"):
        work("mat1")


@pytest.mark.parametrize("what", ["text", "speed", "metrics"])
def test_a_measurement_beside_the_line_says_that_memory_ran_out(what: str, tmp_path: Any) -> None:
    text = tmp_path / "text.txt"
    text.write_text("some words")
    materials: Any = NoMemory(torch.cuda.OutOfMemoryError("CUDA out of memory."))
    record: Any = type("Record", (), {"recover": None})()
    evaluating = Evaluating(record, materials)
    measure = {
        "text": lambda: evaluating.text(str(text), WindowSpec()),
        "speed": lambda: evaluating.speed(SpeedSpec()),
        "metrics": evaluating.metrics,
    }[what]
    with pytest.raises(DeviceMemoryError, match="ran out of memory while measuring this model"):
        measure()
