"""The later passes of streaming: tensors come from the shards one by one, lose what the plan
drops, and are measured at every precision or written at the one that is planned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path

import torch
from torch import nn

from qpruner_core.catalog import ARCHITECTURES, PRECISIONS
from qpruner_core.domain.layout import LinearLayout, ModelLayout, Renaming
from qpruner_core.domain.plan import PrecisionPlan, PruningPlan
from qpruner_core.domain.record import SensitivityCell
from qpruner_core.export.config import storage_dtype
from qpruner_core.export.planned import planned_tensors
from qpruner_core.export.weights import packed_weight, weight_files, write_index
from qpruner_core.models.host_memory import release
from qpruner_core.models.inputs import InputStats
from qpruner_core.models.sharded_writer import Planned, ShardedWriter
from qpruner_core.models.skeleton import Skeleton
from qpruner_core.pruning.compensation import rounded_bias
from qpruner_core.pruning.surgery import kept_entries
from qpruner_core.search.space import SearchSpace

OnLayer = Callable[[int], None]
CHUNK_BYTES = 16 * 2**20
"""Bytes of an embedding that are held at a time."""


class Slicing:
    """A pruning plan, as what it does to single tensors of a dense model."""

    def __init__(
        self, layout: ModelLayout, plan: PruningPlan, biases: Mapping[str, torch.Tensor]
    ) -> None:
        """Take the values of added biases as `surgery.prune_` does."""
        self.new_name = Renaming(layout, plan)
        self._kept: dict[str, dict[int, torch.Tensor]] = {}
        for (name, axis), keep in kept_entries(layout, plan):
            self._kept.setdefault(name, {})[axis] = keep
        self._plan = plan
        self._biases = biases

    def __call__(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return what is left of a tensor, (as stored) in its dtype."""
        for axis, keep in self._kept.get(name, {}).items():
            tensor = tensor.index_select(axis, keep)
        return tensor

    def inputs(self, linear: LinearLayout, values: torch.Tensor) -> torch.Tensor:
        """Return those of one value per input of a Linear that stay."""
        keep = self._kept.get(f"{linear.name}.weight", {}).get(0 if linear.transposed else 1)
        return values if keep is None else values.index_select(0, keep)

    def n_outputs(self, linear: LinearLayout) -> int:
        """Return how many outputs of a Linear stay."""
        keep = self._kept.get(f"{linear.name}.weight", {}).get(1 if linear.transposed else 0)
        return linear.out_features if keep is None else len(keep)

    def adds_bias(self, linear: str) -> bool:
        """Whether the plan adds to the bias of a Linear, named as before pruning."""
        return linear in self._plan.biases

    def bias(
        self, linear: str, bias: torch.Tensor | None, n_outputs: int, stored_dtype: str
    ) -> torch.Tensor:
        """Return a bias with what the plan adds to it, float32; zeros stand where there is none.

        Args:
            linear: Name of the Linear before pruning.
            bias: What is left of its bias, float32 (n_outputs,).
            n_outputs: Outputs that are left.
            stored_dtype: `ModelCard.dtype` of the dense model.
        """
        found = torch.zeros(n_outputs) if bias is None else bias
        if not self.adds_bias(linear):
            return found
        values = self._biases.get(linear)
        return rounded_bias(found if values is None else found + values.float(), stored_dtype)


@torch.no_grad()
def quantisation_errors(
    skeleton: Skeleton,
    slicing: Slicing,
    space: SearchSpace,
    inputs: Mapping[str, InputStats],
    on_layer: OnLayer,
) -> list[SensitivityCell]:
    """Return what every unit of a search space loses at every precision, as its weights tell.

    With D the diagonal of the root mean squares of a Linear's inputs over calibration text, Q the
    precision, and the sum over the Linears of a unit,

        error = sum of ||(W - Q(W)) D||^2 / ||W D||^2          dimensionless, >= 0

    the share of the output's power that rounding adds if inputs were independent. It stands where
    a measured loss would stand, and ranks plans without running any of them. An expert that no
    token reached has D = 1: that nothing was seen does not make it free to round.
    """
    old = {
        str(slicing.new_name(x.name)): x
        for x in skeleton.layout.linears
        if slicing.new_name(x.name)
    }
    unit_of = {name: unit for unit, names in space.units.items() for name in names}
    totals = {(unit, p): 0.0 for unit in space.units for p in space.precisions}
    for layer in range(space.layout.n_layers):
        for linear in space.layout.linears:
            if linear.layer == layer:
                before = old[linear.name]
                for precision, error in _errors(skeleton, slicing, before, space, inputs):
                    totals[unit_of[linear.name], precision] += error
        release()
        on_layer(layer)
    return [
        SensitivityCell(unit=unit, precision=precision, loss_increase=total)
        for (unit, precision), total in totals.items()
    ]


def _errors(
    skeleton: Skeleton,
    slicing: Slicing,
    linear: LinearLayout,
    space: SearchSpace,
    inputs: Mapping[str, InputStats],
) -> Iterator[tuple[str, float]]:
    """Yield precision and relative error of one Linear."""
    name, stats = f"{linear.name}.weight", inputs[linear.name]
    weight = slicing(name, skeleton.read(name, torch.float32))
    weight = weight.t().contiguous() if linear.transposed else weight
    seen = stats.norm / stats.n_tokens**0.5 if stats.n_tokens else torch.ones_like(stats.norm)
    rms = slicing.inputs(linear, seen.float().cpu())
    power = _power(weight.clone(), rms)
    for precision in space.precisions:
        rounded = PRECISIONS.target(precision).fake_quantize(weight)
        yield precision, _power(rounded.sub_(weight), rms) / power if power else 0.0


def _power(matrix: torch.Tensor, rms: torch.Tensor) -> float:
    """Return ||M D||^2 of a matrix (out, in), which is overwritten."""
    return float(matrix.mul_(rms).square_().sum(dtype=torch.float64))


@torch.no_grad()
def storage_dtype_of(skeleton: Skeleton, slicing: Slicing) -> torch.dtype:
    """Return the 16-bit dtype of what no precision plan names; see `export.config`."""
    weights = {f"{linear.name}.weight" for linear in skeleton.layout.linears}
    names = [name for name, _ in skeleton.model.named_parameters() if name not in weights]
    parts = (
        rows for name in names for _, rows in skeleton.chunks(name, CHUNK_BYTES, torch.float32)
    )
    return storage_dtype(skeleton.card.dtype, chain(parts, _added_biases(skeleton, slicing)))


def _added_biases(skeleton: Skeleton, slicing: Slicing) -> Iterator[torch.Tensor]:
    """Yield the biases that the plan adds to, as they will be written."""
    for linear in skeleton.layout.linears:
        if slicing.new_name(linear.name) and slicing.adds_bias(linear.name):
            name = f"{linear.name}.bias"
            old = slicing(name, skeleton.read(name, torch.float32)) if linear.has_bias else None
            n_outputs = slicing.n_outputs(linear)
            yield slicing.bias(linear.name, old, n_outputs, skeleton.card.dtype)


class WeightStream:
    """Writes the weight files of a pruned, packed model that was never whole.

    Args:
        skeleton: The model, still dense: what there is to read is taken from it now.
        slicing: The pruning plan.
        dtype: 16-bit dtype of everything that no precision plan names.
    """

    def __init__(self, skeleton: Skeleton, slicing: Slicing, dtype: torch.dtype) -> None:
        self._skeleton, self._slicing, self._dtype = skeleton, slicing, dtype
        self._linears = {linear.name: linear for linear in skeleton.layout.linears}
        self._outside = skeleton.names(None)
        self._layers = [skeleton.names(layer) for layer in range(skeleton.layout.n_layers)]

    def planned(
        self, pruned: ModelLayout, plan: PrecisionPlan, *, published: bool
    ) -> dict[str, Planned]:
        """Return name in the files -> what they will hold; the skeleton's model is pruned by now.

        Args:
            pruned: Layout of the pruned model.
            plan: Precision of every Linear of it.
            published: Whether tensors get the names that stock checkpoints of the family carry.
        """
        planned = planned_tensors(self._skeleton.model, pruned, plan, self._dtype)
        disk_name = ARCHITECTURES.target(pruned.model_type).disk_name
        return {disk_name(n): item for n, item in planned.items()} if published else planned

    @torch.no_grad()
    def write(
        self, plan: PrecisionPlan, planned: Mapping[str, Planned], folder: Path, on_layer: OnLayer
    ) -> None:
        """Write all files; held are one tensor, what it is packed into, and no buffer.

        Args:
            plan: Precision of every Linear of the pruned model.
            planned: As the method of that name gave it.
            folder: Where to.
            on_layer: Told the index of every finished layer of the dense model.
        """
        files = weight_files(planned)
        writer = ShardedWriter(folder, files, planned)
        disk_name = ARCHITECTURES.target(self._skeleton.layout.model_type).disk_name

        def put(name: str, tensor: torch.Tensor, first: int = 0) -> None:
            writer.write_rows(name if name in planned else disk_name(name), first, tensor)

        for name in self._outside:
            for first, rows in self._skeleton.chunks(name, CHUNK_BYTES, torch.float32):
                put(name, rows.to(self._dtype), first)
        for layer, names in enumerate(self._layers):
            for name in names:
                for stored, tensor in self._pieces(name, plan):
                    put(stored, tensor)
            release()
            on_layer(layer)
        writer.finish()
        write_index(files, planned, folder)

    def _pieces(self, name: str, plan: PrecisionPlan) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield what becomes of one tensor of a layer, under names in the pruned model."""
        if self._slicing.new_name(name) is None:
            return
        tensor = self._slicing(name, self._skeleton.read(name, torch.float32))
        module, _, leaf = name.rpartition(".")
        new, linear = str(self._slicing.new_name(module)), self._linears.get(module)
        if linear is None or leaf not in ("weight", "bias"):
            yield f"{new}.{leaf}", tensor.to(self._dtype)
        elif leaf == "bias":
            bias = self._slicing.bias(module, tensor, tensor.shape[0], self._skeleton.card.dtype)
            yield f"{new}.bias", bias.to(self._dtype)
        else:
            yield from _packed(new, tensor, plan.precisions[new], transposed=linear.transposed)
            if not linear.has_bias and self._slicing.adds_bias(module):
                rows = tensor.shape[1 if linear.transposed else 0]
                bias = self._slicing.bias(module, None, rows, self._skeleton.card.dtype)
                yield f"{new}.bias", bias.to(self._dtype)


def _packed(
    name: str, weight: torch.Tensor, precision: str, *, transposed: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors that are stored of a weight, as `packing.pack_` and `export.weights` make
    them.
    """
    if precision == "bf16":  # keeps the order in which the model stores it
        yield f"{name}.weight", weight.to(torch.bfloat16)
        return
    rows = weight.t().contiguous() if transposed else weight
    linear = nn.Linear(rows.shape[1], rows.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(rows, requires_grad=False)
    packed = PRECISIONS.target(precision).pack(linear, torch.float32)
    for leaf, item in packed_weight(name, packed, precision).items():
        yield f"{name}.{leaf}", item.read()
