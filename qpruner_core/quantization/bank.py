"""All candidates of every Linear, quantised once; a trial only points the model at some of them.

On the CPU a candidate is a dense fake-quantised weight in the model's dtype (float32, so that it
is exact): as many copies of the decoder's Linears as there are precisions, in exchange for a
forward that costs what the plain model costs. On CUDA candidates are packed modules, which
together take less than the model did.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from qpruner_core.catalog import PRECISIONS, precision_formats
from qpruner_core.domain.footprint import BYTES_16_BIT
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.errors import BadInputError
from qpruner_core.quantization.orientation import candidate, outputs_first
from qpruner_core.quantization.packed_sizes import PackedSizes
from qpruner_core.quantization.shapes import check_shapes

if TYPE_CHECKING:
    from qpruner_core.models.device import Device

SHARE_FOR_CANDIDATES = 0.6
"""Share of the free device memory for candidates; activations and caches need the rest."""


class Slot(Protocol):
    """The place of one Linear, with all its candidates."""

    def show(self, precision: str | None) -> None:
        """Let the model compute with that candidate; None for the weight as it was found."""
        ...

    def packed_bytes(self, precision: str) -> int:
        """Return the bytes of that candidate's weight as packed, without bias."""
        ...

    def found_weight(self) -> torch.Tensor:
        """Return the weight as it was found, ``(out_features, in_features)``, without history."""
        ...


class DenseSlot:
    """Candidates as dense weights; showing one exchanges the tensor behind the parameter."""

    def __init__(
        self, linear: nn.Linear | Conv1D, precisions: tuple[str, ...], sizes: PackedSizes
    ) -> None:
        self._bytes = {name: sizes.count(linear, name) for name in precisions}
        self._parameter = linear.weight
        self._inputs_first = isinstance(linear, Conv1D)
        found = linear.weight.data
        self._candidates: dict[str | None, torch.Tensor] = {None: found}
        for name in precisions:
            dense = candidate(linear, name)
            # bf16 of a model that ships in bf16 is the weight itself: no second copy.
            is_found = dense.stride() == found.stride() and torch.equal(dense, found)
            self._candidates[name] = found if is_found else dense

    def show(self, precision: str | None) -> None:
        """Let the model compute with that candidate (see `Slot.show`)."""
        self._parameter.data = self._candidates[precision]

    def packed_bytes(self, precision: str) -> int:
        """Return the bytes counted on a packed Linear of that shape (see `Slot.packed_bytes`)."""
        return self._bytes[precision]

    def found_weight(self) -> torch.Tensor:
        """Return the weight as it was found (see `Slot.found_weight`)."""
        found = self._candidates[None]
        return found.t() if self._inputs_first else found


class PackedSlot:
    """Candidates as packed modules; showing one exchanges the child of the parent module.

    With a host, what is not shown lies in host memory: slower to show, for small devices.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str,
        precisions: tuple[str, ...],
        device: Device,
        host: torch.device | None,
    ) -> None:
        parent, _, self._leaf = name.rpartition(".")
        self._parent = model.get_submodule(parent)
        self._device, self._host = device.torch, host
        linear = cast("nn.Linear", model.get_submodule(name))
        self._shown: nn.Module = linear
        self._candidates: dict[str | None, nn.Module] = {None: linear}
        for precision in precisions:
            if precision == "bf16" and linear.weight.dtype == torch.bfloat16:
                self._candidates[precision] = linear  # it is that already: no second copy
                continue
            packed = PRECISIONS.target(precision).pack(linear, device.compute_dtype)
            self._candidates[precision] = packed if host is None else packed.to(host)

    def show(self, precision: str | None) -> None:
        """Let the model compute with that candidate (see `Slot.show`)."""
        module = self._candidates[precision]
        if module is self._shown:
            return
        if self._host is not None:
            self._shown.to(self._host)
            module.to(self._device)
        setattr(self._parent, self._leaf, module)
        self._shown = module

    def packed_bytes(self, precision: str) -> int:
        """Return the bytes of the candidate itself (see `Slot.packed_bytes`)."""
        return int(PRECISIONS.target(precision).packed_bytes(self._candidates[precision]))

    def found_weight(self) -> torch.Tensor:
        """Return the weight as it was found (see `Slot.found_weight`)."""
        return outputs_first(cast("nn.Linear", self._candidates[None]))


class Bank:
    """The candidates of one model; while it is in use, the model computes what the bank shows.

    Not safe while another thread uses the model. `restore` gives the model back as it was.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: ModelLayout,
        precisions: tuple[str, ...],
        device: Device,
        *,
        packed: bool | None = None,
        on_host: bool | None = None,
    ) -> None:
        """Quantise every Linear of the decoder layers once per precision.

        Args:
            model: In evaluation mode, on the device; Linears dense.
            layout: Its layout, as pruned.
            precisions: Catalogue names, each once.
            device: Where the model lies.
            packed: Candidates as packed modules; None: on CUDA.
            on_host: Packed candidates that are not shown lie in host memory; None: when they
                would take more than 60 % of the free device memory.

        Raises:
            UnknownNameError: A precision has no catalogue entry.
            IncompatibleShapeError: A precision cannot carry some width; every Linear is named.
        """
        check_shapes(layout, precisions)
        self.model = model
        self.layout = layout
        self.precisions = precisions
        self.device = device
        names = [linear.name for linear in layout.linears]
        self._shown: dict[str, str | None] = dict.fromkeys(names)
        self._other_bytes = bytes_beside(model, names)
        if packed or (packed is None and device.kind == "cuda"):
            crowded = _is_crowded(layout, precisions, device) if on_host is None else on_host
            host = torch.device("cpu") if crowded else None
            self._slots: Mapping[str, Slot] = {
                name: PackedSlot(model, name, precisions, device, host) for name in names
            }
        else:
            sizes = PackedSizes(device.compute_dtype)
            self._slots = {
                name: DenseSlot(cast("nn.Linear", model.get_submodule(name)), precisions, sizes)
                for name in names
            }

    def apply(self, plan: PrecisionPlan) -> None:
        """Point every Linear at its candidate.

        Raises:
            BadInputError: The plan leaves out a Linear, names a strange one, or names a
                precision that is not in this bank; the model is unchanged then.
        """
        self.check(plan)
        for name, precision in plan.precisions.items():
            self._show(name, precision)

    def check(self, plan: PrecisionPlan) -> None:
        """Refuse a plan that is not for this bank.

        Raises:
            BadInputError: As for `apply`.
        """
        chosen = plan.precisions
        if chosen.keys() != self._shown.keys() or not set(chosen.values()) <= set(self.precisions):
            self._refuse(chosen)

    def linear_bytes(self, name: str, precision: str) -> int:
        """Return the bytes of one Linear's candidate as packed, without its bias."""
        return self._slots[name].packed_bytes(precision)

    def found_weight(self, name: str, level: int = 0) -> torch.Tensor:
        """Return the weight that a Linear came with, ``(out_features, in_features)``, without
        history; there is one level.
        """
        return self._slots[name].found_weight()

    def packed_bytes(self, plan: PrecisionPlan) -> int:
        """Return the bytes of the model under a plan: counted on packed weights, the rest at 16
        bit.

        Equal to ``packing.packed_bytes`` of the model packed by that plan, without packing it.

        Raises:
            BadInputError: As for `apply`.
        """
        self.check(plan)
        weights = (self.linear_bytes(name, p) for name, p in plan.precisions.items())
        return self._other_bytes + sum(weights)

    def set(self, linear_name: str, precision: str | None) -> None:
        """Point one Linear at a candidate, or at its own weight (None).

        Raises:
            BadInputError: The bank does not hold that Linear or precision.
        """
        known = precision is None or precision in self.precisions
        if linear_name not in self._shown or not known:
            self._refuse({linear_name: precision})
        self._show(linear_name, precision)

    def restore(self) -> None:
        """Point every Linear at the weight it came with."""
        for name in self._shown:
            self._show(name, None)

    def _show(self, name: str, precision: str | None) -> None:
        if self._shown[name] != precision:
            self._slots[name].show(precision)
            self._shown[name] = precision

    def _refuse(self, chosen: Mapping[str, str | None]) -> None:
        strange = sorted(chosen.keys() - self._shown.keys())
        missing = sorted(self._shown.keys() - chosen.keys())
        unknown = sorted({str(p) for p in chosen.values() if p is not None} - set(self.precisions))
        raise BadInputError(
            f"The precision plan names precisions that this bank does not hold "
            f"({', '.join(unknown) or 'none'}), Linears that this model does not have "
            f"({', '.join(strange[:3]) or 'none'}) and leaves out {len(missing)}. Use "
            f"{', '.join(self.precisions)} and one precision for each of the {len(self._shown)} "
            f"Linears of the model as it is pruned now."
        )


def bytes_beside(model: nn.Module, names: list[str]) -> int:
    """Return the bytes at 16 bit of all parameters but the Linears' weights; tied ones once.

    Args:
        model: A model, or a part of one.
        names: Its Linears of the decoder layers, by their names inside it.
    """
    weights = {id(cast("nn.Linear", model.get_submodule(name)).weight) for name in names}
    others = (p.numel() for p in model.parameters() if id(p) not in weights)
    return BYTES_16_BIT * sum(others)


def _is_crowded(layout: ModelLayout, precisions: tuple[str, ...], device: Device) -> bool:
    """Whether the candidates would take too much of what is free on a CUDA device."""
    if device.kind != "cuda":
        return False
    formats = precision_formats()
    needed = sum(
        formats[name].linear_bytes(linear) for name in precisions for linear in layout.linears
    )
    free, _ = torch.cuda.mem_get_info(device.torch)
    return needed > SHARE_FOR_CANDIDATES * free
