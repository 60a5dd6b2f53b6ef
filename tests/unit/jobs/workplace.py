"""A home folder with its store, its job client and real worker processes."""

import os
import subprocess
import sys
from pathlib import Path
from threading import Event as Flag
from time import monotonic

from qpruner_core.domain.spec import ModelSpec, RunSpec
from qpruner_core.jobs import Jobs
from qpruner_core.store.records import RunStore

SPEC = RunSpec(model=ModelSpec(source="demo"))
COUNTING = "counting_worker.py"
STUDYING = "studying_worker.py"
PATIENCE_SECONDS = 60.0


def until(holds, what="that"):
    """Look again and again until something holds; return what it said."""
    limit = monotonic() + PATIENCE_SECONDS
    while not (found := holds()):
        assert monotonic() < limit, f"waited too long for {what}"
        Flag().wait(0.05)
    return found


class Workplace:
    """A home folder with its store, its job client and the workers started in it."""

    def __init__(self, home: Path, script: str = COUNTING, database: str | None = None):
        self.home = home
        self.store = RunStore(home, database)
        self.jobs = Jobs(home, database)
        self._script, self._database = Path(__file__).with_name(script), database
        self._processes = []

    def start(self, *flags, **environment):
        if self._database is not None:
            environment["COUNTING_DATABASE"] = self._database
        process = subprocess.Popen(
            [sys.executable, str(self._script), str(self.home), *flags],
            env={**os.environ, **environment},
            stderr=subprocess.PIPE,
            text=True,
        )
        self._processes.append(process)
        return process

    def run(self, spec=SPEC):
        return self.store.create(spec).run_id

    def file(self, run_id, name):
        return self.store.folder(run_id) / name

    def lines(self, run_id, name):
        path = self.file(run_id, name)
        return path.read_text().split() if path.exists() else []

    def until_status(self, job_id, status):
        return until(
            lambda: (job := self.jobs.get(job_id)).status == status and job, f"status {status}"
        )

    def until_reached(self, run_id, step):
        until(self.file(run_id, f"reached-{step}").exists, f"step {step}")

    def close(self):
        for process in self._processes:
            process.kill()
            process.communicate()
        self.jobs.close()
