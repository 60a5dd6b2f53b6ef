"""A model's folder, checked from the outside in: config, family, weight files, every header.

Only safetensors are ever read. Everything that is wrong is said here, before a single weight is
loaded.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import qpruner_core
from qpruner_core.catalog import ARCHITECTURES
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.errors import BadInputError, ModelNotFoundError, UnsupportedModelError
from qpruner_core.inspection.headers import TensorHeader, read_header

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def demo_folder() -> Path:
    """Return the folder of the embedded demo: ``QPRUNER_DEMO`` where it is set, else beside the
    package.
    """
    stated = os.environ.get("QPRUNER_DEMO")
    return Path(stated) if stated else Path(qpruner_core.__file__).parents[1] / "assets" / "demo"


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of `config.json`.

    Raises:
        ModelNotFoundError: There is no such folder, or it holds no config.
        BadInputError: The config is not a JSON table.
    """
    if folder.is_file():
        raise ModelNotFoundError(
            f"{str(folder)!r} is a file, but the folder of a model is needed. Give the folder "
            f"that holds {CONFIG} and the safetensors files."
        )
    if not folder.is_dir():
        raise ModelNotFoundError(
            f"There is no folder {str(folder)!r}. Check the path, or give a hub id such as "
            "'org/name'."
        )
    path = folder / CONFIG
    if not path.is_file():
        raise ModelNotFoundError(
            f"The folder {str(folder)!r} holds no {CONFIG}. Give a Hugging Face model folder, as "
            f"save_pretrained writes it."
        )
    return parse_json_table(path)


def parse_json_table(path: Path) -> dict[str, Any]:
    """Return a JSON object from a file.

    Raises:
        BadInputError: The file is not UTF-8, not JSON, or no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInputError(
            f"The file {str(path)!r} is not valid JSON ({error}). Copy or download it again."
        ) from error
    if not isinstance(content, dict):
        raise BadInputError(
            f"The file {str(path)!r} holds a {type(content).__name__}, but a JSON object is "
            "needed. Copy or download it again."
        )
    return content


def layout_of(config: Mapping[str, Any]) -> ModelLayout:
    """Return the layout of a model we can compress.

    Raises:
        UnsupportedModelError: The family is unknown, the weights are quantised already, or the
            numbers do not fit.
    """
    family = config.get("model_type")
    if family not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"The config states the architecture {family!r}, which we cannot prune yet. Known: "
            f"{', '.join(ARCHITECTURES.names())}. Choose a model of one of these families."
        )
    stored = config.get("quantization_config")
    if stored:
        method = stored.get("quant_method", "unknown") if isinstance(stored, Mapping) else stored
        raise UnsupportedModelError(
            f"The weights of this checkpoint are quantised already (method {method!r}), but "
            "compression starts from 16- or 32-bit weights. Choose the original checkpoint "
            "instead."
        )
    return ARCHITECTURES.target(str(family)).layout(config)


def read_headers(folder: Path) -> dict[str, TensorHeader]:
    """Return tensor name -> header over all weight files of a folder.

    Raises:
        ModelNotFoundError: No weight file is there, or a shard of the index is missing.
        UnsupportedModelError: The folder holds weights in another format only.
        BadInputError: A file is damaged, or index and shards disagree.
    """
    if (folder / SINGLE).is_file():
        return read_header(folder / SINGLE)
    check_weight_files({path.name for path in folder.iterdir()}, str(folder))
    weight_map = _read_index(folder)
    headers: dict[str, TensorHeader] = {}
    for shard in sorted(set(weight_map.values())):
        headers |= read_header(folder / shard)
    misplaced = sorted(
        name
        for name, shard in weight_map.items()
        if name not in headers or headers[name].file != shard
    )
    if misplaced:
        raise BadInputError(
            f"The index {INDEX!r} names {len(misplaced)} tensors that its files do not hold, "
            f"{misplaced[0]!r} first. Index and files come from different versions: copy or "
            "download the folder again."
        )
    return headers


def check_weight_files(names: Collection[str], place: str) -> None:
    """Refuse a folder or repository without safetensors that `transformers` would find.

    Raises:
        ModelNotFoundError: There are no weights.
        UnsupportedModelError: There are weights, in a format that is not read.
    """
    if SINGLE in names or INDEX in names:
        return
    pickles = sorted(name for name in names if name.endswith(PICKLES))
    if pickles:
        raise UnsupportedModelError(
            f"{place!r} holds its weights only as pickles ({', '.join(pickles[:3])}), which can "
            "run code when opened and are never read. Convert them to safetensors where you trust "
            "them (save_pretrained writes it), then give that folder."
        )
    others = sorted(name for name in names if name.endswith((".gguf", ".safetensors")))
    if others:
        raise UnsupportedModelError(
            f"{place!r} holds {others[0]!r}, but neither {SINGLE} nor {INDEX}. Give the folder of "
            "a whole model as save_pretrained writes it, not an adapter or another format."
        )
    raise ModelNotFoundError(
        f"{place!r} holds no weights: {SINGLE}, or {INDEX} with its shards, is needed. Copy or "
        "download the missing files."
    )


def check_shapes(layout: ModelLayout, headers: Mapping[str, TensorHeader]) -> None:
    """Refuse weights that do not belong to the config, naming how many and the first.

    Raises:
        BadInputError: The files hold more or fewer layers; or a weight or bias of the decoder
            layers is missing, is there although the config means none, or has another shape.
    """
    _check_layers(layout, headers)
    family = ARCHITECTURES.target(layout.model_type)
    shapes = {name: header.shape for name, header in headers.items()}
    wanted: dict[str, tuple[int, ...] | None] = {}
    for linear in layout.linears:
        wanted[f"{linear.name}.weight"] = linear.weight_shape
        wanted[f"{linear.name}.bias"] = (linear.out_features,) if linear.has_bias else None
    wrong = [
        f"{name} is {_shape(found)} where the config means {_shape(shape)}"
        for name, shape in wanted.items()
        if (found := family.shape_on_disk(name, shapes)) != shape
    ]
    if wrong:
        count = sum(shape is not None for shape in wanted.values())
        raise BadInputError(
            f"{len(wrong)} of {count} weights and biases do not fit config.json: "
            f"{'; '.join(wrong[:3])}{'; ...' if len(wrong) > 3 else ''}. Config and weights come "
            "from different models: copy or download both again."
        )


def _check_layers(layout: ModelLayout, headers: Collection[str]) -> None:
    """Refuse files that hold layers which the config does not count, or end before its last."""
    base, _, inside = layout.layer_prefix.partition(".")
    # Some files leave the first part of every name out, or carry it twice.
    pattern = re.compile(rf"(?:{re.escape(base)}\.)*{re.escape(inside)}\.(\d+)\.")
    found = 1 + max((int(m[1]) for m in map(pattern.match, headers) if m), default=-1)
    if found not in (0, layout.n_layers):
        raise BadInputError(
            f"The weight files hold {found} layers, but config.json says {layout.n_layers}. "
            "Correct the number of layers in config.json (num_hidden_layers, n_layer for GPT-2), "
            "or copy the files that belong to it."
        )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else " x ".join(map(str, shape))


def _read_index(folder: Path) -> dict[str, str]:
    """Return tensor name -> shard, all of them plain names of files that are there."""
    weight_map = parse_json_table(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadInputError(
            f"The index {INDEX!r} has no table 'weight_map'. Copy or download it again."
        )
    shards = {str(shard) for shard in weight_map.values()}
    foreign = sorted(shard for shard in shards if Path(shard).name != shard)
    if foreign:
        raise BadInputError(
            f"The index {INDEX!r} points to {foreign[0]!r} outside its folder, which is never "
            "followed. Put all shards into the folder itself."
        )
    missing = sorted(shard for shard in shards if not (folder / shard).is_file())
    if missing:
        raise ModelNotFoundError(
            f"{len(missing)} of {len(shards)} weight files are missing from {str(folder)!r}: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}. Copy or download "
            "them."
        )
    return {str(name): str(shard) for name, shard in weight_map.items()}
