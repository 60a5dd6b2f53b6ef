"""SIGKILL and cancel amid training: it goes on where it stood, and no step is taken twice."""

from dataclasses import replace
from itertools import pairwise

import pytest
from kept_worker import Site

from qpruner_core.domain.record import STEPS
from qpruner_core.domain.spec import (
    ImportanceSpec,
    ModelSpec,
    PruningSpec,
    RecoverySpec,
    RunSpec,
    SearchSpec,
)

N_STEPS = 400
CHECKPOINT = 50
KILL_AFTER = (120, 260)
"""Steps after which the worker is killed; the next kill waits for its own number."""

pytestmark = pytest.mark.slow


@pytest.fixture
def spec(tiny_config, request):
    """A training long enough to be interrupted twice, with everything in it that is random."""
    folder, data = request.getfixturevalue("tiny_folder"), request.getfixturevalue("tiny_data")
    return RunSpec(
        model=ModelSpec(source=str(folder)),
        data=data,
        importance=ImportanceSpec(criteria=("magnitude", "mutual_information")),
        pruning=PruningSpec(
            ratio=0.25, criterion="magnitude", scope="per-layer", protect_first=0, protect_last=1
        ),
        search=SearchSpec(
            memory_budget="0.9", n_trials=1, strategy="random", precisions=("int8", "bf16")
        ),
        recovery=RecoverySpec(
            steps=N_STEPS,
            rank=2,
            batch_size=2,
            sequence_length=16,
            dropout=0.1,
            checkpoint_steps=CHECKPOINT,
        ),
    )


@pytest.fixture
def site(tmp_path):
    found = Site(tmp_path / "home")
    yield found
    found.close()


@pytest.fixture
def run_id(site, spec):
    """A run that has been searched."""
    found = site.store.create(spec).run_id
    job = site.ended(site.jobs.start_line(found, STEPS[:6], spec))
    assert (job.status, job.error) == ("done", "")
    return found


def attempts(site, run_id):
    """Return the numbers of the steps that were taken, attempt by attempt."""
    found = []
    for event in site.store.events(run_id):
        if event.progress.step != "recover":
            continue
        if event.progress.done == 0:
            found.append([])
        elif "loss" in event.progress.values:
            found[-1].append(event.progress.done)
    return [steps for steps in found if steps]


def until_past(site, run_id, step):
    site.until(lambda: any(n > step for a in attempts(site, run_id) for n in a), f"step {step}")


def peaceful_losses(site, run_id, spec):
    """Train the same plan once more, left in peace."""
    site.ended(site.jobs.start_line(run_id, ("recover",), spec))
    found = site.store.read(run_id).recover
    assert attempts(site, run_id)[-1] == list(range(1, N_STEPS + 1))
    return found.losses


def test_training_whose_worker_is_killed_goes_on_from_its_last_checkpoint(site, spec, run_id):
    job_id = site.jobs.start_line(run_id, ("recover",), spec)
    killed = set()
    for step in KILL_AFTER:
        until_past(site, run_id, step)
        killed.add(site.kill_worker())
    job = site.ended(job_id)
    assert (job.status, job.error, len(killed)) == ("done", "", len(KILL_AFTER))
    taken = attempts(site, run_id)
    assert len(taken) == len(KILL_AFTER) + 1
    for before, after in pairwise(taken):
        # At most what came after the last checkpoint is trained again.
        stood = after[0] - 1
        assert stood % CHECKPOINT == 0
        assert before[-1] - CHECKPOINT <= stood <= before[-1] + 1
        assert after == list(range(after[0], after[-1] + 1))
    found = site.store.read(run_id).recover
    assert (found.is_complete, found.remarks) == (True, ())
    assert taken[-1][-1] == N_STEPS
    assert found.losses == peaceful_losses(site, run_id, spec)


def test_cancelled_training_keeps_its_adapter_exports_nothing_and_is_resumed_to_the_end(
    site, spec, run_id
):
    job_id = site.jobs.start_line(run_id, ("recover", "export"), spec)
    until_past(site, run_id, 60)
    site.jobs.cancel(job_id)
    stopped = site.until(lambda: site.store.read(run_id).recover, "what was learned")
    assert 60 < len(stopped.losses) < N_STEPS
    assert not stopped.is_complete
    assert stopped.adapter
    assert stopped.after.loss != stopped.before.loss
    assert any(f"after {len(stopped.losses)} of {N_STEPS}" in words for words in stopped.remarks)
    # The worker is free for the next job, and nothing of this one went on.
    other = site.ended(site.jobs.start_generate(run_id, "ba", None))
    assert other.status == "done"
    assert site.store.read(run_id).export is None
    job = site.jobs.get(job_id)
    assert job.status == "cancelled"
    assert site.jobs.why_not_resumed(job) == ""

    site.jobs.resume(job_id)
    assert site.ended(job_id).status == "done"
    record = site.store.read(run_id)
    first, second = attempts(site, run_id)
    assert (first[-1], second[0]) == (len(stopped.losses), len(stopped.losses) + 1)
    assert record.recover.is_complete
    assert record.recover.remarks == ()
    assert record.recover.losses[: len(stopped.losses)] == stopped.losses
    assert record.export.reload_logits_equal
    again = replace(spec, recovery=record.spec.recovery)
    assert record.recover.losses == peaceful_losses(site, run_id, again)
