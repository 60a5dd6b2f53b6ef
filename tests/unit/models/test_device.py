"""CUDA when there is one, else the CPU."""

from __future__ import annotations

import os

import pytest
import torch

from qpruner_core.errors import BadInputError
from qpruner_core.models import device as devices
from qpruner_core.models.device import pick_device


@pytest.fixture
def card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Card {index}")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)


@pytest.fixture
def no_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_without_a_card_it_is_the_cpu_in_float32(no_card):
    device = pick_device()
    assert (device.kind, device.name, device.compute_dtype) == ("cpu", "cpu", torch.float32)
    assert device.torch == torch.device("cpu")


def test_a_card_is_taken_and_named(card):
    device = pick_device()
    assert (device.name, device.compute_dtype) == ("Card 1", torch.bfloat16)
    assert device.torch == torch.device("cuda", 1)


def test_a_card_without_bfloat16_computes_in_float16(card, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert pick_device("cuda").compute_dtype == torch.float16


def test_the_cpu_can_be_asked_for_although_a_card_is_there(card):
    assert pick_device("cpu").kind == "cpu"


def test_a_card_that_is_not_there_is_refused(no_card):
    with pytest.raises(BadInputError, match="finds no CUDA card"):
        pick_device("cuda")


def test_an_unknown_kind_is_refused():
    with pytest.raises(BadInputError, match="no device 'tpu'"):
        pick_device("tpu")


def test_the_memory_of_the_cpu_is_at_most_what_is_installed():
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 2**20 < devices.memory_bytes(pick_device("cpu")) <= installed


def test_a_container_that_limits_its_memory_is_believed(monkeypatch):
    monkeypatch.setattr(devices, "_container_limits", lambda: [2**30])
    assert devices.memory_bytes(pick_device("cpu")) == 2**30
