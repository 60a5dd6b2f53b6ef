"""The laws of every precision: stated bytes are real bytes, packed computes what fake-quantised
computes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from qpruner_core.catalog import PRECISIONS, precision_formats
from qpruner_core.errors import IncompatibleShapeError
from qpruner_core.quantization.orientation import candidate
from qpruner_core.quantization.packed_sizes import PackedSizes
from qpruner_core.quantization.packing import precision_of

NAMES = PRECISIONS.names()
SHAPES = ((64, 64), (32, 128), (192, 192), (5, 320), (96, 704), (1, 64))
ERROR_BOUND = {4: 0.16, 8: 0.012, 16: 0.004}
"""Largest relative error of normal weights by nominal bits (root mean square over root mean
square)."""


def _linear(
    out_features: int, in_features: int, *, bias: bool = False, seed: int = 0
) -> nn.Linear:
    torch.manual_seed(seed)
    linear = nn.Linear(in_features, out_features, bias=bias).eval()
    nn.init.normal_(linear.weight, std=0.05)
    return linear.requires_grad_(False)


def _conv1d(out_features: int, in_features: int) -> Conv1D:
    torch.manual_seed(0)
    conv = Conv1D(out_features, in_features).eval()
    nn.init.normal_(conv.bias)
    return conv.requires_grad_(False)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("shape", SHAPES)
def test_stated_bytes_are_the_bytes_that_lie_in_memory(name: str, shape: tuple[int, int]) -> None:
    precision = PRECISIONS.target(name)
    packed = precision.pack(_linear(*shape), torch.float32)
    assert precision.packed_bytes(packed) == precision_formats()[name].weight_bytes(*shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [False, True])
def test_packed_forward_equals_the_fake_quantised_one_bit_for_bit(
    name: str, shape: tuple[int, int], bias: bool
) -> None:
    precision = PRECISIONS.target(name)
    linear = _linear(*shape, bias=bias)
    x = torch.randn(2, 7, shape[1])
    expected = functional.linear(x, precision.fake_quantize(linear.weight), linear.bias)
    packed = precision.pack(linear, torch.float32)
    assert torch.equal(packed(x), expected)
    with torch.no_grad():
        assert torch.equal(packed(x), expected)
        assert torch.equal(packed(x), expected), "a second forward must not repack the weight"


@pytest.mark.parametrize("shape", SHAPES)
def test_a_packed_conv1d_equals_the_dense_one_with_its_candidate_bit_for_bit(
    name: str, shape: tuple[int, int]
) -> None:
    conv = _conv1d(*shape)
    packed = PRECISIONS.target(name).pack(conv, torch.float32)
    dense = copy.deepcopy(conv)
    dense.weight.data = candidate(conv, name)
    reference = _linear(*shape)
    reference.weight.data = PRECISIONS.target(name).fake_quantize(conv.weight.t().contiguous())
    assert torch.equal(dense.weight.t(), reference.weight)
    for x in (torch.randn(2, 7, shape[1]), torch.randn(3, shape[1])):
        assert torch.equal(packed(x), dense(x))
        expected = functional.linear(x, reference.weight, conv.bias)
        torch.testing.assert_close(packed(x), expected, rtol=1e-5, atol=1e-6)
    assert conv.weight.data_ptr() != packed.weight.data_ptr()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_packed_conv1d_takes_the_stated_bytes(name: str, shape: tuple[int, int]) -> None:
    precision = PRECISIONS.target(name)
    packed = precision.pack(_conv1d(*shape), torch.float32)
    assert precision.packed_bytes(packed) == precision_formats()[name].weight_bytes(*shape)
    assert PackedSizes(torch.float32).count(_conv1d(*shape), name) == precision_formats()[
        name
    ].weight_bytes(*shape)


def test_a_conv1d_at_16_bit_stays_one_and_becomes_a_linear_below(name: str) -> None:
    packed = PRECISIONS.target(name).pack(_conv1d(32, 64), torch.float32)
    kind = Conv1D if name == "bf16" else nn.Linear
    assert isinstance(packed, kind)
    assert precision_of(packed) == name
    x = torch.randn(3, 64, requires_grad=True)
    packed(x).sum().backward()
    assert x.grad is not None
    assert all(not parameter.requires_grad for parameter in packed.parameters())


def test_gradients_reach_the_input_and_stay_away_from_the_weight(name: str) -> None:
    precision = PRECISIONS.target(name)
    linear = _linear(32, 64, bias=True)
    packed = precision.pack(linear, torch.float32)
    with torch.no_grad():
        packed(torch.randn(1, 64))  # an evaluating forward first, then training
    packed.train()
    x = torch.randn(3, 64, requires_grad=True)
    packed(x).square().sum().backward()
    dense = precision.fake_quantize(linear.weight)
    reference = x.detach().clone().requires_grad_()
    functional.linear(reference, dense, linear.bias).square().sum().backward()
    assert reference.grad is not None
    torch.testing.assert_close(x.grad, reference.grad, rtol=1e-5, atol=1e-6)
    assert all(not parameter.requires_grad for parameter in packed.parameters())


def test_the_error_stays_within_the_bound_of_its_bits(name: str) -> None:
    weight = _linear(64, 512).weight
    error = PRECISIONS.target(name).fake_quantize(weight) - weight
    bits = PRECISIONS.entry(name).facts["bits"]
    assert isinstance(bits, int)
    assert float(error.norm() / weight.norm()) <= ERROR_BOUND[bits]


def test_the_same_weight_gives_the_same_bits_whatever_dtype_holds_it(name: str) -> None:
    precision = PRECISIONS.target(name)
    shipped = _linear(64, 128).weight.to(torch.float16)
    from_half = precision.fake_quantize(shipped)
    from_single = precision.fake_quantize(shipped.float())
    assert from_half.dtype == torch.float16
    assert torch.equal(from_single.half(), from_half)
    assert torch.equal(precision.fake_quantize(shipped.float()), from_single)


def test_rows_and_blocks_of_zeros_stay_zero(name: str) -> None:
    weight = torch.zeros(8, 128)
    weight[1] = torch.randn(128)
    dense = PRECISIONS.target(name).fake_quantize(weight)
    assert bool(torch.isfinite(dense).all())
    assert bool((dense[3] == 0).all()) or float(dense[3].abs().max()) < 1e-3


def test_quantising_leaves_the_linear_and_the_random_state_as_they_are(name: str) -> None:
    precision = PRECISIONS.target(name)
    linear = _linear(32, 64, bias=True)
    before = linear.weight.clone()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    packed = precision.pack(linear, torch.float32)
    precision.fake_quantize(linear.weight)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(linear.weight, before)
    assert packed.weight.data_ptr() != linear.weight.data_ptr()


def test_a_saved_state_dict_takes_the_stated_bytes(name: str) -> None:
    from safetensors.torch import load, save

    precision = PRECISIONS.target(name)
    packed = precision.pack(_linear(64, 192), torch.float32)
    x = torch.randn(4, 192)
    before = packed(x)
    tensors = {key: value.contiguous() for key, value in packed.state_dict().items()}
    stored = load(save(tensors))
    assert stored.keys() == packed.state_dict().keys()
    blob = sum(v.nbytes for k, v in stored.items() if "quant_state" in k)
    on_disk = sum(value.nbytes for value in stored.values()) - blob
    stated = precision_formats()[name].weight_bytes(64, 192)
    assert on_disk == stated - (4 if blob else 0), "the offset lies in the quant_state text"
    assert blob <= 200
    assert torch.equal(packed(x), before)


@pytest.mark.parametrize("in_features", [16, 63, 96, 120])
def test_widths_that_blocks_do_not_divide_are_right_or_refused(
    name: str, in_features: int
) -> None:
    precision = PRECISIONS.target(name)
    linear = _linear(8, in_features)
    if not precision_formats()[name].block_size:
        x = torch.randn(3, in_features)
        expected = functional.linear(x, precision.fake_quantize(linear.weight))
        assert torch.equal(precision.pack(linear, torch.float32)(x), expected)
        return
    with pytest.raises(IncompatibleShapeError, match="multiples of 64"):
        precision.pack(linear, torch.float32)
    with pytest.raises(IncompatibleShapeError, match=f"{in_features} input columns"):
        precision.fake_quantize(linear.weight)


def test_packed_modules_compute_in_the_dtype_they_are_given(name: str) -> None:
    precision = PRECISIONS.target(name)
    packed = precision.pack(_linear(64, 64, bias=True), torch.bfloat16)
    out = packed(torch.randn(3, 64, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    assert packed.bias.dtype == torch.bfloat16
