"""What is made of a slot is kept until the slot is another one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import streamlit as st

from app import services
from qpruner_core.domain.spec import PruningSpec


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QPRUNER_HOME", str(tmp_path))
    st.cache_resource.clear()
    yield
    st.cache_resource.clear()


def test_once_makes_again_when_the_slot_is_another():
    made = []

    def make():
        made.append(len(made))
        return made[-1]

    slot = PruningSpec(ratio=0.2)
    assert [services.once("a", slot, make) for _ in range(3)] == [0, 0, 0]
    assert services.once("a", replace(slot), make) == 1  # equal, but read anew from the disk
    assert services.once("b", slot, make) == 2


def test_once_keeps_the_newest_pictures_alone():
    slot = PruningSpec()
    for number in range(services.N_KEPT + 5):
        services.once(f"run/{number}", slot, lambda: "picture")
    again = services.once("run/0", slot, lambda: "made anew")
    assert again == "made anew"
    assert services.once(f"run/{services.N_KEPT + 4}", slot, lambda: "made anew") == "picture"
