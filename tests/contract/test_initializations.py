"""The laws of every initialisation at every precision: with the adapter, a layer answers more like
the dense one than without.
"""

from __future__ import annotations

import inspect
from itertools import pairwise

import pytest
import torch

from qpruner_core.catalog import INITIALIZATIONS, PRECISIONS
from qpruner_core.recovery.initialization import Factors, Initialization, Start

FITTING = ("loftq", "pissa")
SHAPES = ((64, 64), (48, 192), (192, 64), (576, 640))
RANK, SCALING = 4, 2.0


@pytest.fixture(params=PRECISIONS.names())
def precision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=INITIALIZATIONS.names())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def weight_of(shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    """A random weight with a few directions that are larger than the others, as trained ones."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(shape[0], 3, generator=generator)
    v = torch.randn(3, shape[1], generator=generator)
    return 0.02 * (torch.randn(shape, generator=generator) + u @ v)


def begin(
    entry: str, weight: torch.Tensor, precision: str, *, scaling: float = SCALING, **options: int
) -> Start:
    made: Initialization = INITIALIZATIONS.target(entry)(**options)
    quantize = PRECISIONS.target(precision).fake_quantize
    rank = RANK
    return made.start(weight, quantize, rank, scaling, torch.Generator().manual_seed(7))


def dense(factors: Factors | None, shape: torch.Size, scaling: float = SCALING) -> torch.Tensor:
    """scaling * b @ a in float64; zeros for nothing."""
    if factors is None:
        return torch.zeros(shape, dtype=torch.float64)
    return scaling * (factors.b.double() @ factors.a.double())


def error_of(start: Start, weight: torch.Tensor, precision: str) -> torch.Tensor:
    """What the layer still lacks, (out, in) float64: W - (q(W - shift) + s B A)."""
    told = (weight.double() - dense(start.shift, weight.shape)).float()
    packed = PRECISIONS.target(precision).fake_quantize(told).double()
    return weight.double() - packed - dense(start.adapter, weight.shape)


def parts(start: Start) -> list[torch.Tensor]:
    return [t for f in (start.adapter, start.shift) if f is not None for t in (f.a, f.b)]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_seed_gives_the_same_start_and_leaves_weight_and_random_state_alone(
    name: str, precision: str, shape: tuple[int, int]
) -> None:
    weight = weight_of(shape)
    before, state = weight.clone(), torch.random.get_rng_state()
    first, second = parts(begin(name, weight, precision)), parts(begin(name, weight, precision))
    assert len(first) == len(second)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(weight, before)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_factors_have_the_shapes_of_an_adapter_and_are_finite_float32(
    name: str, precision: str, dtype: torch.dtype
) -> None:
    weight = weight_of((48, 192)).to(dtype)
    start = begin(name, weight, precision)
    for factors in (start.adapter, start.shift):
        if factors is not None:
            assert factors.a.shape == (RANK, 192)
            assert factors.b.shape == (48, RANK)
    assert all(part.dtype == torch.float32 for part in parts(start))
    assert all(bool(torch.isfinite(part).all()) for part in parts(start))


@pytest.mark.parametrize("entry", FITTING)
@pytest.mark.parametrize("shape", SHAPES)
def test_weight_and_output_errors_are_smaller_than_without(
    entry: str, precision: str, shape: tuple[int, int]
) -> None:
    weight = weight_of(shape)
    x = torch.randn(256, shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    without = error_of(Start(adapter=None), weight, precision)
    with_it = error_of(begin(entry, weight, precision), weight, precision)
    assert without.norm() > 0
    assert with_it.norm() < without.norm()
    assert (x @ with_it.T).norm() < (x @ without.T).norm()


def test_a_weight_without_larger_directions_gains_too(precision: str) -> None:
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(5))
    without = error_of(Start(adapter=None), weight, precision).norm()
    assert all(
        error_of(begin(entry, weight, precision), weight, precision).norm() < without
        for entry in FITTING
    )


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_the_error_never_grows_with_the_alternations(
    precision: str, shape: tuple[int, int]
) -> None:
    weight = weight_of(shape)
    errors = [
        float(error_of(begin("loftq", weight, precision, iterations=n), weight, precision).norm())
        for n in range(7)
    ]
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in pairwise(errors))
    assert errors[1] < errors[0]


def test_zero_alternations_are_the_identity(precision: str) -> None:
    start = begin("loftq", weight_of((64, 64)), precision, iterations=0)
    assert start.adapter is None
    assert start.shift is None


def test_with_one_alternation_the_packed_weight_stays_that_of_the_plan(precision: str) -> None:
    start = begin("loftq", weight_of((64, 64)), precision)
    assert start.adapter is not None
    assert start.shift is None


@pytest.mark.parametrize("entry", FITTING)
def test_two_scalings_give_the_same_product(entry: str, precision: str) -> None:
    weight = weight_of((48, 192))
    products = []
    for scaling in (0.5, 8.0):
        start = begin(entry, weight, precision, scaling=scaling)
        products.append(dense(start.adapter, weight.shape, scaling))
    torch.testing.assert_close(*products, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("entry", ["default", "loftq"])
def test_a_weight_that_its_precision_holds_exactly_starts_as_lora_does(
    entry: str, precision: str
) -> None:
    if precision in ("nf4", "fp4"):
        held = torch.zeros(64, 64)
    else:
        fake = PRECISIONS.target(precision).fake_quantize
        held = fake(weight_of((64, 64)))
        for _ in range(3):
            held = fake(held)
    assert torch.equal(PRECISIONS.target(precision).fake_quantize(held), held)
    start = begin(entry, held, precision)
    assert start.adapter is None
    assert start.shift is None


@pytest.mark.parametrize("entry", FITTING)
def test_an_adapter_wider_than_the_weight_has_rank_has_no_dead_directions(entry: str) -> None:
    weight = torch.zeros(6, 64)
    weight[0] = torch.linspace(-1, 1, 64)
    quantize = PRECISIONS.target("nf4").fake_quantize
    made: Initialization = INITIALIZATIONS.target(entry)()
    found = made.start(weight, quantize, 16, SCALING, torch.Generator().manual_seed(0)).adapter
    assert found is not None
    assert found.a.shape == (16, 64)
    assert bool((found.a.abs().sum(dim=1) > 0).all())
    quantized = quantize(weight) if entry == "loftq" else torch.zeros(6, 64)
    torch.testing.assert_close(
        dense(found, weight.shape).float(), weight - quantized, rtol=1e-4, atol=1e-6
    )


def test_the_options_of_an_entry_are_those_of_its_constructor(name: str) -> None:
    made = inspect.signature(INITIALIZATIONS.target(name)).parameters
    assert [(option.name, option.default) for option in INITIALIZATIONS.entry(name).options] == [
        (key, value.default) for key, value in made.items()
    ]
