"""Losses of a training that went on, and what it takes in memory."""

from __future__ import annotations

import numpy as np

from app import charts_recovery
from qpruner_core.domain.device_memory import TrainingBytes
from qpruner_core.domain.progress import Progress


def told(done: int, loss: float | None = None) -> Progress:
    values = {} if loss is None else {"loss": loss}
    return Progress(step="recover", done=done, total=9, values=values)


def test_losses_are_numbered_by_their_step():
    found = charts_recovery.by_step([told(0), told(1, 2.0), told(2, 1.5)])
    assert found == {1: 2.0, 2: 1.5}


def test_a_training_that_goes_on_from_a_checkpoint_reports_anew_what_came_after_it():
    before = [told(0), *(told(step, 2.0) for step in range(1, 8))]
    after = [told(0), *(told(step, 1.0) for step in range(5, 7))]
    assert charts_recovery.by_step([*before, *after]) == {
        **dict.fromkeys(range(1, 5), 2.0),
        5: 1.0,
        6: 1.0,
    }


def test_a_training_that_begins_anew_leaves_nothing_of_the_one_before():
    assert charts_recovery.by_step([told(1, 2.0), told(2, 2.0), told(0), told(1, 3.0)]) == {1: 3.0}


def test_the_smoothed_line_is_the_mean_of_the_last_steps():
    values = {step: float(step) for step in range(1, 13)}
    raw, smoothed = charts_recovery.losses(values, 20).data
    assert list(raw.x) == list(range(1, 13))
    assert list(smoothed.x) == [8, 9, 10, 11, 12]
    assert np.allclose(smoothed.y, [np.mean(range(i - 7, i + 1)) for i in range(8, 13)])


def test_held_out_losses_are_named_at_opposite_ends_and_sides_of_their_lines():
    made = charts_recovery.losses({1: 2.0}, 9, {"before": 1.50, "after": 1.49})
    notes = {note.text: (note.yanchor, note.xanchor) for note in made.layout.annotations}
    assert notes == {
        "held-out loss before: 1.500": ("bottom", "right"),
        "held-out loss after: 1.490": ("top", "left"),
    }


def test_a_bar_has_all_parts_and_its_total():
    parts = TrainingBytes(weights=4096, adapter=2048, activations=512, logits=256, workspace=128)
    made = charts_recovery.memory({"these": parts})
    assert sum(trace.x[0] for trace in made.data) == parts.total
    assert [note.text for note in made.layout.annotations] == ["these: <b>6.88 KiB</b>"]


def test_every_part_of_the_estimate_is_drawn():
    assert set(charts_recovery.PARTS) == set(TrainingBytes.__dataclass_fields__)
