"""Memory means bytes: what weights take with their scales and tables, computed without the
weights.

These figures are exact for the formats they describe; a contract test packs a real Linear in every
precision and compares. They are called *estimated* on screen until the packed model itself has
been counted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from qpruner_core.domain.layout import LinearLayout, ModelLayout
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.errors import BadInputError

BYTES_16_BIT = 2
"""Bytes of one parameter that stays at 16 bit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionFormat:
    """How a precision stores one weight matrix; enough to count its bytes."""

    weight_bits: int
    """Bits of one stored weight; 4, 8 or 16."""
    row_scale_bytes: int = 0
    """Bytes of the scale of each output row; 0 for none."""
    block_size: int = 0
    """Consecutive weights that share a scale; 0 for no blocks."""
    block_scale_bytes: int = 0
    """Bytes of the scale of each block."""
    nested_block_size: int = 0
    """Block scales that share a second scale (double quantisation); 0 for none."""
    nested_scale_bytes: int = 0
    """Bytes of each second scale."""
    table_bytes: int = 0
    """Bytes of the code tables stored with every Linear."""

    def weight_bytes(self, out_features: int, in_features: int) -> int:
        """Return the bytes of a packed weight of that shape, scales and tables included."""
        n_weights = out_features * in_features
        total = ceil(n_weights * self.weight_bits / 8) + out_features * self.row_scale_bytes
        if self.block_size:
            n_blocks = ceil(n_weights / self.block_size)
            total += n_blocks * self.block_scale_bytes
            if self.nested_block_size:
                total += ceil(n_blocks / self.nested_block_size) * self.nested_scale_bytes
        return total + self.table_bytes

    def linear_bytes(self, linear: LinearLayout) -> int:
        """Return the bytes of a packed Linear; its bias stays at 16 bit."""
        bias = linear.out_features * BYTES_16_BIT if linear.has_bias else 0
        return self.weight_bytes(linear.out_features, linear.in_features) + bias


def dense_bytes(layout: ModelLayout) -> int:
    """Return the bytes of the whole model at 16 bit."""
    return layout.parameters * BYTES_16_BIT


def plan_bytes(
    layout: ModelLayout, plan: PrecisionPlan, formats: Mapping[str, PrecisionFormat]
) -> int:
    """Return the bytes of the whole model under a precision plan, embeddings and norms at 16
    bit.
    """
    packed = sum(
        formats[plan.precisions[linear.name]].linear_bytes(linear) for linear in layout.linears
    )
    return packed + layout.other_parameters * BYTES_16_BIT


def bits_per_weight(layout: ModelLayout, weight_bytes: int) -> float:
    """Return the mean bits per parameter of the whole model, scales and tables included."""
    return 8.0 * weight_bytes / layout.parameters


_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def format_bytes(size_bytes: float) -> str:
    """Return bytes for a person: binary units, three significant digits, such as ``1.50 GiB``."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024 or unit == "GiB":
            break
        size /= 1024
    if unit == "B":
        return f"{size:.0f} B"
    digits = 2 if abs(size) < 10 else 1 if abs(size) < 100 else 0
    return f"{size:.{digits}f} {unit}"


def parse_budget(text: str, reference_bytes: int) -> int:
    """Return a memory budget in bytes.

    Args:
        text: A fraction of the dense 16-bit bytes in (0, 1], such as ``0.45``, or bytes with a
            unit, such as ``6.5 GiB`` or ``700MB``.
        reference_bytes: Bytes of the dense 16-bit model.

    Raises:
        BadInputError: The text is neither.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*", text)
    needed = "Give a fraction of the dense model such as 0.45, or bytes such as '6 GiB'."
    if match is None:
        raise BadInputError(f"The memory budget {text!r} is not a number. {needed}")
    number, unit = float(match[1]), match[2].upper()
    if not unit:
        if not 0.0 < number <= 1.0:
            raise BadInputError(
                f"The memory budget {text!r} has no unit and is not a fraction in (0, 1]. {needed}"
            )
        return int(number * reference_bytes)
    if unit not in _UNITS:
        raise BadInputError(f"The memory budget {text!r} has an unknown unit. {needed}")
    return int(number * _UNITS[unit])
