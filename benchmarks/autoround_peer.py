"""Intel AutoRound's `AutoScheme`; a script for the environment of the peers (see
`requirements-peers.txt`), which knows nothing of this project.

    autoround_peer.py FOLDER REQUEST.json ANSWER.json

Only the scheme is generated, nothing is tuned. The candidates are its weight-only schemes that
lie nearest to ours: symmetric int4 in groups of 64 for `nf4`, symmetric int8 per output row for
`int8`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

BATCH = 8
"""Sequences per step."""
SCHEMES = {
    "nf4": {"bits": 4, "group_size": 64, "sym": True, "data_type": "int", "act_bits": 16},
    "int8": {"bits": 8, "group_size": -1, "sym": True, "data_type": "int", "act_bits": 16},
}
NAMES = {4: "nf4", 8: "int8", 16: "bf16"}


def shared_layers(names: list[str], tie: str) -> list[list[str]] | None:
    """Return the Linears that are to share a scheme, group by group; None for none."""
    if tie == "linear":
        return None
    groups: dict[str, list[str]] = {}
    for name in names:
        parent, _, leaf = name.rpartition(".")
        layer = parent.rpartition(".")[0]
        if tie == "layer":
            groups.setdefault(layer, []).append(name)
        elif leaf in ("q_proj", "k_proj", "v_proj"):
            groups.setdefault(f"{parent}.qkv", []).append(name)
        elif leaf in ("gate_proj", "up_proj"):
            groups.setdefault(f"{parent}.gate_up", []).append(name)
    return list(groups.values())


def main(folder: str, request_file: str, answer_file: str) -> None:
    """Score once, solve for every target, and write what each Linear is to get."""
    with TemporaryDirectory() as cache:
        os.environ["AR_AUTO_SCHEME_CACHE"] = cache  # its scores are to be timed, not found
        request = json.loads(Path(request_file).read_text("utf-8"))
        Path(answer_file).write_text(json.dumps({"plans": plans(folder, request)}), "utf-8")


def plans(folder: str, request: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the plan of every target with its seconds, the scoring counted in each."""
    from auto_round.auto_scheme import delta_loss  # noqa: PLC0415 - slow, not timed
    from auto_round.auto_scheme.gen_auto_scheme import AutoScheme, GenScheme  # noqa: PLC0415
    from auto_round.schemes import QuantizationScheme  # noqa: PLC0415

    torch.set_num_threads(request["threads"])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=True
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.from_numpy(np.load(request["ids"]))
    batches = [
        {"input_ids": batch, "attention_mask": torch.ones_like(batch)}
        for batch in torch.split(ids, BATCH)
    ]
    # It reads data sets by name; the tokens are to be the same on all sides.
    delta_loss.get_dataloader = lambda *_, **__: batches
    names = [
        name
        for name, module in model.model.named_modules(prefix="model")
        if isinstance(module, torch.nn.Linear)
    ]
    options = tuple(
        "BF16" if name == "bf16" else QuantizationScheme.from_dict(SCHEMES[name])
        for name in request["bits"]
    )
    found, scoring = [], 0.0
    for index, target in enumerate(request["targets"]):
        asked = AutoScheme(
            avg_bits=target,
            options=options,
            shared_layers=shared_layers(names, request["tie"]),
            nsamples=len(ids),
            seqlen=ids.shape[1],
            batch_size=BATCH,
            low_gpu_mem_usage=False,
            low_cpu_mem_usage=False,
        )
        started = perf_counter()
        config = GenScheme(
            asked,
            model,
            names,
            {},
            dataset="same",
            tokenizer=tokenizer,
            device_map="cpu",
            enable_torch_compile=False,
        ).get_layer_config()
        seconds = perf_counter() - started
        if index == 0:
            scoring = seconds  # later targets find the scores in its cache
        found.append(
            {
                "target": target,
                "seconds": seconds if index == 0 else scoring + seconds,
                "precisions": {name: NAMES[config[name]["bits"]] for name in names},
            }
        )
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
