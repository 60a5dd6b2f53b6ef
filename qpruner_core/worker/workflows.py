"""What each kind of job does, as workflows of the job engine."""

from __future__ import annotations

from typing import Any

from dbos import DBOS
from dbos import error as engine_errors

from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.progress import Progress
from qpruner_core.domain.spec import PruningSpec, RunSpec
from qpruner_core.jobs import BEGIN, COMPARE_BEGIN
from qpruner_core.store.codec import from_plain, to_plain
from qpruner_core.worker.bench import Bench
from qpruner_core.worker.compressing import register_compress
from qpruner_core.worker.reproducing import register_reproduce
from qpruner_core.worker.searching import MAX_KILLS, register_search, unless_filled


def register_jobs(bench: Bench) -> None:
    """Tell the engine what each kind of job does; call once per process, before the launch.

    The sequence of steps depends on nothing but the payload and what steps returned, so that a
    restarted worker finds its way back. Whoever changes it raises `jobs.WORKFLOWS_VERSION`.
    """
    _register_line(bench)
    _register_finish(bench)
    _register_measure(bench)
    _register_compare(bench)
    register_compress(bench)
    register_reproduce(bench)
    _register_generate(bench)


def _register_line(bench: Bench) -> None:
    run_search = register_search(bench)

    @DBOS.step(name=BEGIN)
    def begin(run_id: str, spec: dict[str, Any], steps: list[str]) -> Any:
        bench.tell(run_id, Progress(step=steps[0], done=0, total=1, message="beginning"))
        wanted = from_plain(RunSpec, spec)
        bench.do(run_id, "taking over the settings", lambda line: line.begin(wanted, tuple(steps)))
        return to_plain(bench.record(run_id).spec)

    @DBOS.step(name="step")
    def step(run_id: str, name: str) -> None:
        bench.tell(run_id, Progress(step=name, done=0, total=1))
        is_done = bench.do(
            run_id, name, lambda line: unless_filled(line, name, lambda: line.step(name))
        )
        if not is_done:
            # Of its errors the engine records all but this: resuming trains on.
            raise engine_errors.DBOSWorkflowCancelledError(f"{name} was stopped before its end")

    @DBOS.workflow(name="line", max_recovery_attempts=MAX_KILLS)
    def line_job(payload: dict[str, Any]) -> None:
        run_id = payload["run_id"]
        begin(run_id, payload["spec"], payload["steps"])
        for name in payload["steps"]:
            if name == "search":
                run_search(run_id, payload.get("workers", 1))
            else:
                step(run_id, name)


def _register_finish(bench: Bench) -> None:
    @DBOS.step(name="finish")
    def finish(run_id: str) -> None:
        bench.tell(run_id, Progress(step="search", done=0, total=1, message="with what is there"))
        bench.do(
            run_id,
            "search, finish",
            lambda line: unless_filled(line, "search", line.search_finish),
        )

    @DBOS.workflow(name="finish", max_recovery_attempts=MAX_KILLS)
    def finish_job(payload: dict[str, Any]) -> None:
        finish(payload["run_id"])


def _register_measure(bench: Bench) -> None:
    @DBOS.step(name="measure")
    def measure(run_id: str, plan: dict[str, Any]) -> Any:
        bench.tell(run_id, Progress(step="search", done=0, total=1, message="a plan by hand"))
        wanted = from_plain(PrecisionPlan, plan)
        return to_plain(bench.do(run_id, "measure", lambda line: line.measure(wanted)))

    @DBOS.workflow(name="measure", max_recovery_attempts=MAX_KILLS)
    def measure_job(payload: dict[str, Any]) -> Any:
        return measure(payload["run_id"], payload["plan"])


def _register_compare(bench: Bench) -> None:
    """Register the comparison of criteria: every row is a step of its own."""

    @DBOS.step(name=COMPARE_BEGIN)
    def compare_begin(run_id: str, pruning: dict[str, Any]) -> list[list[str]]:
        bench.tell(run_id, Progress(step="prune", done=0, total=1, message="comparing criteria"))
        wanted = from_plain(PruningSpec, pruning)
        rows = bench.do(run_id, "compare", lambda line: line.compare_begin(wanted))
        return [list(row) for row in rows]

    @DBOS.step(name="compare_one")
    def compare_one(run_id: str, row: list[str], pruning: dict[str, Any]) -> None:
        criterion, compensation = row
        wanted = from_plain(PruningSpec, pruning)
        bench.do(
            run_id,
            f"compare {criterion}, {compensation}",
            lambda line: line.compare_one(criterion, compensation, wanted),
        )

    @DBOS.workflow(name="compare", max_recovery_attempts=MAX_KILLS)
    def compare_job(payload: dict[str, Any]) -> None:
        for row in compare_begin(payload["run_id"], payload["pruning"]):
            compare_one(payload["run_id"], row, payload["pruning"])


def _register_generate(bench: Bench) -> None:
    @DBOS.step(name="generate")
    def generate(run_id: str, prompt: str, trial: int | None) -> Any:
        return to_plain(bench.do(run_id, "generate", lambda line: line.generate(prompt, trial)))

    @DBOS.workflow(name="generate", max_recovery_attempts=MAX_KILLS)
    def generate_job(payload: dict[str, Any]) -> Any:
        return generate(payload["run_id"], payload["prompt"], payload["trial"])
