"""Fixtures that go over every family and variant; the table is `families.py`."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from families import CASES, built

from qpruner_core.catalog import ARCHITECTURES
from qpruner_core.domain.layout import ModelLayout


@pytest.fixture(params=CASES, ids=lambda name: name.replace(" ", "-"))
def case(request: pytest.FixtureRequest) -> str:
    """The name of a family's variant."""
    name: str = request.param
    return name


@pytest.fixture
def family(case: str) -> str:
    """Its ``model_type``."""
    return CASES[case][0]


@pytest.fixture
def model(case: str) -> Any:
    """A random model of the variant in float64, in eval mode; the same weights every time."""
    return copy.deepcopy(built(case))


@pytest.fixture
def layout(family: str, model: Any) -> ModelLayout:
    """The layout of that model, from its config."""
    return ARCHITECTURES.target(family).layout(model.config.to_dict())
