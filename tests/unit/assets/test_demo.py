"""What the embedded demo promises, checked on the shipped files."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from build import HERE, Recipe, load, new_model, parse, quantised, read_tasks, save
from card import CHANCE
from items import TASKS, draw_item
from language import World, split_of
from measuring import int8, nf4, pruned, task_accuracy, text_loss
from texts import documents, task_lines
from training import give_outliers, learning_rate_at, rows, train, train_tokenizer

DATA, MODEL = HERE / "data", HERE / "model"
TEXTS = ("calibration", "training", "heldout")


@pytest.fixture(scope="module")
def tasks() -> dict[str, list[dict[str, Any]]]:
    return read_tasks(DATA)


@pytest.fixture(scope="module")
def texts() -> dict[str, list[str]]:
    return {name: (DATA / f"{name}.txt").read_text("utf-8").splitlines() for name in TEXTS}


@pytest.fixture(scope="module")
def world() -> World:
    return World(0)


def test_the_weights_are_fp16_and_at_most_16_megabytes() -> None:
    assert (MODEL / "model.safetensors").stat().st_size <= 16_000_000
    assert json.loads((MODEL / "config.json").read_text("utf-8"))["dtype"] == "float16"


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
    ],
)
def test_the_model_folder_is_complete(name: str) -> None:
    assert (MODEL / name).stat().st_size > 0


def test_the_widths_suit_group_wise_formats() -> None:
    config = json.loads((MODEL / "config.json").read_text("utf-8"))
    assert config["num_hidden_layers"] == 12
    assert config["hidden_size"] % 64 == 0
    assert config["intermediate_size"] % 64 == 0
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    assert config["head_dim"] == 32
    assert config["max_position_embeddings"] >= 256


def test_the_training_text_stays_small() -> None:
    assert (DATA / "training.txt").stat().st_size <= 1_000_000


def test_no_document_is_in_two_texts(texts: dict[str, list[str]]) -> None:
    for first, second in itertools.combinations(TEXTS, 2):
        assert not set(texts[first]) & set(texts[second])
    for name, documents_of_split in texts.items():
        assert len(set(documents_of_split)) == len(documents_of_split)
        assert {split_of(text) for text in documents_of_split} == {name}


def test_no_held_out_item_stands_in_any_text(
    tasks: dict[str, list[dict[str, Any]]], texts: dict[str, list[str]]
) -> None:
    everything = "\n".join(itertools.chain(*texts.values()))
    for items in tasks.values():
        for item in items:
            assert item["context"] + item["choices"][item["gold"]] not in everything


def test_no_combination_of_a_task_is_ever_drawn_for_text(world: World) -> None:
    rng = world.fresh_rng("test")
    for task in TASKS:
        for _ in range(50):
            item = draw_item(world, task, rng, frozenset({"training", "calibration"}))
            assert split_of(item.key) != "tasks"


def test_every_task_has_enough_items_with_golds_in_every_place(
    tasks: dict[str, list[dict[str, Any]]],
) -> None:
    for name, items in tasks.items():
        assert len(items) >= 200
        assert len({item["id"] for item in items}) == len(items)
        assert len({item["context"] + str(item["choices"]) for item in items}) == len(items)
        widths = {len(item["choices"]) for item in items}
        assert widths == {round(1 / CHANCE[name])}
        for place in range(widths.pop()):
            share = sum(item["gold"] == place for item in items) / len(items)
            assert CHANCE[name] / 2 < share < CHANCE[name] * 1.5


def test_choices_differ_and_carry_their_leading_space(
    tasks: dict[str, list[dict[str, Any]]],
) -> None:
    for item in itertools.chain(*tasks.values()):
        assert len(set(item["choices"])) == len(item["choices"])
        assert all(choice.startswith(" ") for choice in item["choices"])
        assert not item["context"].endswith(" ")


def test_chance_is_at_most_one_half() -> None:
    assert max(CHANCE.values()) <= 0.5
    assert set(CHANCE) == set(TASKS)


def test_the_shipped_items_follow_from_the_seed(
    world: World, tasks: dict[str, list[dict[str, Any]]]
) -> None:
    for name, items in tasks.items():
        assert task_lines(world, name, len(items), "shipped") == items


def test_one_seed_gives_one_language_and_another_gives_another() -> None:
    first, same, other = (
        list(itertools.islice(documents(World(seed), "x", "training"), 20)) for seed in (1, 1, 2)
    )
    assert first == same
    assert not set(first) & set(other)


def test_a_template_with_an_unknown_word_is_refused(world: World) -> None:
    with pytest.raises(ValueError, match="without entry"):
        world.say("the xylophone .")


def test_the_shipped_model_reaches_85_percent_on_forty_items_a_task(
    tasks: dict[str, list[dict[str, Any]]],
) -> None:
    model, tokenizer = load(MODEL, "cpu")
    scores = [task_accuracy(model, tokenizer, items[:40]) for items in tasks.values()]
    assert sum(scores) / len(scores) >= 0.85


def test_every_word_of_the_language_is_one_token(texts: dict[str, list[str]]) -> None:
    _, tokenizer = load(MODEL, "cpu")
    text = texts["heldout"][0]
    n_words = len(text.replace(".", " .").replace("?", " ?").replace(":", " :").split())
    assert len(tokenizer(text)["input_ids"]) <= n_words + 2
    assert tokenizer.decode(tokenizer(text)["input_ids"]).strip() == text


def test_rounding_keeps_within_the_bound_of_its_format() -> None:
    weight = torch.randn(8, 128, generator=torch.Generator().manual_seed(0))
    step = weight.abs().amax(dim=1, keepdim=True) / 127
    assert ((int8(weight) - weight).abs() <= step / 2 + 1e-6).all()
    blocks = weight.reshape(-1, 64)
    widest_gap = 0.31 / 2 * blocks.abs().amax(dim=1, keepdim=True)
    assert ((nf4(weight).reshape(-1, 64) - blocks).abs() <= widest_gap).all()
    assert torch.equal(nf4(nf4(weight)), nf4(weight))


def test_a_tiny_training_learns_and_is_saved(tmp_path: Path) -> None:
    recipe = Recipe(n_steps=12, n_layers=3, batch_rows=2, row_tokens=32)
    world = World(3)
    tokenizer = train_tokenizer(world, n_documents=500)
    model = new_model(recipe, tokenizer)
    losses: list[float] = []
    train(model, rows(world, tokenizer, recipe), recipe, lambda _step, loss: losses.append(loss))
    assert losses[-1] < losses[0]
    save(model, tokenizer, tmp_path)
    again, _ = load(tmp_path, "cpu")
    ids = torch.arange(10)[None]
    torch.testing.assert_close(
        again(input_ids=ids).logits, model(input_ids=ids).logits, atol=0.05, rtol=0.05
    )
    assert not torch.equal(
        quantised(again, "nf4")(input_ids=ids).logits, again(input_ids=ids).logits
    )
    assert torch.equal(pruned(again, 0.0)(input_ids=ids).logits, again(input_ids=ids).logits)


def test_outlier_channels_leave_the_function_as_it_was() -> None:
    model, _ = load(MODEL, "cpu")
    ids = torch.arange(300, 340)[None]
    before = model(input_ids=ids).logits
    weights = model.model.layers[3].mlp.up_proj.weight.detach().clone()
    give_outliers(model, seed=1)
    assert not torch.equal(model.model.layers[3].mlp.up_proj.weight, weights)
    torch.testing.assert_close(model(input_ids=ids).logits, before, atol=1e-3, rtol=1e-3)


def test_four_bits_raise_the_loss_far_more_than_eight(texts: dict[str, list[str]]) -> None:
    model, tokenizer = load(MODEL, "cpu")
    some = texts["heldout"][:150]
    dense = text_loss(model, tokenizer, some)
    rise = {name: text_loss(quantised(model, name), tokenizer, some) for name in ("int8", "nf4")}
    assert rise["nf4"] - dense > max(0.005, 5 * abs(rise["int8"] - dense))


def test_the_rate_rises_then_falls_to_zero() -> None:
    recipe = Recipe(n_steps=1000)
    rates = [learning_rate_at(step, recipe) for step in range(1001)]
    assert max(rates) == pytest.approx(recipe.learning_rate)
    assert rates[0] < rates[40] < rates[49]
    assert rates[-1] == 0.0


def test_a_recipe_that_cannot_be_built_is_refused() -> None:
    with pytest.raises(ValueError, match="n_kv_heads"):
        Recipe(n_kv_heads=3)
    with pytest.raises(ValueError, match="at least 1"):
        Recipe(n_steps=0)


def test_building_needs_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse([])
    assert "--out" in capsys.readouterr().err
