"""What this machine has: enough to answer most questions of somebody for whom it does not run."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from typing import Any

from qpruner_core.domain.footprint import format_bytes
from qpruner_core.domain.spec import ModelSpec
from qpruner_core.errors import QPrunerError
from qpruner_core.inspection import inspect_model
from qpruner_core.store.records import RunStore

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "optuna",
    "dbos",
    "streamlit",
    "plotly",
    "pandas",
    "safetensors",
)
LEAST_FREE_BYTES = 2 * 2**30


def examine(store: RunStore) -> list[dict[str, Any]]:
    """Return findings as ``{name, ok, found, needed}``, all of them, whatever is missing."""
    return [
        _python(),
        *(_package(name) for name in PACKAGES),
        _device(),
        _home(store),
        _disk(store),
        _demo(),
    ]


def _finding(name: str, ok: bool, found: str, needed: str) -> dict[str, Any]:
    return {"name": name, "ok": ok, "found": found, "needed": needed}


def _python() -> dict[str, Any]:
    return _finding(
        "Python", sys.version_info >= (3, 11), platform.python_version(), "3.11 or newer"
    )


def _package(name: str) -> dict[str, Any]:
    try:
        return _finding(name, True, importlib.metadata.version(name), "installed")
    except importlib.metadata.PackageNotFoundError:
        return _finding(name, False, "not installed", "run 'make run' or install requirements.txt")


def _device() -> dict[str, Any]:
    from qpruner_core.models.device import pick_device  # noqa: PLC0415 - loads torch

    device = pick_device("auto")
    cores = f", {os.cpu_count()} cores" if device.kind == "cpu" else ""
    return _finding("device", True, f"{device.name}{cores}", "a CPU or a CUDA card")


def _home(store: RunStore) -> dict[str, Any]:
    store.home.mkdir(parents=True, exist_ok=True)
    return _finding(
        "home folder", os.access(store.home, os.W_OK), str(store.home), "a folder to write into"
    )


def _disk(store: RunStore) -> dict[str, Any]:
    free = shutil.disk_usage(store.home).free
    needed = f"at least {format_bytes(LEAST_FREE_BYTES)}"
    return _finding("free disk", free >= LEAST_FREE_BYTES, format_bytes(free), needed)


def _demo() -> dict[str, Any]:
    try:
        card = inspect_model(ModelSpec(source="demo"))
    except QPrunerError as error:
        return _finding("demo model", False, str(error), "the files under assets/demo")
    return _finding("demo model", True, f"{card.parameters:,} parameters", "present")
