"""Windows over a text against references written out token by token, and against the harness."""

from __future__ import annotations

import warnings
from math import exp
from typing import TYPE_CHECKING

import pytest
import torch
from test_suite import WORDS

from qpruner_core.domain.progress import Progress, silent
from qpruner_core.domain.text_result import TextResult, WindowSpec
from qpruner_core.errors import BadInputError, DataTooShortError, NonFiniteLossError
from qpruner_core.evaluation import windows
from qpruner_core.evaluation.windows import measure_text, windows_of

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

STRIDE = {"kind": "stride", "length": 12}
SPECS = [
    WindowSpec(kind="blocks", length=12),
    WindowSpec(**STRIDE, stride=5),
    WindowSpec(**STRIDE, stride=12),
    WindowSpec(kind="rolling", length=12),
    WindowSpec(kind="blocks", length=200),
    WindowSpec(kind="rolling", length=200),
]


@pytest.fixture
def text() -> str:
    torch.manual_seed(4)
    return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (53,)).tolist())


def token_loss(model: LlamaForCausalLM, before: list[int], token: int) -> float:
    """Return -log p(token | before) in float64, one forward pass for it alone."""
    logits = model(input_ids=torch.tensor([before])).logits[0, -1]
    return -logits.log_softmax(-1)[token].item()


def reference(model: LlamaForCausalLM, tokens: list[int], spec: WindowSpec) -> list[float]:
    """Return the loss of every token that counts, as the three conventions are described."""
    length, n = spec.length, len(tokens)
    found = []
    if spec.kind == "blocks":
        for start in range(0, n, length):
            block = tokens[start : start + length]
            if len(block) == length or start == 0:
                found += [token_loss(model, block[:i], block[i]) for i in range(1, len(block))]
    elif spec.kind == "stride":
        for place in range(1, n):
            # The first window that holds the token.
            start = 0
            while start + length <= place:
                start += spec.stride
            if place > start:
                found.append(token_loss(model, tokens[start:place], tokens[place]))
    else:
        text = [model.config.bos_token_id, *tokens]
        for place in range(1, n + 1):
            stop = min(-(-place // length) * length, n)  # where its window ends
            found.append(token_loss(model, text[max(0, stop - length) : place], text[place]))
    return found


@pytest.mark.parametrize("spec", SPECS, ids=str)
@torch.no_grad()
def test_every_token_counts_once_behind_what_its_window_holds(
    tiny_model: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    text: str,
    spec: WindowSpec,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model.double()
    tokens = tiny_tokenizer(text)["input_ids"]
    expected = reference(model, tokens, spec)
    for per_batch, logits in ((2048, 2**24), (30, 128 * 5)):
        monkeypatch.setattr(windows, "TOKENS_PER_BATCH", per_batch)
        monkeypatch.setattr(windows, "LOGITS_AT_ONCE", logits)
        found = measure_text(model, tiny_tokenizer, text, spec, silent)
        assert (found.n_tokens, found.n_predicted) == (53, len(expected))
        assert found.nats == pytest.approx(sum(expected), abs=1e-9)
        assert found.perplexity == pytest.approx(exp(sum(expected) / len(expected)))
        assert found.squares == pytest.approx(sum(value**2 for value in expected))
    deviation = torch.tensor(expected).std().item()
    assert found.standard_error == pytest.approx(deviation / len(expected) ** 0.5, rel=1e-5)


def test_blocks_are_the_loss_that_papers_print(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, text: str
) -> None:
    ids = torch.tensor(tiny_tokenizer(text)["input_ids"])[:48].view(-1, 12)
    with torch.no_grad():
        losses = [tiny_model(input_ids=row[None], labels=row[None]).loss.item() for row in ids]
    found = measure_text(tiny_model, tiny_tokenizer, text, SPECS[0], silent)
    assert found.loss == pytest.approx(sum(losses) / len(losses), abs=1e-6)
    assert (found.word_perplexity, found.byte_perplexity, found.bits_per_byte) == (None,) * 3


@pytest.mark.parametrize("kind", ["blocks", "stride", "rolling"])
@pytest.mark.parametrize("n_tokens", [2, 11, 12, 13, 24, 25, 60])
def test_no_token_counts_twice_and_windows_are_no_longer_than_asked(
    kind: str, n_tokens: int
) -> None:
    spec = WindowSpec(kind=kind, length=12, stride=5 if kind == "stride" else 0)
    counted = []
    for window in windows_of(range(n_tokens), spec, first=-1):
        longest = 12 + (kind == "rolling")
        assert 0 < window.n_scored < len(window.tokens) <= longest
        counted += window.tokens[-window.n_scored :]
    assert counted == sorted(set(counted))
    everything = {
        "blocks": None,
        "stride": list(range(1, n_tokens)),
        "rolling": list(range(n_tokens)),
    }
    assert everything[kind] in (None, counted)


@pytest.mark.parametrize("length", [12, 200])
def test_rolling_windows_give_the_harness_its_log_likelihood_and_its_perplexities(
    tiny_model: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    text: str,
    length: int,
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the harness imports
        from lm_eval.api.instance import Instance
        from lm_eval.api.metrics import bits_per_byte, weighted_perplexity
        from lm_eval.models.huggingface import HFLM

        harness = HFLM(pretrained=tiny_model, tokenizer=tiny_tokenizer, max_length=length)
        request = Instance("loglikelihood_rolling", {}, (text,), 0, ("t", 0, 1))
        (likelihood,) = harness.loglikelihood_rolling([request], disable_tqdm=True)
    found = measure_text(
        tiny_model, tiny_tokenizer, text, WindowSpec(kind="rolling", length=length), silent
    )
    assert -found.nats == pytest.approx(likelihood, abs=1e-4)
    n_words, n_bytes = len(text.split(" ")), len(text.encode())
    assert found.word_perplexity == pytest.approx(
        weighted_perplexity([(likelihood, n_words)]), rel=1e-5
    )
    assert found.byte_perplexity == pytest.approx(weighted_perplexity([(likelihood, n_bytes)]))
    assert found.bits_per_byte == pytest.approx(bits_per_byte([(likelihood, n_bytes)]))


def test_progress_is_told_and_the_model_stays_in_its_mode(
    tiny_model: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(windows, "TOKENS_PER_BATCH", 24)
    told: list[Progress] = []
    tiny_model.train()
    found = measure_text(tiny_model, tiny_tokenizer, text, SPECS[0], told.append)
    assert tiny_model.training
    assert [(each.done, each.total) for each in told] == [(2, 4), (4, 4)]
    assert told[-1].values["loss"] == pytest.approx(found.loss)


def test_a_text_without_anything_to_predict_is_said(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(DataTooShortError, match="1 tokens"):
        measure_text(tiny_model, tiny_tokenizer, "ba", SPECS[0], silent)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"kind": "circles"}, "circles"),
        ({"length": 1}, "at least 2|At least 2"),
        ({"kind": "stride"}, "stride is 0"),
        ({"kind": "stride", "length": 8, "stride": 9}, "stride is 9"),
        ({"stride": 4}, "Leave the stride out"),
    ],
)
def test_windows_that_make_no_sense_are_refused(given: dict[str, object], words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        WindowSpec(**given)


def test_a_loss_that_is_no_number_is_an_error_and_a_huge_one_is_not() -> None:
    def result(nats: float) -> TextResult:
        return TextResult(
            spec=SPECS[3],
            n_tokens=1,
            n_predicted=1,
            n_windows=1,
            n_words=1,
            n_bytes=1,
            nats=nats,
            squares=nats**2,
        )

    with pytest.raises(NonFiniteLossError, match="nan"):
        result(float("nan"))
    assert result(1e4).perplexity == float("inf")
    assert result(1.0).standard_error == 0.0
