"""The forward pass in pieces equals the model's own, in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from qpruner_core.catalog import ARCHITECTURES
from qpruner_core.models import trunk

FAMILIES = {
    "llama": {},
    "mistral": {"sliding_window": 5},
    "qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": {"head_dim": 16},
}


@pytest.fixture(params=["sdpa", "eager"])
def attention(request):
    return request.param


@pytest.fixture(params=FAMILIES)
def decoder(request, attention):
    config = AutoConfig.for_model(
        request.param,
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        **FAMILIES[request.param],
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    model = model.double().eval()
    return model, ARCHITECTURES.target(request.param).layout(config.to_dict())


@pytest.fixture
def ids():
    return torch.randint(0, 96, (3, 12), generator=torch.Generator().manual_seed(1))


def reference_losses(model, ids):
    logits = model(ids).logits[:, :-1].transpose(1, 2)
    return functional.cross_entropy(logits, ids[:, 1:], reduction="none").mean(dim=1)


@torch.no_grad()
def test_pieces_together_give_the_loss_of_the_model(decoder, ids):
    model, layout = decoder
    hidden = trunk.run_layers(model, layout, trunk.first_inputs(model, layout, ids))
    losses = trunk.sequence_losses(model, hidden, ids)
    assert torch.allclose(losses, reference_losses(model, ids), rtol=0, atol=1e-10)
    # The model's own loss takes its logarithms in float32.
    assert losses.mean().item() == pytest.approx(model(ids, labels=ids).loss.item(), abs=1e-5)


@torch.no_grad()
def test_a_cached_start_goes_on_where_it_stopped(decoder, ids):
    model, layout = decoder
    inputs = trunk.first_inputs(model, layout, ids)
    whole = trunk.run_layers(model, layout, inputs)
    for cut in range(layout.n_layers + 1):
        before = trunk.run_layers(model, layout, inputs, stop=cut)
        assert torch.equal(trunk.run_layers(model, layout, inputs.at(before), start=cut), whole)


@torch.no_grad()
def test_asking_for_inputs_leaves_the_model_as_it_was(decoder, ids):
    model, layout = decoder
    before = model(ids).logits
    trunk.first_inputs(model, layout, ids)
    assert torch.equal(model(ids).logits, before)
    assert not any("forward" in vars(x) for x in trunk.decoder_layers(model, layout))


def test_the_model_is_restored_even_when_the_pass_fails(tiny_model, tiny_layout):
    with pytest.raises(IndexError):
        trunk.first_inputs(tiny_model, tiny_layout, torch.tensor([[500]]))
    assert not any("forward" in vars(x) for x in trunk.decoder_layers(tiny_model, tiny_layout))


@torch.no_grad()
def test_logits_at_the_end_are_those_of_the_model(decoder, ids):
    model, layout = decoder
    hidden = trunk.run_layers(model, layout, trunk.first_inputs(model, layout, ids))
    assert torch.allclose(trunk.final_logits(model, hidden), model(ids).logits, atol=1e-12)


def test_gradients_flow_through_the_pieces(tiny_model, tiny_layout):
    ids = torch.arange(16).reshape(2, 8)
    inputs = trunk.first_inputs(tiny_model, tiny_layout, ids)
    hidden = trunk.run_layers(tiny_model, tiny_layout, inputs)
    trunk.sequence_losses(tiny_model, hidden, ids).mean().backward()
    pieces = {name: p.grad.clone() for name, p in tiny_model.named_parameters()}
    tiny_model.zero_grad()
    tiny_model(ids, labels=ids).loss.backward()
    for name, parameter in tiny_model.named_parameters():
        assert torch.allclose(pieces[name], parameter.grad, atol=1e-6), name


def test_losses_of_half_precision_states_are_taken_in_float32(tiny_model, tiny_layout):
    model = tiny_model.bfloat16()
    ids = torch.arange(16).reshape(2, 8)
    with torch.no_grad():
        hidden = trunk.run_layers(model, tiny_layout, trunk.first_inputs(model, tiny_layout, ids))
        assert trunk.sequence_losses(model, hidden, ids).dtype == torch.float32


def built(family, **changes):
    """A random model of three layers in float64, with its layout."""
    sizes = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    values = {**sizes, **heads, "intermediate_size": 48, "initializer_range": 0.2, **changes}
    config = AutoConfig.for_model(family, **values)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    return model, ARCHITECTURES.target(family).layout(config.to_dict())


@torch.no_grad()
def test_rotary_positions_of_their_own_are_kept_for_every_layer(ids):
    # Texts shorter than the window: the masks are alike, only the rotary bases differ.
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    model, layout = built("gemma3_text", head_dim=8, sliding_window=64, layer_types=kinds)
    inputs = trunk.first_inputs(model, layout, ids)
    assert len(inputs.by_layer) == 3
    hidden = trunk.run_layers(model, layout, inputs)
    assert torch.allclose(trunk.final_logits(model, hidden), model(ids).logits, rtol=0, atol=1e-12)


@torch.no_grad()
def test_layers_that_are_handed_the_same_share_it(ids):
    model, layout = built("granite")
    assert trunk.first_inputs(model, layout, ids).by_layer == ()


@torch.no_grad()
def test_arguments_given_by_place_are_known_by_name(tiny_model, tiny_layout):
    ids = torch.arange(16).reshape(2, 8)
    expected = tiny_model(ids).logits
    layers = trunk.decoder_layers(tiny_model, tiny_layout)
    call = type(layers[0]).__call__

    class ByPlace(type(layers[0])):
        def __call__(self, hidden_states, attention_mask=None, position_ids=None, **others):
            return call(self, hidden_states, attention_mask, position_ids, **others)

    for layer in layers:
        layer.__class__ = ByPlace
    inputs = trunk.first_inputs(tiny_model, tiny_layout, ids)
    assert "position_ids" in inputs.kwargs
    assert "kwargs" not in inputs.kwargs
    hidden = trunk.run_layers(tiny_model, tiny_layout, inputs)
    torch.testing.assert_close(trunk.final_logits(tiny_model, hidden), expected)
