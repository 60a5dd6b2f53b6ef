"""A home folder with a real worker that is started again whenever it dies."""

import os
import signal
import sys
from pathlib import Path
from threading import Event as Flag
from time import monotonic

from app.launch import Patience, WorkerKeeper
from qpruner_core.jobs import Jobs
from qpruner_core.store.records import RunStore

ENDED = ("done", "failed", "cancelled")
PATIENCE_SECONDS = 240.0


class Site:
    """A home folder with a real worker that is started again whenever it dies."""

    def __init__(self, home: Path, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._patience_seconds = patience_seconds
        self.store, self.jobs = RunStore(home), Jobs(home)
        command = (sys.executable, "-m", "qpruner_core.worker", "--device", "cpu")
        environment = {"QPRUNER_HOME": str(home), "OMP_NUM_THREADS": "1"}
        patience = Patience(first_pause=0.1, quick_deaths=99)
        self._keeper = WorkerKeeper(command, environment, patience)

    def until(self, holds, what):
        """Look after the worker until something holds; return what it said."""
        limit = monotonic() + self._patience_seconds
        while not (found := holds()):
            assert monotonic() < limit, f"waited too long for {what}"
            self._keeper.look()
            Flag().wait(0.02)
        return found

    def ended(self, job_id):
        """Wait for the end of a job and return it."""
        return self.until(lambda: (j := self.jobs.get(job_id)).status in ENDED and j, "the job")

    def kill_worker(self):
        worker = self.jobs.workers()[0]
        os.kill(worker.pid, signal.SIGKILL)
        return worker.pid

    def close(self):
        self._keeper.stop()
        self.jobs.close()
