"""A second model that nothing was tuned on: the demo's recipe with another seed and 8 layers.

Weights, their training text and the outlier columns are drawn anew; language, tokenizer and the
held-out text are the demo's. It is not shipped: a folder below `build/` keeps it. All its
2^8 = 256 plans of one of two precisions per layer can be measured in a minute or two.

    python benchmarks/second_model.py             trains it where it is missing, prints its folder
"""

from __future__ import annotations

import argparse
import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "2")

from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from multi_head import variant_folder

N_STEPS = 2500
"""Optimiser steps; a bit more than half of the demo's, for two thirds of its layers."""
SEED = 1
N_LAYERS = 8


def second_model_folder(n_steps: int = N_STEPS) -> Path:
    """Return the folder of the model trained in that many steps; train it where it is missing."""
    return variant_folder("second", n_steps, seed=SEED, n_layers=N_LAYERS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the second model where it is missing.")
    parser.add_argument("--steps", type=int, default=N_STEPS, help="optimiser steps")
    print(second_model_folder(parser.parse_args().steps))
