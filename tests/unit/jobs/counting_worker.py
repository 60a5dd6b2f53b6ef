"""A real worker process whose line computes nothing: it counts, waits and fails as a test asks.

A test asks by files in the run's folder: ``hold-<step>`` makes the step wait (it says so by a file
``reached-<step>``) until the file is gone; ``refuse-<step>``, ``deny-<step>`` and ``break-<step>``
make it raise a sentence, one that would be met again, or a bug. ``begun.txt`` and ``ended.txt``
count what was run; ``recover`` that is stopped while it waits fills its slot without being done
with, and stands in ``stopped.txt``.
The search has a baseline, ``slot-0``, and three trials; ``by.txt`` says who measured which.
"""

import fcntl
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from threading import Event as Flag
from types import SimpleNamespace

from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.progress import Progress
from qpruner_core.domain.record import STEPS, Comparison, Trial
from qpruner_core.errors import InfeasibleBudgetError, MergeRefusedError, StoppedError
from qpruner_core.store.workers import is_gone
from qpruner_core.worker import Place, serve
from qpruner_core.worker.bench import MakeLine
from qpruner_core.worker.process import leave

N_SLOTS = 4
METRICS = Metrics(loss=1.5, accuracy=0.5, weight_bytes=7, device="cpu")


class CountingLine:
    """Does the eight steps by name only."""

    def __init__(self, store, run_id, on_progress, should_stop):
        self._store, self._run_id = store, run_id
        self._folder = store.folder(run_id)
        self._on_progress, self._should_stop = on_progress, should_stop

    def _count(self, name, words):
        with (self._folder / name).open("a") as file:
            file.write(f"{words}\n")

    def _ended(self):
        path = self._folder / "ended.txt"
        return path.read_text().split("\n") if path.exists() else []

    def _work(self, words, step):
        self._count("begun.txt", words)
        self._on_progress(Progress(step=step, done=3, total=7, message=words))
        if (self._folder / f"refuse-{words}").exists():
            raise InfeasibleBudgetError("The budget is 1 MB; 2 MB are needed. Raise the budget.")
        if (self._folder / f"deny-{words}").exists():
            raise MergeRefusedError("Merging changes too much. Keep the adapter apart.")
        if (self._folder / f"break-{words}").exists():
            raise KeyError("a name nobody knows")
        hold = self._folder / f"hold-{words}"
        if hold.exists():
            (self._folder / f"reached-{words}").touch()
        while hold.exists() and not self._should_stop():
            Flag().wait(0.02)
        stops = words == "recover" and hold.exists()
        self._count("stopped.txt" if stops else "ended.txt", words)

    def record(self):
        done = set(self._ended())
        slots = {step: True if step in done else None for step in STEPS}
        stopped = (self._folder / "stopped.txt").exists()
        if stopped or "recover" in done:
            slots["recover"] = SimpleNamespace(is_complete="recover" in done)
        return SimpleNamespace(**slots)

    def begin(self, spec, steps):
        self._store.write(replace(self._store.read(self._run_id), spec=spec))
        self._count("begun.txt", "begin " + "+".join(steps))
        (self._folder / "study_url.txt").write_text(self._store.study_url())

    def step(self, name):
        self._work(name, name)

    def search_begin(self):
        return 1

    def search_baseline(self, index):
        self._work(f"slot-{index}", "search")

    def search_next(self, owner, *, alone=False):
        slot = self._claim(owner, alone)
        if slot is not None:
            self._work(f"slot-{slot}", "search")
            self._count("by.txt", f"{slot} {owner}")
        return slot

    def _claim(self, owner, alone):
        """Take a slot that nobody has taken, or only somebody who does not measure it any more."""
        with (self._folder / "claims.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for slot in range(1, N_SLOTS):
                path = self._folder / f"claim-{slot}"
                holder = path.read_text() if path.exists() else owner
                is_free = alone or holder == owner or is_gone(self._store.home, holder)
                if is_free and f"slot-{slot}" not in self._ended():
                    path.write_text(owner)
                    return slot
        return None

    def search_finish(self):
        self._work("search", "search")

    def measure(self, plan):
        return Trial(number=9, name="by hand", plan=plan, metrics=METRICS)

    def compare_begin(self, spec):
        begun = Comparison(spec=spec, dense=METRICS, rows=())
        self._store.write(replace(self._store.read(self._run_id), comparison=begun))
        ways = ("none", "bias") if spec.compensation == "bias" else ("none",)
        return tuple(("taylor", way) for way in ways)

    def compare_one(self, criterion, compensation, spec):
        self._count("ratios.txt", spec.ratio)
        self._work(f"{criterion}-{compensation}", "prune")

    def compress(self, spec):
        self._work("compress", "export")
        if self._should_stop():
            raise StoppedError("Stopped.")
        return SimpleNamespace(path=f"/{spec.pruning.ratio}", size_bytes=5)

    def generate(self, prompt, trial):
        return {"prompt": prompt, "original": prompt.upper(), "compressed": f"plan {trial}"}


def main(home: str, *flags: str, make_line: MakeLine = CountingLine) -> None:
    """Serve until SIGTERM."""
    stop = Flag()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    folder = Path(home)
    key = os.environ.get("COUNTING_DEVICE", "cpu")
    database = os.environ.get("COUNTING_DATABASE", f"sqlite:///{folder / 'jobs.db'}")
    place = Place(home=folder, database=database, device_key=key, device=key)
    parent = int(flags[0]) if flags else None
    serve(place, make_line, stop, parent)
    leave(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
