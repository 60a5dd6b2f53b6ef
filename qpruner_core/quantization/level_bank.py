"""The bank of a joint search: every layer at every pruning level, every Linear at every
precision.

A level is the whole model pruned by one ratio. As a coupled group never leaves its layer, layers
of different levels stand in one model side by side, and a trial only points the model at layers
and Linears. What it then computes is what a model cut by the composed pruning plan computes (see
`domain.joint.composed`).

In memory lie, for every level, its decoder layers and the candidates of their Linears; what stands
beside the layers is there once. On CUDA, layers and candidates that are not shown lie in host
memory where all of them would crowd the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from qpruner_core.catalog import precision_formats
from qpruner_core.domain.footprint import BYTES_16_BIT
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.errors import BadInputError, IncompatibleShapeError
from qpruner_core.quantization.bank import SHARE_FOR_CANDIDATES, Bank, bytes_beside
from qpruner_core.quantization.shapes import check_shapes

if TYPE_CHECKING:
    from qpruner_core.models.device import Device


class LevelBank:
    """The candidates of all levels; has the face of `Bank`, and plans may name levels.

    Not safe while another thread uses the model. `restore` gives back the model of level 0.
    """

    def __init__(
        self,
        models: Iterable[nn.Module],
        layouts: Sequence[ModelLayout],
        precisions: tuple[str, ...],
        device: Device,
        *,
        packed: bool | None = None,
        on_host: bool | None = None,
    ) -> None:
        """Quantise every Linear of every level once per precision that the level carries.

        Args:
            models: The model at every level, level 0 first, each as `Bank` asks. They may share
                what is not in their decoder layers, and are asked for one at a time.
            layouts: Their layouts; the names of their Linears are the same.
            precisions: Catalogue names, each once; level 0 carries all of them.
            device: Where the models lie.
            packed: As for `Bank`.
            on_host: Layers and packed candidates that are not shown lie in host memory; None: when
                all would take more than 60 % of the free device memory.

        Raises:
            UnknownNameError: A precision has no catalogue entry.
            IncompatibleShapeError: A precision cannot carry some width of level 0.
        """
        check_shapes(layouts[0], precisions)
        is_packed = device.kind == "cuda" if packed is None else packed
        crowded = _are_crowded(layouts, precisions, device) if on_host is None else on_host
        self._host = torch.device("cpu") if is_packed and crowded else None
        self.layout = layouts[0]
        self.layouts = tuple(layouts)
        self.precisions = precisions
        self.device = device
        self._layer_of = {linear.name: linear.layer for linear in self.layout.linears}
        self._layers: list[list[nn.Module]] = []
        self._beside: list[list[int]] = []
        banks: list[Bank] = []
        for model, layout in zip(models, layouts, strict=True):
            held = tuple(name for name in precisions if _carries(layout, name))
            bank = Bank(model, layout, held, device, packed=is_packed, on_host=crowded)
            self._take(bank, is_hidden=bool(banks))
            banks.append(bank)
        self.banks = tuple(banks)
        """The bank of every level; each shows its own level alone."""
        self.model = self.banks[0].model
        self._shown = [0] * self.layout.n_layers
        whole = PrecisionPlan.uniform(self.layout, precisions[0])
        weights = (self.banks[0].linear_bytes(name, precisions[0]) for name in self._layer_of)
        self._outside: int = (
            self.banks[0].packed_bytes(whole) - sum(weights) - sum(self._beside[0])
        )

    @property
    def n_levels(self) -> int:
        """Number of pruning levels."""
        return len(self.banks)

    def apply(self, plan: PrecisionPlan) -> None:
        """Point every layer at its level and every Linear at its candidate.

        Raises:
            BadInputError: As for `Bank.apply`, or the plan names levels that are not here.
            IncompatibleShapeError: A precision cannot carry some width at its layer's level. The
                model is unchanged in both cases.
        """
        for layer, level in enumerate(self._levels(plan)):
            self.set_level(layer, level)
        for name, precision in plan.precisions.items():
            self.set(name, precision)

    def packed_bytes(self, plan: PrecisionPlan) -> int:
        """Return the bytes of the model under a plan, as `Bank.packed_bytes` counts them.

        Raises:
            BadInputError: As for `apply`, and so for IncompatibleShapeError.
        """
        levels = self._levels(plan)
        beside = self._outside
        beside += sum(self._beside[level][layer] for layer, level in enumerate(levels))
        weights = (
            self.banks[levels[self._layer_of[name]]].linear_bytes(name, precision)
            for name, precision in plan.precisions.items()
        )
        return beside + sum(weights)

    def found_weight(self, name: str, level: int = 0) -> torch.Tensor:
        """Return the weight that a Linear came with at a level, as `Bank.found_weight` does."""
        return self.banks[level].found_weight(name)

    def set(self, linear_name: str, precision: str | None) -> None:
        """Point one Linear, at the level its layer has now, at a candidate or its own weight
        (None).

        Raises:
            BadInputError: The bank does not hold that Linear or precision.
        """
        level = self._shown[self._layer_of[linear_name]] if linear_name in self._layer_of else 0
        self.banks[level].set(linear_name, precision)

    def set_level(self, layer: int, level: int) -> None:
        """Point one layer at a level; its Linears are as they were when it was last shown."""
        shown = self._shown[layer]
        if level == shown:
            return
        if self._host is not None:
            self._layers[shown][layer].to(self._host)
            self._layers[level][layer].to(self.device.torch)
        places = cast("nn.ModuleList", self.model.get_submodule(self.layout.layer_prefix))
        places[layer] = self._layers[level][layer]
        self._shown[layer] = level

    def restore(self) -> None:
        """Point every layer at level 0 and every Linear of it at the weight it came with."""
        for layer in range(self.layout.n_layers):
            self.set_level(layer, 0)
        self.banks[0].restore()

    def _take(self, bank: Bank, *, is_hidden: bool) -> None:
        """Keep the layers of a level and count what lies in them beside the Linears."""
        prefix = bank.layout.layer_prefix
        layers = list(cast("nn.ModuleList", bank.model.get_submodule(prefix)))
        self._layers.append(layers)
        counts = []
        for index, layer in enumerate(layers):
            start = f"{prefix}.{index}."
            names = [n.removeprefix(start) for n, i in self._layer_of.items() if i == index]
            counts.append(bytes_beside(layer, names))
            if is_hidden and self._host is not None:
                layer.to(self._host)
        self._beside.append(counts)

    def _levels(self, plan: PrecisionPlan) -> tuple[int, ...]:
        """Return the level of every layer of a plan that this bank holds."""
        self.banks[0].check(plan)
        levels = plan.levels or (0,) * self.layout.n_layers
        if len(levels) != self.layout.n_layers or not set(levels) <= set(range(self.n_levels)):
            raise BadInputError(
                f"The plan gives {len(levels)} layers pruning levels up to {max(levels)}, but "
                f"this bank holds {self.layout.n_layers} layers at {self.n_levels} levels, from "
                f"0. Make a plan for the levels of this search."
            )
        for name, precision in plan.precisions.items():
            level = levels[self._layer_of[name]]
            if precision not in self.banks[level].precisions:
                check_shapes(self.layouts[level], (precision,))
        return levels


def _carries(layout: ModelLayout, precision: str) -> bool:
    """Whether a precision carries all widths of a model."""
    try:
        check_shapes(layout, (precision,))
    except IncompatibleShapeError:
        return False
    return True


def _are_crowded(
    layouts: Sequence[ModelLayout], precisions: tuple[str, ...], device: Device
) -> bool:
    """Whether all levels with their candidates would take too much of what is free on a CUDA
    device, on which the dense model lies already.
    """
    if device.kind != "cuda":
        return False
    formats = precision_formats()
    candidates = sum(
        formats[name].linear_bytes(linear)
        for layout in layouts
        for name in precisions
        for linear in layout.linears
    )
    copies = sum(BYTES_16_BIT * sum(layout.layer_parameters) for layout in layouts)
    free, _ = torch.cuda.mem_get_info(device.torch)
    return candidates + copies > SHARE_FOR_CANDIDATES * free
