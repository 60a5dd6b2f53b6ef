"""NVIDIA Model Optimizer's `auto_quantize`, as its documentation drives it; a script for the
environment of the peers (see `requirements-peers.txt`), which knows nothing of this project.

    modelopt_peer.py FOLDER REQUEST.json ANSWER.json

It scores every candidate of every group once and then solves for each target. The candidates are
its weight-only formats that lie nearest to ours: int4 in blocks of 64 for `nf4`, int8 per output
row for `int8`, each told how many bits per weight ours really takes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

BLOCK = 64
BATCH = 8
"""Sequences per step of calibration and scoring."""
GROUPS = {
    "layer": [r"^(.*?\.layers\.\d+)\."],
    "fused": [r"^(.*?)\.(q_proj|k_proj|v_proj)$", r"^(.*?)\.(gate_proj|up_proj)$"],
    "linear": [],
}
"""What shares a format -> the package's grouping rules; `fused` is its own default."""


def formats(bits: dict[str, float]) -> dict[str, dict[str, Any]]:
    """Return our name -> the package's format, for what is not 16 bit.

    Args:
        bits: Our name -> mean bits per weight, scales included.
    """
    weights = {
        "nf4": {"num_bits": 4, "block_sizes": {-1: BLOCK}},
        "int8": {"num_bits": 8, "axis": 0},
    }
    return {
        name: {
            "quant_cfg": [
                {"quantizer_name": "*", "enable": False},
                {"quantizer_name": "*weight_quantizer", "cfg": cfg, "enable": True},
            ],
            "algorithm": "max",
            "effective_bits": bits[name],
        }
        for name, cfg in weights.items()
        if name in bits
    }


def loss(output: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return the mean negative log-likelihood per predicted token."""
    return functional.cross_entropy(output[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def main(folder: str, request_file: str, answer_file: str) -> None:
    """Score once, solve for every target, and write what each Linear is to get."""
    import modelopt.torch.quantization as mtq  # noqa: PLC0415 - slow, and its import is not timed
    from modelopt.torch.quantization import algorithms  # noqa: PLC0415

    request = json.loads(Path(request_file).read_text("utf-8"))
    torch.set_num_threads(request["threads"])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=True
    ).eval()
    batches = list(torch.split(torch.from_numpy(np.load(request["ids"])), BATCH))
    searcher = algorithms.AutoQuantizeGradientSearcher.__mro__[1]
    searcher.quant_grouping_rules = GROUPS[request["tie"]]
    candidates = formats(request["bits"])
    has_16_bit = "bf16" in request["bits"]
    started = perf_counter()
    _, state = mtq.auto_quantize(
        model,
        constraints={
            "effective_bits": request["targets"][0],
            "cost": {"excluded_module_name_patterns": ["*lm_head*"]},
        },
        data_loader=batches,
        forward_step=lambda model, ids: model(input_ids=ids, use_cache=False).logits,
        loss_func=loss if request["method"] == "gradient" else None,
        disabled_layers=["*lm_head*"],
        num_calib_steps=len(batches),
        num_score_steps=len(batches),
        method=request["method"],
        **searched(list(candidates.values()), has_16_bit),
    )
    seconds = perf_counter() - started
    plans = []
    for target in request["targets"]:
        started = perf_counter()
        recipes = algorithms._resolve_best_recipe(state, {"effective_bits": target})
        solved = perf_counter() - started
        plans.append(
            {
                "target": target,
                "seconds": seconds + solved,
                "precisions": chosen(state, recipes, request["bits"]),
            }
        )
    Path(answer_file).write_text(json.dumps({"plans": plans}), "utf-8")


def searched(candidates: list[dict[str, Any]], has_16_bit: bool) -> dict[str, Any]:
    """Return what tells the package its candidates; leaving a module at 16 bit is its own idea."""
    if has_16_bit:
        return {"quantization_formats": candidates}
    space = {
        "module_name_patterns": ["*.layers.*"],
        "quantization_formats": candidates,
        "allow_no_quant": False,
    }
    return {"quantization_formats": candidates, "module_search_spaces": [space]}


def chosen(state: Any, recipes: Any, bits: dict[str, float]) -> dict[str, str]:
    """Return Linear -> our name of the format it was given, told apart by its bits."""
    found = {}
    for group, recipe in recipes.items():
        given = recipe.compression * 16
        name = min({**bits, "bf16": 16.0}.items(), key=lambda item: abs(item[1] - given))[0]
        modules = state["candidate_stats"][group]["module_names"]
        found |= {module: name for module in modules if ".layers." in module}
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
