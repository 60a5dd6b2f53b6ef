"""A run that compresses layer by layer beside its line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from app.downloads import LAYER_BY_LAYER, export_folder, zip_name
from qpruner_core.cli import main
from qpruner_core.domain.spec import DataSpec, ModelSpec, PruningSpec, RunSpec, SearchSpec
from qpruner_core.errors import OutputExistsError
from qpruner_core.inspection import inspect_model
from qpruner_core.models.device import pick_device
from qpruner_core.pipeline import Line
from qpruner_core.store.codec import from_json, to_json
from qpruner_core.store.records import RunStore


@pytest.fixture
def spec(tiny_folder: Path, tiny_data: DataSpec) -> RunSpec:
    return RunSpec(
        model=ModelSpec(source=str(tiny_folder)),
        data=tiny_data,
        pruning=PruningSpec(ratio=0.2, criterion="magnitude", protect_first=0, protect_last=0),
        search=SearchSpec(precisions=("int8",)),
    )


def test_the_folder_lies_among_the_runs_artifacts_and_is_named_in_the_record(
    tmp_path: Path, spec: RunSpec
) -> None:
    store = RunStore(tmp_path / "home")
    run_id = store.create(spec).run_id
    found = Line(store, run_id, pick_device("cpu")).compress(spec)
    record = store.read(run_id)
    assert record.compressed == found
    assert from_json(type(found), to_json(found)) == found
    assert record.next_step == "load"
    assert Path(found.path).is_relative_to(store.folder(run_id))
    name = zip_name(run_id, LAYER_BY_LAYER)
    assert export_folder(store.home, run_id, name) == Path(found.path)
    # Asking for another artifact folder keeps the one that the record names.
    store.artifact_folder(run_id, "other")
    assert (Path(found.path) / "config.json").is_file()


def test_the_command_prints_one_document_and_its_refusals_are_sentences(
    tmp_path: Path, spec: RunSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    data = spec.data
    words = [
        "compress",
        spec.model.source,
        f"--calibration={data.calibration}",
        f"--training={data.training}",
        f"--heldout={data.heldout}",
        "--sequence-length=16",
        "--calibration-tokens=64",
        "--pruning-ratio=0.2",
        "--precision=int8",
        "--protect-first=0",
        "--protect-last=0",
        "--device=cpu",
        "--json",
        f"--out={tmp_path / 'out'}",
    ]
    assert main(words) == 0
    printed = capsys.readouterr()
    assert '"peak_memory_bytes"' in printed.out
    assert printed.out.startswith("{")
    assert "layer 2 of 2: writing" in printed.err
    assert main(words) == 2
    assert "there already" in capsys.readouterr().err
    assert main([*words, "--memory-budget=0.4", f"--out={tmp_path / 'other'}"]) == 2
    assert "one or the other" in capsys.readouterr().err
    taylor = [*words, "--criterion=taylor", f"--out={tmp_path / 'other'}"]
    assert main(taylor) == 2
    assert "needs gradients" in capsys.readouterr().err


def test_a_spec_of_the_line_goes_through_unchanged(tmp_path: Path, spec: RunSpec) -> None:
    store = RunStore(tmp_path / "home")
    run_id = store.create(spec).run_id
    asked = replace(spec, export=replace(spec.export, out=str(tmp_path / "mine")))
    found = Line(store, run_id, pick_device("cpu")).compress(asked)
    assert found.path == str(tmp_path / "mine")
    assert store.read(run_id).spec == spec


def test_a_job_that_was_killed_once_its_folder_had_its_name_finds_it_again(
    tmp_path: Path, spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RunStore(tmp_path / "home")
    run_id = store.create(spec).run_id
    asked = replace(spec, export=replace(spec.export, out=str(tmp_path / "mine")))
    rename = Path.rename

    def killed(self: Path, target: Path) -> Path:
        done = rename(self, target)
        if target == tmp_path / "mine":
            raise KeyboardInterrupt
        return done

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            Line(store, run_id, pick_device("cpu")).compress(asked)
    written = (tmp_path / "mine" / "model.safetensors").stat().st_mtime_ns
    found = Line(store, run_id, pick_device("cpu")).compress(asked)
    assert found == store.read(run_id).compressed
    assert found.path == str(tmp_path / "mine")
    assert (tmp_path / "mine" / "model.safetensors").stat().st_mtime_ns == written
    # Anything else is refused as ever: another pruning, or a folder that is not what it was.
    other = replace(asked, pruning=replace(asked.pruning, ratio=0.3))
    with pytest.raises(OutputExistsError):
        Line(store, run_id, pick_device("cpu")).compress(other)
    (tmp_path / "mine" / "qpruner.json").write_text("{}")
    with pytest.raises(OutputExistsError):
        Line(store, run_id, pick_device("cpu")).compress(asked)


def test_a_job_that_was_killed_before_its_folder_had_its_name_begins_again(
    tmp_path: Path, spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RunStore(tmp_path / "home")
    run_id = store.create(spec).run_id
    asked = replace(spec, export=replace(spec.export, out=str(tmp_path / "mine")))

    def killed(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            Line(store, run_id, pick_device("cpu")).compress(asked)
    assert not (tmp_path / "mine").exists()
    Line(store, run_id, pick_device("cpu")).compress(asked)
    assert (tmp_path / "mine" / "config.json").is_file()


def test_a_run_compresses_the_commit_that_it_was_begun_on(tmp_path: Path, spec: RunSpec) -> None:
    store = RunStore(tmp_path / "home")
    run_id = store.create(spec).run_id
    card = replace(inspect_model(spec.model), revision="abc123")
    store.write(replace(store.read(run_id), load=card))
    found = Line(store, run_id, pick_device("cpu")).compress(spec)
    assert found.spec.model.revision == "abc123"
    assert "--revision=abc123" in (Path(found.path) / "README.md").read_text()
    assert store.read(run_id).spec == spec
