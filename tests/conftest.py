"""What every test may ask for: a random two-layer Llama with grouped-query attention, on disk and
in memory.

Torch is imported inside fixtures, so that tests of the browser side stay light.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.spec import DataSpec
from qpruner_core.models.architectures import llama

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# Two OpenMP pools on the same cores spin against each other; torch reads these when it is first
# imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

settings.register_profile("house", deadline=None, derandomize=True)
settings.load_profile("house")

SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")
WORDS = tuple(c + v for v in "aeiouy" for c in "bcdfghjklmnpqrstvwxyz")[: 128 - len(SPECIAL)]
"""The words `tiny_tokenizer` knows, in the order of their ids from 4."""


@pytest.fixture
def tiny_config() -> LlamaConfig:
    """Two layers, hidden 64, four query heads on two KV heads of 16, MLP 128, vocabulary 128."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        # Larger than usual, so that attention and MLP visibly change the logits of an untrained
        # model.
        initializer_range=0.1,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )


@pytest.fixture
def tiny_model(tiny_config: LlamaConfig) -> LlamaForCausalLM:
    """A random Llama in float32 and eval mode; the same weights every time."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_config).eval()


@pytest.fixture
def tiny_layout(tiny_config: LlamaConfig) -> ModelLayout:
    """The layout of `tiny_model`."""
    return llama.layout(tiny_config.to_dict())


@pytest.fixture
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """128 words split at white space: four special ones, then `WORDS`; adds nothing by itself."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *WORDS))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )


@pytest.fixture
def tiny_folder(
    tmp_path: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> Path:
    """A Hugging Face folder with `tiny_model` and `tiny_tokenizer`."""
    folder = tmp_path / "tiny"
    tiny_model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_data(tmp_path: Path) -> DataSpec:
    """Three texts and one task in the words of `tiny_tokenizer`, short enough for a fast trial."""
    draw = random.Random(0)

    def sentence(length: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(length))

    names = ("calibration", "training", "heldout")
    for name in names:
        (tmp_path / f"{name}.txt").write_text("\n".join(sentence(24) for _ in range(24)))
    items = [
        {"id": str(i), "context": sentence(6), "choices": [" " + sentence(2) for _ in "ab"]}
        for i in range(8)
    ]
    (tmp_path / "tasks").mkdir()
    lines = [json.dumps({**item, "gold": int(item["id"]) % 2}) for item in items]
    (tmp_path / "tasks" / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    return DataSpec(
        **{name: str(tmp_path / f"{name}.txt") for name in names},
        tasks=str(tmp_path / "tasks"),
        sequence_length=16,
        calibration_tokens=256,
        heldout_tokens=256,
        items_per_task=4,
    )


@pytest.fixture
def code_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep the code that transformers copies out of a checkpoint in the test's own folder."""
    cache = str(tmp_path / "modules")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", cache)
    monkeypatch.syspath_prepend(cache)
    _forget_copied_code()
    yield
    _forget_copied_code()


def _forget_copied_code() -> None:
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]
