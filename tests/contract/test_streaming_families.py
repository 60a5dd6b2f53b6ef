"""Compressing layer by layer writes what the line in memory writes, for every variant."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from families import built
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from qpruner_core.catalog import EXPORTERS
from qpruner_core.data.corpus import pack
from qpruner_core.data.texts import read_texts
from qpruner_core.domain.spec import (
    DataSpec,
    ImportanceSpec,
    ModelSpec,
    PruningSpec,
    RunSpec,
    SearchSpec,
)
from qpruner_core.export import ExportFacts
from qpruner_core.importance import score
from qpruner_core.models.device import pick_device
from qpruner_core.models.loader import load
from qpruner_core.pipeline.streaming import compress
from qpruner_core.pruning.compensation import (
    bias_values,
    round_biases_,
    settled_statistics,
    with_biases,
)
from qpruner_core.pruning.selection import select
from qpruner_core.pruning.surgery import prune_
from qpruner_core.quantization.packing import pack_

WORDS = [f"w{i}" for i in range(40)]
LENGTH = 12


@pytest.fixture
def spec(case: str, tmp_path: Path) -> RunSpec:
    """What is asked of a variant that lies on disk in bfloat16."""
    copy.deepcopy(built(case)).to(torch.bfloat16).save_pretrained(tmp_path / "model")
    vocabulary = {"<unk>": 0} | {word: i for i, word in enumerate(WORDS, 1)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", eos_token="w1"
    ).save_pretrained(tmp_path / "model")
    lines = "\n".join(" ".join(WORDS[(i * 7 + j * j) % 40] for j in range(12)) for i in range(99))
    text = tmp_path / "text.txt"
    text.write_text(lines)
    return RunSpec(
        model=ModelSpec(source=str(tmp_path / "model")),
        data=DataSpec(
            calibration=str(text),
            training=str(text),
            heldout=str(text),
            tasks="none",
            sequence_length=LENGTH,
            calibration_tokens=2 * LENGTH,
            heldout_tokens=LENGTH,
        ),
        importance=ImportanceSpec(criteria=("flap",)),
        pruning=PruningSpec(
            ratio=0.2,
            criterion="flap",
            scope="global",
            compensation="bias",
            protect_first=0,
            protect_last=0,
            width_multiple=1,
        ),
        search=SearchSpec(precisions=("int8",)),
    )


def in_memory(spec: RunSpec, plan: Any, folder: Path) -> None:
    loaded = load(spec.model, pick_device("cpu"))
    text = read_texts({u: spec.data.calibration for u in ("calibration", "training", "heldout")})
    ids = pack(
        loaded.tokenizer, text["calibration"], "calibration", LENGTH, spec.data.calibration_tokens
    )
    found = score(loaded.model, loaded.layout, ids, spec.importance)
    chosen = select(loaded.layout, found.unit_scores["flap"], spec.pruning)
    cut = with_biases(loaded.layout, chosen.plan)
    stats = settled_statistics(loaded.model, loaded.layout, cut, ids)
    values = bias_values(loaded.model, loaded.layout, cut, stats)
    pruned = prune_(loaded.model, loaded.layout, cut, values)
    round_biases_(loaded.model, loaded.layout, cut, loaded.card.dtype)
    pack_(loaded.model, pruned, plan, torch.float32)
    facts = ExportFacts(card=loaded.card, layout=pruned, pruning=cut, plan=plan)
    EXPORTERS.target("hf_mixed").export(loaded.model, loaded.tokenizer, facts, folder)


def test_the_files_are_those_of_the_line_in_memory(
    case: str, spec: RunSpec, tmp_path: Path
) -> None:
    found = compress(spec, tmp_path / "streamed", pick_device("cpu"))
    assert found.parameters_after < found.parameters_before
    in_memory(spec, found.plan, tmp_path / "memory")
    names = {path.name for path in (tmp_path / "memory").iterdir()}
    assert {path.name for path in (tmp_path / "streamed").iterdir()} == names
    for name in sorted(names - {"README.md", "qpruner.json"}):
        ours, theirs = (tmp_path / way / name for way in ("streamed", "memory"))
        assert ours.read_bytes() == theirs.read_bytes(), name
