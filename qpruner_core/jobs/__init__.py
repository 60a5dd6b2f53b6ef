"""A thin client of the job engine: put a job on the queue, look at it, stop it, go on with it.

Queue, retry and crash recovery are the engine's. Nothing here computes, and everything that
travels is JSON. Jobs of one run never run beside each other, as a run's record has one writer;
but for those that measure trials of one search, which write only its study.
"""

from qpruner_core.jobs.client import Jobs
from qpruner_core.jobs.engine import (
    APPLICATION,
    BEGIN,
    COMPARE_BEGIN,
    PROGRESS,
    QUEUE,
    QUEUE_LIMITS,
    REPRODUCE,
    REPRODUCE_BEGIN,
    TRIALS,
    WORKFLOWS_VERSION,
    Job,
    SearchWorker,
    beside,
    is_under_way,
    serializer,
)
from qpruner_core.store.workers import WorkerInfo

__all__ = [
    "APPLICATION",
    "BEGIN",
    "COMPARE_BEGIN",
    "PROGRESS",
    "QUEUE",
    "QUEUE_LIMITS",
    "REPRODUCE",
    "REPRODUCE_BEGIN",
    "TRIALS",
    "WORKFLOWS_VERSION",
    "Job",
    "Jobs",
    "SearchWorker",
    "WorkerInfo",
    "beside",
    "is_under_way",
    "serializer",
]
