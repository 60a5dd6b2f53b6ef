"""Every distinct shape is timed once, at every precision."""

from __future__ import annotations

import torch

from qpruner_core.domain.layout import ModelLayout
from qpruner_core.models.device import pick_device
from qpruner_core.quantization import kernel_times
from qpruner_core.quantization.kernel_times import linear_seconds, shape_of


def test_all_shapes_and_precisions_are_timed_and_nothing_random_is_used_up(
    tiny_layout: ModelLayout,
) -> None:
    state = torch.get_rng_state()
    found = linear_seconds(tiny_layout.linears, ("nf4", "int8", "bf16"), pick_device("cpu"))
    shapes = {shape_of(linear) for linear in tiny_layout.linears}
    assert set(found) == {(s, p) for s in shapes for p in ("nf4", "int8", "bf16")}
    assert all(0.0 < seconds < 1.0 for seconds in found.values())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_shape_that_stands_in_every_layer_is_timed_once(
    tiny_layout: ModelLayout, monkeypatch
) -> None:
    timed: list[object] = []

    def note(shape: object, precision: str, device: object) -> float:
        timed.append((shape, precision))
        return 1.0

    monkeypatch.setattr(kernel_times, "_seconds", note)
    linear_seconds(tiny_layout.linears * 3, ("int8",), pick_device("cpu"))
    assert len(timed) == len(set(timed)) == len({shape_of(li) for li in tiny_layout.linears})
