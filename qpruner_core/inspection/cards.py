"""From a source to its card: the demo, a local folder or a hub id, all described the same way."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qpruner_core.catalog import ARCHITECTURES
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.record import ModelCard
from qpruner_core.domain.spec import ModelSpec
from qpruner_core.errors import BadInputError, HubUnreachableError, ModelNotFoundError
from qpruner_core.inspection import hub
from qpruner_core.inspection.folders import (
    check_shapes,
    demo_folder,
    layout_of,
    read_config,
    read_headers,
)
from qpruner_core.inspection.headers import TensorHeader
from qpruner_core.inspection.heads import HEADS, check_tied_head

DEMO = "demo"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_TABLES = (
    "rotary_emb.inv_freq",
    *(f".{block}.{leaf}" for block in ("attn", "attention") for leaf in ("bias", "masked_bias")),
)
"""How the names of rotary tables and causal masks end, which old files carry among the weights."""
_SHORTEST_DEFAULT = 2048
"""Positions of a Llama whose config does not state them; the other families assume more."""


def inspect_model(spec: ModelSpec) -> ModelCard:
    """Return what config and safetensors headers say about a model; no weight is read.

    A hub model that was downloaded before is described from there when the hub does not answer.

    Raises:
        ModelNotFoundError: Folder, repository, revision or a weight file is not there.
        UnsupportedModelError: The family is unknown, or only pickled or quantised weights exist.
        BadInputError: A file is damaged, or config and weights disagree.
        HubUnreachableError: The hub does not answer in time, or refuses.
    """
    folder = _local_folder(spec)
    if folder is not None:
        return folder_card(spec, folder)
    try:
        found = hub.describe(spec)
    except HubUnreachableError:
        folder = hub.cached_folder(spec)
        if folder is None:
            raise
        return folder_card(spec, folder)
    layout = layout_of(found.config)
    headers = hub.fetch_headers(spec, found.commit)
    return _card(spec, found.commit, found.config, layout, headers)


def model_folder(spec: ModelSpec) -> Path:
    """Return the local folder with a model's files, downloading a hub model first.

    Raises:
        ModelNotFoundError, UnsupportedModelError, HubUnreachableError: As `inspect_model`.
    """
    folder = _local_folder(spec)
    if folder is not None:
        return folder
    try:
        hub.describe(spec)
        return hub.download(spec)
    except HubUnreachableError:
        cached = hub.cached_folder(spec)
        if cached is None:
            raise
        return cached


def folder_card(spec: ModelSpec, folder: Path) -> ModelCard:
    """Return the card of a model whose files lie in a folder, as `model_folder` gives it.

    Raises:
        ModelNotFoundError, UnsupportedModelError, BadInputError: As `inspect_model`.
    """
    # Downloads lie in a folder named after their commit.
    revision = None if _local_folder(spec) is not None else folder.name
    config = read_config(folder)
    layout, headers = layout_of(config), read_headers(folder)
    card = _card(spec, revision, config, layout, headers)
    if ARCHITECTURES.target(layout.model_type).is_tied(config):
        check_tied_head(folder, headers)
    return card


def _local_folder(spec: ModelSpec) -> Path | None:
    """Return the folder a source means, None for a hub id."""
    if spec.source == DEMO:
        folder = demo_folder() / "model"
        if not folder.is_dir():
            raise ModelNotFoundError(
                f"The demo model is not at {str(folder)!r}. Run from a complete checkout, or "
                "point the environment variable QPRUNER_DEMO to its folder."
            )
        return folder
    if not spec.source.strip():
        raise BadInputError(
            "No model was named. Give 'demo', a folder, or a hub id such as 'org/name'."
        )
    folder = Path(spec.source).expanduser()
    is_hub_id = _HUB_ID.fullmatch(spec.source) is not None and not folder.exists()
    return None if is_hub_id else folder


def _card(
    spec: ModelSpec,
    revision: str | None,
    config: Mapping[str, Any],
    layout: ModelLayout,
    headers: Mapping[str, TensorHeader],
) -> ModelCard:
    check_shapes(layout, headers)
    sizes: Counter[str] = Counter()
    for name, tensor in headers.items():
        if not name.endswith(_TABLES):
            sizes[tensor.dtype] += tensor.n_values
    family = ARCHITECTURES.target(layout.model_type)
    return ModelCard(
        source=spec.source,
        revision=revision,
        title="Demo model" if spec.source == DEMO else spec.source.rstrip("/").split("/")[-1],
        layout=layout,
        parameters=_count_parameters(headers, tied=family.is_tied(config)),
        file_bytes=sum(tensor.size_bytes for tensor in headers.values()),
        dtype=sizes.most_common(1)[0][0],
        max_positions=family.max_positions(config) or _SHORTEST_DEFAULT,
    )


def _count_parameters(headers: Mapping[str, TensorHeader], *, tied: bool) -> int:
    """Count what is trained: old files also carry tables, and some a second copy of a tied
    head.
    """
    return sum(
        tensor.n_values
        for name, tensor in headers.items()
        if not name.endswith(_TABLES) and not (tied and name in HEADS)
    )
