"""Whether a model fits: four bytes a parameter on a CPU, two on a card, the smallest decides."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app import memory
from qpruner_core.catalog import ARCHITECTURES
from qpruner_core.jobs import WorkerInfo
from qpruner_core.pipeline import streaming

LAYOUT = ARCHITECTURES.target("llama").layout(
    {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "vocab_size": 100,
    }
)
CPU = WorkerInfo(name="a/cpu", pid=1, host="a", device="cpu", since="", memory_bytes=2**40)


@pytest.mark.parametrize(("device", "bytes_each"), [("cpu", 4), ("Some card", 2)])
def test_what_is_needed_depends_on_the_dtype_of_the_device(device, bytes_each):
    worker = replace(CPU, device=device, memory_bytes=10)
    lacks = memory.shortage(LAYOUT, [worker])
    assert lacks is not None
    assert lacks.needed_bytes == bytes_each * LAYOUT.parameters


def test_the_largest_layer_is_the_one_figure_of_the_command_line():
    assert memory.largest_layer_bytes(LAYOUT) == streaming.largest_layer_bytes(LAYOUT)


def test_the_smallest_worker_decides():
    small = replace(CPU, name="b/cpu", memory_bytes=100)
    lacks = memory.shortage(LAYOUT, [CPU, small])
    assert lacks is not None
    assert lacks.memory_bytes == 100
    assert memory.shortage(LAYOUT, [CPU]) is None


def test_a_worker_that_does_not_say_what_it_has_is_not_judged():
    assert memory.shortage(LAYOUT, [replace(CPU, memory_bytes=None)]) is None
    assert memory.shortage(LAYOUT, []) is None
