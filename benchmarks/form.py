"""The one form of every benchmark: a table for people, one JSON document for scripts, targets
that count.

A benchmark is a function from "quick or not" to a `Report`; `main` gives it ``--json`` and
``--quick``, prints, and exits 1 when a target is missed. With ``--json`` nothing but the
document reaches stdout.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

Cell = str | int | float | bool | None
PACKAGES = (
    "torch",
    "transformers",
    "bitsandbytes",
    "peft",
    "optuna",
    "numpy",
    "scipy",
    "streamlit",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A number we hold ourselves to."""

    name: str
    """What is measured, with its unit."""
    value: float
    """As measured in this run."""
    target: float
    """The bound."""
    at_most: bool = True
    """Whether the bound is an upper one."""

    @property
    def is_met(self) -> bool:
        """Whether the value keeps the bound; a value that is not a number never does."""
        return self.value <= self.target if self.at_most else self.value >= self.target


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a benchmark found."""

    name: str
    """Name of its file without the ending."""
    rows: Sequence[Mapping[str, Cell]]
    """The table; all rows with the same keys, units in the keys."""
    targets: Sequence[Target]
    """What of it is held to a bound."""


def document(report: Report) -> dict[str, object]:
    """Return the JSON document of a report, with machine and versions beside the numbers."""
    return {
        "name": report.name,
        "machine": machine(),
        "versions": versions(),
        "rows": [dict(row) for row in report.rows],
        "targets": [
            {"name": t.name, "value": t.value, "target": t.target, "met": t.is_met}
            for t in report.targets
        ],
    }


def machine() -> dict[str, Cell]:
    """Return what the numbers depend on: processor, cores, memory, card."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_1_minute": round(os.getloadavg()[0], 2),
        "device": _card(),
    }


def versions() -> dict[str, str]:
    """Return Python and the packages that matter, where they are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def table(report: Report) -> str:
    """Return the report for a person: aligned columns, then every target with its verdict."""
    lines = [report.name, *_columns(report.rows), ""]
    for target in report.targets:
        verdict = "met" if target.is_met else "MISSED"
        sign = "<=" if target.at_most else ">="
        lines.append(f"{verdict:>6}  {target.name}: {target.value:.4g} ({sign} {target.target:g})")
    return "\n".join(lines)


def main(
    measure: Callable[[argparse.Namespace], Report],
    description: str,
    add_arguments: Callable[[argparse.ArgumentParser], None] | None = None,
    arguments: Sequence[str] | None = None,
) -> int:
    """Run a benchmark from the command line and return its exit code: 1 when a target is missed.

    Args:
        measure: Does the work; told the parsed arguments, ``quick`` among them.
        description: One sentence for ``--help``.
        add_arguments: Adds the benchmark's own arguments.
        arguments: The command line; None for the process's own.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document, nothing else"
    )
    parser.add_argument("--quick", action="store_true", help="at most five minutes on two cores")
    if add_arguments is not None:
        add_arguments(parser)
    given = parser.parse_args(arguments)
    with contextlib.redirect_stdout(sys.stderr):  # whatever a library prints stays off stdout
        report = measure(given)
    if given.json:
        print(json.dumps(document(report), indent=2, allow_nan=False))
    else:
        print(table(report))
    return 0 if all(target.is_met for target in report.targets) else 1


def _columns(rows: Sequence[Mapping[str, Cell]]) -> list[str]:
    if not rows:
        return []
    names = list(rows[0])
    cells = [names, *([_text(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    return [
        "  ".join(text.rjust(w) for text, w in zip(line, widths, strict=True)) for line in cells
    ]


def _text(cell: Cell) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _card() -> str:
    """Return the CUDA card's name when torch is already loaded and sees one, else ``cpu``."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return "cpu"
    return str(torch.cuda.get_device_name())
