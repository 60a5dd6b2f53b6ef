"""The job that prunes and writes a model layer by layer."""

from __future__ import annotations

from typing import Any

from dbos import DBOS

from qpruner_core.domain.progress import Progress
from qpruner_core.domain.spec import RunSpec
from qpruner_core.store.codec import from_plain
from qpruner_core.worker.bench import Bench

MAX_KILLS = 20
"""How often the worker may die under the job before it is given up."""


def register_compress(bench: Bench) -> None:
    """Tell the engine of the job; see `workflows.register_jobs`."""

    @DBOS.step(name="compress")
    def compress(run_id: str, spec: dict[str, Any]) -> dict[str, Any]:
        words = "layer by layer"
        bench.tell(run_id, Progress(step="prune", done=0, total=1, message=words))
        wanted = from_plain(RunSpec, spec)
        found = bench.do(run_id, words, lambda line: line.compress(wanted))
        return {"path": found.path, "size_bytes": found.size_bytes}

    @DBOS.workflow(name="compress", max_recovery_attempts=MAX_KILLS)
    def compress_job(payload: dict[str, Any]) -> dict[str, Any]:
        return compress(payload["run_id"], payload["spec"])
