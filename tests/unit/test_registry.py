import json

import pytest

from qpruner_core.errors import BadInputError, UnknownNameError
from qpruner_core.registry import Entry, Option, Registry

ENTRY = Entry(
    name="dumps",
    title="Dumps",
    summary="Writes JSON.",
    target="json:dumps",
    options=(
        Option("p", default=2.0, low=1.0, high=4.0, help="Order."),
        Option("mode", default="a", choices=("a", "b"), help="Mode."),
        Option("fast", default=False, help="Speed."),
    ),
)


def test_a_target_is_imported_on_first_use():
    assert Registry("writer", ENTRY).target("dumps") is json.dumps


def test_an_unknown_name_is_answered_with_the_nearest_known_one():
    with pytest.raises(UnknownNameError, match=r"no writer named 'dump'.*Did you mean 'dumps'"):
        Registry("writer", ENTRY).entry("dump")


def test_two_entries_of_one_name_are_refused():
    with pytest.raises(ValueError, match="same name"):
        Registry("writer", ENTRY, ENTRY)


def test_options_are_the_defaults_overlaid_with_what_was_given():
    options = Registry("writer", ENTRY).options("dumps", {"p": 3})
    assert options == {"p": 3.0, "mode": "a", "fast": False}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"p": 5.0}, "between 1.0 and 4.0"),
        ({"p": "two"}, "takes a float"),
        ({"mode": "c"}, "one of a, b"),
        ({"fast": 1}, "takes a bool"),
        ({"slow": True}, "has no option 'slow'"),
    ],
)
def test_an_option_that_does_not_fit_is_refused_with_a_sentence(given, words):
    with pytest.raises(BadInputError, match=words):
        Registry("writer", ENTRY).options("dumps", given)


def test_a_registry_lists_its_entries_in_order():
    registry = Registry("writer", ENTRY)
    assert registry.names() == ("dumps",)
    assert [entry.title for entry in registry] == ["Dumps"]
    assert "dumps" in registry
    assert "loads" not in registry
