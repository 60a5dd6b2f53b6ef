"""What uniform rules and the peers choose at a number of bits per weight.

Peers run in an environment of their own (`requirements-peers.txt`): they are asked by a file and
answer by one, as their packages and ours need not agree.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qpruner_core.catalog import precision_formats
from qpruner_core.domain.footprint import BYTES_16_BIT, plan_bytes
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PrecisionPlan

ROOT = Path(__file__).resolve().parent
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
    folder: Path, peer: str, request: Mapping[str, object], home: Path
) -> list[dict[str, object]] | str:
    """Run a peer in its own environment; return its plans, or in words why there are none."""
    if not PYTHON.is_file():
        return "not run: build/peers-venv is missing (see --help)"
    script, method = PEERS[peer]
    files = home / "request.json", home / "answer.json"
    files[0].write_text(json.dumps({**request, "method": method}), "utf-8")
    files[1].unlink(missing_ok=True)
    command = [str(PYTHON), str(ROOT / script), str(folder), *map(str, files)]
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


def say(*words: object) -> None:
    """Tell the person how far it is."""
    print(*words, file=sys.stderr, flush=True)
