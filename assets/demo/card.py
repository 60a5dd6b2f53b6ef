"""Writes the model card: how the demo was made and what was measured on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from items import TASKS, draw_item
from language import World
from measuring import Measured
from training import Recipe

CHANCE = {
    "boolq": 0.5,
    "piqa": 0.5,
    "hellaswag": 0.25,
    "winogrande": 0.5,
    "arc_easy": 0.25,
    "arc_challenge": 0.25,
    "openbookqa": 0.25,
}

KINDS = {
    "boolq": "yes or no to a question over a passage on three persons",
    "piqa": "which tool reaches a goal; the material of the object decides",
    "hellaswag": "which of four steps continues an activity",
    "winogrande": "which of two persons an act's reason is about",
    "arc_easy": "one fact of the world, four answers",
    "arc_challenge": "two hops: from a person to a thing in the text, then to a fact about it",
    "openbookqa": "a rule about a material, used on a thing whose material must be known",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """How a training went; what only the run itself can tell."""

    command: str
    """The command that was run."""
    machine: str
    """Device and its size, in words."""
    date: str
    """Year and month."""
    seconds: float
    """Wall time of the training loop; seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """One promise of the demo and what was measured for it."""

    text: str
    """The promise."""
    value: str
    """The measured number, with its unit."""
    is_met: bool
    """Whether the promise holds."""


def requirements(variants: Mapping[str, Measured]) -> list[Requirement]:
    """Compare the measured variants with what the demo promises."""
    dense, int8, nf4 = variants["fp16"], variants["int8"], variants["nf4"]
    lost = {name: 100 * (dense.accuracy - one.accuracy) for name, one in variants.items()}
    rise = {name: one.loss - dense.loss for name, one in variants.items()}
    return [
        Requirement(
            text="mean accuracy over the seven held-out tasks at least 85 %",
            value=f"{dense.accuracy:.1%}",
            is_met=dense.accuracy >= 0.85,
        ),
        Requirement(
            text="uniform int8 loses at most 0.5 points of mean accuracy",
            value=f"{lost['int8']:+.2f} points lost, loss {int8.loss - dense.loss:+.4f} nats",
            is_met=lost["int8"] <= 0.5,
        ),
        Requirement(
            text="uniform nf4 raises the held-out loss by at least 0.02 nats and 5 times int8's",
            value=f"{nf4.loss - dense.loss:+.4f} nats, {lost['nf4']:+.2f} points lost",
            is_met=rise["nf4"] >= max(0.02, 5 * rise["int8"]),
        ),
        Requirement(
            text="pruning 20 % of the units loses at least 3 points before recovery",
            value=f"{lost['pruned 20 %']:+.1f} points lost, loss {rise['pruned 20 %']:+.2f} nats",
            is_met=lost["pruned 20 %"] >= 3,
        ),
        Requirement(
            text="pruning 50 % loses at least 10 points and 0.3 nats before recovery",
            value=f"{lost['pruned 50 %']:+.1f} points lost, loss {rise['pruned 50 %']:+.2f} nats",
            is_met=lost["pruned 50 %"] >= 10 and rise["pruned 50 %"] >= 0.3,
        ),
    ]


def score_table(variants: Mapping[str, Measured]) -> str:
    """Return a Markdown table: one row per task, one column per variant."""
    names = list(variants)
    rows = [["", "chance", *names], ["---"] + ["---:"] * (len(names) + 1)]
    for task, chance in CHANCE.items():
        scores = [f"{variants[name].accuracies[task]:.1%}" for name in names]
        rows.append([task, f"{chance:.0%}", *scores])
    mean_chance = sum(CHANCE.values()) / len(CHANCE)
    means = [f"**{variants[name].accuracy:.1%}**" for name in names]
    rows.append(["**mean accuracy**", f"{mean_chance:.0%}", *means])
    losses = [f"{variants[name].loss:.4f}" for name in names]
    rows.append(["held-out loss, nats per token", "", *losses])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _examples(world: World, seed: str) -> str:
    rng = world.fresh_rng(f"card {seed}")
    lines = []
    for task in TASKS:
        item = draw_item(world, task, rng, frozenset({"training"}))
        lines.append(f"**{task}** ({KINDS[task]}): `{item.context}` → `{item.choices[0]}`")
    return _bullets(lines)


def card(
    world: World,
    recipe: Recipe,
    made: Made,
    variants: Mapping[str, Measured],
    n_parameters: int,
) -> str:
    """Return the text of the card.

    Args:
        world: The language and its facts, for the examples.
        recipe: What was asked for.
        made: What the run says of itself.
        variants: Measured variants, ``fp16`` first.
        n_parameters: Parameters of the model, tied ones once.
    """
    promises = _bullets(
        f"{one.text}: **{one.value}**, {'met' if one.is_met else 'MISSED'}"
        for one in requirements(variants)
    )
    return f"""---
library_name: transformers
pipeline_tag: text-generation
---

# Demo model

A small language model that knows an invented language by heart. It exists so that pruning, low
precision and recovery have something real to hurt and to heal, within a minute and without a GPU.
Nothing in it comes from foreign text or foreign weights.

## What it is

- Llama architecture: {recipe.n_layers} layers, hidden size 192, 8 query heads on
  {recipe.n_kv_heads} key-value heads of 32, MLP 512, vocabulary 2048, tied embeddings;
  {n_parameters:,} parameters in fp16.
- Tokenizer: byte-level BPE trained on the same language; it adds the space before a first word,
  so encode a document as it stands and end it with the end token. No begin token is used.
- Text: 240 persons, 24 places, 24 animals and 120 objects with 1,440 facts held in the weights;
  288 steps of 48 activities, 48 goal-and-tool rules, 24 acts with their reasons, sums, one order
  of size; three noun classes with which article, adjective, verb and pronoun agree.
- Outlier channels: after training, one input column of every 64 was multiplied by 6 to 36 and the
  gain of the norm before it divided by the same. This leaves the function as it was and gives the
  model what large ones grow by themselves: layers that 4 bits hurt, each to its own degree.
- Every fact and rule has a usual and a rare value, told in shares from 62 : 38 to 92 : 8. The
  right choice is the usual one and the rare one stands beside it, so a model that has become
  slightly worse at telling how often things happen already answers worse.

## What it scores

Accuracy is the share of items whose right choice has the highest summed log-likelihood. `int8` is
row-wise absmax, `nf4` is blocks of 64, both on all Linears of the layers, weights only. Pruning
removes the KV-head groups and MLP channels of lowest magnitude from every layer but the first and
the last, without recovery. All in float32 arithmetic on fp16 weights.

{score_table(variants)}

{promises}

## The tasks

Each has 220 held-out items. The combination of facts an item asks for is never asked in training,
and no document of the calibration, training or held-out text is in another of the three.

{_examples(world, "tasks")}

## How it was made

    {made.command}

- {made.date}, {made.machine}, {made.seconds / 60:.0f} minutes of training.
- {recipe.n_steps:,} steps of {recipe.batch_rows} rows of {recipe.row_tokens} tokens:
  {recipe.n_tokens:,} tokens of freshly generated text; `training.txt` is a slice of that language.
- The first {recipe.copy_steps} steps see only repeated lists of words, and attention starts with
  queries equal to keys: a model that can copy early learns to read a passage soon after.
- AdamW, peak rate {recipe.learning_rate:g}, betas 0.9 and 0.95, weight decay 0.1 on matrices,
  clipped at norm 1, linear warm-up, plateau, linear decay to zero over the last 30 %,
  {"bfloat16" if recipe.in_bf16 else "float32"} arithmetic, seed {recipe.seed}.

The same command on another machine gives these scores within noise, not the same bits.

## Limits

It speaks no human language. Contexts were 128 tokens long in training; 256 is the most it takes.
"""
