"""Which precision where: our default beside uniform rules, `auto_quantize` and `AutoScheme`.

All sides see one pruned model, the same calibration tokens and the same choice of formats, and
only say which Linear gets which. Every plan is then carried out with our formats and measured by
our evaluation, on held-out text that no side has seen: our search, too, measures its trials on
the calibration tokens here. With `--trials-on heldout` it measures them as the product does, on
the first tokens of the held-out text, and the losses are those of the rest. As few tokens tell
close plans apart badly, a plan's distance to the best peer's comes with its standard error, of
the differences sequence by sequence.

A peer's target is swept until its plan takes as many packed bytes as it can below a point; our
search may then take no more than the best peer's plan. Seconds are those of a search: a peer's
calibration, scoring and solving, and our quantising step with our trials. Importing, loading and
pruning count on no side.

The peers live in an environment of their own, made once:

    python -m venv build/peers-venv
    build/peers-venv/bin/pip install -r benchmarks/requirements-peers.txt
"""

from __future__ import annotations

import argparse
import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "2")

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

sys.path.insert(0, str(Path(__file__).resolve().parent))

import form
import numpy as np
import torch
from peer_plans import (
    PEERS,
    Found,
    Scale,
    ask_peer,
    nearest_below,
    say,
    targets_around,
    uniform_plans,
)
from plan_losses import PlanLosses

from qpruner_core.catalog import EXPORTERS
from qpruner_core.data import load_corpus
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.progress import Progress
from qpruner_core.domain.record import RunRecord, Trial
from qpruner_core.domain.spec import (
    DataSpec,
    ImportanceSpec,
    ModelSpec,
    PruningSpec,
    RunSpec,
    SearchSpec,
)
from qpruner_core.export import ExportFacts
from qpruner_core.inspection import demo_folder
from qpruner_core.models.device import pick_device
from qpruner_core.pipeline.line import Line
from qpruner_core.pipeline.materials import Materials
from qpruner_core.quantization.packing import pack_
from qpruner_core.search.knapsack import best_under, front
from qpruner_core.search.pareto import best_measured
from qpruner_core.search.space import SearchSpace
from qpruner_core.store.records import RunStore

PRECISIONS = ("nf4", "int8")
POINTS = (4.5, 5.0, 6.0)
"""Bits per weight of the decoder's Linears, as packed: scales and tables included."""
TIES = ("layer", "fused", "linear")
"""What shares a precision: the paper's choice, Model Optimizer's own, AutoRound's own."""
TRIALS = (0, 8, 16)
"""Numbers of trials at which our search is stated, besides the default."""
RATIO = 0.2
ALL_TOKENS = 10**6
"""More than the demo's held-out text has."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Subject:
    """The pruned model as every side gets it."""

    name: str
    source: str
    data: DataSpec
    """The run's texts: trials are measured on the calibration tokens."""
    record: RunRecord
    materials: Materials
    heldout: torch.Tensor
    """What the final losses are measured on, ``(n, length)``."""
    folder: Path
    """The model for the peers: a 16-bit checkpoint."""

    @property
    def layout(self) -> ModelLayout:
        """Layout of the pruned model."""
        return self.materials.layout()


def run_spec(source: str, data: DataSpec, search: SearchSpec) -> RunSpec:
    """Return the product's own run, with its defaults but for texts and search space."""
    return RunSpec(
        model=ModelSpec(source=source),
        data=data,
        importance=ImportanceSpec(criteria=("flap",)),
        pruning=PruningSpec(ratio=RATIO),
        search=search,
    )


class Run:
    """One run of the line up to the pruned model, with a clock beside its search."""

    def __init__(self, home: Path, source: str, data: DataSpec, search: SearchSpec) -> None:
        self.store = RunStore(home)
        self.spec = run_spec(source, data, search)
        self.run_id = self.store.create(self.spec).run_id
        self.line = Line(self.store, self.run_id, pick_device("cpu"), on_progress=self._note)
        self._ends: list[float] = []
        steps = ("load", "score", "prune")
        self.line.begin(self.spec, steps)
        for step in steps:
            self.line.step(step)

    def quantize(self) -> float:
        """Measure sensitivities and return the seconds of the step."""
        self.line.begin(self.spec, ("quantize",))
        self.line.step("quantize")
        return self.line.record().seconds["quantize"]

    def search(self, budget_bytes: int, n_trials: int) -> tuple[RunRecord, list[float], float]:
        """Search under a budget; return the record, seconds after every slot, and of it all."""
        search = replace(self.spec.search, memory_budget=f"{budget_bytes} B", n_trials=n_trials)
        self.line.begin(replace(self.spec, search=search), ("search",))
        self._ends = []
        started = perf_counter()
        self.line.run("search")
        whole = perf_counter() - started
        return self.line.record(), [end - started for end in self._ends], whole

    def _note(self, progress: Progress) -> None:
        if progress.step == "search" and "seconds" in progress.values:  # a plan was measured
            self._ends.append(perf_counter())


def texts(home: Path, trials_on: str, *, quick: bool) -> DataSpec:
    """Return what the run reads: calibration text, and what trials are measured on."""
    data = DataSpec(tasks="none")
    if quick:
        data = replace(data, calibration_tokens=2048, heldout_tokens=4096)
    if trials_on == "heldout":
        return data
    copied = home / "calibration.txt"  # under its own name the two uses would share the text out
    shutil.copyfile(demo_folder() / "data" / "calibration.txt", copied)
    return replace(data, heldout=str(copied), heldout_tokens=data.calibration_tokens)


def prepared(home: Path, name: str, source: str, data: DataSpec) -> Subject:
    """Prune the model, export it for the peers, and read the texts of both kinds."""
    run = Run(home / "export", source, data, SearchSpec(precisions=PRECISIONS))
    materials = Materials(
        run.line.record, pick_device("cpu"), partial(run.store.read_arrays, run.run_id)
    )
    folder = home / "folder"
    _export(run.line.record(), materials, folder)
    whole = DataSpec(tasks="none", heldout_tokens=ALL_TOKENS)
    heldout = load_corpus(whole, materials.current().tokenizer).heldout
    if data.heldout == "demo":
        heldout = heldout[len(materials.corpus().heldout) :]
    np.save(home / "ids.npy", materials.corpus().calibration.numpy())
    return Subject(
        name=name,
        source=source,
        data=data,
        record=run.line.record(),
        materials=materials,
        heldout=heldout,
        folder=folder,
    )


def _export(record: RunRecord, materials: Materials, folder: Path) -> None:
    if record.load is None or record.prune is None:
        raise ValueError("the run has no pruned model")
    layout = materials.layout()
    plan = PrecisionPlan.uniform(layout, "bf16")
    taken = materials.take_pruned()
    pack_(taken.model, layout, plan, taken.device.compute_dtype)
    facts = ExportFacts(card=record.load, layout=layout, pruning=record.prune.plan, plan=plan)
    EXPORTERS.target("hf_16bit").export(taken.model, taken.tokenizer, facts, folder)


def ours(run: Run, quantized: float, budget_bytes: int, n_trials: int) -> Iterator[Found]:
    """Yield what our default chooses under a budget, without and with trials."""
    record = run.line.record()
    if record.prune is None or record.quantize is None:
        raise ValueError("the run has no sensitivities")
    search = record.spec.search
    started = perf_counter()
    space = SearchSpace(record.prune.layout, search.precisions, search.tie)
    cells = record.quantize.sensitivities
    predicted = best_under(front(space, cells, signal=search.signal), budget_bytes)
    alone = quantized + perf_counter() - started
    make = partial(Found, whose="ours")
    yield make(method="predicted front", plan=predicted.plan, seconds=alone, trials=0)
    record, ends, whole = run.search(budget_bytes, n_trials)
    if record.search is None:
        raise ValueError("the search has no outcome")
    trials = sorted(record.search.trials, key=lambda trial: trial.number)
    ends = ends[-len(trials) :]
    for count in [*(n for n in TRIALS if 0 < n < len(trials)), len(trials)]:
        known: list[Trial] = [*record.search.baselines, *trials[:count]]
        best = best_measured(known, search.objective, budget_bytes)
        seconds = quantized + (whole if count == len(trials) else ends[count - 1])
        if best is not None:
            words = f"{search.strategy} (default)"
            yield make(method=words, plan=best.plan, seconds=seconds, trials=count)


def measure_tie(
    given: Subject, tie: str, arguments: argparse.Namespace, home: Path
) -> tuple[list[dict[str, form.Cell]], list[form.Target]]:
    """Ask every side at one granularity."""
    layout, scale = given.layout, Scale(given.layout)
    loss = PlanLosses(given.materials, PRECISIONS, given.heldout)
    bits = {name: scale.of(name) for name in PRECISIONS}
    request = {
        "ids": str(home / "ids.npy"),
        "tie": tie,
        "bits": bits,
        "targets": targets_around(arguments.points, min(bits.values()), max(bits.values())),
        "threads": arguments.threads,
    }
    answers = {}
    for peer in PEERS:
        say(given.name, tie, peer)
        answers[peer] = ask_peer(given.folder, peer, request, home)
    search = SearchSpec(precisions=PRECISIONS, tie=tie)
    run = Run(home / f"ours-{tie}", given.source, given.data, search)
    quantized = run.quantize()
    rows: list[dict[str, form.Cell]] = []
    targets: list[form.Target] = []
    for point in arguments.points:
        found = [*uniform_plans(scale, layout, scale.size_at(point))]
        for peer, answer in answers.items():
            if isinstance(answer, str):
                rows.append(_empty(given, tie, point, f"{peer}: {answer}"))
            else:
                best = nearest_below(peer, answer, layout, scale, scale.size_at(point))
                found += [best] if best is not None else []
        found = [one for one in found if scale.size(one.plan) <= scale.size_at(point)]
        if not found:
            rows.append(_empty(given, tie, point, "no plan of any peer is that small"))
            continue
        leader = min(found, key=lambda one: loss(one.plan))
        mine = [*ours(run, quantized, scale.size(leader.plan), arguments.trials)]
        every = (*found, *mine)
        rows += [_row(given, (tie, point), one, leader, scale, loss) for one in every]
        targets += _targets(f"{given.name}, {tie}, {point:g} bits", leader, found, mine, loss)
        for row in rows[-len(every) :]:
            say(*row.values())
    return rows, targets


def _targets(
    where: str,
    leader: Found,
    peers: Sequence[Found],
    mine: Sequence[Found],
    loss: Callable[[PrecisionPlan], float],
) -> Iterator[form.Target]:
    """Yield our default's loss over the best peer's, and its seconds over those of the best that
    searches.
    """
    default = mine[-1]
    yield form.Target(
        name=f"{where}: our default over the best peer ({leader.method}), loss",
        value=loss(default.plan) / loss(leader.plan),
        target=1.0,
    )
    searching = [one for one in peers if one.seconds is not None]
    if searching and default.seconds is not None:
        best = min(searching, key=lambda one: loss(one.plan))
        yield form.Target(
            name=f"{where}: our default over the best that searches ({best.method}), seconds",
            value=default.seconds / (best.seconds or 1.0),
            target=1.0,
        )


def _row(
    given: Subject,
    where: tuple[str, float],
    found: Found,
    leader: Found,
    scale: Scale,
    loss: PlanLosses,
) -> dict[str, form.Cell]:
    apart = loss.apart(found.plan, leader.plan)
    value = loss(found.plan)
    return {
        "model": given.name,
        "tie": where[0],
        "point": where[1],
        "whose": found.whose,
        "method": found.method,
        "trials": found.trials,
        "bits per weight": round(scale.bits(found.plan), 4),
        "packed bytes": scale.size(found.plan),
        "loss": round(value, 5),
        "over 16 bit, nats": round(value - loss.dense(), 5),
        "over best peer, nats": round(apart.mean, 5),
        "standard error": round(apart.error, 5),
        "seconds": None if found.seconds is None else round(found.seconds, 2),
    }


def _empty(given: Subject, tie: str, point: float, words: str) -> dict[str, form.Cell]:
    names = (
        *("trials", "bits per weight", "packed bytes", "loss", "over 16 bit, nats"),
        *("over best peer, nats", "standard error", "seconds"),
    )
    named: dict[str, form.Cell] = {"model": given.name, "tie": tie, "point": point}
    return {**named, "whose": "peer", "method": words, **dict.fromkeys(names)}


def measure(arguments: argparse.Namespace) -> form.Report:
    """Compare all sides at every granularity and point."""
    quick = arguments.quick
    arguments.points = arguments.points or ((5.0,) if quick else POINTS)
    arguments.ties = arguments.ties or (("layer",) if quick else TIES)
    arguments.trials = arguments.trials or (8 if quick else SearchSpec().n_trials)
    torch.set_num_threads(arguments.threads)
    rows: list[dict[str, form.Cell]] = []
    targets: list[form.Target] = []
    name = "demo" if arguments.source == "demo" else Path(arguments.source).parent.name
    with TemporaryDirectory() as folder:
        data = texts(Path(folder), arguments.trials_on, quick=quick)
        given = prepared(Path(folder), name, arguments.source, data)
        for tie in arguments.ties:
            found = measure_tie(given, tie, arguments, Path(folder))
            rows += found[0]
            targets += found[1]
    return form.Report(name="precision_peers", rows=rows, targets=targets)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark can be told."""
    parser.add_argument("--source", default="demo", help="model; default: the demo")
    parser.add_argument("--points", type=float, nargs="+", help="bits per weight")
    parser.add_argument("--ties", nargs="+", choices=TIES, help="what shares a precision")
    parser.add_argument("--trials", type=int, help="trials of our search; default: its own")
    parser.add_argument(
        "--trials-on", choices=("calibration", "heldout"), default="calibration",
        help="text that our search measures its trials on",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=2, help="threads of torch, on all sides")


if __name__ == "__main__":
    sys.exit(form.main(measure, __doc__.splitlines()[0], add_arguments))
