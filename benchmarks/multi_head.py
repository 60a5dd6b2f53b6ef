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


def multi_head_folder(n_steps: int) -> Path:
    """Return the folder of the variant trained in that many steps; train it where it is missing.

    The tokenizer is the demo's, as the language is.
    """
    folder = ROOT / "build" / f"demo-multi-head-{n_steps}" / "model"
    if (folder / "model.safetensors").is_file():
        return folder
    sys.path.insert(0, str(DEMO))  # the demo's scripts import one another by their plain names
    training: Any = import_module("training")
    compiles = n_steps > 500 and shutil.which("g++") is not None
    recipe = training.Recipe(
        n_steps=n_steps,
        copy_steps=min(training.Recipe().copy_steps, n_steps // 10),
        n_kv_heads=training.N_HEADS,
        compiles=compiles,
    )
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "model")
    model = training.new_model(recipe, tokenizer)

    def report(step: int, loss: float) -> None:
        if step % REPORT_EVERY == 0:
            print(f"multi-head: step {step} of {n_steps}, loss {loss:.3f}", file=sys.stderr)

    world = import_module("language").World(recipe.seed)
    training.train(model, training.rows(world, tokenizer, recipe), recipe, report)
    training.give_outliers(model, recipe.seed)
    import_module("build").save(model, tokenizer, folder)
    return folder
