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

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

sys.path.insert(0, str(Path(__file__).resolve().parent))

import form
import numpy as np
import torch
from numpy.typing import NDArray

from qpruner_core.catalog import EXPORTERS, precision_formats
from qpruner_core.data import load_corpus
from qpruner_core.domain.footprint import BYTES_16_BIT, plan_bytes
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
from qpruner_core.evaluation.perplexity import text_sums
from qpruner_core.export import ExportFacts
from qpruner_core.inspection import demo_folder
from qpruner_core.models.device import pick_device
from qpruner_core.pipeline.line import Line
from qpruner_core.pipeline.materials import Materials
from qpruner_core.quantization.packing import pack_
from qpruner_core.search.knapsack import best_under, front
from qpruner_core.search.noise import PairedDifference, paired_error
from qpruner_core.search.pareto import best_measured
from qpruner_core.search.space import SearchSpace
from qpruner_core.store.records import RunStore

ROOT = Path(__file__).resolve().parent
PRECISIONS = ("nf4", "int8")
POINTS = (4.5, 5.0, 6.0)
"""Bits per weight of the decoder's Linears, as packed: scales and tables included."""
TIES = ("layer", "fused", "linear")
"""What shares a precision: the paper's choice, Model Optimizer's own, AutoRound's own."""
TRIALS = (0, 8, 16)
"""Numbers of trials at which our search is stated, besides the default."""
RATIO = 0.2
PYTHON = ROOT.parent / "build" / "peers-venv" / "bin" / "python"
REACH, STEP = (-0.4, 0.25), 0.025
"""Targets tried around a point, and between them; peers count bits a little differently."""
MARGIN = 0.06
"""Least target above the smallest format, in bits; peers refuse a target they cannot reach."""
PEERS = {
    "auto_quantize, gradient": ("modelopt_peer.py", "gradient"),
    "auto_quantize, KL": ("modelopt_peer.py", "kl_div"),
    "AutoScheme": ("autoround_peer.py", ""),
}
"""Name -> script and what it is told to do."""
PEER_LIMIT_S = 1800
ALL_TOKENS = 10**6
"""More than the demo's held-out text has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A plan that one side chose for a point."""

    whose: str
    method: str
    plan: PrecisionPlan
    seconds: float | None
    """What the choice took; None where there is nothing to search."""
    trials: int | None = None
    """Plans that were measured for it."""


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


class Scale:
    """Bits per weight of the decoder's Linears and packed bytes of the whole model."""

    def __init__(self, layout: ModelLayout) -> None:
        self._layout, self._formats = layout, precision_formats()
        self._n_weights = sum(li.out_features * li.in_features for li in layout.linears)
        self._beside = layout.other_parameters * BYTES_16_BIT

    def size(self, plan: PrecisionPlan) -> int:
        """Return the packed bytes of the model under a plan."""
        return plan_bytes(self._layout, plan, self._formats)

    def bits(self, plan: PrecisionPlan) -> float:
        """Return the mean bits of a weight of the decoder's Linears under a plan."""
        return 8 * (self.size(plan) - self._beside) / self._n_weights

    def size_at(self, bits: float) -> int:
        """Return the packed bytes of the model at a mean number of bits."""
        return int(bits * self._n_weights / 8) + self._beside

    def of(self, precision: str) -> float:
        """Return the mean bits of a format on these Linears."""
        return self.bits(PrecisionPlan.uniform(self._layout, precision))


def targets_around(points: Sequence[float], low: float, high: float) -> list[float]:
    """Return the targets that a peer is asked for, ascending, within what its formats reach."""
    offsets = np.arange(REACH[0], REACH[1] + STEP / 2, STEP)
    tried = {round(float(point + offset), 4) for point in points for offset in offsets}
    return sorted(bits for bits in tried if low + MARGIN <= bits <= high - MARGIN)


def layer_orders(n_layers: int, k: int) -> dict[str, list[int]]:
    """Return rule -> the k layers that get int8, the others nf4."""
    inwards = [index // 2 if index % 2 == 0 else n_layers - 1 - index // 2 for index in range(k)]
    return {
        "int8 in the first layers": list(range(k)),
        "int8 in the first and last layers": inwards,
        "int8 in every n-th layer": [int((i + 0.5) * n_layers / k) for i in range(k)],
    }


def uniform_plans(scale: Scale, layout: ModelLayout, budget_bytes: int) -> Iterator[Found]:
    """Yield nf4 everywhere, and for every rule the plan with the most int8 layers that fits."""

    def plan(chosen: Sequence[int]) -> PrecisionPlan:
        n = layout.n_layers
        return PrecisionPlan.by_layer(layout, ["int8" if i in chosen else "nf4" for i in range(n)])

    yield Found(whose="peer", method="nf4 everywhere", plan=plan(()), seconds=None)
    fitting: dict[str, PrecisionPlan] = {}
    for k in range(1, layout.n_layers + 1):
        for rule, chosen in layer_orders(layout.n_layers, k).items():
            if scale.size(plan(chosen)) <= budget_bytes:
                fitting[rule] = plan(chosen)
    for rule, found in fitting.items():
        yield Found(whose="peer", method=rule, plan=found, seconds=None)


def ask_peer(
    given: Subject, peer: str, request: Mapping[str, object], home: Path
) -> list[dict[str, object]] | str:
    """Run a peer in its own environment; return its plans, or in words why there are none."""
    if not PYTHON.is_file():
        return "not run: build/peers-venv is missing (see --help)"
    script, method = PEERS[peer]
    files = home / "request.json", home / "answer.json"
    files[0].write_text(json.dumps({**request, "method": method}), "utf-8")
    files[1].unlink(missing_ok=True)
    command = [str(PYTHON), str(ROOT / script), str(given.folder), *map(str, files)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(request["threads"]), "HF_HUB_OFFLINE": "1"}
    try:
        ended = subprocess.run(  # noqa: S603 - our own script
            command, check=False, env=environment, timeout=PEER_LIMIT_S, capture_output=True,
            text=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"no end within {PEER_LIMIT_S} s"
    if ended.returncode or not files[1].is_file():
        say(ended.stderr)
        return f"failed: {(ended.stderr.strip().splitlines() or ['without a word'])[-1][:100]}"
    answer: list[dict[str, object]] = json.loads(files[1].read_text("utf-8"))["plans"]
    return answer


def nearest_below(
    peer: str, answer: Sequence[Mapping[str, object]], layout: ModelLayout, scale: Scale, size: int
) -> Found | None:
    """Return the largest plan of a peer's sweep within so many bytes, None without one."""
    best: Found | None = None
    for entry in answer:
        chosen = dict(entry["precisions"])  # type: ignore[call-overload]
        plan = PrecisionPlan(precisions={li.name: chosen[li.name] for li in layout.linears})
        if scale.size(plan) <= size and (best is None or scale.size(plan) > scale.size(best.plan)):
            seconds = float(str(entry["seconds"]))
            best = Found(whose="peer", method=peer, plan=plan, seconds=seconds)
    return best


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
    loss = _Measured(given)
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
        answers[peer] = ask_peer(given, peer, request, home)
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


class _Measured:
    """Losses of plans on the held-out text; a plan is measured once."""

    def __init__(self, given: Subject) -> None:
        self._given = given
        self._known: dict[str, NDArray[np.float64]] = {}

    def __call__(self, plan: PrecisionPlan) -> float:
        """Return the loss of a plan; nats per predicted token."""
        return float(self._sequences(plan).mean())

    def dense(self) -> float:
        """Return the loss of the pruned model at 16 bit."""
        return self(PrecisionPlan.uniform(self._given.layout, "bf16"))

    def apart(self, plan: PrecisionPlan, other: PrecisionPlan) -> PairedDifference:
        """Return how much more a plan loses than another, sequence by sequence."""
        return paired_error(self._sequences(plan).tolist(), self._sequences(other).tolist())

    def _sequences(self, plan: PrecisionPlan) -> NDArray[np.float64]:
        if plan.key not in self._known:
            bank, ids = self._given.materials.bank((*PRECISIONS, "bf16")), self._given.heldout
            bank.apply(plan)
            sums = text_sums(bank.model, ids)
            bank.restore()
            self._known[plan.key] = np.array(sums, dtype=np.float64) / (ids.shape[1] - 1)
        return self._known[plan.key]


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
    loss: _Measured,
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


def say(*words: object) -> None:
    """Tell the person how far it is."""
    print(*words, file=sys.stderr, flush=True)


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
