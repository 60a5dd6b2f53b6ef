"""Can training bring it back? Start, watch the loss fall, stop, go on, see before and after.

The real app, a real worker, the demo model, in Chromium.
"""

import re
from pathlib import Path

import pytest
from browser import STEP_LIMIT, press, settled
from playwright.sync_api import Page, expect

from qpruner_core.domain.spec import (
    DataSpec,
    ImportanceSpec,
    ModelSpec,
    PruningSpec,
    RunSpec,
    SearchSpec,
)
from qpruner_core.jobs import Jobs
from qpruner_core.store.records import RunStore

N_STEPS = 40
LEAST = 9
"""Steps that are watched before training is stopped; the smoothed line is there by then."""
SPEC = RunSpec(
    model=ModelSpec(source="demo"),
    data=DataSpec(calibration_tokens=2048, heldout_tokens=4096, items_per_task=10),
    importance=ImportanceSpec(criteria=("magnitude", "mutual_information")),
    pruning=PruningSpec(ratio=0.4, criterion="magnitude"),
    search=SearchSpec(precisions=("nf4", "int8"), n_trials=1),
)
BEFORE_RECOVERY = ("load", "score", "prune", "quantize", "evaluate", "search")

pytestmark = pytest.mark.e2e


def fill(page: Page, name: str, number: int) -> None:
    field = page.get_by_role("spinbutton", name=name, exact=True)
    field.fill(str(number))
    field.press("Enter")
    settled(page)


def drawn_losses(page: Page) -> list[float]:
    """Return the training losses as the picture has them."""
    chart = page.get_by_test_id("stPlotlyChart").filter(has_text="Optimiser step").first
    return chart.evaluate(
        """box => Array.from(box.querySelector('.js-plotly-plot')._fullData
            .find(trace => trace.name === 'training loss per step').y)"""
    )


def metric(page: Page, label: str) -> str:
    found = page.get_by_test_id("stMetric").filter(has_text=label)
    return str(found.last.inner_text())


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_training_is_watched_stopped_resumed_and_compared(studio, page, tmp_path: Path):
    home = tmp_path / "home"
    store, jobs = RunStore(home), Jobs(home)
    run_id = store.create(SPEC).run_id
    jobs.start_line(run_id, BEFORE_RECOVERY, SPEC)

    page.goto(f"{studio}/recovery?run={run_id}")
    train = page.get_by_role("button", name="Train", exact=True)
    expect(train).to_be_enabled(timeout=3 * STEP_LIMIT)
    settled(page)
    fill(page, "Steps", N_STEPS)
    estimate = metric(page, "Training memory")
    assert "MiB" in estimate
    page.locator("summary").filter(has_text="Schedule and batch").click()
    fill(page, "Batch, sequences", 4)
    fill(page, "Sequence, tokens", 64)
    assert metric(page, "Training memory") != estimate

    train.click()
    watched = re.compile(rf"Step (\d\d|{LEAST}) of {N_STEPS};")
    expect(page.get_by_text(watched)).to_be_visible(timeout=STEP_LIMIT)
    expect(page.get_by_test_id("stMetric").filter(has_text="Tokens/s")).to_be_visible()
    expect(train).to_be_disabled()
    page.get_by_role("button", name="Stop", exact=True).click()
    stopped = page.get_by_text(re.compile(rf"Stopped after \d+ of {N_STEPS} steps"))
    expect(stopped).to_be_visible(timeout=STEP_LIMIT)
    settled(page)
    first = store.read(run_id).recover
    assert LEAST <= len(first.losses) < N_STEPS
    assert f"Stopped after {len(first.losses)} of" in stopped.inner_text()
    assert drawn_losses(page) == list(first.losses)
    expect(page.get_by_role("heading", name=re.compile("Recovered"))).to_be_visible()
    assert first.after.loss < first.before.loss

    press(page, "Resume")
    done = page.get_by_text(re.compile(rf"{N_STEPS} of {N_STEPS} steps"))
    expect(done).to_be_visible(timeout=STEP_LIMIT)
    expect(stopped).to_have_count(0)
    settled(page)
    whole = store.read(run_id).recover
    assert whole.losses[: len(first.losses)] == first.losses
    assert len(whole.losses) == N_STEPS
    shown = drawn_losses(page)
    assert shown == list(whole.losses)
    assert mean(shown[-8:]) < mean(shown[:4])
    assert whole.after.loss < first.after.loss

    assert f"{whole.after.loss:.3f} nats" in metric(page, "Loss per token")
    assert "against the estimate" in metric(page, "Training memory")
    expect(page.get_by_text(re.compile(r"After recovery \d+ items are right"))).to_be_visible()
    expect(page.get_by_text("Traceback")).to_have_count(0)
    page.get_by_role("link", name="Export this model with its adapter").click()
    expect(page.get_by_role("heading", name="Export", exact=True)).to_be_visible()
    expect(page).to_have_url(re.compile(f"run={run_id}"))
