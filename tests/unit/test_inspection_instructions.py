"""Instruction files and texts are checked entry by entry, and the first bad one is named."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qpruner_core.errors import BadInputError, DataTooShortError
from qpruner_core.inspection import examine, examine_text, is_instruction_file, texts
from qpruner_core.inspection.instructions import Instruction, read_instructions

GOOD = {"instruction": "Add.", "input": "2, 3", "output": "5"}


def written(folder, name, content):
    file = folder / name
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        file.write_text(content, encoding="utf-8")
    return file


def lines(*entries):
    return "\n".join(e if isinstance(e, str) else json.dumps(e) for e in entries) + "\n"


def array(*entries):
    return "[\n" + ",\n".join(e if isinstance(e, str) else json.dumps(e) for e in entries) + "\n]"


def test_an_array_and_json_lines_hold_the_same_examples(tmp_path):
    entries = ({"instruction": "Greet.", "output": "Hé"}, GOOD, {**GOOD, "input": None})
    expected = (
        Instruction(instruction="Greet.", output="Hé"),
        Instruction(instruction="Add.", input="2, 3", output="5"),
        Instruction(instruction="Add.", output="5"),
    )
    for name, content in (("a.json", array(*entries)), ("a.jsonl", lines(*entries))):
        file = written(tmp_path, name, content)
        assert read_instructions(file) == expected
        card = examine(file)
        assert (card.n_examples, card.n_with_input, card.warnings) == (3, 1, ())
        assert card.first_instruction == "Greet."
        assert card.n_characters == 8 + 9 + 5


def test_the_content_decides_between_array_and_lines_not_the_name(tmp_path):
    assert examine(written(tmp_path, "lines.json", lines(GOOD, "", GOOD))).n_examples == 2
    assert examine(written(tmp_path, "array.jsonl", json.dumps([GOOD, GOOD]))).n_examples == 2
    assert examine(written(tmp_path, "bom.json", b"\xef\xbb\xbf\r\n[" + json.dumps(GOOD).encode()
                           + b"\r\n]\r\n")).n_examples == 1  # fmt: skip


text = st.text(min_size=1).filter(str.strip)
examples = st.lists(
    st.builds(Instruction, instruction=text, input=st.text(), output=text), min_size=1
)


@given(examples=examples, indent=st.sampled_from([None, 1]), is_ascii=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_whatever_is_written_comes_back(tmp_path, examples, indent, is_ascii):
    stated = [{"instruction": e.instruction, "input": e.input, "output": e.output}
              for e in examples]  # fmt: skip
    whole = json.dumps(stated, indent=indent, ensure_ascii=is_ascii)
    apart = "\n".join(json.dumps(one, ensure_ascii=is_ascii) for one in stated)
    for content in (whole, apart):
        assert read_instructions(written(tmp_path, "x.json", content.encode())) == tuple(examples)


BAD = [
    ("{", "is not JSON"),
    ("NaN", "is not JSON .NaN is no JSON number"),
    ('{"instruction": "a", "output": NaN}', "is not JSON .NaN is no JSON number"),
    ("[1]", "holds a list, not an object"),
    ('"text"', "holds a str"),
    ({"instruction": "a"}, "lacks 'output'"),
    ({"messages": []}, "lacks 'instruction' and 'output' and holds a dialogue under 'messages'"),
    ({**GOOD, "output": 5}, "states 'output' as 5"),
    ({**GOOD, "output": None}, "states 'output' as None"),
    ({**GOOD, "instruction": ""}, "states 'instruction' without a text"),
    ({**GOOD, "input": ["x" * 100]}, r"states 'input' as \['x+\.\.\.,"),
    ('{"instruction": "a", "output": "\\ud800"}', "states .output. with half a character"),
    ("[" * 100_000, "is not JSON"),
]


@pytest.mark.parametrize(("entry", "found"), BAD)
def test_the_first_bad_line_is_named(tmp_path, entry, found):
    file = written(tmp_path, "mine.jsonl", lines(GOOD, "", GOOD, entry, "also bad"))
    for read in (examine, read_instructions):
        with pytest.raises(BadInputError, match=rf"mine\.jsonl:4.* {found}") as refused:
            read(file)
        assert "such as {" in str(refused.value)


@pytest.mark.parametrize(("entry", "found"), [bad for bad in BAD if bad[0] != "{"])
def test_the_first_bad_entry_of_an_array_is_named_with_its_line(tmp_path, entry, found):
    content = array(json.dumps(GOOD, indent=1), entry, "also bad")
    with pytest.raises(BadInputError, match=rf"mine\.json:7 \(entry 2\) {found}"):
        examine(written(tmp_path, "mine.json", content))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("[" + json.dumps(GOOD), "entry 1.* neither a comma nor the end"),
        ("[" + json.dumps(GOOD) + ",]", "entry 2.* is not JSON"),
        ("[" + json.dumps(GOOD) + "] x", "goes on after its array of 1 entries"),
        (json.dumps({"data": [GOOD]}), "lacks 'instruction' and 'output'"),
        (json.dumps(GOOD, indent=1), "mine.json:1 is not JSON"),
        (json.dumps(GOOD) * 2, "goes on after its first JSON value"),
        ("7", "holds a int, not an object"),
    ],
)
def test_a_file_of_another_shape_is_said(tmp_path, content, found):
    with pytest.raises(BadInputError, match=found):
        examine(written(tmp_path, "mine.json", content))


@pytest.mark.parametrize("content", [b"", b" \n\n", b"\xef\xbb\xbf", b"[]", b" [\n] "])
def test_a_file_without_examples_is_said(tmp_path, content):
    with pytest.raises(DataTooShortError, match="holds no example"):
        examine(written(tmp_path, "mine.json", content))


def test_a_file_that_cannot_be_read_is_said(tmp_path):
    with pytest.raises(BadInputError, match="not a file that exists"):
        examine(tmp_path / "gone.json")
    with pytest.raises(BadInputError, match="not UTF-8: byte 3, in line 2"):
        examine(written(tmp_path, "latin.json", b'[\n"\xe9"]'))


def test_what_is_odd_and_does_no_harm_is_a_warning(tmp_path):
    file = written(tmp_path, "a.json", array(GOOD, {**GOOD, "text": "", "id": 1}, GOOD))
    twice, keys = examine(file).warnings
    assert "2 of 3 examples are there before" in twice
    assert "'id', 'text'" in keys


def test_fifty_thousand_examples_are_read_one_after_the_other(tmp_path):
    rows = [{**GOOD, "instruction": f"Add {n}."} for n in range(50_000)]
    file = written(tmp_path, "many.json", json.dumps(rows, indent=1))
    assert examine(file).n_examples == 50_000


def test_the_end_of_the_name_tells_instructions_from_text():
    names = ("a.json", "a.JSONL", "a.txt", "demo", "wikitext2", "json")
    assert [is_instruction_file(name) for name in names] == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]


def test_a_text_is_told_by_documents_characters_and_its_first_line(tmp_path):
    card = examine_text(written(tmp_path, "a.txt", "\n  ba ca \n\nda\n"))
    assert (card.n_documents, card.n_characters, card.first_line) == (2, 7, "ba ca")
    with pytest.raises(DataTooShortError, match="holds no document"):
        examine_text(written(tmp_path, "b.txt", " \n"))
    with pytest.raises(BadInputError, match="not a file that exists"):
        examine_text(tmp_path)


def test_files_are_examined_without_torch(tmp_path):
    file = written(tmp_path, "a.json", array(GOOD))
    code = (
        "import sys; from qpruner_core.inspection import examine;"
        f"print(examine({str(file)!r}).n_examples, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "False"]


def test_examples_without_an_answer_are_counted_and_left_out(tmp_path):
    silent = {**GOOD, "output": " \n"}
    card = examine(written(tmp_path, "mine.jsonl", lines(GOOD, silent, GOOD, silent)))
    assert card.n_examples == 2
    assert card.warnings[0] == (
        "2 examples have no answer (the first in line 2): left out of training."
    )


def test_a_file_of_which_no_example_has_an_answer_is_refused(tmp_path):
    with pytest.raises(DataTooShortError, match=r"None of the 2 examples .* has an answer"):
        examine(written(tmp_path, "mine.jsonl", lines(*[{**GOOD, "output": ""}] * 2)))


@pytest.mark.parametrize(("read", "kind"), [(examine_text, "text"), (examine, "instruction file")])
def test_a_file_too_large_to_be_held_is_refused_by_its_size_unread(tmp_path, read, kind):
    path = tmp_path / "large.json"
    with path.open("wb") as file:
        file.truncate(texts.MAX_TEXT_BYTES + 1)  # a hole: nothing of it is on the disk
    with pytest.raises(BadInputError, match=rf"The {kind} .* is .* large; up to .* is read"):
        read(path)
