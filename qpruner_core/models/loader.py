"""From a source to a model in memory with its tokenizer, card and layout.

Everything that config, headers and tokenizer can tell is checked before the first weight is read.
Weights come from safetensors alone, in the compute dtype of the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from qpruner_core.domain.footprint import format_bytes
from qpruner_core.domain.layout import WIDTHS_KEY, ModelLayout
from qpruner_core.domain.record import ModelCard
from qpruner_core.domain.spec import ModelSpec
from qpruner_core.errors import BadInputError, ModelNotFoundError
from qpruner_core.inspection import model_folder
from qpruner_core.inspection.cards import folder_card
from qpruner_core.inspection.folders import read_config
from qpruner_core.models.device import Device
from qpruner_core.models.experts import split_experts_
from qpruner_core.models.host_memory import available_bytes

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "vocab.txt")
"""Any of these makes a tokenizer; without them `transformers` would ask the hub."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedModel:
    """A model ready to be scored, pruned and measured."""

    model: PreTrainedModel
    """In eval mode, in the device's compute dtype."""
    tokenizer: PreTrainedTokenizerBase
    """Checked to fit the model's embedding."""
    card: ModelCard
    """What config and headers say."""
    layout: ModelLayout
    """Units and Linears, as the card carries them."""
    device: Device
    """Where the model lies."""


# A bar of its own per load would stand between our own lines on stderr.
transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def load(spec: ModelSpec, device: Device) -> LoadedModel:
    """Return model and tokenizer of a source; a hub model is downloaded first.

    Raises:
        ModelNotFoundError: Folder, repository, tokenizer or a weight file is not there.
        UnsupportedModelError: The family is unknown, or only pickled or quantised weights exist.
        BadInputError: A file is damaged, files do not belong together, a weight is NaN or
            infinite, or the device is too small.
        HubUnreachableError: The hub does not answer in time, or refuses.
    """
    folder = model_folder(spec)
    card = folder_card(spec, folder)
    check_code(spec, folder)
    tokenizer = load_tokenizer(spec, folder)
    check_tokenizer(tokenizer, card.layout)
    check_fits(card, device)
    model = _load_weights(spec, folder, card, device)
    check_finite(model, spec.source)
    split_experts_(model, card.layout)
    if card.dtype in ("F32", "F64"):
        round_to_16_bit_(model)
    return LoadedModel(
        model=model, tokenizer=tokenizer, card=card, layout=card.layout, device=device
    )


@torch.no_grad()
def check_finite(model: torch.nn.Module, source: str) -> None:
    """Refuse a model with weights that are NaN or infinite; one pass over them.

    Raises:
        BadInputError: There are some; the first tensor is named, with how many more hold any.
    """
    named = dict(model.named_parameters())
    # A finite sum has finite terms only; that of finite terms may still overflow.
    sums = torch.stack([p.sum(dtype=torch.float32) for p in named.values()]).isfinite().tolist()
    doubtful = [name for name, is_sure in zip(named, sums, strict=True) if not is_sure]
    wrong = [name for name in doubtful if not bool(named[name].isfinite().all())]
    if wrong:
        first = named[wrong[0]]
        count = first.numel() - int(first.isfinite().sum())
        dtype = str(first.dtype).removeprefix("torch.")
        raise BadInputError(
            f"{len(wrong)} tensors of {source!r} hold values that are NaN or infinite in {dtype}, "
            f"{wrong[0]!r} first ({count} of {first.numel()} values); finite weights are needed. "
            "Copy or download the checkpoint again, or choose another one."
        )


@torch.no_grad()
def round_to_16_bit_(model: torch.nn.Module) -> None:
    """Round every parameter to bfloat16 in place, keeping its dtype.

    The line compares with the model *at 16 bit*; a checkpoint of 32 bit is one only after
    rounding, and what is measured must be what can be exported.
    """
    for parameter in model.parameters():
        parameter.copy_(parameter.to(torch.bfloat16))


def load_tokenizer(spec: ModelSpec, folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer that lies beside a model.

    Raises:
        ModelNotFoundError: The folder holds none.
        BadInputError: Its files are damaged, or need a package or code that is not there.
    """
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelNotFoundError(
            f"The folder {str(folder)!r} holds no tokenizer: one of {', '.join(_TOKENIZER_FILES)} "
            "is needed. Copy the tokenizer files of this model into it."
        )
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=spec.trust_remote_code, local_files_only=True
        )
    except Exception as error:  # the tokenizers library raises bare Exception for damaged files
        raise BadInputError(
            f"The tokenizer in {str(folder)!r} cannot be opened ({type(error).__name__}: "
            f"{error}). Copy its files again; if it ships its own code, allow that code for this "
            "model."
        ) from error
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, layout: ModelLayout) -> None:
    """Refuse a tokenizer that would ask the model for rows it does not have.

    Raises:
        BadInputError: The largest token id lies outside the embedding, or there are no tokens.
    """
    ids = tokenizer.get_vocab().values()
    largest = max(ids, default=-1)
    if not 0 <= largest < layout.vocab_size:
        raise BadInputError(
            f"The tokenizer knows {len(ids)} tokens with ids up to {largest}, but the model has "
            f"embeddings for ids 0 to {layout.vocab_size - 1}. Put the tokenizer that belongs to "
            "this model into its folder."
        )


def check_code(spec: ModelSpec, folder: Path) -> None:
    """Refuse layers of unequal width without the code that builds them."""
    config = read_config(folder)
    if config.get(WIDTHS_KEY) and not spec.trust_remote_code:
        raise BadInputError(
            f"The layers of {spec.source!r} differ in width, which only the small modeling file "
            "in its folder can build. Allow its code for this model (trust remote code) if you "
            "trust its maker."
        )


def check_fits(card: ModelCard, device: Device) -> None:
    """Refuse a model whose weights alone are more than what is free.

    Raises:
        BadInputError: They are; the message names the way that holds one layer at a time.
    """
    if device.kind == "cpu":
        free = available_bytes()
    else:
        free, _ = torch.cuda.mem_get_info(device.index)
    if card.parameters * device.compute_dtype.itemsize > free:
        raise _too_large(card, device, free)


def _too_large(card: ModelCard, device: Device, free: int) -> BadInputError:
    needed = card.parameters * device.compute_dtype.itemsize
    return BadInputError(
        f"The model does not fit: it needs {format_bytes(needed)} for its weights alone, but "
        f"{device.name} has {format_bytes(free)} free. Prune and quantise it layer by layer with "
        "'qpruner compress', close what else takes the memory, or choose a smaller model."
    )


def _load_weights(
    spec: ModelSpec, folder: Path, card: ModelCard, device: Device
) -> PreTrainedModel:
    where: dict[str, Any] = {} if device.kind == "cpu" else {"device_map": {"": device.torch}}
    try:
        model, report = cast("Any", AutoModelForCausalLM).from_pretrained(
            folder,
            dtype=device.compute_dtype,
            use_safetensors=True,
            trust_remote_code=spec.trust_remote_code,
            local_files_only=True,
            output_loading_info=True,
            **where,
        )
    except torch.OutOfMemoryError as error:
        free, _ = torch.cuda.mem_get_info(device.index)
        raise _too_large(card, device, free) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise BadInputError(
            f"The weight files of {spec.source!r} lack {len(missing)} tensors that the model "
            f"needs, {missing[0]!r} first. Copy or download the complete checkpoint."
        )
    loaded: PreTrainedModel = model.eval()
    return loaded
