"""One folder per run: whole or not at all, never outside the home, and gone when deleted."""

import errno
import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from transformers import LlamaConfig

from qpruner_core.domain.compression import CompressionOutcome
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.plan import PrecisionPlan, PruningPlan
from qpruner_core.domain.progress import Progress
from qpruner_core.domain.record import ExportOutcome, ImportanceOutcome, RecoveryOutcome
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.domain.spec import ExportSpec, ImportanceSpec, ModelSpec, RunSpec
from qpruner_core.errors import BadInputError, NotReadyError, StorageFullError
from qpruner_core.models.architectures import llama
from qpruner_core.store import records
from qpruner_core.store.codec import from_json, to_json
from qpruner_core.store.names import is_run_id
from qpruner_core.store.records import RunStore

SPEC = RunSpec(model=ModelSpec(source="demo"))
METRICS = Metrics(loss=1.0, accuracy=0.5, weight_bytes=10, device="cpu")
ESCAPES = [
    "..",
    "../../etc",
    "20261124-101500-demo-3f2a/..",
    "",
    ".",
    "/etc",
    "a\x00b",
    "20261124-101500--3f2a",
]


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "home")


def progress(done: int) -> Progress:
    return Progress(step="search", done=done, total=9, values={"loss": 1.0 / (1 + done)})


def test_a_home_folder_that_is_not_there_has_no_runs(store):
    assert store.list() == []
    assert store.broken() == {}


def test_a_new_run_is_read_back_equal_and_keeps_what_was_asked_for(store):
    record = store.create(SPEC)
    assert is_run_id(record.run_id)
    assert record.run_id.split("-")[2] == "demo"
    assert RunStore(store.home).read(record.run_id) == record
    assert from_json(RunSpec, (store.folder(record.run_id) / "spec.json").read_text()) == SPEC


@pytest.mark.parametrize("name", ["Ünïcödé / ../ name", "", "-" * 80, "a" * 200])
def test_whatever_a_run_is_called_its_id_is_a_plain_folder(store, name):
    record = store.create(replace(SPEC, name=name))
    assert is_run_id(record.run_id)
    assert store.folder(record.run_id).parent == store.runs


def test_a_run_from_a_folder_is_named_after_it(store):
    record = store.create(RunSpec(model=ModelSpec(source="/data/My Model")))
    assert "-my-model-" in record.run_id


@pytest.mark.parametrize("run_id", ESCAPES)
@pytest.mark.parametrize(
    "entry",
    [
        lambda s, r: s.read(r),
        lambda s, r: s.folder(r),
        lambda s, r: s.delete(r),
        lambda s, r: s.fork(r, "prune"),
        lambda s, r: s.append_event(r, progress(1)),
        lambda s, r: s.events(r),
        lambda s, r: s.log(r),
        lambda s, r: s.write_arrays(r, "x", {}),
        lambda s, r: s.read_arrays(r, "x"),
        lambda s, r: s.artifact_folder(r, "x"),
        lambda s, r: s.write_value(r, "x", 1),
        lambda s, r: s.read_value(r, "x", int),
        lambda s, r: s.disk_usage(r),
    ],
)
def test_no_way_in_takes_a_name_that_leads_elsewhere(store, entry, run_id):
    with pytest.raises(BadInputError, match="is no run"):
        entry(store, run_id)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a\x00"])
def test_no_file_of_a_run_takes_a_name_that_leads_elsewhere(store, name):
    run_id = store.create(SPEC).run_id
    for way in (
        lambda: store.write_arrays(run_id, name, {"a": np.zeros(1)}),
        lambda: store.artifact_folder(run_id, name),
        lambda: store.write_value(run_id, name, 1),
        lambda: store.read_value(run_id, name, int),
        lambda: store.read_arrays(run_id, name),
    ):
        with pytest.raises(BadInputError):
            way()


def test_a_run_that_is_not_there_is_answered_with_a_sentence(store):
    with pytest.raises(BadInputError, match="There is no run 20261124-101500-demo-3f2a"):
        store.read("20261124-101500-demo-3f2a")


def test_a_written_record_is_what_everybody_reads(store):
    record = store.create(SPEC)
    other = RunStore(store.home)
    assert other.read(record.run_id).seconds == {}
    store.write(replace(record, seconds={"load": 1.5}))
    assert other.read(record.run_id).seconds == {"load": 1.5}


def test_a_record_of_a_deleted_run_does_not_bring_it_back(store):
    record = store.create(SPEC)
    store.delete(record.run_id)
    for way in (
        lambda: store.write(record),
        lambda: store.append_event(record.run_id, progress(1)),
        lambda: store.write_value(record.run_id, "x", 1),
    ):
        with pytest.raises(BadInputError, match="no run"):
            way()
    assert list(store.runs.iterdir()) == []


def test_a_reader_never_sees_half_a_record(store):
    record = store.create(SPEC)
    stop = threading.Event()

    def write() -> None:
        for n in range(60):
            store.write(replace(record, seconds={f"step {k}": float(n) for k in range(n)}))
        stop.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    while not stop.is_set():
        seen.append(len(RunStore(store.home).read(record.run_id).seconds))
    writer.join()
    assert seen == sorted(seen)


def test_runs_are_listed_newest_first(store):
    made = [store.create(replace(SPEC, name=f"run {n}")) for n in range(3)]
    for n, record in enumerate(made):
        store.write(replace(record, created_at=f"2026-11-24T10:15:0{n}.000+00:00"))
    assert [r.spec.name for r in store.list()] == ["run 2", "run 1", "run 0"]


def test_a_broken_record_is_named_and_the_others_are_listed(store):
    good, bad = store.create(SPEC), store.create(SPEC)
    (store.folder(bad.run_id) / "record.json").write_text('{"run_id": ')
    (store.runs / "holiday pictures").mkdir()
    assert [record.run_id for record in store.list()] == [good.run_id]
    assert set(store.broken()) == {bad.run_id, "holiday pictures"}
    assert "cannot be read" in store.broken()[bad.run_id]
    store.delete(bad.run_id)
    assert set(store.broken()) == {"holiday pictures"}


def test_a_broken_record_is_decoded_once_until_its_file_changes(store, monkeypatch):
    record, decoded = store.create(SPEC), []
    path, whole = store.folder(record.run_id) / "record.json", to_json(record)

    def counted(cls, text):
        decoded.append(text)
        return from_json(cls, text)

    monkeypatch.setattr(records, "from_json", counted)
    path.write_text('{"run_id": ')
    said = []
    for _ in range(3):
        with pytest.raises(BadInputError, match="cannot be read") as caught:
            store.read(record.run_id)
        said.append(str(caught.value))
    assert len(decoded) == len(set(said)) == 1
    path.write_text(whole)
    assert store.read(record.run_id) == record


def test_events_come_back_in_order_and_a_torn_line_is_left_out(store):
    run_id = store.create(SPEC).run_id
    assert store.events(run_id) == []
    for done in range(5):
        store.append_event(run_id, progress(done))
    path = store.folder(run_id) / "events.jsonl"
    with path.open("a") as file:
        file.write('{"at": "2026-11-24T10:1')
    assert [event.progress.done for event in store.events(run_id)] == [0, 1, 2, 3, 4]
    assert [event.progress.done for event in store.events(run_id, last=2)] == [3, 4]
    store.append_event(run_id, progress(5))
    assert [event.progress.done for event in store.events(run_id)] == [0, 1, 2, 3, 4, 5]
    assert [event.progress.done for event in store.events(run_id, last=1)] == [5]
    assert store.events(run_id, last=0) == []


def test_the_last_events_of_a_long_file_equal_the_end_of_all(store):
    run_id = store.create(SPEC).run_id
    lines = [to_json(store.append_event(run_id, progress(1)))] * 3000
    (store.folder(run_id) / "events.jsonl").write_text("\n".join(lines) + "\n")
    assert store.events(run_id, last=1000) == store.events(run_id)[-1000:]


def test_the_log_shows_its_last_lines(store):
    run_id = store.create(SPEC).run_id
    assert store.log(run_id) == ""
    store.log_path(run_id).write_text("one\ntwo\nthree\n")
    assert store.log(run_id, last=2) == "two\nthree"


def test_arrays_come_back_equal_under_a_name_that_is_their_content(store):
    run_id = store.create(SPEC).run_id
    arrays = {
        "taylor/model.layers.0.mlp": np.arange(6, dtype=np.float32),
        "file": np.array([[1, 2], [3, 4]]).T,
        "empty": np.zeros((0, 3)),
    }
    name = store.write_arrays(run_id, "unit_scores", arrays)
    assert name == store.write_arrays(run_id, "unit_scores", dict(reversed(arrays.items())))
    back = store.read_arrays(run_id, name)
    assert back.keys() == arrays.keys()
    for key, array in arrays.items():
        np.testing.assert_array_equal(back[key], array)
        assert back[key].dtype == array.dtype


def test_an_array_of_objects_is_never_written(store):
    run_id = store.create(SPEC).run_id
    with pytest.raises(ValueError, match="pickle"):
        store.write_arrays(run_id, "x", {"a": np.array([object()])})


def test_a_damaged_or_missing_artifact_is_refused(store):
    run_id = store.create(SPEC).run_id
    name = store.write_arrays(run_id, "x", {"a": np.zeros(3)})
    path = store.folder(run_id) / "artifacts" / name
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(BadInputError, match="damaged"):
        store.read_arrays(run_id, name)
    path.unlink()
    with pytest.raises(NotReadyError, match="gone"):
        store.read_arrays(run_id, name)


def test_values_are_replaced_as_a_whole_and_missing_ones_are_none(store):
    run_id = store.create(SPEC).run_id
    assert store.read_value(run_id, "numbers", tuple[int, ...]) is None
    store.write_value(run_id, "numbers", (1, 2))
    store.write_value(run_id, "numbers", (3,))
    assert store.read_value(run_id, "numbers", tuple[int, ...]) == (3,)


def recovered(store: RunStore, run_id: str, adapter: Path) -> None:
    """Fill the slots of *score* and *recover*, with files behind them."""
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    (adapter / "shift.safetensors").write_bytes(b"shift")
    scores = store.write_arrays(run_id, "unit_scores", {"a": np.zeros(3)})
    score = ImportanceOutcome(
        spec=ImportanceSpec(), cells=(), unit_scores=scores, n_tokens=1, device="cpu"
    )
    recover = RecoveryOutcome(
        spec=RecoverySpec(),
        before=METRICS,
        after=METRICS,
        losses=(1.0,),
        adapter=str(adapter),
        trainable_parameters=1,
        estimated_memory_bytes=1,
        peak_memory_bytes=None,
        shift=str(adapter / "shift.safetensors"),
    )
    seconds = {"score": 1.0, "recover": 2.0}
    store.write(replace(store.read(run_id), score=score, recover=recover, seconds=seconds))


def exported(store, run_id, stem):
    """Make an export folder and name it in the record, as the export step does."""
    folder = store.artifact_folder(run_id, stem)
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    outcome = ExportOutcome(
        spec=ExportSpec(),
        path=str(folder),
        size_bytes=7,
        planned_bytes=7,
        reload_logits_equal=True,
        max_logit_difference=0.0,
        files={"model.safetensors": "0" * 64},
    )
    store.write(replace(store.read(run_id), export=outcome))
    return folder


def test_an_artifact_folder_is_new_and_leftovers_of_killed_attempts_go(store):
    run_id = store.create(SPEC).run_id
    first = store.artifact_folder(run_id, "adapter")
    assert not first.exists()
    recovered(store, run_id, first)
    second = store.artifact_folder(run_id, "adapter")
    assert second not in {first}
    second.mkdir()
    third = store.artifact_folder(run_id, "adapter")
    assert not third.exists()
    assert first.exists()
    assert not second.exists() or second == third


def test_an_export_that_the_record_no_longer_names_goes_when_the_next_is_made(store):
    run_id = store.create(SPEC).run_id
    adapter = store.artifact_folder(run_id, "adapter")
    recovered(store, run_id, adapter)
    first = exported(store, run_id, "hf_mixed-plan3")
    second = exported(store, run_id, "hf_16bit-plan5")
    assert first.exists()
    store.artifact_folder(run_id, "hf_mixed-plan7")
    assert not first.exists()
    assert second.exists()
    assert (adapter / "adapter_model.safetensors").exists()
    record = store.read(run_id)
    assert store.read_arrays(run_id, record.score.unit_scores).keys() == {"a"}
    store.write(replace(record, export=None))
    store.artifact_folder(run_id, "hf_mixed-plan7")
    assert not second.exists()


def test_a_fork_stands_before_the_step_and_shares_bytes_not_fate(store):
    old = store.create(SPEC).run_id
    recovered(store, old, store.artifact_folder(old, "adapter"))
    fork = store.fork(old, "export")
    assert fork.run_id != old
    assert fork.recover is not None
    adapter = Path(fork.recover.adapter)
    assert adapter.is_relative_to(store.folder(fork.run_id))
    assert (adapter / "adapter_model.safetensors").stat().st_nlink == 2
    store.delete(old)
    assert (adapter / "adapter_model.safetensors").read_bytes() == b"weights"
    assert Path(fork.recover.shift) == adapter / "shift.safetensors"
    assert Path(fork.recover.shift).read_bytes() == b"shift"
    assert store.read_arrays(fork.run_id, fork.score.unit_scores).keys() == {"a"}
    assert store.read(fork.run_id) == fork


def test_a_fork_before_recovery_leaves_the_adapter_behind(store):
    old = store.create(SPEC).run_id
    recovered(store, old, store.artifact_folder(old, "adapter"))
    fork = store.fork(old, "recover")
    assert fork.recover is None
    assert fork.seconds == {"score": 1.0}
    assert [path.suffix for path in (store.folder(fork.run_id) / "artifacts").iterdir()] == [
        ".npz"
    ]


def test_a_fork_does_not_name_what_the_other_run_wrote_layer_by_layer(store):
    old = store.create(SPEC).run_id
    layout = llama.layout(LlamaConfig().to_dict())
    written = CompressionOutcome(
        spec=SPEC,
        path=str(store.artifact_folder(old, "layer-by-layer-hf_mixed")),
        pruning=PruningPlan(kept={}),
        layout=layout,
        plan=PrecisionPlan.uniform(layout, "nf4"),
        parameters_before=2,
        parameters_after=1,
        planned_bytes=1,
        size_bytes=1,
        largest_layer_bytes=1,
        peak_memory_bytes=1,
        device="cpu",
        n_tokens=0,
        files={},
        seconds={},
    )
    store.write(replace(store.read(old), compressed=written))
    assert store.fork(old, "export").compressed is None
    assert store.read(old).compressed == written


def test_a_fork_before_an_unknown_step_is_refused(store):
    with pytest.raises(BadInputError, match="Choose one of load, score"):
        store.fork(store.create(SPEC).run_id, "bake")


def test_deleting_a_run_removes_everything_and_only_its_own_studies(store):
    record, other = store.create(SPEC), store.create(SPEC)
    url = store.study_url()
    for name in (record.run_id, f"{record.run_id}-abc", f"{other.run_id}-abc"):
        optuna.create_study(storage=url, study_name=name)
    recovered(store, record.run_id, store.artifact_folder(record.run_id, "adapter"))
    store.delete(record.run_id)
    assert [path.name for path in store.runs.iterdir()] == [other.run_id]
    assert optuna.get_all_study_names(url) == [f"{other.run_id}-abc"]
    with pytest.raises(BadInputError, match="There is no run"):
        store.delete(record.run_id)


def test_disk_usage_counts_every_file_once(store):
    run_id = store.create(SPEC).run_id
    before = store.disk_usage(run_id)
    data = store.folder(run_id) / "artifacts" / "a.bin"
    data.write_bytes(bytes(5000))
    data.with_name("b.bin").hardlink_to(data)
    assert store.disk_usage(run_id) == before + 5000


def test_a_full_disk_is_a_sentence_and_keeps_the_old_record(store, monkeypatch):
    record = store.create(SPEC)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("qpruner_core.store.files.os.fsync", full)
    with pytest.raises(StorageFullError, match="disk is full"):
        store.write(replace(record, seconds={"load": 1.0}))
    with pytest.raises(StorageFullError, match="disk is full"):
        store.create(SPEC)
    monkeypatch.undo()
    assert RunStore(store.home).list() == [record]
    names = {path.name for path in store.folder(record.run_id).iterdir()}
    assert names == {"spec.json", "record.json", "artifacts"}


def test_other_faults_of_the_disk_keep_their_name(store, monkeypatch):
    record = store.create(SPEC)

    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("qpruner_core.store.files.os.fsync", broken)
    with pytest.raises(OSError, match="Input/output error"):
        store.write(record)


def test_records_are_plain_json_that_other_tools_read(store):
    record = store.create(SPEC)
    plain = json.loads((store.folder(record.run_id) / "record.json").read_text())
    assert plain["spec"]["model"]["source"] == "demo"


def test_where_links_do_not_work_a_fork_copies(store, monkeypatch):
    def refuse(path: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    old = store.create(SPEC).run_id
    recovered(store, old, store.artifact_folder(old, "adapter"))
    fork = store.fork(old, "export")
    copied = Path(fork.recover.adapter) / "adapter_model.safetensors"
    assert copied.read_bytes() == b"weights"
    assert copied.stat().st_nlink == 1
