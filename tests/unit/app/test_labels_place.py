from __future__ import annotations

from itertools import combinations

import pytest

from app import labels


def boxes(names: list[str], spots: list[tuple[float, float]]) -> list[labels._Box]:
    to_pixels = labels._scale(spots)
    made = labels.place(names, spots, spots)
    return [
        labels._box(to_pixels(spot), (note["ax"], note["ay"]), len(name))
        for name, spot, note in zip(names, spots, made, strict=True)
    ]


def test_names_of_points_that_stand_close_do_not_cover_each_other() -> None:
    spots = [(4.4, 1.50), (4.8, 1.50), (5.2, 1.48), (9.4, 1.47), (3.2, 1.72)]
    found = boxes(["QPruner-3", "QPruner-2", "uniform int8", "LLM-Pruner (16 bit)", "x"], spots)
    assert all(a.overlap(b) == 0 for a, b in combinations(found, 2))


def test_a_name_at_the_right_edge_stays_inside_the_picture() -> None:
    spots = [(0.0, 0.0), (1.0, 1.0)]
    found = boxes(["left", "a name of quite some length"], spots)
    assert all(box.outside() == 0 for box in found)


def test_a_name_does_not_cross_the_budget_line_where_another_place_is_free() -> None:
    spots = [(0.0, 0.0), (0.48, 0.5), (1.0, 1.0)]
    (note,) = labels.place(["a plan with a name"], spots[1:2], spots, wall=0.5)
    assert note["xanchor"] == "right"


@pytest.mark.parametrize("names", [[], ["alone"]])
def test_no_name_and_one_name_work(names: list[str]) -> None:
    spots = [(1.0, 1.0)] * len(names)
    assert len(labels.place(names, spots, spots)) == len(names)
