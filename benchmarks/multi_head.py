"""The demo's multi-head variant: the demo's own recipe with as many KV heads as query heads.

It is trained in fewer steps than the demo and is not shipped; a folder below `build/` keeps it.
"""

from __future__ import annotations

import shutil
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "assets" / "demo"
REPORT_EVERY = 100
N_HEADS = 8
"""Query heads of the demo."""


def multi_head_folder(n_steps: int) -> Path:
    """Return the folder of the variant trained in that many steps; train it where it is missing.

    The tokenizer is the demo's, as the language is.
    """
    return variant_folder("multi-head", n_steps, n_kv_heads=N_HEADS)


def variant_folder(name: str, n_steps: int, **changes: Any) -> Path:
    """Return the folder of a variant of the demo; train it where it is missing.

    Language and tokenizer are the demo's whatever the seed, so that the demo's text fits. A
    checkpoint beside the folder shows how far a training has come; only its end makes the folder.

    Args:
        name: Names the folder below ``build/``.
        n_steps: Optimiser steps.
        changes: Fields of the demo's ``Recipe`` that differ from the demo's.
    """
    folder = ROOT / "build" / f"demo-{name}-{n_steps}" / "model"
    if (folder / "model.safetensors").is_file():
        return folder
    sys.path.insert(0, str(DEMO))  # the demo's scripts import one another by their plain names
    training: Any = import_module("training")
    save: Any = import_module("build").save
    recipe = training.Recipe(
        n_steps=n_steps,
        copy_steps=min(training.Recipe().copy_steps, n_steps // 10),
        compiles=n_steps > 500 and shutil.which("g++") is not None,
        **changes,
    )
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "model")
    model = training.new_model(recipe, tokenizer)

    def report(step: int, loss: float) -> None:
        if step % REPORT_EVERY == 0:
            print(f"{name}: step {step} of {n_steps}, loss {loss:.3f}", file=sys.stderr)
            save(model, tokenizer, folder.parent / "checkpoint")

    world = import_module("language").World(training.Recipe().seed)
    training.train(model, training.rows(world, tokenizer, recipe), recipe, report)
    training.give_outliers(model, recipe.seed)
    save(model, tokenizer, folder)
    return folder
