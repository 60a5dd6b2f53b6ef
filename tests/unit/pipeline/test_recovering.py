"""Recovering a plan, and what of it goes into an export, on one searched run that tests copy."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from qpruner_core.catalog import PRECISIONS
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.progress import never, silent
from qpruner_core.domain.record import RunRecord
from qpruner_core.domain.recovered import RecoveryOutcome
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.domain.spec import (
    DataSpec,
    ExportSpec,
    ImportanceSpec,
    ModelSpec,
    PruningSpec,
    RunSpec,
    SearchSpec,
)
from qpruner_core.errors import (
    BadInputError,
    DeviceMemoryError,
    MergeRefusedError,
    NotReadyError,
)
from qpruner_core.evaluation import Suite
from qpruner_core.export.verify import reference_logits
from qpruner_core.models.device import pick_device
from qpruner_core.pipeline import Line
from qpruner_core.pipeline.merging import carried
from qpruner_core.pipeline.recovering import Asked, known_before, recover_plan
from qpruner_core.pipeline.starting import with_scalings
from qpruner_core.quantization.orientation import outputs_first
from qpruner_core.recovery.low_rank import product
from qpruner_core.recovery.merging import beside, read_adapter, relative_error
from qpruner_core.recovery.shifts import SHIFT, read_shift
from qpruner_core.recovery.training import Trainer
from qpruner_core.store.kept import kept_folder
from qpruner_core.store.records import RunStore

SHIFTING = [("loftq", {"iterations": 4}), ("pissa", {})]
WORDS = tuple(c + v for v in "aeiou" for c in "bcdfghjklmnpqrstvwxyz")[:120]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recovering")


@pytest.fixture(scope="module")
def searched(home: Path) -> RunRecord:
    """A run that was searched; every test works on a copy."""
    spec = RunSpec(
        model=ModelSpec(source=str(model_folder(home))),
        data=data(home),
        importance=ImportanceSpec(criteria=("magnitude",)),
        pruning=PruningSpec(
            ratio=0.25, criterion="magnitude", scope="per-layer", protect_first=0, protect_last=1
        ),
        search=SearchSpec(
            memory_budget="0.9", n_trials=1, strategy="random", precisions=("nf4", "int8", "bf16")
        ),
        recovery=RecoverySpec(steps=2, rank=4, batch_size=2, sequence_length=16),
    )
    store = RunStore(home / "home")
    line = Line(store, store.create(spec).run_id, pick_device("cpu"))
    steps = ("load", "score", "prune", "quantize", "evaluate", "search")
    line.begin(spec, steps)
    for step in steps:
        line.run(step)
    return line.record()


def model_folder(home: Path) -> Path:
    """A random Llama whose weights have a few large directions, as those of trained ones do."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    config = LlamaConfig(
        vocab_size=124,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=256,
        initializer_range=0.1,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(home / "model")
    special = ("<unk>", "<s>", "</s>", "<pad>")
    vocabulary = {word: index for index, word in enumerate((*special, *WORDS))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    ).save_pretrained(home / "model")
    return home / "model"


def data(home: Path) -> DataSpec:
    draw = random.Random(0)
    names = ("calibration", "training", "heldout")
    for name in names:
        lines = (" ".join(draw.choice(WORDS) for _ in range(24)) for _ in range(24))
        (home / f"{name}.txt").write_text("\n".join(lines))
    return DataSpec(
        **{name: str(home / f"{name}.txt") for name in names},
        tasks="none",
        sequence_length=16,
        calibration_tokens=256,
        heldout_tokens=256,
    )


@pytest.fixture
def store(home: Path) -> RunStore:
    return RunStore(home / "home")


@pytest.fixture
def line(store: RunStore, searched: RunRecord) -> Line:
    """The line of a copy, before recovery."""
    return Line(store, store.fork(searched.run_id, "recover").run_id, pick_device("cpu"))


def named(record: RunRecord, name: str) -> int:
    assert record.search is not None
    return next(t.number for t in record.search.baselines if t.name == name)


def plan_of(record: RunRecord, name: str) -> PrecisionPlan:
    assert record.search is not None
    return next(t.plan for t in record.search.baselines if t.name == name)


def recover(line: Line, plan: str = "QPruner-1", **asked: Any) -> RecoveryOutcome:
    record = line.record()
    recovery = replace(record.spec.recovery, trial=named(record, plan), **asked)
    spec = replace(record.spec, recovery=recovery)
    line.begin(spec, ("recover",))
    line.run("recover")
    found = line.record().recover
    assert found is not None
    return found


def export(line: Line, plan: str = "QPruner-1", **asked: Any) -> RunRecord:
    record = line.record()
    spec = replace(record.spec, export=ExportSpec(trial=named(record, plan), **asked))
    line.begin(spec, ("export",))
    line.run("export")
    return line.record()


def exports_of(store: RunStore, record: RunRecord) -> list[Path]:
    """All folders of exports, hidden ones included."""
    artifacts = store.folder(record.run_id) / "artifacts"
    return [path for path in artifacts.iterdir() if path.is_dir() and "plan" in path.name]


def lacking(line: Line, found: RecoveryOutcome) -> tuple[float, float]:
    """What weights lack of the dense ones without and with the adapter, from the files alone:
    |W - q(W)| and |W - (q(W - shift) + s B A)| over all Linears.
    """
    plan = plan_of(line.record(), "QPruner-1")
    layout, dense = line.materials.layout(), line.materials.pruned().model
    adapter = with_scalings(read_adapter(Path(found.adapter)), layout, found.spec)
    shift = read_shift(Path(found.shift)) if found.shift else {}
    shifts = with_scalings(shift, layout, found.spec)
    without = with_it = 0.0
    for name, precision in plan.precisions.items():
        weight = outputs_first(dense.get_submodule(name))
        quantize = PRECISIONS.target(precision).fake_quantize
        told = weight - product(*shifts[name]) if name in shifts else weight
        without += float((weight - quantize(weight)).square().sum())
        with_it += float((weight - quantize(told) - product(*adapter[name])).square().sum())
    return without, with_it


@pytest.mark.parametrize(("entry", "options"), [("loftq", {}), *SHIFTING])
def test_adapters_start_nearer_to_the_dense_weights_and_the_shift_is_kept_beside_them(
    line: Line, entry: str, options: dict[str, int]
) -> None:
    found = recover(line, initialization=entry, initialization_options=options, learning_rate=1e-9)
    without, with_it = lacking(line, found)
    assert with_it < without
    assert bool(found.shift) == bool((entry, options) in SHIFTING)
    if found.shift:
        assert Path(found.shift) == Path(found.adapter) / SHIFT


@pytest.mark.parametrize(("entry", "options"), SHIFTING)
def test_before_is_of_the_plan_itself_even_where_weights_are_shifted(
    line: Line, store: RunStore, entry: str, options: dict[str, int]
) -> None:
    record = line.record()
    spec = replace(
        record.spec.recovery, initialization=entry, initialization_options=options, steps=1
    )
    asked = Asked(plan=plan_of(record, "QPruner-1"), spec=spec, name="another")
    materials = line.materials
    found = recover_plan(store, record, materials, asked, materials.suite(), silent, never)
    known = known_before(store, record, materials, asked.plan)
    assert known is not None
    assert found.before.loss == known.loss
    assert found.before.weight_bytes == known.weight_bytes
    folder = kept_folder(store, record.run_id, "another")
    assert Path(found.adapter) == folder
    assert Path(found.shift).parent == folder


def test_what_the_search_measured_is_not_measured_again(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Any] = []
    real = Suite.evaluate

    def evaluate(self: Suite, model: Any, **asked: Any) -> Any:
        measured.append(real(self, model, **asked))
        return measured[-1]

    monkeypatch.setattr(Suite, "evaluate", evaluate)
    found = recover(line, initialization="pissa")
    assert measured == [found.after]
    record = line.record()
    trial = next(t for t in record.search.baselines if t.name == "QPruner-1")
    assert found.before.loss == trial.metrics.loss


def test_what_was_measured_after_training_or_on_other_text_is_not_before(
    line: Line, store: RunStore, home: Path
) -> None:
    record, plan = line.record(), plan_of(line.record(), "QPruner-1")
    assert known_before(store, record, line.materials, plan) is not None
    trained = replace(
        record, spec=replace(record.spec, search=replace(record.spec.search, recover_steps=2))
    )
    assert known_before(store, trained, line.materials, plan) is None
    text = (home / "heldout.txt").read_text()
    (home / "heldout.txt").write_text(text + " ba")
    assert known_before(store, record, line.materials, plan) is None
    (home / "heldout.txt").write_text(text)


def test_weights_that_are_held_besides_count_in_all_bytes(line: Line, store: RunStore) -> None:
    record = line.record()
    spec = replace(record.spec.recovery, steps=1)
    outcomes = []
    for held in ((), ("int8",)):
        asked = Asked(
            plan=plan_of(record, "uniform int8"), spec=spec, name="held", hold_16_bit=held
        )
        suite = line.materials.suite()
        outcomes.append(recover_plan(store, record, line.materials, asked, suite, silent, never))
    plain, held = outcomes
    layout = line.materials.layout()
    bytes_held = 2 * sum(x.out_features * x.in_features for x in layout.linears)
    assert held.before.weight_bytes - plain.before.weight_bytes == bytes_held
    assert held.after.weight_bytes - plain.after.weight_bytes == bytes_held
    assert held.estimated_memory_bytes - plain.estimated_memory_bytes == bytes_held
    assert held.peak_memory_bytes - plain.peak_memory_bytes == bytes_held
    assert held.losses == plain.losses


@pytest.mark.parametrize("entry", ["default", "pissa"])
def test_stopped_training_says_so_and_goes_on_as_if_it_never_had_been(
    line: Line, store: RunStore, entry: str
) -> None:
    asked = {"steps": 6, "checkpoint_steps": 2, "initialization": entry}
    steps: list[int] = []
    line.on_progress = lambda told: "loss" in told.values and steps.append(told.done)
    line.should_stop = lambda: len(steps) == 3
    stopped = recover(line, **asked)
    assert len(stopped.losses) == 3
    assert "stopped after 3 of 6 steps" in stopped.remarks[0]
    checkpoint = kept_folder(store, line.record().run_id, "adapter-checkpoint")
    assert checkpoint.is_dir()
    line.should_stop = never
    resumed = recover(line, **asked)
    assert resumed.losses[:3] == stopped.losses
    assert resumed.remarks == ()
    assert not checkpoint.exists()
    assert recover(line, **asked).losses == resumed.losses


def test_a_copy_of_a_stopped_training_goes_on_from_there_too(
    line: Line, store: RunStore, home: Path
) -> None:
    asked = {"steps": 4, "checkpoint_steps": 4, "training": str(home / "training.txt")}
    answers = iter([False, False, True])
    line.should_stop = lambda: next(answers)
    stopped = recover(line, **asked)
    assert "train on to go on from there" in stopped.remarks[0]
    copy = Line(store, store.fork(line.record().run_id, "export").run_id, pick_device("cpu"))
    moved = home / "moved.txt"  # as an uploaded text is in a copy
    moved.write_bytes((home / "training.txt").read_bytes())
    steps: list[int] = []
    copy.on_progress = lambda told: "loss" in told.values and steps.append(told.done)
    resumed = recover(copy, **{**asked, "training": str(moved)})
    assert steps == [3, 4]
    assert resumed.losses[:2] == stopped.losses
    assert kept_folder(store, line.record().run_id, "adapter-checkpoint").is_dir()


@pytest.mark.parametrize(
    "error", [torch.cuda.OutOfMemoryError("CUDA out of memory."), MemoryError()]
)
def test_training_that_runs_out_of_memory_is_a_sentence_and_goes_on_from_its_checkpoint(
    line: Line, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    asked = {"steps": 4, "checkpoint_steps": 1}
    steps: list[int] = []
    real = Trainer._step_

    def step(self: Trainer, batch: Any, number: int) -> float:
        if number == 2 and not steps[2:]:
            steps.append(-1)
            raise error
        return real(self, batch, number)

    line.on_progress = lambda told: "loss" in told.values and steps.append(told.done)
    monkeypatch.setattr(Trainer, "_step_", step)
    with pytest.raises(DeviceMemoryError, match=r"smaller micro-batch.*8-bit optimiser") as told:
        recover(line, **asked)
    assert told.value.__context__ is None, "nothing of the failed step is held"
    assert recover(line, **asked).is_complete
    assert steps == [1, 2, -1, 3, 4]


class Killed(BaseException):
    """What a test ends a process with."""


@pytest.mark.parametrize("where", ["the shift", "the record"])
def test_a_training_is_never_lost_between_its_last_step_and_the_record(
    line: Line, store: RunStore, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    asked = {"steps": 3, "checkpoint_steps": 1, "initialization": "pissa"}
    steps: list[int] = []
    line.on_progress = lambda told: "loss" in told.values and steps.append(told.done)

    def end(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if where == "the shift":
            patch.setattr("qpruner_core.pipeline.recovering.save_shift", end)
        else:
            patch.setattr(line, "_fill", end)
        with pytest.raises(Killed):
            recover(line, **asked)
    assert steps == [1, 2, 3]
    found = recover(line, **asked)
    assert steps == [1, 2, 3], "nothing is trained again"
    assert found.is_complete
    assert Path(found.shift).is_file()
    assert not kept_folder(store, line.record().run_id, "adapter-checkpoint").exists()


def test_an_adapter_with_a_shift_is_exported_over_its_own_weights_even_from_a_copy(
    line: Line, store: RunStore
) -> None:
    recover(line, initialization="loftq", initialization_options={"iterations": 4})
    copy = store.fork(line.record().run_id, "export")
    store.delete(line.record().run_id)
    record = export(Line(store, copy.run_id, pick_device("cpu")))
    written = record.export
    assert written.reload_logits_equal
    assert "adapter/adapter_model.safetensors" in written.files
    assert not any(SHIFT in name for name in written.files)
    card = (Path(written.path) / "README.md").read_text()
    assert "belong to the adapter" in card


def test_an_adapter_that_was_left_out_leaves_the_weights_those_of_the_plan(line: Line) -> None:
    recover(line, initialization="pissa")
    record, layout = line.record(), line.materials.layout()
    trial = next(t for t in record.search.baselines if t.name == "QPruner-1")
    assert carried(record, trial, trial.plan, layout).shifts
    left_out = replace(record, spec=replace(record.spec, export=ExportSpec(include_adapter=False)))
    assert carried(left_out, trial, trial.plan, layout).shifts == {}
    at_16_bit = plan_of(record, "LLM-Pruner (16 bit)")
    assert carried(record, trial, at_16_bit, layout).folder is None


LARGE = {"steps": 20, "learning_rate": 0.05, "alpha": 32.0}
"""Training after which the adapter says much more than 4 bit can."""


def apart_of(line: Line, found: RecoveryOutcome, ids: torch.Tensor) -> torch.Tensor:
    """Logits of QPruner-1's weights with the adapter beside them."""
    plan = plan_of(line.record(), "QPruner-1")
    layout = line.materials.layout()
    adapter = with_scalings(read_adapter(Path(found.adapter)), layout, found.spec)
    bank = line.materials.bank(("nf4",))
    bank.apply(plan)
    with beside(bank.model, adapter):
        return reference_logits(bank.model, ids)


def test_a_large_adapter_is_refused_at_4_bit_and_nothing_is_left(
    line: Line, store: RunStore
) -> None:
    recover(line, **LARGE)
    with pytest.raises(MergeRefusedError, match=r"Keep the adapter apart, or .*hf_16bit") as error:
        export(line, merge_adapter=True)
    assert "at most 2.00 % is allowed (--merge-tolerance)" in str(error.value)
    assert exports_of(store, line.record()) == []
    assert line.record().export is None


@pytest.mark.usefixtures("code_cache")
def test_a_refused_merge_leaves_the_export_that_was_there(line: Line, store: RunStore) -> None:
    recover(line, **LARGE)
    written = export(line, include_adapter=False).export
    with pytest.raises(MergeRefusedError):
        export(line, merge_adapter=True)
    assert line.record().export == written
    assert [str(path) for path in exports_of(store, line.record())] == [written.path]


@pytest.mark.usefixtures("code_cache")
def test_merged_into_16_bit_it_opens_in_stock_tools_and_begins_a_new_run(
    line: Line, store: RunStore
) -> None:
    found = recover(line, **LARGE)
    ids = line.materials.corpus().heldout[:2, :48]
    apart = apart_of(line, found, ids)
    written = export(line, format="hf_16bit", merge_adapter=True).export
    assert written.reload_logits_equal
    assert 0.0 < written.merge_error < 0.02
    assert not any(name.startswith("adapter/") for name in written.files)
    opened = AutoModelForCausalLM.from_pretrained(
        written.path, trust_remote_code=True, dtype=torch.float32
    ).eval()
    again = relative_error(apart, reference_logits(opened, ids))
    assert again == pytest.approx(written.merge_error, rel=1e-3)
    card = (Path(written.path) / "README.md").read_text()
    assert f"{written.merge_error:.3g}" in card
    spec = replace(
        line.record().spec,
        model=ModelSpec(source=written.path, trust_remote_code=True),
        pruning=PruningSpec(ratio=0.0, criterion="magnitude"),
        export=ExportSpec(),
    )
    fresh = Line(store, store.create(spec).run_id, pick_device("cpu"))
    steps = ("load", "score", "prune", "quantize")
    fresh.begin(spec, steps)
    for step in steps:
        fresh.run(step)
    assert fresh.record().prune.before.loss == pytest.approx(found.after.loss, rel=0.01)


def test_within_the_tolerance_it_is_merged_at_each_layers_own_precision(line: Line) -> None:
    recover(line, "uniform int8", initialization="pissa")
    written = export(line, "uniform int8", merge_adapter=True, merge_tolerance=0.1).export
    assert written.reload_logits_equal
    assert 0.0 < written.merge_error < 0.1
    assert written.size_bytes / written.planned_bytes < 1.1
    manifest = json.loads((Path(written.path) / "qpruner.json").read_text())
    assert set(manifest["plan"].values()) == {"int8"}
    assert "merged" in manifest["notes"][0]


def test_merging_without_an_adapter_or_with_that_of_another_plan_is_one_sentence(
    line: Line,
) -> None:
    with pytest.raises(NotReadyError, match="this run has none"):
        export(line, merge_adapter=True)
    recover(line, "uniform int8")
    with pytest.raises(BadInputError, match="was trained on plan"):
        export(line, merge_adapter=True)
