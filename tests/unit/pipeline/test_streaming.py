from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from qpruner_core.catalog import EXPORTERS, precision_formats
from qpruner_core.cli.compress import compress_spec, compression_lines
from qpruner_core.cli.parser import build_parser
from qpruner_core.data import load_corpus
from qpruner_core.domain.footprint import plan_bytes
from qpruner_core.domain.layout import opens_plainly
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.progress import Progress
from qpruner_core.domain.record import ModelCard
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
    IncompatibleShapeError,
    InfeasibleBudgetError,
    OutputExistsError,
    StoppedError,
    UnsupportedModelError,
)
from qpruner_core.export import ExportFacts
from qpruner_core.importance import score
from qpruner_core.inspection.cards import folder_card
from qpruner_core.models.device import pick_device
from qpruner_core.models.hidden_states import hidden_states
from qpruner_core.models.loader import load
from qpruner_core.models.skeleton import Skeleton
from qpruner_core.pipeline import streaming
from qpruner_core.pipeline.beginning import widths_are_known
from qpruner_core.pipeline.streamed_scores import Wanted, see_layers
from qpruner_core.pipeline.streaming import check_compression, compress
from qpruner_core.pruning.compensation import (
    bias_values,
    round_biases_,
    settled_statistics,
    with_biases,
)
from qpruner_core.pruning.selection import select
from qpruner_core.pruning.surgery import prune_
from qpruner_core.quantization.packing import pack_

SHAPE: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "initializer_range": 0.1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
    "max_position_embeddings": 64,
}


def llama() -> PreTrainedModel:
    from transformers import LlamaConfig

    return LlamaForCausalLM(LlamaConfig(**SHAPE))


def qwen3() -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**SHAPE, tie_word_embeddings=True))


def gpt2() -> PreTrainedModel:
    ids = {key: SHAPE[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = GPT2Config(
        vocab_size=128, n_embd=64, n_layer=3, n_head=2, n_positions=64, n_inner=256, **ids
    )
    return GPT2LMHeadModel(config)


FAMILIES = {"llama": llama, "qwen3": qwen3, "gpt2": gpt2}


@pytest.fixture
def make(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, tiny_data: DataSpec) -> Any:
    def made(family: str = "llama", dtype: torch.dtype = torch.bfloat16, **parts: Any) -> RunSpec:
        torch.manual_seed(0)
        folder = tmp_path / f"{family}-{dtype}"
        FAMILIES[family]().to(dtype).save_pretrained(folder, max_shard_size="100KB")
        tiny_tokenizer.save_pretrained(folder)
        spec = RunSpec(
            model=ModelSpec(source=str(folder)),
            data=tiny_data,
            importance=ImportanceSpec(criteria=("wanda",), seed=3),
            pruning=PruningSpec(ratio=0.25, criterion="wanda", protect_first=0, protect_last=0),
            search=SearchSpec(precisions=("nf4",)),
        )
        return replace(spec, **parts)

    return made


def in_memory(spec: RunSpec, plan: Any, folder: Path) -> ExportFacts:
    """The line in memory: load, score, select, prune, pack, export, for a precision plan."""
    loaded = load(spec.model, pick_device("cpu"))
    ids = load_corpus(spec.data, loaded.tokenizer).calibration
    pruning = spec.pruning
    asked = replace(spec.importance, criteria=(pruning.criterion, "block_influence"))
    found = score(loaded.model, loaded.layout, ids, asked)
    chosen = select(
        loaded.layout,
        found.unit_scores[pruning.criterion],
        pruning,
        layer_scores=[float(x) for x in found.layer_scores["block_influence"]],
    )
    cut, biases = chosen.plan, {}
    if pruning.compensation == "bias":
        cut = with_biases(loaded.layout, cut)
        stats = settled_statistics(loaded.model, loaded.layout, cut, ids)
        biases = bias_values(loaded.model, loaded.layout, cut, stats)
    pruned = prune_(loaded.model, loaded.layout, cut, biases)
    round_biases_(loaded.model, loaded.layout, cut, loaded.card.dtype)
    pack_(loaded.model, pruned, plan, torch.float32)
    facts = ExportFacts(card=loaded.card, layout=pruned, pruning=cut, plan=plan)
    EXPORTERS.target(spec.export.format).export(loaded.model, loaded.tokenizer, facts, folder)
    return facts


def assert_same_folder(ours: Path, theirs: Path) -> None:
    names = {path.name for path in theirs.iterdir()}
    assert {path.name for path in ours.iterdir()} == names
    for name in sorted(names - {"README.md", "qpruner.json"}):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    assert "model.safetensors" in names
    assert load_file(ours / "model.safetensors")


@pytest.mark.parametrize(
    ("family", "precision", "changes"),
    [
        ("llama", "nf4", {}),
        ("llama", "int8", {"criterion": "flap", "scope": "global", "ratio": 0.4}),
        ("llama", "nf4", {"compensation": "bias"}),
        ("llama", "nf4", {"compensation": "bias", "shape": "uniform", "drop_layers": 1}),
        ("qwen3", "int8", {"compensation": "bias"}),
        ("qwen3", "nf4", {"criterion": "magnitude", "drop_layers": 1}),
        ("qwen3", "bf16", {"criterion": "random", "ratio": 0.0}),
        ("gpt2", "nf4", {}),
        ("gpt2", "bf16", {"compensation": "bias"}),
    ],
)
def test_the_folder_equals_that_of_the_line_in_memory(
    make: Any, tmp_path: Path, family: str, precision: str, changes: dict[str, Any]
) -> None:
    spec = make(family, search=SearchSpec(precisions=(precision,)))
    spec = replace(spec, pruning=replace(spec.pruning, **changes))
    outcome = compress(spec, tmp_path / "streamed", pick_device("cpu"))
    facts = in_memory(spec, outcome.plan, tmp_path / "memory")
    assert outcome.pruning == facts.pruning
    assert outcome.layout == facts.layout
    assert_same_folder(tmp_path / "streamed", tmp_path / "memory")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_other_dtypes_are_stored_as_in_memory(
    make: Any, tmp_path: Path, dtype: torch.dtype
) -> None:
    spec = make("llama", dtype, export=ExportSpec(format="hf_16bit"))
    outcome = compress(spec, tmp_path / "streamed", pick_device("cpu"))
    in_memory(spec, outcome.plan, tmp_path / "memory")
    assert set(outcome.plan.precisions.values()) == {"bf16"}
    assert_same_folder(tmp_path / "streamed", tmp_path / "memory")


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("criterion", ["wanda", "flap", "magnitude", "random"])
def test_scores_are_those_of_the_model_in_memory(
    make: Any, tmp_path: Path, family: str, criterion: str
) -> None:
    spec = make(family)
    loaded = load(spec.model, pick_device("cpu"))
    ids = load_corpus(spec.data, loaded.tokenizer).calibration
    asked = replace(spec.importance, criteria=(criterion, "block_influence"))
    known = score(loaded.model, loaded.layout, ids, asked)
    wanted = Wanted(criterion=criterion, spec=asked, layers_leave=True)
    skeleton = Skeleton(spec.model, pick_device("cpu"))
    found = see_layers(skeleton, ids, wanted, tmp_path, lambda layer: None)
    assert found.layer_scores is not None
    assert np.array_equal(found.layer_scores, known.layer_scores["block_influence"])
    assert found.unit_scores.keys() == known.unit_scores[criterion].keys()
    for name, values in known.unit_scores[criterion].items():
        assert np.array_equal(found.unit_scores[name], values), name
    assert all(p.device.type == "meta" for p in skeleton.model.parameters())


def test_a_budget_is_kept_and_the_plan_is_called_predicted(make: Any, tmp_path: Path) -> None:
    search = SearchSpec(precisions=("nf4", "int8", "bf16"), memory_budget="0.45", tie="linear")
    spec = make(search=search)
    outcome = compress(spec, tmp_path / "out", pick_device("cpu"))
    dense = 2 * outcome.parameters_before
    assert outcome.planned_bytes <= 0.45 * dense
    assert len(set(outcome.plan.precisions.values())) > 1
    card = (tmp_path / "out" / "README.md").read_text()
    assert "predicted, not measured" in card
    assert json.loads((tmp_path / "out" / "qpruner.json").read_text())["notes"]
    assert any("predicted, not measured" in words for words in outcome.warnings)
    in_memory(spec, outcome.plan, tmp_path / "memory")
    assert_same_folder(tmp_path / "out", tmp_path / "memory")


def test_the_tokenizer_travels_and_calibration_is_that_of_the_line(
    make: Any, tmp_path: Path
) -> None:
    spec = make()
    compress(spec, tmp_path / "out", pick_device("cpu"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    known = load_corpus(spec.data, tokenizer).calibration
    assert torch.equal(streaming.calibration_ids(spec.data, tokenizer), known)


@pytest.mark.parametrize(
    ("criterion", "options"),
    [
        (PruningSpec().criterion, {}),
        ("wanda", {}),
        ("random", {}),
        ("magnitude", {"magnitude": {"p": 1.0}}),
    ],
)
def test_the_card_says_the_command_that_asks_for_the_same(
    make: Any, tmp_path: Path, criterion: str, options: dict[str, Any]
) -> None:
    spec = make(importance=ImportanceSpec(options=options, seed=5))
    changes = {"criterion": criterion, "drop_layers": 1, "scope": "global"}
    spec = replace(spec, pruning=replace(spec.pruning, **changes))
    compress(spec, tmp_path / "out", pick_device("cpu"))
    command = json.loads((tmp_path / "out" / "qpruner.json").read_text())["command"]
    words = shlex.split(command)
    assert words[0] == "qpruner"
    again = compress_spec(build_parser().parse_args(words[1:]))
    for part in ("model", "importance", "pruning"):
        assert getattr(again, part) == getattr(spec, part)
    assert again.search.precisions == spec.search.precisions
    assert again.data.calibration_tokens == spec.data.calibration_tokens
    # One file for several uses is divided among them: the other texts decide it too.
    tokenizer = AutoTokenizer.from_pretrained(spec.model.source)
    texts = [streaming.calibration_ids(each.data, tokenizer) for each in (again, spec)]
    assert torch.equal(*texts)


def test_the_help_of_the_command_says_its_own_default(capsys: pytest.CaptureFixture[str]) -> None:
    for command, said in (("compress", "one of gradients"), ("prune", "scored before")):
        with pytest.raises(SystemExit, match="0"):
            build_parser().parse_args([command, "--help"])
        printed = " ".join(capsys.readouterr().out.split())
        assert f"default {PruningSpec().criterion}; {said}" in printed


def test_a_pruned_checkpoint_can_be_compressed_again(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "c"))
    monkeypatch.syspath_prepend(str(tmp_path / "c"))
    spec = make(export=ExportSpec(format="hf_16bit"))
    spec = replace(spec, pruning=replace(spec.pruning, scope="global"))
    first = compress(spec, tmp_path / "first", pick_device("cpu"))
    assert not opens_plainly(first.layout)
    model = ModelSpec(source=str(tmp_path / "first"), trust_remote_code=True)
    again = replace(
        spec, model=model, search=SearchSpec(precisions=("int8",)), export=ExportSpec()
    )
    outcome = compress(again, tmp_path / "second", pick_device("cpu"))
    assert outcome.parameters_before == first.parameters_after
    in_memory(again, outcome.plan, tmp_path / "memory")
    assert_same_folder(tmp_path / "second", tmp_path / "memory")


def test_a_criterion_of_gradients_is_refused_with_what_fits(make: Any, tmp_path: Path) -> None:
    spec = make()
    spec = replace(spec, pruning=replace(spec.pruning, criterion="taylor"))
    with pytest.raises(BadInputError, match=r"needs gradients.*iB.*wanda") as refused:
        compress(spec, tmp_path / "out", pick_device("cpu"))
    assert "taylor_second" not in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"iterations": 2}, "Set the iterations to 1"), ({"ratio": 0.99}, "ratio")],
)
def test_what_cannot_work_is_refused_before_weights_are_read(
    make: Any, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    spec = make()
    spec = replace(spec, pruning=replace(spec.pruning, **changes))
    with pytest.raises(Exception, match=words):
        compress(spec, tmp_path / "out", pick_device("cpu"))
    assert not (tmp_path / "out").exists()


def test_widths_that_scores_decide_are_not_refused_before_they_are_known(make: Any) -> None:
    spec = make()
    layout = Skeleton(spec.model, pick_device("cpu")).layout
    odd = replace(spec.pruning, width_multiple=1, scope="per-layer")
    with pytest.raises(IncompatibleShapeError, match="blocks of 64"):
        check_compression(replace(spec, pruning=odd), layout)
    for scope in ("global", "balanced"):
        free = replace(spec, pruning=replace(odd, scope=scope))
        assert not widths_are_known(free.pruning)
        check_compression(free, layout)
        assert widths_are_known(replace(free.pruning, shape="uniform"))


def test_biases_that_a_plan_adds_count_towards_the_budget(make: Any) -> None:
    search = SearchSpec(precisions=("nf4", "bf16"))
    spec = make(search=search)
    layout = Skeleton(spec.model, pick_device("cpu")).layout
    bare = select(layout, None, spec.pruning).layout
    least = plan_bytes(bare, PrecisionPlan.uniform(bare, "nf4"), precision_formats())
    spec = replace(spec, search=replace(search, memory_budget=f"{least} B"))
    check_compression(spec, layout)
    spec = replace(spec, pruning=replace(spec.pruning, compensation="bias"))
    with pytest.raises(InfeasibleBudgetError, match="smallest plan"):
        check_compression(spec, layout)


def test_a_budget_that_no_plan_reaches_is_refused(make: Any, tmp_path: Path) -> None:
    search = SearchSpec(precisions=("nf4", "bf16"), memory_budget="0.05")
    with pytest.raises(InfeasibleBudgetError, match="smallest plan"):
        compress(make(search=search), tmp_path / "out", pick_device("cpu"))


def test_a_stop_between_layers_leaves_nothing(make: Any, tmp_path: Path) -> None:
    told: list[Progress] = []
    with pytest.raises(StoppedError, match="Nothing was written"):
        compress(
            make(),
            tmp_path / "sub" / "out",
            pick_device("cpu"),
            told.append,
            lambda: told[-1].step == "export",
        )
    assert [p.step for p in told] == ["score"] * 3 + ["export"]
    assert list((tmp_path / "sub").iterdir()) == []


def test_a_folder_that_is_there_is_not_overwritten(make: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    told: list[Progress] = []
    with pytest.raises(OutputExistsError, match="there already"):
        compress(make(), tmp_path / "out", pick_device("cpu"), told.append)
    assert told == []


def test_a_weight_that_is_not_finite_is_named(make: Any, tmp_path: Path) -> None:
    spec = make()
    model = LlamaForCausalLM.from_pretrained(spec.model.source, dtype=torch.bfloat16)
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = float("nan")
    model.save_pretrained(spec.model.source)
    with pytest.raises(BadInputError, match=r"layers\.1\.mlp\.up_proj\.weight.*NaN"):
        compress(spec, tmp_path / "out", pick_device("cpu"))


def test_a_bias_beyond_float16_is_stored_as_in_memory(make: Any, tmp_path: Path) -> None:
    spec = make("llama", torch.float32)
    model = LlamaForCausalLM.from_pretrained(spec.model.source, dtype=torch.float32)
    up, down = model.model.layers[0].mlp.up_proj, model.model.layers[0].mlp.down_proj
    # What float16 holds in factors it does not hold in the product, which a bias takes over.
    with torch.no_grad():
        up.weight *= 2000.0
        down.weight *= 6e5
    model.save_pretrained(spec.model.source)
    export = ExportSpec(format="hf_16bit")
    spec = replace(spec, export=export, pruning=replace(spec.pruning, compensation="bias"))
    outcome = compress(spec, tmp_path / "streamed", pick_device("cpu"))
    in_memory(spec, outcome.plan, tmp_path / "memory")
    found = load_file(tmp_path / "streamed" / "model.safetensors")
    bias = found["model.layers.0.mlp.down_proj.bias"]
    assert bias.dtype == torch.bfloat16
    assert bias.isfinite().all()
    assert bias.abs().max() > torch.finfo(torch.float16).max
    assert_same_folder(tmp_path / "streamed", tmp_path / "memory")


@pytest.mark.parametrize("criterion", ["wanda", "magnitude"])
def test_experts_that_no_token_reached_are_said_and_not_rounded_for_nothing(
    make: Any, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, criterion: str
) -> None:
    spec = make()
    sizes = {**SHAPE, "num_local_experts": 4, "num_experts_per_tok": 1}
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**sizes)).to(torch.bfloat16)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate.weight[3] = layer.mlp.gate.weight[2]  # the first of equals is taken
    model.save_pretrained(tmp_path / "moe")
    tiny_tokenizer.save_pretrained(tmp_path / "moe")
    spec = replace(
        spec,
        model=ModelSpec(source=str(tmp_path / "moe")),
        pruning=replace(spec.pruning, ratio=0.0, criterion=criterion),
        search=SearchSpec(precisions=("nf4", "int8"), tie="linear", memory_budget="0.9"),
    )
    loaded = load(spec.model, pick_device("cpu"))
    ids = load_corpus(spec.data, loaded.tokenizer).calibration
    asked = replace(spec.importance, criteria=("wanda",))
    said = score(loaded.model, loaded.layout, ids, asked).warnings
    assert "experts saw none" in said[0]
    outcome = compress(spec, tmp_path / "out", pick_device("cpu"))
    assert outcome.warnings[0] == said[0]
    # There is room for all at int8, so that nothing that costs anything is rounded further.
    assert set(outcome.plan.precisions.values()) == {"int8"}


def test_the_peak_is_said_only_where_it_can_be_counted(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compress(make(), tmp_path / "one", pick_device("cpu")).peak_memory_bytes
    monkeypatch.setattr(streaming, "reset_peak", lambda: False)
    found = compress(make(), tmp_path / "two", pick_device("cpu"))
    assert found.peak_memory_bytes is None
    assert not any("peak memory" in line for line in compression_lines(found))


def test_the_card_names_the_commit_that_was_read(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def at_commit(spec: ModelSpec, folder: Path) -> ModelCard:
        return replace(folder_card(spec, folder), revision="abc123")

    monkeypatch.setattr("qpruner_core.models.skeleton.folder_card", at_commit)
    compress(make(), tmp_path / "out", pick_device("cpu"))
    assert "--revision=abc123" in (tmp_path / "out" / "README.md").read_text()


def test_experts_that_lie_fused_on_disk_are_refused_with_a_sentence(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    sizes = {**SHAPE, "num_hidden_layers": 1, "num_local_experts": 2, "num_experts_per_tok": 1}
    MixtralForCausalLM(MixtralConfig(**sizes)).save_pretrained(
        tmp_path / "moe", save_original_format=False
    )
    tiny_tokenizer.save_pretrained(tmp_path / "moe")
    with pytest.raises(UnsupportedModelError, match="lie fused"):
        Skeleton(ModelSpec(source=str(tmp_path / "moe")), pick_device("cpu"))


def test_hidden_states_are_the_same_in_a_file_as_in_memory(tmp_path: Path) -> None:
    shapes = [torch.Size((2, 3, 4)), torch.Size((1, 3, 4))]
    values = [torch.randn(shape) for shape in shapes]
    for host_bytes in (0, 10**6):
        with hidden_states(shapes, torch.float32, tmp_path, host_bytes) as states:
            for index in (1, 0):
                states.write(index, values[index])
            assert len(states) == 2
            assert all(torch.equal(states.read(i), values[i]) for i in (0, 1))
    assert list(tmp_path.iterdir()) == []
