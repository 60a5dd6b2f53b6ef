"""What the pages for engineers say of the code is so."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from qpruner_core.importance import LayerSignal, UnitCriterion
from qpruner_core.quantization import Precision
from qpruner_core.recovery.initialization import Initialization

DOCS = Path(__file__).resolve().parents[3] / "docs"
SIGNATURE = re.compile(r"`([a-z_]+(?:\.\w+)+)\(([^)`]*)\)[^`]*`")
STATED = SIGNATURE.findall((DOCS / "architecture.md").read_text())


def found(dotted: str) -> Any:
    """Return the attribute of a dotted name below `qpruner_core`."""
    parts = dotted.split(".")
    for n_modules in range(len(parts) - 1, 0, -1):
        name = ".".join(("qpruner_core", *parts[:n_modules]))
        try:
            target: Any = importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        for attribute in parts[n_modules:]:
            target = getattr(target, attribute)
        return target
    raise LookupError(dotted)


def test_the_page_states_what_every_room_offers() -> None:
    assert len(STATED) > 25


@pytest.mark.parametrize(("dotted", "stated"), STATED, ids=[dotted for dotted, _ in STATED])
def test_a_stated_signature_is_the_real_one(dotted: str, stated: str) -> None:
    parameters = dict(inspect.signature(found(dotted)).parameters)
    parameters.pop("self", None)
    names = [name.strip() for name in stated.split(",") if name.strip()]
    needed = {name for name, each in parameters.items() if each.default is each.empty}
    assert names == [name for name in parameters if name in names]
    assert needed <= set(names)


@pytest.mark.parametrize("protocol", [UnitCriterion, LayerSignal, Precision, Initialization])
def test_what_an_extension_has_to_provide_is_listed(protocol: type) -> None:
    page = (DOCS / "extending.md").read_text()
    methods = [name for name in vars(protocol) if not name.startswith("_")]
    assert methods
    assert [name for name in methods if not re.search(rf"`{name}[`(]", page)] == []
