"""The worker as a process: its name, its device, how it starts and how it ends."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event as Flag

from dbos import DBOS, DBOSConfig
from sqlalchemy.exc import SQLAlchemyError

from qpruner_core.errors import BadInputError, QPrunerError
from qpruner_core.jobs import (
    APPLICATION,
    QUEUE,
    QUEUE_LIMITS,
    WORKFLOWS_VERSION,
    serializer,
)
from qpruner_core.store.home import database_url, home
from qpruner_core.store.records import RunStore
from qpruner_core.store.workers import WorkerInfo, kept_gone, living_workers, registered
from qpruner_core.worker.bench import LOG_FORMAT, Bench, MakeLine
from qpruner_core.worker.workflows import register_jobs

POLL_EVERY_SECONDS = 0.25
"""How often a free worker looks for a job."""
LOOK_EVERY_SECONDS = 1.0
"""How often a worker looks for the parent that it ends with, and for jobs of workers that have
ended.
"""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a worker works."""

    home: Path
    database: str
    """URL of the job database."""
    device_key: str
    """``cpu``, ``cpu:<seat>`` for further workers on it, or ``cuda:<number of the card>``."""
    device: str
    """``cpu`` or the name of the card."""
    memory_bytes: int | None = None
    """Memory of the device; None where it is not known."""


def is_news(record: logging.LogRecord) -> bool:
    """Leave out the engine's traceback for what a person did on purpose, a cancelled job, and for
    a refusal: the worker has logged its sentence.
    """
    kind = record.exc_info[0] if isinstance(record.exc_info, tuple) else None
    return kind is None or not ("Cancelled" in kind.__name__ or issubclass(kind, QPrunerError))


def serve(place: Place, make_line: MakeLine, stop: Flag, parent: int | None = None) -> None:
    """Take jobs until told to stop; a step under way is then abandoned, to be taken up again.

    Args:
        place: Home, database and device.
        make_line: Builds the line of a run.
        stop: Set by whoever wants the worker to end.
        parent: Process with which the worker ends; None for none.

    Raises:
        BadInputError: This machine has a living worker for that device.
    """
    # On the root, as the run's log takes its level from there; what is printed goes to stderr.
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    logging.captureWarnings(True)
    logging.getLogger("dbos").addFilter(is_news)
    with registered(place.home, place.device_key, place.device, place.memory_bytes) as info:
        DBOS(config=_config(place, info))
        register_jobs(Bench(RunStore(place.home, place.database), make_line, info.name))
        DBOS.launch()
        DBOS.register_queue(
            QUEUE,
            **QUEUE_LIMITS,
            polling_interval_sec=POLL_EVERY_SECONDS,
            on_conflict="always_update",
        )
        _stop_older(place.home, info.name)
        _LOG.info("worker %s takes jobs from %s", info.name, place.home)
        while True:
            _take_over(place.home, info.name)
            if stop.wait(LOOK_EVERY_SECONDS):
                break
            if parent is not None and os.getppid() != parent:
                _LOG.warning("the process that started this worker is gone; ending too")
                break


def main(argv: Sequence[str] | None = None) -> None:
    """Run a worker until SIGTERM or SIGINT, then end the process.

    Raises:
        BadInputError: The device is not there, or has a living worker on this machine.
    """
    arguments = _parser().parse_args(argv)
    _prepare_threads(arguments.device)
    stop = Flag()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    folder = Path(arguments.home).expanduser().absolute() if arguments.home else home()
    parent = os.getppid() if arguments.with_parent else None
    place, make_line = _real_line(folder, arguments.database, arguments.device)
    serve(place, make_line, stop, parent)
    leave(0)


def leave(code: int) -> None:
    """End the process at once: a step under way holds threads that nobody waits for."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _take_over(folder: Path, name: str) -> None:
    """Put jobs of workers that have ended back on the queue; the engine sees to our own.

    A worker may never come back, or under another name when its machine is renamed, as a container
    is, or when it gets another device.
    """
    try:
        running = DBOS.list_workflows(status="PENDING", load_input=False, load_output=False)
        for owner in sorted({row.executor_id for row in running if row.executor_id} - {name}):
            with kept_gone(folder, owner) as is_gone:
                if is_gone:
                    _LOG.warning("taking up the jobs of a worker that has ended: %s", owner)
                    # Not public, but the public ways would also take a job that somebody has just
                    # taken up.
                    DBOS._recover_pending_workflows([owner])
    except SQLAlchemyError as error:
        # The engine has its own patience with its database; the next look may find it there.
        _LOG.warning("cannot look for jobs of workers that have ended (%s)", type(error).__name__)


def _stop_older(folder: Path, name: str) -> None:
    """Cancel jobs that another version of the workflows began and that nobody can go on with.

    They would count as running for ever. Their steps can be started again; what was measured with
    equal settings is kept.
    """
    if any(worker.name != name for worker in living_workers(folder)):
        return  # that version may be alive
    begun = DBOS.list_workflows(
        status=["PENDING", "ENQUEUED"], load_input=False, load_output=False
    )
    older = [row.workflow_id for row in begun if row.app_version not in (None, WORKFLOWS_VERSION)]
    if older:
        _LOG.warning("stopping jobs that another version has begun: %s", ", ".join(older))
        DBOS.cancel_workflows(older)


def _real_line(folder: Path, database: str | None, asked: str) -> tuple[Place, MakeLine]:
    from qpruner_core.models.device import memory_bytes, pick_device  # noqa: PLC0415 - loads torch
    from qpruner_core.pipeline import Line  # noqa: PLC0415 - loads torch

    kind, _, seat = asked.partition(":")
    if seat and not seat.isdigit():
        raise BadInputError(
            f"The device was given as {asked!r}. Give the number of a card, as in cuda:1, or of a "
            f"further worker on this machine's cores, as in cpu:1."
        )
    device = pick_device(kind)
    card = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0] or str(device.index)
    on_cores = f"cpu:{seat}" if int(seat or 0) else "cpu"
    place = Place(
        home=folder,
        database=database_url(folder, database),
        device_key=on_cores if device.kind == "cpu" else f"{device.kind}:{card}",
        device=device.name,
        memory_bytes=memory_bytes(device),
    )
    return place, lambda store, run_id, tell, stop: Line(store, run_id, device, tell, stop)


def _config(place: Place, info: WorkerInfo) -> DBOSConfig:
    return {
        "name": APPLICATION,
        "system_database_url": place.database,
        "application_version": WORKFLOWS_VERSION,
        "executor_id": info.name,
        "serializer": serializer(),
        "log_level": "WARNING",
    }


def _prepare_threads(device: str) -> None:
    """Set what OpenMP and CUDA read when torch is first imported."""
    # Two OpenMP pools on the same cores spin against each other: several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    kind, _, card = device.partition(":")
    if card and kind != "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = card


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m qpruner_core.worker",
        description="Take jobs off the queue and run them on one device of this machine.",
    )
    parser.add_argument("--home", help="home folder; QPRUNER_HOME or ~/.qpruner by default")
    parser.add_argument(
        "--database", help="URL of the job database; QPRUNER_DATABASE or SQLite in the home"
    )
    parser.add_argument(
        "--device",
        default="auto",
        help="auto, cpu, cuda or cuda:<number>; cpu:<number> for further workers on the same "
        "cores; auto by default",
    )
    parser.add_argument(
        "--with-parent", action="store_true", help="end when the process that started it ends"
    )
    return parser
