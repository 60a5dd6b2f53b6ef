"""The job that makes the paper's table: every piece of it is a step."""

from __future__ import annotations

from typing import Any

from dbos import DBOS

from qpruner_core.domain.progress import Progress
from qpruner_core.domain.reproduction import ReproductionSpec
from qpruner_core.jobs import REPRODUCE, REPRODUCE_BEGIN
from qpruner_core.store.codec import from_plain, to_plain
from qpruner_core.worker.bench import Bench

MAX_KILLS = 20
"""How often the worker may die under the job before it is given up."""


def register_reproduce(bench: Bench) -> None:
    """Tell the engine of the job; see `workflows.register_jobs`."""

    @DBOS.step(name=REPRODUCE_BEGIN)
    def begin(run_id: str, spec: dict[str, Any]) -> Any:
        bench.tell(run_id, Progress(step=REPRODUCE, done=0, total=1, message="beginning"))
        wanted = from_plain(ReproductionSpec, spec)
        bench.do(
            run_id,
            "taking over the settings of the table",
            lambda line: line.reproduce_begin(wanted),
        )
        return to_plain(wanted)

    @DBOS.step(name="reproduce_next")
    def next_piece(run_id: str) -> str:
        bench.tell_newest(run_id)
        words = "the next piece of the table"
        return bench.do(run_id, words, lambda line: line.reproduce_next(bench.owner))

    @DBOS.workflow(name=REPRODUCE, max_recovery_attempts=MAX_KILLS)
    def reproduce_job(payload: dict[str, Any]) -> None:
        begin(payload["run_id"], payload["spec"])
        while next_piece(payload["run_id"]):
            pass
