"""Builds the demo from one seed: language, text, tasks, tokenizer, model and model card.

Run ``python assets/demo/build.py --out DIR`` to make it, ``--check`` to measure the shipped one.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from card import Made, card, requirements, score_table
from language import Split, World
from measuring import Measured, measure, pruned, quantised, task_accuracy
from texts import TASK_NAMES, documents, task_lines
from training import Recipe, give_outliers, new_model, rows, train, train_tokenizer
from transformers import (
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

HERE = Path(__file__).resolve().parent
N_ITEMS = 220
N_DOCUMENTS: dict[Split, int] = {"calibration": 1000, "training": 6000, "heldout": 1000}


def say(text: str) -> None:
    """Write a line for the person who runs the script."""
    print(text, flush=True)  # noqa: T201 - a script speaks on stdout


def write_data(world: World, folder: Path) -> None:
    """Write the three texts, one document a line, and the tasks, one item a line."""
    (folder / "tasks").mkdir(parents=True, exist_ok=True)
    for split, count in N_DOCUMENTS.items():
        fresh: dict[str, None] = {}
        for text in documents(world, "shipped", split):
            fresh[text] = None
            if len(fresh) == count:
                break
        (folder / f"{split}.txt").write_text("\n".join(fresh) + "\n", encoding="utf-8")
    for task in TASK_NAMES:
        lines = [json.dumps(line) for line in task_lines(world, task, N_ITEMS, "shipped")]
        (folder / "tasks" / f"{task}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


def read_tasks(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Read all tasks of a data folder."""
    return {
        task: [
            json.loads(line)
            for line in (folder / "tasks" / f"{task}.jsonl").read_text("utf-8").splitlines()
        ]
        for task in TASK_NAMES
    }


def moved(model: LlamaForCausalLM, where: str | torch.dtype) -> LlamaForCausalLM:
    """Move a model in place to a device or a dtype and return it."""
    return torch.nn.Module.to(model, where)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save the model in fp16 with its tokenizer, under the class name every version knows."""
    folder.mkdir(parents=True, exist_ok=True)
    moved(copy.deepcopy(model), torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config_file = folder / "tokenizer_config.json"
    config = json.loads(config_file.read_text("utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config_file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def reporter(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tasks: dict[str, list[dict[str, Any]]],
    checkpoints: Path,
    every: int = 400,
) -> Callable[[int, float], None]:
    """Return what prints loss and quick accuracy, and saves a checkpoint, now and then."""
    recent: list[float] = []

    def report(step: int, loss: float) -> None:
        recent.append(loss)
        if (step + 1) % 50 == 0:
            say(f"step {step + 1} loss {sum(recent[-50:]) / len(recent[-50:]):.4f}")
        if (step + 1) % every == 0:
            model.train(False)
            quick = {
                task: task_accuracy(model, tokenizer, items[:60]) for task, items in tasks.items()
            }
            say("  " + " ".join(f"{task} {value:.2f}" for task, value in quick.items()))
            save(model, tokenizer, checkpoints)
            model.train()

    return report


def variants(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, data: Path
) -> dict[str, Measured]:
    """Measure the model as it is, at two precisions and at two pruning ratios."""
    tasks = read_tasks(data)
    texts = (data / "heldout.txt").read_text("utf-8").splitlines()
    models: dict[str, Callable[[], LlamaForCausalLM]] = {
        "fp16": lambda: model,
        "int8": lambda: quantised(model, "int8"),
        "nf4": lambda: quantised(model, "nf4"),
        "pruned 20 %": lambda: pruned(model, 0.2),
        "pruned 50 %": lambda: pruned(model, 0.5),
    }
    return {name: measure(make(), tokenizer, tasks, texts) for name, make in models.items()}


def load(folder: Path, device: str) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Open a saved demo model, in float32 arithmetic."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = cast("PreTrainedTokenizerFast", AutoTokenizer.from_pretrained(folder))
    return moved(model, device), tokenizer


def report_measured(measured: dict[str, Measured]) -> bool:
    """Print scores and promises; return whether every promise holds."""
    say(score_table(measured))
    promises = requirements(measured)
    for one in promises:
        say(f"{'met   ' if one.is_met else 'MISSED'} {one.text}: {one.value}")
    return all(one.is_met for one in promises)


def machine_name(device: str) -> str:
    """Return the device in words."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} CPU cores"


def build(recipe: Recipe, out: Path, device: str) -> bool:
    """Make the whole demo in ``out``; return whether it keeps its promises."""
    world = World(recipe.seed)
    write_data(world, out / "data")
    tokenizer = train_tokenizer(world)
    model = moved(new_model(recipe, tokenizer), device)
    report = reporter(model, tokenizer, read_tasks(out / "data"), out / "model")
    seconds = train(model, rows(world, tokenizer, recipe), recipe, report)
    give_outliers(model, recipe.seed)
    save(model, tokenizer, out / "model")
    made = Made(
        command=shlex.join(["python", "assets/demo/build.py", *sys.argv[1:]]),
        machine=machine_name(device),
        date=time.strftime("%Y-%m"),
        seconds=seconds,
    )
    return finish(world, recipe, made, out, device)


def finish(world: World, recipe: Recipe, made: Made, out: Path, device: str) -> bool:
    """Measure what was saved, write its card, and return whether it keeps its promises."""
    model, tokenizer = load(out / "model", device)
    measured = variants(model, tokenizer, out / "data")
    text = card(world, recipe, made, measured, model.num_parameters())
    (out / "model" / "README.md").write_text(text, encoding="utf-8")
    return report_measured(measured)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    default = Recipe()
    parser = argparse.ArgumentParser(description="Make or measure the embedded demo.")
    parser.add_argument("--check", action="store_true", help="measure the shipped model only")
    parser.add_argument("--out", type=Path, help="folder that gets model/ and data/")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--steps", type=int, default=default.n_steps, help="optimiser steps")
    parser.add_argument("--layers", type=int, default=default.n_layers)
    parser.add_argument("--kv-heads", type=int, choices=(1, 2, 4, 8), default=default.n_kv_heads)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--fp32", action="store_true", help="train without bfloat16 arithmetic")
    parser.add_argument("--compile", action="store_true", help="compile the forward: faster")
    chosen = parser.parse_args(arguments)
    if not chosen.check and chosen.out is None:
        parser.error(
            "say --out DIR to build the demo there, or --check to measure the shipped one"
        )
    if min(chosen.steps, chosen.layers) < 1:
        parser.error("--steps and --layers must be at least 1")
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda, but torch sees no CUDA device; use --device cpu")
    return chosen


def main() -> int:
    """Build or check; return 0 when every promise holds, 1 when one is missed."""
    chosen = parse()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call] # as above
    device = chosen.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if chosen.check:
        model, tokenizer = load(HERE / "model", device)
        return 0 if report_measured(variants(model, tokenizer, HERE / "data")) else 1
    recipe = Recipe(
        seed=chosen.seed,
        n_steps=chosen.steps,
        n_layers=chosen.layers,
        n_kv_heads=chosen.kv_heads,
        in_bf16=not chosen.fp32,
        compiles=chosen.compile,
    )
    return 0 if build(recipe, chosen.out, device) else 1


if __name__ == "__main__":
    sys.exit(main())
