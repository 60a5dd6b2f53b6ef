"""The invented language: its words, its grammar and the small world it speaks about.

Everything follows from one seed. Templates are written with English keys so that a reader can
follow them; the lexicon replaces every key by an invented word, so no foreign text is left.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable, Sequence
from typing import Literal

Split = Literal["tasks", "heldout", "calibration", "training"]

CLASS_ENDINGS = ("a", "e", "o")
"""Nouns fall into three classes; article, adjective, verb and pronoun take the class's ending."""

FUNCTION_WORDS = tuple(
    word
    for line in (
        "answer at because belongs bigger carries colour cover craft day do does dwells",
        "eats feeds first follows food from gives goal good has home in indeed is keeps lies",
        "likes lives made material never now of pet plus question region seeks sells",
        "shape skin smaller stays take than then things this to very way weather what",
        "where works yes no",
    )
    for word in line.split()
)

N_SPLIT_BUCKETS = 16
N_TASK_BUCKETS = 3


def split_of(key: str) -> Split:
    """Return the split a combination of facts, or the text of a document, belongs to."""
    bucket = zlib.crc32(key.encode()) % N_SPLIT_BUCKETS
    if bucket < N_TASK_BUCKETS:
        return "tasks"
    if bucket == N_TASK_BUCKETS:
        return "heldout"
    return "calibration" if bucket == N_TASK_BUCKETS + 1 else "training"


def share_of(*key: str) -> float:
    """Return how often the usual value of a fact or rule is told, against its rare one."""
    return 0.62 + 0.3 * (zlib.crc32(" ".join(key).encode()) % 1000) / 1000


class WordMaker:
    """Makes pronounceable words from syllables, each of them once."""

    _ONSETS = ("b", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z")
    _VOWELS = ("a", "e", "i", "o", "u")
    _CODAS = ("", "", "", "n", "r", "l", "s")

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._used: set[str] = set()

    def _draw(self, n_syllables: int) -> str:
        pick = self._rng.choice
        parts = [pick(self._ONSETS) + pick(self._VOWELS) for _ in range(n_syllables)]
        return "".join(parts) + pick(self._CODAS)

    def word(self, n_syllables: int = 2) -> str:
        """Return a new word of ``n_syllables`` syllables."""
        while (candidate := self._draw(n_syllables)) in self._used:
            pass
        self._used.add(candidate)
        return candidate

    def words(self, count: int, n_syllables: int = 2) -> list[str]:
        """Return ``count`` new words."""
        return [self.word(n_syllables) for _ in range(count)]

    def stems(self, count: int) -> list[str]:
        """Return stems whose three class forms are new words; a stem ends in a consonant."""
        found: list[str] = []
        while len(found) < count:
            stem = self._draw(1).rstrip("nrls") + self._rng.choice("bdgkmptv")
            stem = self._rng.choice(self._ONSETS) + self._rng.choice(self._VOWELS) + stem
            forms = {stem + ending for ending in CLASS_ENDINGS}
            if not forms & self._used:
                self._used |= forms
                found.append(stem)
        return found


class World:
    """Who and what exists, and every fact about it; the same seed gives the same world.

    Facts are dictionaries from an entity to a value, for example ``facts["home"][person]``.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.rng = random.Random(f"world {seed}")  # noqa: S311 - text, not secrets
        make = WordMaker(self.rng)
        self.word = dict(zip(FUNCTION_WORDS, make.words(len(FUNCTION_WORDS)), strict=True))
        self.persons = [name.capitalize() for name in make.words(240, 3)]
        self.places = [name.capitalize() for name in make.words(24, 2)]
        self.animals, self.foods = make.words(24), make.words(24)
        self.objects, self.tools = make.words(120), make.words(32)
        self.crafts, self.materials = make.words(20), make.words(10)
        self.shapes, self.weathers = make.words(8), make.words(6)
        self.goods, self.regions, self.covers = make.words(16), make.words(8), make.words(6)
        self.behaviours, self.activities = make.words(16), make.words(48)
        self.numbers = make.words(21, 1)
        self.colours, self.verbs = make.stems(12), make.stems(24)
        self.acts, self.reasons = make.words(24), make.words(12)
        self.goals = make.words(16)
        articles, pronouns = make.stems(1), make.stems(1)
        self._article, self._pronoun = articles[0], pronouns[0]
        self._templates: dict[str, list[str]] = {}
        self._set_facts()
        self._set_rules()

    def fresh_rng(self, name: str) -> random.Random:
        """Return a generator of its own for ``name``, which leaves the world's untouched."""
        return random.Random(f"{name} {self.seed}")  # noqa: S311 - text, not secrets

    def _spread(self, entities: Sequence[str], values: Sequence[str]) -> dict[str, str]:
        """Give every entity a value, all values about equally often."""
        pool = [values[index % len(values)] for index in range(len(entities))]
        self.rng.shuffle(pool)
        return dict(zip(entities, pool, strict=True))

    def _set_facts(self) -> None:
        nouns = self.persons + self.animals + self.objects + self.tools
        self.noun_class = self._spread(nouns, CLASS_ENDINGS)
        self.facts: dict[str, dict[str, str]] = {
            "home": self._spread(self.persons, self.places),
            "craft": self._spread(self.persons, self.crafts),
            "food": self._spread(self.persons, self.foods),
            "pet": self._spread(self.persons, self.animals),
            "weather": self._spread(self.places, self.weathers),
            "sells": self._spread(self.places, self.goods),
            "region": self._spread(self.places, self.regions),
            "feeds": self._spread(self.animals, self.foods),
            "cover": self._spread(self.animals, self.covers),
            "material": self._spread(self.objects, self.materials),
            "shape": self._spread(self.objects, self.shapes),
        }
        stems = self._spread(self.objects, self.colours)
        self.facts["colour"] = {item: stem + self.noun_class[item] for item, stem in stems.items()}
        self.rare = {
            attribute: {entity: self._another(attribute, entity) for entity in known}
            for attribute, known in self.facts.items()
        }
        self.size_order = self.rng.sample(self.animals, len(self.animals))

    def _another(self, attribute: str, entity: str) -> str:
        usual = self.facts[attribute][entity]
        others = [value for value in self.agreeing(attribute, entity) if value != usual]
        return self.rng.choice(others)

    def _set_rules(self) -> None:
        """Draw what is known about goals and tools, activities and their steps, acts, reasons."""
        self.hardness = self._spread(self.materials, ("0", "1", "2"))
        self.tool_for: dict[tuple[str, str], str] = {}
        self.rare_tool_for: dict[tuple[str, str], str] = {}
        for goal in self.goals:
            tools = self.rng.sample(self.tools, 3)
            for level in range(3):
                self.tool_for[goal, str(level)] = tools[level]
                self.rare_tool_for[goal, str(level)] = tools[(level + self.rng.choice((1, 2))) % 3]
        self.steps = {activity: self._six_steps() for activity in self.activities}
        self.rare_steps = {activity: self._six_steps() for activity in self.activities}
        self.means_subject = {act: n % 2 == 0 for n, act in enumerate(self.acts)}
        self.reasons_of = {act: self.rng.sample(self.reasons, 4) for act in self.acts}

    def _six_steps(self) -> list[tuple[str, str]]:
        return [(self.rng.choice(self.verbs), item) for item in self.rng.sample(self.objects, 6)]

    def told(self, attribute: str, entity: str, rng: random.Random) -> str:
        """Return the value of a fact as a text tells it: mostly the usual one."""
        is_usual = rng.random() < share_of(attribute, entity)
        return (self.facts if is_usual else self.rare)[attribute][entity]

    def told_step(self, activity: str, index: int, rng: random.Random) -> tuple[str, str]:
        """Return verb and object of a step as a text tells it: mostly the usual one."""
        is_usual = rng.random() < share_of(activity, str(index))
        return (self.steps if is_usual else self.rare_steps)[activity][index]

    def agreeing(self, attribute: str, entity: str) -> list[str]:
        """Return the values of an attribute that agree with the class of the entity."""
        values = self.values(attribute)
        if attribute != "colour":
            return values
        return [value for value in values if value[-1] == self.noun_class[entity]]

    def values(self, attribute: str) -> list[str]:
        """Return all values an attribute takes, sorted."""
        return sorted(set(self.facts[attribute].values()))

    def hardness_of(self, item: str) -> str:
        """Return the level of hardness of an object, which its usual material has."""
        return self.hardness[self.facts["material"][item]]

    def the(self, noun: str) -> str:
        """Return the noun with the article of its class."""
        return f"{self._article}{self.noun_class[noun]} {noun}"

    def pronoun(self, person: str) -> str:
        """Return the pronoun of the person's class."""
        return self._pronoun + self.noun_class[person]

    def say(self, template: str, **slots: str) -> str:
        """Turn a template of English keys and ``{slots}`` into a text of the language."""
        words = [
            slots[part[1:-1]] if part[0] == "{" else self.word.get(part, part)
            for part in self._parts(template)
        ]
        return join(words)

    def _parts(self, template: str) -> list[str]:
        parts = self._templates.get(template)
        if parts is None:
            parts = template.split()
            unknown = [p for p in parts if p[0] not in "{.?,:" and p not in self.word]
            if unknown:
                raise ValueError(f"template {template!r} uses words without entry: {unknown}")
            self._templates[template] = parts
        return parts


def join(words: Iterable[str]) -> str:
    """Join words with spaces, none before a punctuation mark."""
    text = " ".join(words)
    for mark in ".?,:":
        text = text.replace(f" {mark}", mark)
    return text
