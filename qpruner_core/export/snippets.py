"""The lines a person pastes to use an export; torch-free, as pages show them."""

from __future__ import annotations

from pathlib import Path

ADAPTER_FOLDER = "adapter"
"""Subfolder of an export that holds the recovery adapter."""

_REMOTE_CODE = {"hf_mixed": True, "hf_16bit": False}


def needs_remote_code(format_name: str, *, uniform: bool) -> bool:
    """Return whether stock transformers needs ``trust_remote_code`` to open the folder.

    Args:
        format_name: Catalogue name of an export format.
        uniform: Whether the stock class opens the widths, see `layout.opens_plainly`.
    """
    return _REMOTE_CODE[format_name] or not uniform


def install_line(format_name: str, *, adapter: bool = False) -> str:
    """Return the command that installs what the snippet of a format imports.

    Args:
        format_name: Catalogue name of an export format.
        adapter: Whether the folder carries a recovery adapter.
    """
    extra = {"hf_mixed": " bitsandbytes", "hf_16bit": ""}[format_name]
    return f"pip install torch transformers accelerate{extra}{' peft' if adapter else ''}"


def snippet(
    format_name: str, folder: str | Path, *, uniform: bool = False, adapter: bool = False
) -> str:
    """Return Python lines that open the folder with stock tools and answer a prompt.

    Args:
        format_name: Catalogue name of an export format.
        folder: The folder as the person will name it.
        uniform: Whether the stock class opens the widths, see `layout.opens_plainly`; then 16-bit
            exports need no remote code.
        adapter: Whether the folder carries a recovery adapter.
    """
    trust = ", trust_remote_code=True" if needs_remote_code(format_name, uniform=uniform) else ""
    lines = [
        "import torch",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'folder = "{Path(folder).as_posix()}"',
        'device = "cuda" if torch.cuda.is_available() else "cpu"',
        'dtype = torch.bfloat16 if device == "cuda" else torch.float32',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        "model = AutoModelForCausalLM.from_pretrained(",
        f"    folder, dtype=dtype, device_map=device{trust}",
        ")",
    ]
    if adapter:
        lines += [
            "",
            "from peft import PeftModel",
            "",
            f'model = PeftModel.from_pretrained(model, folder + "/{ADAPTER_FOLDER}")',
        ]
    return "\n".join(
        [
            *lines,
            "",
            'inputs = tokenizer("Once upon a time", return_tensors="pt").to(device)',
            "output = model.generate(**inputs, max_new_tokens=40)",
            "print(tokenizer.decode(output[0], skip_special_tokens=True))",
        ]
    )
