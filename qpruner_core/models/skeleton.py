"""A model of the stock class without its weights, of which one decoder layer at a time is filled
from the shards.

Masks, positions and every arithmetic are the class's own, so that a layer run here gives bit for
bit what it gives in a model that is loaded whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from qpruner_core.catalog import ARCHITECTURES
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.spec import ModelSpec
from qpruner_core.errors import BadInputError, UnsupportedModelError
from qpruner_core.inspection import model_folder
from qpruner_core.inspection.cards import folder_card
from qpruner_core.models.device import Device
from qpruner_core.models.experts import split_experts_
from qpruner_core.models.loader import check_code
from qpruner_core.models.shards import Shards

_WIDE = ("F32", "F64")


class Skeleton:
    """The model of a source on the meta device, with its shards and what its headers say.

    Raises:
        ModelNotFoundError, UnsupportedModelError, BadInputError, HubUnreachableError: As
            `models.loader.load`; experts that lie fused on disk are refused.
    """

    def __init__(self, spec: ModelSpec, device: Device) -> None:
        self.folder: Path = model_folder(spec)
        self.card = folder_card(spec, self.folder)
        self.layout: ModelLayout = self.card.layout
        self.device = device
        check_code(spec, self.folder)
        self.shards = Shards(self.folder)
        self.model: Any = _empty_model(spec, self.folder, device.compute_dtype)
        split_experts_(self.model, self.layout)
        self._refuse_fused_experts()
        self._fill_constants()

    @property
    def embedding_name(self) -> str:
        """Name of the weight of the input embedding."""
        table = self.model.get_input_embeddings()
        return next(f"{n}.weight" for n, m in self.model.named_modules() if m is table)

    @property
    def head_name(self) -> str:
        """Name of the weight of the output head; that of the embedding where they are tied."""
        head = self.model.get_output_embeddings().weight
        named: Iterable[tuple[str, nn.Parameter]] = self.model.named_parameters()
        return next(name for name, parameter in named if parameter is head)

    def names(self, layer: int | None) -> list[str]:
        """Return the parameters and stored buffers of a decoder layer; None: of all outside."""
        inside = f"{self.layout.layer_prefix}."
        wanted = inside if layer is None else f"{inside}{layer}."
        stored = [name for name, _ in self.model.named_parameters()]
        stored += [name for name, _ in self._buffers(persistent=True)]
        return [name for name in stored if name.startswith(wanted) != (layer is None)]

    def source(self, name: str) -> str:
        """Return what the files call a tensor: some leave the first part of its name out, or
        have it in excess.
        """
        prefix = f"{self.model.base_model_prefix}."
        published = ARCHITECTURES.target(self.layout.model_type).disk_name(name)
        tied = [alias for alias, kept in self._tied().items() if kept == name]
        for known in (name, published, *tied):
            for candidate in (known, known.removeprefix(prefix), prefix + known):
                if candidate in self.shards:
                    return candidate
        return name

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return a tensor as a loaded model holds it, on the host.

        Args:
            name: In memory.
            dtype: Dtype of that model; None for the compute dtype of the device.

        Raises:
            BadInputError: It is missing, or holds values that are not finite.
        """
        return self.held(name, self.shards.read(self.source(name)), dtype)

    def chunks(
        self, name: str, most_bytes: int, dtype: torch.dtype | None = None
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield a tensor as `read` gives it, in runs of rows, each after its first row."""
        for first, rows in self.shards.chunks(self.source(name), most_bytes):
            yield first, self.held(name, rows, dtype)

    def held(
        self, name: str, stored: torch.Tensor, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """Return values from a file as a loaded model holds them: at 16 bit, checked."""
        if not torch.isfinite(stored).all():
            raise BadInputError(
                f"The tensor {name!r} holds values that are NaN or infinite; finite weights are "
                "needed. Copy or download the checkpoint again, or choose another one."
            )
        values = stored.to(dtype or self.device.compute_dtype)
        return values.to(torch.bfloat16).to(values.dtype) if self.card.dtype in _WIDE else values

    @contextmanager
    def layer(self, layer: int) -> Iterator[nn.Module]:
        """Inside, one decoder layer has its weights, on the device."""
        with self._filled(self.names(layer)):
            yield self.model.get_submodule(f"{self.layout.layer_prefix}.{layer}")

    @contextmanager
    def walking(self) -> Iterator[Callable[[int], None]]:
        """Inside, the first decoder layer has its weights; what is yielded gives them to another
        layer in its place, to none after the last.
        """
        with ExitStack() as held:

            def go_to(layer: int) -> None:
                held.close()
                if layer < self.layout.n_layers:
                    held.enter_context(self.layer(layer))

            go_to(0)
            yield go_to

    @contextmanager
    def embedding(self, ids: torch.Tensor) -> Iterator[torch.Tensor]:
        """Inside, what stands before and after the layers has its weights; yield ids to use.

        Of the input embedding only the rows of these tokens are held, so the ids (n, T) that are
        yielded count those rows. The output head stays empty.
        """
        used, places = torch.unique(ids, return_inverse=True)
        name = self.embedding_name
        rows = self.shards.read_rows(self.source(name), used.tolist())
        table = self.model.get_input_embeddings()
        empty, padding = table._parameters["weight"], table.padding_idx
        outside = [n for n in self.names(None) if n not in (name, self.head_name)]
        try:
            values = self.held(name, rows).to(self.device.torch)
            table._parameters["weight"] = nn.Parameter(values, requires_grad=False)
            table.padding_idx = None
            with self._filled(outside):
                yield places.to(self.device.torch)
        finally:
            table._parameters["weight"], table.padding_idx = empty, padding

    @contextmanager
    def _filled(self, names: Iterable[str]) -> Iterator[None]:
        empty: list[tuple[dict[str, Any], str, Any]] = []
        try:
            for name in names:
                module, _, leaf = name.rpartition(".")
                owner = self.model.get_submodule(module)
                table = owner._parameters if leaf in owner._parameters else owner._buffers
                empty.append((table, leaf, table[leaf]))
                value = self.read(name).to(self.device.torch)
                is_parameter = table is owner._parameters
                table[leaf] = nn.Parameter(value, requires_grad=False) if is_parameter else value
            yield
        finally:
            for table, leaf, nothing in empty:
                table[leaf] = nothing

    def _refuse_fused_experts(self) -> None:
        """Refuse a folder that holds all experts of a layer in one tensor, of which no part can
        be read under its name.
        """
        experts = [group for group in self.layout.groups if group.kind == "expert_channels"]
        names = [part.tensor for group in experts for part in group.slices]
        if names and all(self.source(name) not in self.shards for name in names):
            raise UnsupportedModelError(
                f"The experts of {str(self.folder)!r} lie fused, all of a layer in one tensor, "
                "but layers are read expert by expert here. Save the model with save_pretrained, "
                "which takes them apart, or compress it with 'qpruner run' on a machine that "
                "holds it."
            )

    def _fill_constants(self) -> None:
        """Compute what no checkpoint stores, such as the frequencies of rotary positions, by the
        rule of the class.
        """
        owners = {name.rpartition(".")[0] for name, _ in self._buffers(persistent=False)}
        for name in owners:
            module = self.model.get_submodule(name)
            for leaf in module._non_persistent_buffers_set:
                buffer = module._buffers[leaf]
                if buffer is not None:
                    module._buffers[leaf] = torch.empty_like(buffer, device=self.device.torch)
            with torch.no_grad():
                self.model._init_weights(module)

    def _buffers(self, *, persistent: bool) -> Iterator[tuple[str, torch.Tensor]]:
        for prefix, module in self.model.named_modules():
            for name, buffer in module.named_buffers(recurse=False):
                if (name not in module._non_persistent_buffers_set) == persistent:
                    yield f"{prefix}.{name}" if prefix else name, buffer

    def _tied(self) -> dict[str, str]:
        return dict(getattr(self.model, "all_tied_weights_keys", None) or {})


def _empty_model(spec: ModelSpec, folder: Path, dtype: torch.dtype) -> Any:
    trust = {"trust_remote_code": spec.trust_remote_code}
    config = AutoConfig.from_pretrained(folder, local_files_only=True, **trust)
    with torch.device("meta"):
        model = cast("Any", AutoModelForCausalLM).from_config(config, dtype=dtype, **trust)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model.eval()
