"""What a newcomer lives: from the first page to a downloaded checkpoint that opens elsewhere.

The real app, a real worker, the demo model, in Chromium.
"""

import os
import re
import subprocess
import sys
import zipfile

import pytest
from browser import STEP_LIMIT, press, settled, visit
from playwright.sync_api import Locator, Page, expect

LOAD = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder)
ids = tokenizer("kabor", return_tensors="pt").input_ids
said = model.generate(ids, max_new_tokens=4, do_sample=False)
print(said.shape[1] - ids.shape[1], "qpruner_core" in sys.modules)
"""

pytestmark = pytest.mark.e2e


def raise_to(page: Page, slider: Locator, value: int) -> None:
    """Press the arrow key until the slider stands at the value.

    A key pressed while the page takes the answer to the one before can be lost in the browser's
    slider, as for a person, who then presses again: so presses are not counted here, only steps.
    """
    for _ in range(3 * value):
        before = int(slider.input_value())
        if before >= value:
            break
        slider.press("ArrowRight")
        settled(page)
    expect(slider).to_have_value(str(value))
    settled(page)


def points_of(page: Page, chart: Locator, trace: str) -> list[dict[str, float]]:
    """Return where the points of the traces of that name lie on the screen."""
    found = chart.evaluate(
        """(box, name) => {
            const plot = box.querySelector('.js-plotly-plot');
            const at = plot.getBoundingClientRect();
            const { xaxis, yaxis } = plot._fullLayout;
            return plot._fullData.filter(t => t.name.includes(name)).flatMap(t =>
                Array.from(t.x).map((x, i) => ({
                    x: at.left + xaxis._offset + xaxis.d2p(x),
                    y: at.top + yaxis._offset + yaxis.d2p(t.y[i]),
                })));
        }""",
        trace,
    )
    assert found, f"no trace named {trace}"
    return found


def test_from_the_first_page_to_a_checkpoint_that_opens_elsewhere(studio, page, tmp_path):
    page.goto(studio)
    settled(page)
    expect(page.get_by_role("button", name="Compress the demo model")).to_be_visible()
    press(page, "Create run")
    expect(page.get_by_role("heading", name="Importance", exact=True)).to_be_visible()

    press(page, "Start scoring")
    expect(page.get_by_text(re.compile("Measured on cpu over"))).to_be_visible(timeout=STEP_LIMIT)
    expect(page.locator(".js-plotly-plot .heatmaplayer").first).to_be_visible()

    visit(page, "Pruning")
    slider = page.get_by_role("slider", name="Pruning ratio, %")
    before = page.get_by_test_id("stMetric").first.inner_text()
    raise_to(page, slider, 30)
    expect(page.get_by_test_id("stMetric").first).not_to_have_text(before)
    press(page, "Prune")
    expect(page.get_by_role("heading", name=re.compile("Pruned at 30 %"))).to_be_visible(
        timeout=STEP_LIMIT
    )

    visit(page, "Search")
    trials = page.get_by_role("spinbutton", name="Trials")
    trials.fill("8")
    trials.press("Enter")
    settled(page)
    press(page, "Search")
    expect(page.get_by_role("progressbar").first).to_be_visible(timeout=STEP_LIMIT)
    expect(page.get_by_role("button", name="Open in Results")).to_be_visible(timeout=STEP_LIMIT)

    visit(page, "Results")
    chart = page.get_by_test_id("stPlotlyChart").first
    chart.scroll_into_view_if_needed()
    smallest = min(points_of(page, chart, "baselines"), key=lambda point: point["x"])
    page.mouse.click(smallest["x"], smallest["y"])
    expect(page).to_have_url(re.compile("trial="))
    expect(page.get_by_text(re.compile("A · QPruner-1"))).to_be_visible()
    expect(page.get_by_text("Traceback")).to_have_count(0)

    visit(page, "Export")
    press(page, "Export")
    link = page.get_by_role("link", name="Download as zip")
    expect(link).to_be_visible(timeout=STEP_LIMIT)
    with page.expect_download() as waiting:
        link.click()
    archive = tmp_path / "checkpoint.zip"
    waiting.value.save_as(archive)

    folder = tmp_path / "elsewhere"
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(folder)
    config = next(folder.rglob("config.json"))
    done = subprocess.run(
        [sys.executable, "-I", "-c", LOAD, str(config.parent)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["4", "False"]
