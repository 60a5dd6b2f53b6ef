"""NF4: sixteen levels at the quantiles of a normal distribution (QLoRA, arXiv:2305.14314)."""

from __future__ import annotations

from qpruner_core.quantization.four_bit import FourBit

PRECISION = FourBit("nf4")
