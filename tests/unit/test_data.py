"""Texts and tasks: kept apart by use, packed without overlap, refused with a sentence."""

from __future__ import annotations

import json
import random
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qpruner_core.data import Item, corpus, load_corpus, load_training, read_tasks, texts
from qpruner_core.data.texts import USES, Text, read_texts
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.domain.spec import DataSpec
from qpruner_core.errors import BadInputError, DataTooShortError, HubUnreachableError

EOS = 2


def spec(text, **changes):
    sources = dict.fromkeys(("calibration", "training", "heldout"), str(text))
    small = {"sequence_length": 8, "calibration_tokens": 32, "heldout_tokens": 24, "tasks": "none"}
    return DataSpec(**{**sources, **small, **changes})


def documents_of(ids):
    """Return the documents in packed ids that stand between two end tokens."""
    stream = ids.flatten().tolist()
    ends = [index for index, token in enumerate(stream) if token == EOS]
    return {tuple(stream[a + 1 : b]) for a, b in pairwise(ends)}


@pytest.fixture
def words(tiny_tokenizer):
    known = [word for word, index in tiny_tokenizer.get_vocab().items() if index >= 4]
    return sorted(known)


@pytest.fixture
def text_file(tmp_path, words):
    """200 different documents of 3 to 9 words, one per line."""
    rng = random.Random(0)
    lines = [" ".join(rng.choices(words, k=rng.randint(3, 9))) for _ in range(200)]
    file = tmp_path / "text.txt"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_packing_joins_documents_by_the_end_token_without_overlap(tiny_tokenizer, words):
    documents = ("ba ca da", "fa", "ga ha ja ka la")
    text = Text(source="x", documents=documents)
    packed = corpus.pack(tiny_tokenizer, text, "training", 4, 10**6)
    ids = [tiny_tokenizer(d, add_special_tokens=False)["input_ids"] for d in documents]
    stream = [*ids[0], EOS, *ids[1], EOS, *ids[2], EOS]
    assert packed.tolist() == [stream[0:4], stream[4:8], stream[8:12]]
    assert packed.dtype == torch.int64


def test_a_tokenizer_without_an_end_token_joins_by_a_newline(tiny_tokenizer):
    tiny_tokenizer.eos_token = None
    text = Text(source="x", documents=("ba ca", "da fa"))
    packed = corpus.pack(tiny_tokenizer, text, "training", 4, 10**6)
    newline = tiny_tokenizer("\n", add_special_tokens=False)["input_ids"]
    assert packed.numel() == 4 == 4 + 2 * len(newline)


def test_as_many_tokens_as_asked_for_come_back(tiny_tokenizer, text_file):
    loaded = load_corpus(spec(text_file), tiny_tokenizer)
    assert loaded.calibration.shape == (4, 8)
    assert loaded.heldout.shape == (3, 8)
    assert loaded.tasks == {}


def test_a_source_that_is_shorter_is_taken_whole(tiny_tokenizer, text_file):
    loaded = load_corpus(spec(text_file, heldout_tokens=10**6), tiny_tokenizer)
    assert 8 <= loaded.heldout.numel() < 10**4


def test_uses_that_share_a_file_never_share_a_document(tiny_tokenizer, text_file):
    asked = spec(text_file, calibration_tokens=10**6, heldout_tokens=10**6)
    loaded = load_corpus(asked, tiny_tokenizer)
    trained = load_training(RecoverySpec(sequence_length=8), asked, tiny_tokenizer).ids
    seen = [documents_of(ids) for ids in (loaded.calibration, trained, loaded.heldout)]
    assert all(seen)
    assert not any(one & other for one, other in combinations(seen, 2))


def test_a_file_under_two_names_is_still_the_same_file(text_file):
    other = text_file.parent / "link.txt"
    other.symlink_to(text_file)
    split = read_texts(
        {"calibration": str(text_file), "training": str(other), "heldout": str(other)}
    )
    assert len({document for text in split.values() for document in text.documents}) == 200


def test_files_of_their_own_are_read_whole(text_file, tmp_path):
    copy = tmp_path / "copy.txt"
    copy.write_text(text_file.read_text())
    split = read_texts({"calibration": "demo", "training": str(text_file), "heldout": str(copy)})
    assert len(split["training"].documents) == len(split["heldout"].documents) == 200


@given(
    n_documents=st.integers(1, 60),
    sharing=st.sets(st.sampled_from(USES), min_size=1).map(sorted),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_stretches_of_a_shared_source_cover_it_and_are_disjoint(n_documents, sharing):
    order = [use for use in USES if use in sharing]
    documents = tuple(map(str, range(n_documents)))
    if n_documents < len(order):
        with pytest.raises(DataTooShortError):
            texts._share(documents, order[0], order, "x")
        return
    parts = [texts._share(documents, use, order, "x") for use in order]
    assert sum(parts, ()) == documents
    assert all(parts)


def test_the_demo_has_all_three_texts_and_seven_tasks(tiny_tokenizer):
    data = DataSpec(items_per_task=5, calibration_tokens=256)
    loaded = load_corpus(data, tiny_tokenizer)
    trained = load_training(RecoverySpec(), data, tiny_tokenizer)
    assert all(map(len, (loaded.calibration, loaded.heldout, trained)))
    assert len(loaded.tasks) == 7
    assert {len(items) for items in loaded.tasks.values()} == {5}


def test_wikitext_is_read_as_the_field_reads_it(tiny_tokenizer, tmp_path, monkeypatch):
    import pandas as pd

    asked = []

    def local(repo, name):
        asked.append((repo, name))
        file = tmp_path / name.replace("/", "_")
        rows = ["", " = Title = \n", "ba ca da fa ga ha ja ka la ma\n", ""] * 40
        pd.DataFrame({"text": rows}).to_parquet(file)
        return file

    monkeypatch.setattr(texts.hub, "dataset_file", local)
    split = read_texts(dict.fromkeys(USES, "wikitext2"))
    assert split["heldout"].documents == (
        "\n\n".join(["", " = Title = \n", "ba ca da fa ga ha ja ka la ma\n", ""] * 40),
    )
    n_rows = [len(split[use].documents[0].split("\n\n")) for use in ("calibration", "training")]
    assert n_rows[0] < n_rows[1], "calibration and training share the training split"
    assert {name.split("/")[1].split("-")[0] for _, name in asked} == {"train", "test"}


def test_wikitext_without_a_network_is_said(tiny_tokenizer):
    with pytest.raises(HubUnreachableError, match="Salesforce/wikitext"):
        load_corpus(DataSpec(heldout="wikitext2"), tiny_tokenizer)


# Text that does not fit


def test_text_shorter_than_one_sequence_is_said_with_both_numbers(tiny_tokenizer, tmp_path):
    file = tmp_path / "short.txt"
    file.write_text("ba ca\nda fa\nga ha\n")
    with pytest.raises(DataTooShortError, match=r"calibration text .* has 3 tokens .* takes 8"):
        load_corpus(spec(file), tiny_tokenizer)


@pytest.mark.parametrize("content", [b"", b"\n\n  \n", b"\xef\xbb\xbf"])
def test_text_without_a_document_is_said(tiny_tokenizer, tmp_path, content):
    file = tmp_path / "empty.txt"
    file.write_bytes(content)
    with pytest.raises(DataTooShortError, match="holds no document"):
        load_corpus(spec(file), tiny_tokenizer)


def test_fewer_documents_than_uses_are_said(tiny_tokenizer, tmp_path):
    file = tmp_path / "two.txt"
    file.write_text("ba ca\nda fa\n")
    with pytest.raises(DataTooShortError, match="holds 2 documents"):
        load_corpus(spec(file), tiny_tokenizer)


def test_text_that_is_not_utf_8_is_said_with_its_line(tiny_tokenizer, tmp_path):
    file = tmp_path / "latin.txt"
    file.write_bytes(b"ba ca\nd\xe9 fa\n")
    with pytest.raises(BadInputError, match=r"not UTF-8: byte 7, in line 2"):
        load_corpus(spec(file), tiny_tokenizer)


def test_a_text_that_is_not_there_is_said(tiny_tokenizer):
    with pytest.raises(BadInputError, match="calibration text 'wikitext' is not a file"):
        load_corpus(spec("wikitext"), tiny_tokenizer)


# Tasks


def write_task(folder, name, items):
    folder.mkdir(exist_ok=True)
    lines = [item if isinstance(item, str) else json.dumps(item) for item in items]
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def question(number=0, **changes):
    stated = {"id": f"q{number}", "context": "ba", "choices": [" ca", " da"], "gold": 1}
    return {key: value for key, value in {**stated, **changes}.items() if value is not None}


@pytest.fixture
def tasks_folder(tmp_path):
    folder = tmp_path / "tasks"
    write_task(folder, "first", [question(n) for n in range(30)])
    write_task(folder, "second", [question(n) for n in range(4)])
    return folder


def test_all_items_come_in_file_order(tasks_folder):
    tasks = read_tasks(str(tasks_folder), 0)
    assert list(tasks) == ["first", "second"]
    assert [item.id for item in tasks["first"]] == [f"q{n}" for n in range(30)]
    assert tasks["first"][0] == Item(id="q0", context="ba", choices=(" ca", " da"), gold=1)


def test_items_without_ids_go_by_their_lines_and_whole_numbers_are_ids_too(tmp_path):
    write_task(tmp_path / "tasks", "mine", [question(id=None), question(id=None), question(id=0)])
    items = read_tasks(str(tmp_path / "tasks"), 0)["mine"]
    assert [item.id for item in items] == ["1", "2", "0"]


def test_choices_may_differ_in_what_stands_before_them(tmp_path):
    line = {"contexts": ["ba", "bo"], "continuation": " ca", "gold": 1}
    write_task(tmp_path / "tasks", "mine", [line])
    (item,) = read_tasks(str(tmp_path / "tasks"), 0)["mine"]
    assert (item.choices, item.all_contexts) == ((" ca", " ca"), ("ba", "bo"))
    assert Item(id="0", context="ba", choices=("a", "b"), gold=0).all_contexts == ("ba", "ba")


@pytest.mark.parametrize("continuation", ["ca da", " ca da"])
def test_context_options_are_joined_by_a_space_as_winogrande_is(tmp_path, continuation):
    line = {"id": 7, "context_options": ["ba", "bo"], "continuation": continuation, "gold": 1}
    write_task(tmp_path / "tasks", "mine", [line])
    (item,) = read_tasks(str(tmp_path / "tasks"), 0)["mine"]
    assert (item.id, item.gold) == ("7", 1)
    assert (item.choices, item.all_contexts) == ((" ca da", " ca da"), ("ba", "bo"))


def test_a_choice_of_items_is_seeded_and_grows_by_adding(tasks_folder):
    ten, twenty = (read_tasks(str(tasks_folder), n, seed=3) for n in (10, 20))
    assert ten["first"] == twenty["first"][:10]
    assert len(ten["second"]) == 4
    assert read_tasks(str(tasks_folder), 10, seed=3) == ten
    assert read_tasks(str(tasks_folder), 10, seed=4)["first"] != ten["first"]


def test_no_tasks_can_be_asked_for():
    assert read_tasks("none", 5) == {}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "is not JSON"),
        ("[1]", "holds a list"),
        (question(gold=None), "lacks 'gold'"),
        (question(context=None, choices=None), "lacks 'context', 'choices'"),
        (question(id=True), "'id' as True"),
        (question(context=["ba"]), "'context' as"),
        (question(choices=" ca"), "not a list of texts"),
        (question(choices=[" ca", ""]), "none empty"),
        (question(choices=[" ca"]), "1 choices"),
        (question(gold=2), "'gold' as 2"),
        (question(gold=True), "'gold' as True"),
        (question(gold=-1), "'gold' as -1"),
        (question(0), "repeats the id 'q0'"),
        ({"contexts": ["ba"], "continuation": " ca", "gold": 0}, "1 contexts"),
        ({"context_options": ["ba"], "continuation": "ca", "gold": 0}, "1 context_options"),
        ({"context_options": ["ba", "bo"], "gold": 0}, "lacks 'continuation'"),
        ({"continuation": "ca", "gold": 0}, "lacks 'contexts'"),
        ({"contexts": ["ba", "bo"], "gold": 0}, "lacks 'continuation'"),
        ({"contexts": ["ba", "bo"], "continuation": "", "gold": 0}, "'continuation' as ''"),
    ],
)
def test_the_first_bad_line_is_named(tmp_path, line, words):
    write_task(tmp_path / "tasks", "mine", [question(0), "", line, "also bad"])
    with pytest.raises(BadInputError, match=rf"mine\.jsonl:3 .*{words}"):
        read_tasks(str(tmp_path / "tasks"), 0)


def test_a_task_file_without_items_is_said(tmp_path):
    write_task(tmp_path / "tasks", "mine", [])
    with pytest.raises(DataTooShortError, match="holds no item"):
        read_tasks(str(tmp_path / "tasks"), 0)


def test_a_task_file_that_is_not_utf_8_is_said(tmp_path):
    write_task(tmp_path / "tasks", "mine", [])
    (tmp_path / "tasks" / "mine.jsonl").write_bytes(b"\xe9")
    with pytest.raises(BadInputError, match="not UTF-8"):
        read_tasks(str(tmp_path / "tasks"), 0)


@pytest.mark.parametrize(("name", "words"), [("", r"holds no \*"), ("gone", "is not a folder")])
def test_a_tasks_folder_that_is_empty_or_missing_is_said(tmp_path, name, words):
    with pytest.raises(BadInputError, match=words):
        read_tasks(str(tmp_path / name), 0)
