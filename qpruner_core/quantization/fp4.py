"""FP4: a sign, two bits of exponent and one of mantissa, scaled block by block."""

from __future__ import annotations

from qpruner_core.quantization.four_bit import FourBit

PRECISION = FourBit("fp4")
