"""Keeps what evaluation sees out of training: text that stands there word for word."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from qpruner_core.data.tasks import Item

SPAN = 8
"""Words that two texts must share before one can be called a part of the other; shorter texts are
compared whole, as a few words stand everywhere."""
_Words = tuple[str, ...]


class Evaluated:
    """Lines of held-out text and questions with their right answers."""

    def __init__(self, documents: Iterable[str], items: Iterable[Item] = ()) -> None:
        """Take what evaluation reads; every line of a document counts for itself."""
        lines = [tuple(line.split()) for text in documents for line in text.split("\n")]
        lines += [tuple(gold_text(item).split()) for item in items]
        self._whole = {line for line in lines if line}
        long = [line for line in self._whole if len(line) >= SPAN]
        self._spans = {hash(span) for line in long for span in _spans(line)}
        self._joined = "\n" + "\n".join(f" {' '.join(line)} " for line in long)
        self._begins: dict[_Words, dict[int, set[_Words]]] = defaultdict(dict)
        for line in long:
            self._begins[line[:SPAN]].setdefault(len(line), set()).add(line)
        self._firsts = {begin[0] for begin in self._begins}

    def holds(self, text: str) -> bool:
        """Whether a text is a line or an item, is a part of one, or has one as a part; word for
        word, whatever the space between words.
        """
        words = tuple(text.split())
        return words in self._whole or self._is_part(words) or self._has_part(words)

    def _is_part(self, words: _Words) -> bool:
        if len(words) < SPAN or not all(hash(span) in self._spans for span in _spans(words)):
            return False
        return f" {' '.join(words)} " in self._joined

    def _has_part(self, words: _Words) -> bool:
        for at in range(len(words) - SPAN + 1):
            if words[at] not in self._firsts:
                continue
            known = self._begins.get(words[at : at + SPAN], {})
            if any(words[at : at + length] in lines for length, lines in known.items()):
                return True
        return False


def gold_text(item: Item) -> str:
    """Return an item as a model reads it with its right answer."""
    return item.all_contexts[item.gold] + item.choices[item.gold]


def _spans(words: Sequence[str]) -> Iterator[_Words]:
    return (tuple(words[at : at + SPAN]) for at in range(len(words) - SPAN + 1))
