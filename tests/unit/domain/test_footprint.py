import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpruner_core.catalog import precision_formats
from qpruner_core.domain.footprint import (
    PrecisionFormat,
    bits_per_weight,
    dense_bytes,
    format_bytes,
    parse_budget,
    plan_bytes,
)
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.errors import BadInputError


def test_a_four_bit_weight_counts_blocks_nested_scales_and_tables():
    stored = PrecisionFormat(
        weight_bits=4,
        block_size=64,
        block_scale_bytes=1,
        nested_block_size=256,
        nested_scale_bytes=4,
        table_bytes=100,
    )
    n_blocks = 192 * 512 // 64
    assert stored.weight_bytes(192, 512) == 192 * 512 // 2 + n_blocks + 4 * (n_blocks // 256) + 100


def test_every_block_that_is_begun_counts():
    stored = PrecisionFormat(weight_bits=8, block_size=64, block_scale_bytes=4)
    assert stored.weight_bytes(1, 65) == 65 + 2 * 4


def test_sixteen_bit_everywhere_is_the_dense_model(tiny_layout):
    plan = PrecisionPlan.uniform(tiny_layout, "bf16")
    assert plan_bytes(tiny_layout, plan, precision_formats()) == dense_bytes(tiny_layout)
    assert bits_per_weight(tiny_layout, dense_bytes(tiny_layout)) == 16.0


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (11.5 * 2**20, "11.5 MiB"),
        (2**40, "1024 GiB"),
    ],
)
def test_bytes_are_written_for_people(size, text):
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    ("text", "size"),
    [("0.45", 450), ("1", 1000), ("512 B", 512), ("1.5KiB", 1536), ("2 kb", 2000)],
)
def test_a_budget_is_a_fraction_or_bytes(text, size):
    assert parse_budget(text, 1000) == size


@pytest.mark.parametrize("text", ["", "-1", "1.5", "0", "half", "3 parsecs", "nan"])
def test_a_budget_that_is_neither_is_refused_with_a_sentence(text):
    with pytest.raises(BadInputError, match="Give a fraction"):
        parse_budget(text, 1000)


@given(st.integers(1, 2**50))
def test_any_number_of_bytes_gets_a_unit(size):
    assert format_bytes(size).split()[1] in {"B", "KiB", "MiB", "GiB"}
