"""What must not be trained on: text and items that evaluation reads, and what overlaps them."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from qpruner_core.data import Item
from qpruner_core.data.apart import RUN, SPAN, Evaluated

spoken = st.lists(st.sampled_from("abc"), min_size=1, max_size=24).map(tuple)


@given(lines=st.lists(spoken, max_size=6), asked=spoken)
@settings(max_examples=300)
def test_what_evaluation_holds_is_found_as_by_looking_everywhere(lines, asked):
    def is_in(some, other):
        return any(other[n : n + len(some)] == some for n in range(len(other) - len(some) + 1))

    expected = any(
        asked == line
        or (len(asked) >= SPAN and is_in(asked, line))
        or (len(line) >= SPAN and is_in(line, asked))
        for line in lines
    )
    evaluated = Evaluated([" ".join(line) for line in lines])
    assert evaluated.holds("  ".join(asked)) == expected


def test_an_item_whose_choices_differ_in_what_stands_before_them_is_known_by_its_gold():
    item = Item(id="1", context="", contexts=("Ann", "Ben"), choices=(" ran", " ran"), gold=1)
    evaluated = Evaluated([], [item])
    assert evaluated.holds("Ben ran")
    assert not evaluated.holds("Ann ran")


def test_a_question_is_known_without_its_answer():
    question = "which of all these is the one that we look for"
    evaluated = Evaluated([], [Item(id="1", context=question, choices=(" a", " b"), gold=0)])
    assert evaluated.overlaps(f"{question} b")
    assert evaluated.overlaps("Say this.", question, "b")
    assert not evaluated.holds(f"{question} b")
    assert not evaluated.overlaps("which of all these is the other one")


def test_a_short_question_may_stand_in_many_texts():
    evaluated = Evaluated([], [Item(id="1", context="It is", choices=(" a", " b"), gold=0)])
    assert not evaluated.overlaps("It is")
    assert not evaluated.overlaps("It is b")


@given(lines=st.lists(st.lists(st.sampled_from("ab"), min_size=1, max_size=40), max_size=4),
       asked=st.lists(st.sampled_from("ab"), max_size=60),
       cut=st.tuples(st.integers(0, 27), st.integers(8, 20)))  # fmt: skip
@settings(max_examples=300)
def test_a_run_of_words_is_found_whatever_stands_around_it(lines, asked, cut):
    # Words of many letters, so that runs are equal by being copied, not by chance.
    numbered = [
        [f"{word}{number}x{n}" for n, word in enumerate(line)] for number, line in enumerate(lines)
    ]
    begin, length = cut
    copied = [word for line in numbered[:1] for word in line[begin : begin + length]]
    text = ["start", *asked, *copied, *asked, "end"]
    evaluated = Evaluated([" ".join(line) for line in numbered])
    runs = {tuple(line[n : n + RUN]) for line in numbered for n in range(len(line) - RUN + 1)}
    shares = any(tuple(text[n : n + RUN]) in runs for n in range(len(text) - RUN + 1))
    assert evaluated.overlaps(" ".join(text)) == (shares or evaluated.holds(" ".join(text)))


def test_neither_case_nor_punctuation_hides_a_run():
    line = "the cat sat on the mat and the dog lay on the rug for a long hour"
    evaluated = Evaluated([line])
    shown = "They said: The Cat, sat on the mat; and the dog lay on the RUG... or so."
    assert evaluated.overlaps(shown)
    assert not evaluated.holds(shown)
