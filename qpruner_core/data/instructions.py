"""Instructions as a model reads them: prompt and answer as token ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qpruner_core.data.corpus import end_ids
from qpruner_core.errors import BadInputError
from qpruner_core.inspection.instructions import Instruction

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AT_ONCE = 1000
"""Examples that are tokenised together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One example as token ids."""

    ids: tuple[int, ...]
    """Prompt, answer, and the end-of-text token."""
    n_prompt: int
    """So many of them are the prompt, or begin in it; in [0, len(ids)]."""

    def cut(self, length: int) -> Example:
        """Return the first ``length`` tokens."""
        return Example(ids=self.ids[:length], n_prompt=min(self.n_prompt, length))

    def first_learned(self, train_on_prompt: bool) -> int:
        """Return the index of the first token that is learned: nothing predicts the very first."""
        return 1 if train_on_prompt else max(1, self.n_prompt)


def prompt_text(example: Instruction) -> str:
    """Return the prompt for a tokenizer without a chat template: a headed section for each part,
    and the head of the answer.
    """
    parts = [f"## Task\n{example.instruction.strip()}\n\n"]
    if example.input.strip():
        parts.append(f"## Input\n{example.input.strip()}\n\n")
    return "".join([*parts, "## Answer\n"])


def encoded(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Instruction]
) -> Iterator[Example]:
    """Yield examples as token ids, in their order.

    The prompt is the tokenizer's chat template up to where the answer begins, else `prompt_text`
    after the tokenizer's own first token. Prompt and answer are tokenised as one text, as a model
    meets them; the prompt's share is what the prompt alone has tokens, as evaluation counts it.

    Raises:
        BadInputError: The chat template refuses a question without a system's words before it.
    """
    first, end = _first_ids(tokenizer), end_ids(tokenizer)
    for start in range(0, len(examples), AT_ONCE):
        some = examples[start : start + AT_ONCE]
        prompts = _prompts(tokenizer, some)
        whole = [p + e.output for p, e in zip(prompts, some, strict=True)]
        before = _ids(tokenizer, prompts)
        for prompt, ids in zip(before, _ids(tokenizer, whole), strict=True):
            n_prompt = min(len(first) + len(prompt), len(first) + len(ids))
            yield Example(ids=(*first, *ids, *end), n_prompt=n_prompt)


def _prompts(tokenizer: PreTrainedTokenizerBase, examples: Iterable[Instruction]) -> list[str]:
    if not getattr(tokenizer, "chat_template", None):
        return [prompt_text(example) for example in examples]
    from jinja2 import TemplateError  # noqa: PLC0415  only templates need it

    try:
        return [_of_template(tokenizer, example) for example in examples]
    except TemplateError as error:
        raise BadInputError(
            f"The tokenizer's chat template refuses a lone question ({error}). Take the template "
            f"out of the model's tokenizer_config.json; a plain one is used then."
        ) from error


def _of_template(tokenizer: PreTrainedTokenizerBase, example: Instruction) -> str:
    parts = [part for part in (example.instruction.strip(), example.input.strip()) if part]
    asked = [{"role": "user", "content": "\n\n".join(parts)}]
    return str(tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True))


def _first_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token that the tokenizer puts before every text by itself; a chat template
    states its own.
    """
    if getattr(tokenizer, "chat_template", None):
        return []
    alone = list(tokenizer("")["input_ids"])
    return [int(token) for token in alone if token == tokenizer.bos_token_id]


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    return list(tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"])
