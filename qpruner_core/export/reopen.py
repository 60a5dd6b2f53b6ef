"""Opens a checkpoint in a process of its own with stock transformers and writes its logits.

Run as ``python -I reopen.py FOLDER EXCHANGE TRUST THREADS``: EXCHANGE holds ``ids.safetensors``
and receives ``logits.safetensors``; see `export/verify.py`.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM


def reopen(folder: str, exchange: Path, trust_remote_code: bool, threads: int) -> None:
    """Write the float32 logits (batch, tokens, vocabulary) of the checkpoint."""
    torch.set_num_threads(threads)  # sums in another order would differ in their last bits
    ids = load_file(exchange / "ids.safetensors")["ids"]
    model = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=trust_remote_code, dtype=torch.float32
    )
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits
    save_file({"logits": logits.float().contiguous()}, exchange / "logits.safetensors")


if __name__ == "__main__":
    # An editable install makes our package importable even here: someone who downloads the folder
    # does not have it.
    sys.modules["qpruner_core"] = None  # type: ignore[assignment]
    reopen(sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "yes", int(sys.argv[4]))
