"""What recovery trains on: instructions and text in rows, and nothing that evaluation sees."""

from __future__ import annotations

import json
import random
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from qpruner_core.data import load_training, loading
from qpruner_core.data.apart import Evaluated
from qpruner_core.data.corpus import MAX_TRAINING_TOKENS, pack
from qpruner_core.data.instructions import Example, encoded, prompt_text
from qpruner_core.data.rows import shared_rows, training_set
from qpruner_core.data.tasks import read_tasks
from qpruner_core.data.texts import USES, read_texts
from qpruner_core.data.training import IGNORED
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.domain.spec import DataSpec
from qpruner_core.errors import BadInputError, DataTooShortError
from qpruner_core.inspection import check_training, demo_folder
from qpruner_core.inspection.instructions import Instruction

EOS, PAD = 2, 3
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    "<s> {{ m['content'] }} </s> {% endfor %}{% if add_generation_prompt %}<s> {% endif %}"
)


def recovery(**changes):
    return RecoverySpec(**{"sequence_length": 32, **changes})


@pytest.fixture
def words(tiny_tokenizer):
    return sorted(word for word, index in tiny_tokenizer.get_vocab().items() if index >= 4)


@pytest.fixture
def sentence(words):
    draw = random.Random(1)
    return lambda n: " ".join(draw.choices(words, k=n))


@pytest.fixture
def instruction_file(tmp_path, sentence):
    """Write examples, those given or 60 of some words each, and return the path."""

    def write(entries=None, name="mine.json"):
        entries = entries or [
            {"instruction": sentence(3), "input": sentence(n % 4), "output": sentence(2 + n % 7)}
            for n in range(60)
        ]
        file = tmp_path / name
        file.write_text(json.dumps(entries))
        return str(file)

    return write


def words_of(tokenizer, ids):
    """Return ids as one text, with a bar at each end of a row."""
    rows = [" ".join(tokenizer.convert_ids_to_tokens(row)) for row in ids.tolist()]
    return " | ".join(["", *rows, ""])


# Prompt and answer


def test_an_answer_follows_its_prompt_and_ends_with_the_end_token(tiny_tokenizer, words):
    asked = Instruction(instruction=words[0], input=words[1], output=f"{words[2]} {words[3]}")
    (example,) = encoded(tiny_tokenizer, [asked])
    known = tiny_tokenizer.get_vocab()
    answer = [known[words[2]], known[words[3]], EOS]
    assert list(example.ids[example.n_prompt :]) == answer
    prompt = tiny_tokenizer(prompt_text(asked), add_special_tokens=False)["input_ids"]
    assert list(example.ids[: example.n_prompt]) == prompt
    assert known[words[0]] in prompt
    assert known[words[1]] in prompt


def test_without_an_input_there_is_no_section_for_it():
    asked = Instruction(instruction="Greet.", output="x")
    assert prompt_text(asked) == "## Task\nGreet.\n\n## Answer\n"


def test_the_chat_template_is_used_where_there_is_one(tiny_tokenizer, words):
    tiny_tokenizer.chat_template = TEMPLATE
    asked = Instruction(instruction=words[0], input=words[1], output=words[2])
    (example,) = encoded(tiny_tokenizer, [asked])
    shown = tiny_tokenizer.convert_ids_to_tokens(example.ids)
    assert shown == ["<s>", words[0], words[1], "</s>", "<s>", words[2], "</s>"]
    assert example.n_prompt == 5


def test_a_template_that_refuses_is_said(tiny_tokenizer):
    tiny_tokenizer.chat_template = "{{ raise_exception('system needed') }}"
    with pytest.raises(BadInputError, match=r"system needed.*plain one"):
        list(encoded(tiny_tokenizer, [Instruction(instruction="a", output="b")]))


def test_the_first_token_of_a_tokenizer_that_sets_one_stands_before_the_prompt(tiny_tokenizer):
    from tokenizers.processors import TemplateProcessing

    inner = tiny_tokenizer.backend_tokenizer
    inner.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    marked = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
    (example,) = encoded(marked, [Instruction(instruction="ba", output="ca")])
    plain = tiny_tokenizer(prompt_text(Instruction(instruction="ba", output="ca")),
                           add_special_tokens=False)["input_ids"]  # fmt: skip
    assert example.ids[0] == 1
    assert example.n_prompt == 1 + len(plain)


# Rows

lengths_and_width = st.integers(2, 40).flatmap(
    lambda width: st.tuples(st.lists(st.integers(2, width), min_size=1), st.just(width))
)


@given(lengths_and_width, st.integers(0, 5))
def test_every_example_is_in_one_row_that_has_room_for_it(given_, seed):
    lengths, width = given_
    rows = shared_rows(lengths, width, seed)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    filled = [sum(lengths[index] for index in row) for row in rows]
    assert all(0 < total <= width for total in filled)
    assert rows == shared_rows(lengths, width, seed)
    # Two rows that fit into one would have been one.
    assert sum(2 * total <= width for total in filled) <= 1


example = st.integers(2, 12).flatmap(
    lambda n: st.builds(
        Example,
        ids=st.lists(st.integers(4, 99), min_size=n, max_size=n).map(tuple),
        n_prompt=st.integers(0, n - 1),
    )
)


@given(examples=st.lists(example, min_size=1, max_size=30), packing=st.booleans(),
       on_prompt=st.booleans(), seed=st.integers(0, 3))  # fmt: skip
@settings(max_examples=200)
def test_rows_hold_every_token_once_and_in_order(examples, packing, on_prompt, seed):
    lengths = [len(e.ids) for e in examples]
    rows = shared_rows(lengths, 16, seed) if packing else [[n] for n in range(len(examples))]
    found = training_set(examples, rows, pad=PAD, train_on_prompt=on_prompt)
    assert found.ids.shape == found.labels.shape == found.positions.shape
    seen = []
    for number, row in enumerate(rows):
        at = 0
        for index in row:
            expected, end = examples[index], at + lengths[index]
            piece = slice(at, end)
            assert tuple(found.ids[number, piece].tolist()) == expected.ids
            assert found.positions[number, piece].tolist() == list(range(end - at))
            learned = [found.labels[number, n] != IGNORED for n in range(at, end)]
            first = 1 if on_prompt else max(1, expected.n_prompt)
            assert learned == [n >= first for n in range(end - at)]
            seen.append(index)
            at = end
        assert (found.ids[number, at:] == PAD).all()
        assert (found.labels[number, at:] == IGNORED).all()
        assert found.positions[number, at:].tolist() == list(range(found.ids.shape[1] - at))
    assert sorted(seen) == list(range(len(examples)))
    is_label = found.labels != IGNORED
    assert torch.equal(found.labels[is_label], found.ids[is_label])
    starts = {(n, 0) for n in range(len(rows))} | {tuple(at.tolist()) for at in
              (found.positions == 0).nonzero()}  # fmt: skip
    n_padded = sum(sum(lengths[i] for i in row) < found.ids.shape[1] for row in rows)
    assert len(starts) == len(examples) + n_padded


def test_an_example_learns_the_same_whatever_shares_its_row(
    tiny_tokenizer, tiny_model, instruction_file
):
    file = instruction_file()
    losses = []
    for packing in (True, False):
        spec = recovery(training=file, packing=packing)
        found = load_training(spec, DataSpec(tasks="none"), tiny_tokenizer)
        with torch.no_grad():
            logits = tiny_model.double()(
                input_ids=found.ids, position_ids=found.positions, use_cache=False
            ).logits
        told = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), found.labels[:, 1:].flatten(), reduction="sum"
        )
        losses.append(float(told))
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


# What is read


def test_instructions_are_packed_cut_and_counted(tiny_tokenizer, instruction_file, sentence):
    entries = [{"instruction": sentence(2), "output": sentence(3)} for _ in range(40)]
    entries += [{"instruction": sentence(2), "output": sentence(60)}]
    entries += [{"instruction": sentence(60), "output": sentence(2)}] * 2
    file = instruction_file(entries)
    found = load_training(recovery(training=file), DataSpec(tasks="none"), tiny_tokenizer)
    assert found.remarks == (
        "3 of 43 examples are longer than 32 tokens: cut there.",
        "2 of 43 examples keep no token to learn: left out.",
    )
    assert found.ids.shape[1] == 32
    assert int((found.positions[:, 1:] == 0).sum()) > 10
    prompts = load_training(
        recovery(training=file, train_on_prompt=True), DataSpec(tasks="none"), tiny_tokenizer
    )
    assert len(prompts.remarks) == 1
    assert int((prompts.labels != IGNORED).sum()) > int((found.labels != IGNORED).sum())


def test_an_example_without_an_answer_is_left_out_and_counted(
    tiny_tokenizer, instruction_file, sentence
):
    entries = [{"instruction": sentence(3), "output": sentence(4)} for _ in range(4)]
    silent = {"instruction": sentence(3), "output": "  "}
    asked = recovery(packing=False, training=str(instruction_file([*entries, silent])))
    found = load_training(asked, DataSpec(tasks="none"), tiny_tokenizer)
    assert len(found) == 4
    assert found.remarks[0] == "1 example has no answer: left out of training."
    asked = recovery(training=str(instruction_file([silent], "silent.json")))
    with pytest.raises(DataTooShortError, match="has an answer"):
        load_training(asked, DataSpec(tasks="none"), tiny_tokenizer)


def test_without_packing_every_example_has_a_row(tiny_tokenizer, instruction_file):
    spec = recovery(training=instruction_file(), packing=False)
    found = load_training(spec, DataSpec(tasks="none"), tiny_tokenizer)
    assert len(found) == 60
    assert found.ids.shape[1] < 32, "rows are no wider than the longest example"


def test_rows_are_repeatable_and_the_seed_orders_them(tiny_tokenizer, instruction_file):
    file = instruction_file()
    one, same, other = (
        load_training(recovery(training=file, seed=seed), DataSpec(tasks="none"), tiny_tokenizer)
        for seed in (0, 0, 1)
    )
    assert torch.equal(one.ids, same.ids)
    assert not torch.equal(one.ids[0], other.ids[0])


def test_more_than_can_be_trained_on_is_not_read(tiny_tokenizer, instruction_file, monkeypatch):
    monkeypatch.setattr(loading, "MAX_TRAINING_TOKENS", 100)
    spec = recovery(training=instruction_file())
    found = load_training(spec, DataSpec(tasks="none"), tiny_tokenizer)
    assert "of 60 examples are read, about 100 tokens" in found.remarks[0]
    assert int((found.labels != IGNORED).sum()) < 100


def test_examples_that_leave_nothing_to_learn_are_said(tiny_tokenizer, instruction_file, sentence):
    file = instruction_file([{"instruction": sentence(60), "output": "ba"}] * 3)
    with pytest.raises(DataTooShortError, match=r"Of 3 examples .* within 32 tokens"):
        load_training(recovery(training=file), DataSpec(tasks="none"), tiny_tokenizer)


def test_text_is_the_runs_own_unless_recovery_names_one(tiny_tokenizer, tiny_data, tmp_path):
    own = load_training(recovery(), tiny_data, tiny_tokenizer)
    lines = (tmp_path / "training.txt").read_text().split("\n")
    assert own.positions is None
    assert torch.equal(own.ids, own.labels)
    assert words_of(tiny_tokenizer, own.ids).startswith(f" | {lines[0]} </s> {lines[1][:6]}")
    demo = load_training(recovery(training="demo"), tiny_data, tiny_tokenizer)
    assert len(demo) > len(own)


# Kept apart


def heldout_lines(data):
    text = read_texts({use: getattr(data, use) for use in USES}, ["heldout"])["heldout"]
    return [line for document in text.documents for line in document.split("\n") if line.strip()]


def assert_apart(tokenizer, found, data):
    """No line of the held-out text and no item with its answer stands in a training row."""
    items = [item for some in read_tasks(data.tasks, 0).values() for item in some]
    evaluated = heldout_lines(data) + [i.all_contexts[i.gold] + i.choices[i.gold] for i in items]
    trained = words_of(tokenizer, found.ids)
    assert evaluated
    assert not any(f" {' '.join(line.split())} " in trained for line in evaluated)


@pytest.fixture
def demo_tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(demo_folder() / "model")


def test_the_demo_trains_on_no_document_that_it_evaluates(demo_tokenizer):
    found = load_training(recovery(sequence_length=128), DataSpec(), demo_tokenizer)
    trained = " ".join(demo_tokenizer.decode(found.ids.flatten()).split())
    lines = heldout_lines(DataSpec())
    assert found.remarks == ()
    assert len(lines) == 1000
    assert not any(line in trained for line in lines)
    assert lines[0][:20] in demo_tokenizer.decode(demo_tokenizer(lines[0])["input_ids"])


@pytest.mark.parametrize("by", ["name", "path"])
def test_of_the_demos_own_training_text_nothing_is_left_out(demo_tokenizer, by):
    data = DataSpec()
    path = str(demo_folder() / "data" / "training.txt")
    found = load_training(recovery(training=path if by == "path" else ""), data, demo_tokenizer)
    whole = read_texts({use: getattr(data, use) for use in USES}, ["training"])["training"]
    expected = pack(demo_tokenizer, whole, "training", 32, MAX_TRAINING_TOKENS)
    assert torch.equal(found.ids, expected)


@pytest.mark.parametrize("asked", ["", "itself"])
def test_of_a_shared_file_only_the_training_stretch_is_trained_on(
    tiny_tokenizer, tmp_path, sentence, asked
):
    file = tmp_path / "all.txt"
    rows = [sentence(12) for _ in range(200)]
    file.write_text("\n".join([*rows, *rows[:3]]))  # some of the first stand in the last stretch
    data = DataSpec(calibration=str(file), training=str(file), heldout=str(file), tasks="none")
    spec = recovery(training=str(file) if asked else "")
    found = load_training(spec, data, tiny_tokenizer)
    assert_apart(tiny_tokenizer, found, data)
    n_trained = words_of(tiny_tokenizer, found.ids).count("</s>")
    assert 130 < n_trained < 145


def test_an_own_file_leaves_out_what_evaluation_reads(tiny_tokenizer, tiny_data, tmp_path,
                                                      sentence):  # fmt: skip
    heldout = heldout_lines(tiny_data)
    item = read_tasks(tiny_data.tasks, 0)["pairs"][0]
    question = item.context + item.choices[item.gold]
    leaks = [
        heldout[3],
        "  ".join(heldout[4].split()),
        f"{sentence(3)} {heldout[5]} {sentence(3)}",
        " ".join(heldout[6].split()[2:14]),
        question,
        f"{sentence(9)} {question}",
    ]
    fresh = [sentence(15) for _ in range(30)]
    file = tmp_path / "own.txt"
    file.write_text("\n".join([*fresh[:9], *leaks, *fresh[9:], heldout[0]]))
    found = load_training(recovery(training=str(file)), tiny_data, tiny_tokenizer)
    assert found.remarks[0].startswith("7 documents that stand word for word in the held-out")
    assert_apart(tiny_tokenizer, found, tiny_data)
    assert words_of(tiny_tokenizer, found.ids).count("</s>") >= 29


def test_answers_that_evaluation_reads_are_left_out(tiny_tokenizer, tiny_data, instruction_file,
                                                    sentence):  # fmt: skip
    heldout = heldout_lines(tiny_data)
    item = read_tasks(tiny_data.tasks, 0)["pairs"][1]
    entries = [
        {"instruction": sentence(2), "output": heldout[0]},
        {"instruction": sentence(2), "input": heldout[1], "output": sentence(2)},
        {"instruction": item.context, "output": item.choices[item.gold]},
        {"instruction": item.context, "output": item.choices[1 - item.gold]},
        *({"instruction": sentence(3), "output": sentence(4)} for _ in range(20)),
    ]
    spec = recovery(training=instruction_file(entries), train_on_prompt=True)
    found = load_training(spec, tiny_data, tiny_tokenizer)
    assert found.remarks[0].startswith("3 examples that stand word for word")
    assert_apart(tiny_tokenizer, found, tiny_data)
    assert int((found.ids == EOS).sum()) == 21


@pytest.mark.parametrize("key", ["instruction", "input", "output"])
def test_each_part_of_an_example_is_looked_at_alone(
    tiny_tokenizer, tiny_data, instruction_file, sentence, key
):
    # A part of a held-out line, shorter than a run: only alone it is known.
    leak = " ".join(heldout_lines(tiny_data)[2].split()[1:11])
    entries = [{"instruction": sentence(3), "input": "", "output": sentence(4)} for _ in range(9)]
    entries[4][key] = leak
    asked = recovery(training=instruction_file(entries), train_on_prompt=True, packing=False)
    found = load_training(asked, tiny_data, tiny_tokenizer)
    assert found.remarks[0].startswith("1 example that stands word for word")
    assert len(found) == 8
    assert leak not in words_of(tiny_tokenizer, found.ids)


def test_more_characters_than_can_be_trained_on_are_not_compared(
    tiny_tokenizer, instruction_file, monkeypatch
):
    compared = []
    real = Evaluated.overlaps
    monkeypatch.setattr(
        Evaluated, "overlaps", lambda self, *parts: compared.append(parts) or real(self, *parts)
    )
    monkeypatch.setattr(loading, "MAX_TRAINING_TOKENS", 10)
    found = load_training(
        recovery(training=instruction_file()), DataSpec(tasks="none"), tiny_tokenizer
    )
    assert "of 60 examples are read" in found.remarks[0]
    assert 0 < len(compared) < 20


def test_a_text_that_is_all_evaluated_is_said(tiny_tokenizer, tiny_data, tmp_path):
    copy = tmp_path / "copy.txt"
    shutil.copy(tiny_data.heldout, copy)
    with pytest.raises(DataTooShortError, match=r"All 24 documents .* never trained on"):
        load_training(recovery(training=str(copy)), tiny_data, tiny_tokenizer)


@pytest.mark.parametrize("use", ["heldout", "calibration"])
def test_a_file_of_evaluation_is_refused_under_any_name(tiny_tokenizer, tiny_data, tmp_path, use):
    link = tmp_path / "link.txt"
    link.symlink_to(getattr(tiny_data, use))
    words = "held-out" if use == "heldout" else use
    for read in (lambda s: check_training(s, tiny_data),
                 lambda s: load_training(s, tiny_data, tiny_tokenizer)):  # fmt: skip
        with pytest.raises(BadInputError, match=f"which is the {words} text of this run"):
            read(recovery(training=str(link)))


def test_instructions_are_not_divided_among_uses(instruction_file):
    file = instruction_file()
    data = DataSpec(calibration="demo", training=file, heldout=file, tasks="none")
    with pytest.raises(BadInputError, match="not divided among uses"):
        check_training(recovery(), data)
    check_training(recovery(), DataSpec(training=file, tasks="none"))


def test_a_demo_text_given_by_its_path_is_known(tiny_tokenizer):
    path = str(demo_folder() / "data" / "heldout.txt")
    with pytest.raises(BadInputError, match="held-out text"):
        check_training(recovery(training=path), DataSpec())


def test_files_that_cannot_be_trained_on_are_said_before_anything_is_computed(
    tmp_path, instruction_file
):
    bad = instruction_file([{"instruction": "a"}])
    with pytest.raises(BadInputError, match=r"mine\.json:1 \(entry 1\) lacks 'output'"):
        check_training(recovery(training=bad), DataSpec())
    with pytest.raises(BadInputError, match="training text 'gone' is not a file"):
        check_training(recovery(training="gone"), DataSpec())
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataTooShortError, match="holds no document"):
        check_training(recovery(training=str(tmp_path / "empty.txt")), DataSpec())


def test_eighteen_words_of_twenty_are_not_enough_to_be_another_text(
    tiny_tokenizer, tiny_data, tmp_path, sentence
):
    line = heldout_lines(tiny_data)[3].split()[:20]
    near = " ".join(["ba", *line[1:-1], "ba"])
    file = tmp_path / "near.txt"
    file.write_text("\n".join([*(sentence(15) for _ in range(20)), near]))
    found = load_training(recovery(training=str(file)), tiny_data, tiny_tokenizer)
    assert found.remarks[0].startswith("1 document that stands")
    assert " ".join(line[1:-1]) not in words_of(tiny_tokenizer, found.ids)
