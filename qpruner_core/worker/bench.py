"""One step at a time: its line, its reports, its log, its errors."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import Event as Flag
from threading import Lock
from time import monotonic
from typing import Any, Protocol, TypeVar

from dbos import DBOS
from dbos import error as engine_errors

from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.progress import OnProgress, Progress
from qpruner_core.domain.record import RunRecord, Trial
from qpruner_core.domain.reproduction import ReproductionSpec
from qpruner_core.domain.spec import PruningSpec, RunSpec
from qpruner_core.errors import NotReadyError, QPrunerError, StoppedError
from qpruner_core.jobs import PROGRESS
from qpruner_core.store.codec import to_plain
from qpruner_core.store.records import RunStore

R = TypeVar("R")

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
ASK_EVERY_SECONDS = 1.0
"""How often a long step asks the engine whether its job was cancelled."""
LOOK_AT_LOCK_SECONDS = 0.25
"""How often a step looks whether the other writer of its run is done."""

_LOG = logging.getLogger(__name__)


class RunsTheLine(Protocol):
    """What the worker needs of `pipeline.Line`."""

    def record(self) -> RunRecord:
        """Return the record as it stands on disk."""

    def begin(self, spec: RunSpec, steps: tuple[str, ...]) -> None:
        """Take the job's spec over and empty the slots it will fill."""

    def step(self, name: str) -> None:
        """Run one verb and fill its slot."""

    def search_begin(self) -> int:
        """Return the number of baselines of the search."""

    def search_baseline(self, index: int) -> object:
        """Measure a baseline, unless it has been measured."""

    def search_next(self, owner: str, *, alone: bool = False) -> object | None:
        """Claim the plan to measure next and measure it; None when nothing is left to claim."""

    def search_finish(self) -> None:
        """Fill the slot of *search*."""

    def measure(self, plan: PrecisionPlan) -> Trial:
        """Measure a plan made by hand."""

    def compare_begin(self, spec: PruningSpec) -> Sequence[Sequence[str]]:
        """Return criterion and compensation of every row of a comparison."""

    def compare_one(self, criterion: str, compensation: str, spec: PruningSpec) -> object:
        """Measure a row of that comparison, unless it has been measured."""

    def compress(self, spec: RunSpec) -> Any:
        """Prune and write the model layer by layer; a `CompressionOutcome`."""

    def reproduce_begin(self, spec: ReproductionSpec) -> None:
        """Begin the paper's table, or go on with the one that asks for the same."""

    def reproduce_next(self, owner: str) -> str:
        """Do the next piece of the table; return what it was, empty when it is complete."""

    def generate(self, prompt: str, trial: int | None) -> Any:
        """Return texts of the original and the compressed model."""


MakeLine = Callable[[RunStore, str, OnProgress, Callable[[], bool]], RunsTheLine]


class BugError(Exception):
    """Stands for an error of ours in the record of a job; the traceback is in the run's log."""


class Bench:
    """Runs one step at a time on the line of its run, with its reports, its log and its errors.

    Args:
        store: The runs.
        make_line: Builds the line of a run.
        owner: Name of the worker, under which it claims trials.
    """

    def __init__(self, store: RunStore, make_line: MakeLine, owner: str) -> None:
        self.owner = owner
        self._store = store
        self._make_line = make_line
        self._one_at_a_time = Lock()
        self._run_id = ""
        self._line: RunsTheLine | None = None
        self._job_id = ""
        self._asked_at = 0.0
        self._is_cancelled = False

    def do(
        self, run_id: str, words: str, work: Callable[[RunsTheLine], R], *, shared: bool = False
    ) -> R:
        """Run a step of the present job.

        Args:
            run_id: The run.
            words: What the step is, for the log.
            work: The step itself.
            shared: It writes only the study, beside other workers that do so.

        Raises:
            QPrunerError: As the step raised it.
            DBOSWorkflowCancelledError: The step was stopped, as its job was cancelled.
            BugError: The step raised anything else; the run's log holds the traceback.
        """
        with self._one_at_a_time, self._logging(run_id):
            self._job_id = DBOS.workflow_id or ""
            self._asked_at, self._is_cancelled = monotonic(), False
            try:
                with self._writing(run_id, shared):
                    _LOG.info("%s: %s started", self._job_id, words)
                    result = work(self._line_of(run_id))
            except StoppedError as stopped:
                _LOG.info("%s: %s stopped. %s", self._job_id, words, stopped)
                # Of its errors the engine records all but this: resuming tries the step again.
                raise engine_errors.DBOSWorkflowCancelledError(str(stopped)) from stopped
            except QPrunerError as error:
                _LOG.warning("%s: %s failed. %s", self._job_id, words, error)
                raise
            except Exception as error:
                _LOG.exception("%s: %s met a bug", self._job_id, words)
                raise BugError(
                    f"The step met a bug of ours ({type(error).__name__}: {error}). What was "
                    f"finished before is kept. The log of the run holds the details for a report; "
                    f"resuming the job tries the step again."
                ) from error
            _LOG.info("%s: %s done", self._job_id, words)
            return result

    def record(self, run_id: str) -> RunRecord:
        """Return the record of a run as it stands on disk."""
        return self._store.read(run_id)

    def tell(self, run_id: str, progress: Progress) -> None:
        """Set the job's own progress, at the beginning of a step."""
        DBOS.set_event(PROGRESS, to_plain(self._store.append_event(run_id, progress)))

    def tell_newest(self, run_id: str) -> None:
        """Set the job's own progress to the newest that another job of its run has told."""
        newest = self._store.events(run_id, last=1)
        if newest:
            DBOS.set_event(PROGRESS, to_plain(newest[0]))

    @contextmanager
    def _writing(self, run_id: str, shared: bool) -> Iterator[None]:
        """Be the run's only writer, or share it with other workers of a search; others are waited
        for, until a cancel.
        """
        with ExitStack() as stack:
            is_first, is_next = True, False
            while True:
                try:
                    stack.enter_context(self._store.writing(run_id, shared=shared))
                except NotReadyError as busy:
                    if is_first:
                        _LOG.info("%s waits. %s", self._job_id, busy)
                    is_first = False
                else:
                    break
                if not shared and not is_next:
                    # Trials of several workers would otherwise never leave the run free at once.
                    is_next = stack.enter_context(self._store.next_to_write(run_id))
                if self._should_stop():
                    # Of its errors the engine records all but this: resuming tries the step again.
                    raise engine_errors.DBOSWorkflowCancelledError(
                        f"{self._job_id} was cancelled while it waited"
                    )
                Flag().wait(LOOK_AT_LOCK_SECONDS)
            yield

    def _line_of(self, run_id: str) -> RunsTheLine:
        """Return the line of a run with its models; that of the run before is dropped first."""
        if self._line is None or self._run_id != run_id:
            self._line = None
            _free_memory()
            self._store.read(run_id)
            self._line = self._make_line(
                self._store,
                run_id,
                lambda progress: self._report(run_id, progress),
                self._should_stop,
            )
            self._run_id = run_id
        return self._line

    def _report(self, run_id: str, progress: Progress) -> None:
        self._store.append_event(run_id, progress)

    def _should_stop(self) -> bool:
        now = monotonic()
        if not self._is_cancelled and now - self._asked_at >= ASK_EVERY_SECONDS:
            self._asked_at = now
            status = DBOS.get_workflow_status(self._job_id)
            self._is_cancelled = status is None or status.status == "CANCELLED"
        return self._is_cancelled

    @contextmanager
    def _logging(self, run_id: str) -> Iterator[None]:
        """Send what is logged meanwhile to the run's log, if the run is still there."""
        path = self._store.log_path(run_id)
        if not path.parent.is_dir():
            yield
            return
        handler = logging.FileHandler(path, encoding="utf-8")
        handler.setFormatter(logging.Formatter(LOG_FORMAT))
        logging.getLogger().addHandler(handler)
        try:
            yield
        finally:
            logging.getLogger().removeHandler(handler)
            handler.close()


def _free_memory() -> None:
    """Give back what the line of the run before held."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
