"""Text stands out on every ground of ours as WCAG asks of small text."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest

from app import charts_importance, palette
from app.tables_importance import unit_agreement
from qpruner_core.catalog import PRECISIONS
from qpruner_core.domain.record import Agreement

ROOT = Path(__file__).parents[3]
LEAST = 4.5


def test_contrast_is_that_of_the_definition():
    assert palette.contrast("#ffffff", "#000000") == pytest.approx(21.0)
    assert palette.contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("name", PRECISIONS.names())
def test_the_name_of_a_precision_reads_on_its_colour(name):
    colour = palette.precision_colour(name)
    assert palette.contrast(palette.text_on(colour), colour) >= LEAST


@pytest.mark.parametrize("share", np.linspace(0.0, 1.0, 21))
def test_numbers_read_on_every_cell_of_the_agreement(share):
    ground = palette.on_scale(palette.AGREEING, float(share))
    assert palette.contrast(palette.text_on(ground), ground) >= LEAST


def test_words_on_a_plate_read():
    assert palette.contrast(palette.INK, palette.PLATE) >= LEAST


def test_a_scale_is_met_at_its_stops_and_mixed_between_them():
    scale = ((0.0, "#000000"), (0.5, "#ffffff"), (1.0, "#ff0000"))
    assert [palette.on_scale(scale, at) for at in (0.0, 0.5, 1.0)] == [c for _, c in scale]
    assert palette.on_scale(scale, 0.25) == "#808080"


def test_the_picture_of_agreement_colours_number_by_number():
    found = [Agreement(first="taylor", second="wanda", kind="kv_heads", correlation=-0.5)]
    figure = charts_importance.agreement(unit_agreement(found)["kv_heads"])
    colours = figure.data[1].textfont.color
    assert len(colours) == 4
    assert set(colours) <= {palette.INK, palette.WHITE}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_white_reads_on_the_primary_buttons(theme):
    settings = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text("utf-8"))["theme"]
    colour = settings[theme].get("primaryColor", settings["primaryColor"])
    assert palette.contrast(colour, "#ffffff") >= LEAST
    # WCAG asks 3 of what is no text: switches, sliders, borders.
    assert palette.contrast(colour, settings[theme]["backgroundColor"]) >= 3.0


def test_few_units_are_named_and_many_are_ranked():
    few = charts_importance.units(np.array([1.0, 3.0, 2.0]), None, "KV head")
    assert list(few.layout.xaxis.ticktext) == ["1", "2", "0"]
    many = charts_importance.units(np.arange(100.0), None, "MLP channel")
    assert "Rank" in many.layout.xaxis.title.text
