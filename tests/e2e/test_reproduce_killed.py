"""SIGKILL and cancel of the worker amid the paper's table: it goes on, and nothing differs."""

import pytest
from kept_worker import Site

from qpruner_core.cli import main
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.domain.reproduction import VARIANTS, ReproductionSpec
from qpruner_core.domain.spec import ModelSpec, RunSpec
from qpruner_core.models.device import pick_device
from qpruner_core.pipeline import Line

PATIENCE_SECONDS = 400.0
SPEC = ReproductionSpec(
    ratios=(0.2,),
    n_trials=2,
    n_startup=1,
    recover_steps=1,
    recovery=RecoverySpec(
        steps=60, rank=2, batch_size=1, sequence_length=16, checkpoint_steps=5, dropout=0.05
    ),
)

pytestmark = pytest.mark.slow


@pytest.fixture
def spec(tiny_config, request):
    """Three layers whose MLPs 4 bit carries."""
    tiny_config.num_hidden_layers = 3
    tiny_config.intermediate_size = 256
    folder, data = request.getfixturevalue("tiny_folder"), request.getfixturevalue("tiny_data")
    return RunSpec(model=ModelSpec(source=str(folder)), data=data)


def until_told(site, run_id, *words):
    """Wait for a new report that says all of some words."""
    seen = len(site.store.events(run_id))

    def is_told():
        told = [e.progress.message for e in site.store.events(run_id)[seen:]]
        return any(all(word in message for word in words) for message in told)

    site.until(is_told, " ".join(words))


@pytest.fixture
def site(tmp_path):
    found = Site(tmp_path / "home", PATIENCE_SECONDS)
    yield found
    found.close()


def rows_of(store, run_id):
    """Return what of every row must not depend on who made it, and how often it was killed."""
    found = []
    for row in store.read(run_id).reproduction.rows:
        after = row.recovery.after
        numbers = (row.recovery.losses, after.loss, after.accuracy, row.training_bytes)
        found.append((row.ratio, row.variant, row.trial, row.plan.key, *numbers))
    return found


def test_a_table_whose_worker_is_killed_and_whose_job_is_cancelled_equals_one_left_in_peace(
    site, spec
):
    run_id = site.store.create(spec).run_id
    job_id = site.jobs.start_reproduce(run_id, SPEC)
    until_told(site, run_id, "search", "QPruner-1")
    killed = {site.kill_worker()}
    until_told(site, run_id, "LLM-Pruner (16 bit)", "training")
    killed.add(site.kill_worker())
    until_told(site, run_id, "QPruner-1", "training")
    site.jobs.cancel(job_id)
    assert site.ended(job_id).status == "cancelled"
    site.jobs.resume(job_id)
    job = site.ended(job_id)
    assert (job.status, job.error, job.kind) == ("done", "", "reproduce")
    assert len(killed) == 2

    peaceful = Line(site.store, site.store.create(spec).run_id, pick_device("cpu"))
    peaceful.reproduce_begin(SPEC)
    while peaceful.reproduce_next("this process"):
        pass
    assert [row[1] for row in rows_of(site.store, run_id)] == list(VARIANTS)
    assert rows_of(site.store, run_id) == rows_of(site.store, peaceful.record().run_id)
    refused = site.jobs.why_not_resumed(site.jobs.get(job_id))
    assert "done" in refused


def test_a_command_follows_the_table_on_the_queue_and_writes_it_row_by_row(
    site, spec, tmp_path, capsys
):
    site.until(site.jobs.workers, "a worker")
    data = spec.data
    texts = [f"--{name}={getattr(data, name)}" for name in ("calibration", "training", "heldout")]
    command = [
        "reproduce",
        spec.model.source,
        *texts,
        *("--ratios=0.2", "--trials=1", "--recovery-steps=1", "--recover-steps=0"),
        *("--recovery-length=16", "--sequence-length=16", "--calibration-tokens=256"),
        *("--heldout-tokens=64", f"--items={data.tasks}", "--items-per-task=4"),
        f"--out={tmp_path / 'out'}",
        f"--home={site.store.home}",
        "--queue",
    ]
    assert main(command) == 0
    shown = capsys.readouterr()
    assert "QPruner-3" in shown.out
    assert "quantise" in shown.err
    assert (tmp_path / "out" / "table.tex").read_text().count("QPruner-3 &") == 1
    assert [job.kind for job in site.jobs.list()] == ["reproduce"]
