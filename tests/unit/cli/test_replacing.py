"""What a command takes from a run is said before, and a copy spares the run."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from qpruner_core.cli import commands, main
from qpruner_core.cli.parser import build_parser
from qpruner_core.cli.replacing import replaced_words
from qpruner_core.cli.specs import run_spec
from qpruner_core.domain.record import ExportOutcome, RunRecord
from qpruner_core.domain.recovered import RecoveryOutcome
from qpruner_core.domain.spec import ExportSpec
from qpruner_core.store.records import RunStore

LINE = (
    "--criteria magnitude --criterion magnitude --pruning-ratio 0 --memory-budget 1.0 "
    "--precisions int8 --trials 1 --strategy random --recovery-steps 2 --recovery-length 16 "
    "--batch-size 4 --lora-rank 2 --seed 0"
)


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "home")


@pytest.fixture
def recovered(store, tiny_folder, tiny_data, capsys) -> RunRecord:
    """A short run on a random model, recovered."""
    words = shlex.split(f"run --model {tiny_folder} {LINE}")
    run_id = store.create(
        replace(run_spec(build_parser().parse_args(words)), data=tiny_data)
    ).run_id
    assert main(["recover", run_id, f"--home={store.home}", "--quiet"]) == 0
    capsys.readouterr()
    return store.read(run_id)


def exported(record: RunRecord, path: Path) -> RunRecord:
    written = ExportOutcome(
        spec=ExportSpec(),
        path=str(path),
        size_bytes=1,
        planned_bytes=1,
        reload_logits_equal=True,
        max_logit_difference=0.0,
        files={},
    )
    return replace(record, export=written)


def test_what_is_replaced_is_said_before_the_work_with_its_folders(
    store, recovered, tmp_path, monkeypatch, capsys
):
    store.write(exported(recovered, store.folder(recovered.run_id) / "artifacts" / "export-1"))
    monkeypatch.setattr(commands, "_line", lambda *given: pytest.fail("said by now"))
    with pytest.raises(pytest.fail.Exception):
        main(["recover", recovered.run_id, f"--home={store.home}", "--quiet"])
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"Run {recovered.run_id}: made anew: recover; emptied" in said
    assert "old result: export." in said
    assert f"Removed: {recovered.recover.adapter}, " in said
    assert "artifacts/export-1. --copy" in said


def test_a_folder_that_lies_elsewhere_stays(store, recovered, tmp_path):
    record = exported(recovered, tmp_path / "out")
    said = replaced_words(store, record, record.spec, ("export",))
    assert said == (
        f"Run {record.run_id}: made anew: export. {tmp_path / 'out'} stays where it is. --copy "
        "works in a copy instead."
    )


def test_a_training_that_goes_on_replaces_nothing(store, recovered):
    outcome: RecoveryOutcome = recovered.recover
    longer = replace(outcome.spec, steps=9)
    stopped = replace(recovered, recover=replace(outcome, spec=longer))
    asked = replace(recovered.spec, recovery=replace(longer, trial=None))
    assert replaced_words(store, stopped, asked, ("recover",)) == ""
    other = replace(asked, recovery=replace(longer, rank=3))
    assert "made anew: recover" in replaced_words(store, stopped, other, ("recover",))
    assert replaced_words(store, replace(recovered, recover=None), asked, ("recover",)) == ""


def test_the_work_goes_into_a_copy_and_the_run_stays(store, recovered, capsys):
    command = ["recover", recovered.run_id, f"--home={store.home}", "--quiet", "--json", "--copy"]
    assert main([*command, "--lora-rank", "1"]) == 0
    said = capsys.readouterr()
    copy = store.read(json.loads(said.out)["run_id"])
    assert said.err == (
        f"Run {recovered.run_id} stays as it is. Working in its copy {copy.run_id}.\n"
    )
    assert copy.recover.spec.rank == 1
    assert store.read(recovered.run_id) == recovered
    assert Path(recovered.recover.adapter).is_dir()


def test_a_copy_whose_work_is_refused_is_not_kept(store, recovered, capsys):
    command = ["recover", recovered.run_id, f"--home={store.home}", "--quiet", "--copy"]
    assert main([*command, "--targets", "foo"]) == 2
    assert "foo" in capsys.readouterr().err
    assert [record.run_id for record in store.list()] == [recovered.run_id]


@pytest.mark.parametrize("step", ["score", "prune", "evaluate", "search", "recover", "export"])
def test_every_step_can_work_in_a_copy(step):
    assert build_parser().parse_args([step, "some-run", "--copy"]).copy is True
    assert build_parser().parse_args([step, "some-run"]).copy is False


def test_what_is_measured_beside_the_line_needs_no_copy(store, recovered, capsys):
    command = ["evaluate", recovered.run_id, f"--home={store.home}", "--speed", "--copy"]
    assert main(command) == 2
    assert "takes nothing from a run" in capsys.readouterr().err
