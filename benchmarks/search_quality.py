"""How much of the true front a search finds, by strategy.

Every plan of the space has been measured (`true_front.py`), so a trial costs a look into the table
and searches can be repeated. Each strategy gets the same baselines and the same sensitivities,
measured here as the product measures them, and as many trials as a person would wait for. Reported
is the hypervolume lost, in percent of that of the true front, after 10, 20 and 40 trials, and what
a suggestion costs in time.

Reference point: the packed bytes of the largest plan, and the loss of the worst of all plans, both
times 1.001, so that no plan of the table is beyond it.
"""

from __future__ import annotations

import argparse
import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "2")

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

sys.path.insert(0, str(Path(__file__).resolve().parent))

import form
import numpy as np
import true_front
from numpy.typing import NDArray

from qpruner_core.catalog import STRATEGIES
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.record import SensitivityCell
from qpruner_core.domain.spec import SearchSpec
from qpruner_core.models.architectures import llama
from qpruner_core.search.asking import Known
from qpruner_core.search.pareto import Point, hypervolume, non_dominated
from qpruner_core.search.presets import by_mutual_information
from qpruner_core.search.space import SearchSpace
from qpruner_core.search.study import Study

CHECKPOINTS = (10, 20, 40)
LOST_TARGET = 1.0
SECONDS_TARGET = 0.5
WIDE = {"layers": 26, "precisions": ("nf4", "int8", "bf16"), "trials": 200}
"""The space in which the time of a suggestion is held to its target."""


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A space whose every plan is measured, with what a search knows beforehand."""

    space: SearchSpace
    losses: NDArray[np.float64]
    weight_bytes: NDArray[np.int64]
    cells: Sequence[SensitivityCell]
    baselines: Mapping[str, PrecisionPlan]

    def metrics(self, plan: PrecisionPlan) -> Metrics:
        """Return what the table says of a plan."""
        code = self.space.code(plan)
        index = int("".join(map(str, code)), len(self.space.precisions))
        return Metrics(
            loss=float(self.losses[index]),
            accuracy=0.0,
            weight_bytes=int(self.weight_bytes[index]),
            device="table",
        )

    @property
    def reference(self) -> Point:
        """The corner that hypervolumes are counted from."""
        return float(self.weight_bytes.max()) * 1.001, float(self.losses.max()) * 1.001

    @property
    def points(self) -> list[Point]:
        """Bytes and loss of every plan."""
        return [(float(b), float(x)) for b, x in zip(self.weight_bytes, self.losses, strict=True)]


def subject(home: Path, table: Path, source: str) -> Subject:
    """Return the space of a table, with signals measured on the model it was made of."""
    pruned = true_front.pruned_demo(home, source)
    truth = true_front.read(table)
    outcome = pruned.signals()
    space = SearchSpace(pruned.layout, true_front.PRECISIONS, "layer")
    middle = int(np.median(truth.weight_bytes))
    second = by_mutual_information(pruned.layout, outcome.mutual_information, middle)
    plans = {name: PrecisionPlan.uniform(pruned.layout, name) for name in space.precisions}
    return Subject(
        space=space,
        losses=truth.losses,
        weight_bytes=truth.weight_bytes,
        cells=outcome.sensitivities,
        baselines=plans | ({"QPruner-2": second} if second is not None else {}),
    )


@dataclass(frozen=True, slots=True)
class Course:
    """One search of one strategy."""

    lost: Mapping[int, float]
    """Trials -> percent of the true hypervolume that is not yet found."""
    seconds: Sequence[float]
    """Time of every suggestion, storage included."""


def course(known: Subject, spec: SearchSpec, folder: Path) -> Course:
    """Run one search against the table."""
    measured = {plan.key: known.metrics(plan) for plan in known.baselines.values()}
    found = [(float(m.weight_bytes), m.loss) for m in measured.values()]
    whole = hypervolume(known.points, known.reference)
    lost, seconds = {}, []
    budget = int(known.weight_bytes.max())
    with Study.open(
        str(folder / f"{spec.strategy}-{spec.seed}.db"),
        "quality",
        known.space,
        spec,
        budget,
        Known(sensitivities=known.cells, measured=measured),
    ) as study:
        for number in range(spec.n_trials):
            started = perf_counter()
            proposal = study.claim("benchmark", spec.n_trials)
            seconds.append(perf_counter() - started)
            metrics = known.metrics(proposal.plan)
            study.record(proposal.number, metrics)
            found.append((float(metrics.weight_bytes), metrics.loss))
            if number + 1 in CHECKPOINTS:
                lost[number + 1] = 100.0 * (1.0 - hypervolume(found, known.reference) / whole)
    return Course(lost, seconds)


def measure(arguments: argparse.Namespace) -> form.Report:
    """Run every strategy with every seed and time the default in a wide space."""
    seeds = range(2 if arguments.quick else arguments.seeds)
    names = [name for name in STRATEGIES.names() if name in (arguments.only or STRATEGIES.names())]
    default = SearchSpec().strategy
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        known = subject(folder / "home", Path(arguments.table), arguments.model)
        courses = {
            name: [
                course(known, SearchSpec(strategy=name, n_trials=CHECKPOINTS[-1], seed=s), folder)
                for s in seeds
            ]
            for name in names
        }
        wide = wide_seconds(default, folder, n_last=3 if arguments.quick else 10)
    rows = [_row(name, found) for name, found in courses.items()]
    rows.append(_front_row(known))
    return form.Report(name="search_quality", rows=rows, targets=_targets(courses, default, wide))


def wide_seconds(strategy: str, folder: Path, n_last: int) -> float:
    """Return the median time of a suggestion when 200 trials of 26 layers are known; seconds.

    The losses are made up, additive with a little interaction; only the time counts.
    """
    layers, precisions = int(WIDE["layers"]), tuple(WIDE["precisions"])
    layout = wide_layout(layers)
    space = SearchSpace(layout, precisions, "layer")
    rng = np.random.default_rng(0)
    cost = rng.gamma(1.0, 0.02, (layers, 1)) * np.array([1.0, 0.1, 0.0])
    cells = [
        SensitivityCell(unit=u, precision=p, loss_increase=float(cost[i, j]), kl=float(cost[i, j]))
        for i, u in enumerate(space.units)
        for j, p in enumerate(space.precisions)
    ]
    n_trials = int(WIDE["trials"]) + n_last
    spec = SearchSpec(strategy=strategy, n_trials=n_trials)
    codes = sorted({tuple(int(x) for x in rng.integers(3, size=layers)) for _ in range(300)})
    measured = {
        space.decode(code).key: _made_up(space, code, cost, rng)
        for code in codes[: int(WIDE["trials"])]
    }
    seconds = []
    known = Known(sensitivities=cells, measured=measured)
    store = str(folder / "wide.db")
    with Study.open(store, "wide", space, spec, space.largest_bytes, known) as study:
        for _ in range(n_last):
            started = perf_counter()
            proposal = study.claim("benchmark", n_trials)
            seconds.append(perf_counter() - started)
            code = space.code(proposal.plan)
            study.record(proposal.number, _made_up(space, code, cost, rng))
    return median(seconds)


def wide_layout(n_layers: int) -> ModelLayout:
    """Return a Llama of that many layers whose widths differ, as pruning leaves them."""
    return llama.layout(
        {
            "model_type": "llama",
            "num_hidden_layers": n_layers,
            "hidden_size": 2048,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "intermediate_size": 5632,
            "vocab_size": 32000,
            "tie_word_embeddings": True,
        }
    )


def _made_up(
    space: SearchSpace,
    code: tuple[int, ...],
    cost: NDArray[np.float64],
    rng: np.random.Generator,
) -> Metrics:
    parts = cost[np.arange(len(code)), list(code)]
    loss = 2.0 + float(parts.sum() + 2.0 * (parts[1:] * parts[:-1]).sum()) + rng.normal(0, 1e-4)
    return Metrics(loss=loss, accuracy=0.0, weight_bytes=space.code_bytes(code), device="table")


def _row(name: str, courses: Sequence[Course]) -> dict[str, form.Cell]:
    at = {n: [c.lost[n] for c in courses] for n in CHECKPOINTS}
    return {
        "strategy": name,
        **{f"lost_percent_after_{n}": median(values) for n, values in at.items()},
        "worst_seed_after_40": max(at[CHECKPOINTS[-1]]),
        "median_seconds_per_suggestion": median(s for c in courses for s in c.seconds),
        "seeds": len(courses),
    }


def _front_row(known: Subject) -> dict[str, form.Cell]:
    """Return what baselines alone leave, and how large the true front is."""
    whole = hypervolume(known.points, known.reference)
    found = [known.metrics(plan) for plan in known.baselines.values()]
    left = hypervolume([(float(m.weight_bytes), m.loss) for m in found], known.reference)
    lost = 100.0 * (1.0 - left / whole)
    return {
        "strategy": f"baselines alone (true front: {len(non_dominated(known.points))} plans)",
        **{f"lost_percent_after_{n}": lost for n in CHECKPOINTS},
        "worst_seed_after_40": lost,
        "median_seconds_per_suggestion": 0.0,
        "seeds": 1,
    }


def _targets(
    courses: Mapping[str, Sequence[Course]], default: str, wide: float
) -> list[form.Target]:
    """Return the default's loss, its loss over that of the best other, and its time."""
    at = {
        name: {n: median(c.lost[n] for c in found) for n in CHECKPOINTS}
        for name, found in courses.items()
    }
    targets = [
        form.Target(
            name=f"hypervolume lost by {default} after {CHECKPOINTS[-1]} trials, percent",
            value=at[default][CHECKPOINTS[-1]],
            target=LOST_TARGET,
        )
    ]
    others = [name for name in at if name != default]
    for n in CHECKPOINTS:
        if others:
            best = min(others, key=lambda name: at[name][n])
            targets.append(
                form.Target(
                    name=f"lost by {default} over the best other ({best}) after {n} trials",
                    value=_ratio(at[default][n], at[best][n]),
                    target=1.0,
                )
            )
    where = f"{WIDE['layers']} layers, {len(WIDE['precisions'])} precisions"
    targets.append(
        form.Target(
            name=f"seconds per suggestion at {WIDE['trials']} trials, {where}",
            value=wide,
            target=SECONDS_TARGET,
        )
    )
    return targets


def _ratio(ours: float, theirs: float) -> float:
    """Return a ratio of losses; two searches that lost nothing are equal."""
    if theirs <= 0.0:
        return 1.0 if ours <= 0.0 else float("inf")
    return ours / theirs


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--table", default=str(true_front.TABLE), help="table of the true front")
    parser.add_argument("--model", default="demo", help="the model that the table was made of")
    parser.add_argument("--seeds", type=int, default=5, help="seeds per strategy")
    parser.add_argument("--only", nargs="*", help="strategies; all by default")


if __name__ == "__main__":
    sys.exit(form.main(measure, "Hypervolume lost by every strategy.", _arguments))
