"""Keeps what evaluation sees out of training: text that stands there word for word, and text that
has a long run of words in common with it.

Reference: Brown et al., "Language Models are Few-Shot Learners", arXiv:2005.14165, appendix C:
what shares 13 words in a row with a benchmark is overlap, whatever the case and punctuation. There
the run is cut out with 200 characters on both sides of it; here the whole text is left out.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from qpruner_core.data.tasks import Item

SPAN = 8
"""Words that two texts must share before one can be called a part of the other; shorter texts are
compared whole, as a few words stand everywhere."""
RUN = 13
"""Words in a row that make two texts overlap, whatever stands around them."""
_STEP = RUN - SPAN + 1
"""Of so many spans that begin one after the other, a run contains every one: looking at each
sixth span of a text misses no run."""
_WORD = re.compile(r"\w+")
_Words = tuple[str, ...]


class Evaluated:
    """Lines of held-out text, and questions with and without their right answers."""

    def __init__(self, documents: Iterable[str], items: Iterable[Item] = ()) -> None:
        """Take what evaluation reads; every line of a document counts for itself."""
        items = tuple(items)
        contexts = [text for item in items for text in dict.fromkeys(item.all_contexts)]
        texts = [line for text in documents for line in text.split("\n")]
        texts += map(gold_text, items)
        self._lines = _Lines(tuple(text.split()) for text in texts)
        words = (tuple(text.split()) for text in contexts)
        self._contexts = _Lines(context for context in words if len(context) >= SPAN)
        self._runs = _Runs((*texts, *contexts))

    def holds(self, text: str) -> bool:
        """Whether a text is a line or an item, is a part of one, or has one as a part; word for
        word, whatever the space between words.
        """
        return self._lines.holds(tuple(text.split()))

    def overlaps(self, *parts: str) -> bool:
        """Whether a text must not be trained on: evaluation holds it or a part of it that stands
        for itself, or it has a question of an item, answered or not, or shares a run of `RUN`
        words with a line or an item.

        Args:
            parts: The text, or its parts in order.
        """
        text = " ".join(parts)
        words, known = tuple(text.split()), (self._lines, self._contexts)
        if any(lines.holds(words) for lines in known) or self._runs.share(text):
            return True
        # What a part has in it the whole has, too; what has a part in it need not have the whole.
        alone = [tuple(part.split()) for part in parts if len(parts) > 1]
        return any(lines.are_around(part) for part in alone for lines in known)


class _Lines:
    """Texts as words, to be found in others and others in them."""

    def __init__(self, lines: Iterable[_Words]) -> None:
        self._whole = {line for line in lines if line}
        long = [line for line in self._whole if len(line) >= SPAN]
        self._spans = {hash(span) for line in long for span in _spans(line)}
        self._joined = "\n" + "\n".join(f" {' '.join(line)} " for line in long)
        self._begins: dict[_Words, dict[int, set[_Words]]] = defaultdict(dict)
        for line in long:
            self._begins[line[:SPAN]].setdefault(len(line), set()).add(line)
        self._firsts = {begin[0] for begin in self._begins}

    def holds(self, words: _Words) -> bool:
        """Whether words are a line, a part of one, or have one as a part."""
        return self.are_around(words) or self._has_part(words)

    def are_around(self, words: _Words) -> bool:
        """Whether words are a line or a part of one."""
        if words in self._whole:
            return True
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


class _Runs:
    """Every run of `RUN` words of some texts; case and punctuation do not count."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._spans: set[int] = set()
        self._runs: set[int] = set()
        for text in texts:
            words = _bare(text)
            if len(words) >= RUN:
                self._spans.update(map(hash, _spans(words)))
                self._runs.update(map(hash, _spans(words, RUN)))

    def share(self, text: str) -> bool:
        """Whether a text has one of the runs."""
        words = _bare(text)
        last = len(words) - RUN
        for at in range(_STEP - 1, len(words) - SPAN + 1, _STEP):
            if hash(tuple(words[at : at + SPAN])) in self._spans:
                begins = range(max(0, at - _STEP + 1), min(at, last) + 1)
                if any(hash(tuple(words[n : n + RUN])) in self._runs for n in begins):
                    return True
        return False


def gold_text(item: Item) -> str:
    """Return an item as a model reads it with its right answer."""
    return item.all_contexts[item.gold] + item.choices[item.gold]


def _bare(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _spans(words: Sequence[str], length: int = SPAN) -> Iterator[_Words]:
    return (tuple(words[at : at + length]) for at in range(len(words) - length + 1))
