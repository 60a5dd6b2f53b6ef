"""The importance table as rows of one criterion and module each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from app import wording
from app.tables_plan import layer_of
from app.wording_pruning import criterion as criterion_title
from qpruner_core.catalog import CRITERIA, PRECISIONS
from qpruner_core.domain.layout import KINDS
from qpruner_core.domain.record import Agreement, ImportanceOutcome, QuantizationOutcome

MODULE_WORDS = {"attention": "attention", "mlp": "MLP", "layer": "layer", **KINDS}
MODULE_KINDS: Mapping[str, tuple[str, ...]] = {
    "attention": ("kv_heads",),
    "mlp": ("mlp_channels", "expert_channels"),
    **{kind: (kind,) for kind in KINDS},
}
"""Module of the importance table -> kinds of unit behind it; layers have none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One criterion on one kind of module over all layers."""

    key: str
    """``"<criterion>/<module>"``."""
    title: str
    values: Mapping[int, float]
    """Layer -> value in the criterion's own unit."""
    unit: str = ""
    """Unit of the values; empty for dimensionless scores."""

    full: float | None = None
    """Value that is drawn as 1; None for the row's own maximum."""

    def share(self, layer: int) -> float | None:
        """Return the value over the full one; in [0, 1], None where there is none."""
        top = self.full if self.full is not None else max(self.values.values(), default=0.0)
        if layer not in self.values:
            return None
        return max(0.0, self.values[layer] / top) if top > 0 else 0.0

    def text(self, layer: int) -> str:
        """Return the value with its unit."""
        if layer not in self.values:
            return "not scored"
        return f"{self.values[layer]:.4g} {self.unit}".rstrip()


def rows(
    outcome: ImportanceOutcome,
    criteria: Sequence[str],
    measured: QuantizationOutcome | None = None,
) -> list[Row]:
    """Return the rows of the chosen criteria, then one per precision of the sensitivities when
    known.
    """
    made = []
    for criterion in criteria:
        modules = dict.fromkeys(c.module for c in outcome.cells if c.criterion == criterion)
        unit = str(CRITERIA.entry(criterion).facts.get("unit", ""))
        for module in modules:
            made.append(
                Row(
                    key=f"{criterion}/{module}",
                    title=f"{criterion_title(criterion)} · {MODULE_WORDS.get(module, module)}",
                    values=outcome.layer_values(criterion, module),
                    unit=unit,
                )
            )
    return made + (sensitivity_rows(measured) if measured is not None else [])


def sensitivity_rows(measured: QuantizationOutcome) -> list[Row]:
    """Return one row per precision: the loss increases of a layer's search units, summed."""
    made = []
    for precision in measured.precisions:
        values: dict[int, float] = {}
        for cell in measured.sensitivities:
            if cell.precision == precision:
                layer = layer_of(cell.unit)
                values[layer] = values.get(layer, 0.0) + cell.loss_increase
        if values and max(values.values()) > 0:
            made.append(
                Row(
                    key=f"sensitivity/{precision}",
                    title=f"Sensitivity · {PRECISIONS.entry(precision).title}",
                    values=values,
                    unit="nats/token",
                )
            )
    # One scale for all precisions: the noise of 16 bit is not as dark as the loss of 4.
    full = max((value for row in made for value in row.values.values()), default=0.0)
    return [replace(row, full=full) for row in made]


def rank_agreement(table: Sequence[Row]) -> pd.DataFrame:
    """Return Spearman's rank correlation over layers between all rows; NaN where a row does not
    vary.
    """
    frame = pd.DataFrame({row.title: pd.Series(dict(row.values)) for row in table})
    return frame.corr(method="spearman")


def unit_agreement(found: Sequence[Agreement]) -> dict[str, pd.DataFrame]:
    """Return kind of unit -> symmetric table of rank correlations, criteria by their titles; NaN
    for pairs that were not compared.
    """
    tables = {}
    for kind in dict.fromkeys(each.kind for each in found):
        pairs = [each for each in found if each.kind == kind]
        names = list(dict.fromkeys(n for each in pairs for n in (each.first, each.second)))
        frame = pd.DataFrame(index=names, columns=names, dtype="float64")
        for name in names:
            frame.loc[name, name] = 1.0
        for each in pairs:
            frame.loc[each.first, each.second] = each.correlation
            frame.loc[each.second, each.first] = each.correlation
        titles = {name: criterion_title(name) for name in names}
        tables[kind] = frame.rename(index=titles, columns=titles)
    return tables


def agreement_words(found: Sequence[Agreement], kind: str) -> str:
    """Return in a sentence which criteria rank the units of a kind most and least alike."""
    pairs = sorted((p for p in found if p.kind == kind), key=lambda pair: -pair.correlation)
    if not pairs:
        return ""
    words = f"{_pair(pairs[0])} rank the {KINDS[kind]} most alike ({_number(pairs, 0)})"
    if len(pairs) == 1:
        return f"{words}."
    return f"{words}; {_pair(pairs[-1])} least ({_number(pairs, -1)})."


def _pair(pair: Agreement) -> str:
    # In quotes, as titles have commas of their own.
    return f"“{criterion_title(pair.first)}” and “{criterion_title(pair.second)}”"


def _number(pairs: Sequence[Agreement], place: int) -> str:
    """Return the number of a pair, and whether others share it."""
    shown = [wording.correlation(pair.correlation) for pair in pairs]
    more = ", among others" if shown.count(shown[place]) > 1 else ""
    return f"{shown[place]}{more}"
