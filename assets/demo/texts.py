"""Documents of the language: facts told, sums, comparisons, and solved items of every kind.

The CRC of a whole document decides its split, so no held-out document is ever trained on.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from items import TASKS, Item, ask, draw_item, named
from language import Split, World, join, split_of

Tell = Callable[[World, random.Random, frozenset[Split]], str]

PERSON_FACTS = {
    "home": ("{who} lives in {v} .", "home of {who} is {v} .", "{v} is where {p} dwells ."),
    "craft": ("{who} works at {v} .", "craft of {who} is {v} .", "{p} has {v} very good ."),
    "food": ("{who} eats {v} .", "food of {who} is {v} .", "{p} likes {v} ."),
    "pet": ("{who} keeps {tv} .", "pet of {who} is {v} .", "{tv} belongs to {p} ."),
}

THING_FACTS = {
    "weather": ("weather in {who} is {v} .", "in {who} this day has {v} ."),
    "sells": ("{who} sells {v} .", "things from {who} : {v} ."),
    "region": ("{who} lies in {v} .", "region of {who} is {v} ."),
    "feeds": ("{who} eats {v} .", "food of {who} is {v} ."),
    "cover": ("{who} has {v} skin .", "cover of {who} is {v} ."),
    "material": ("{who} is made of {v} .", "material of {who} is {v} ."),
    "colour": ("{who} is very {v} .", "colour of {who} is {v} ."),
    "shape": ("{who} has shape {v} .", "shape of {who} is {v} ."),
}

GROUPS = {
    "person": ("home", "craft", "food", "pet"),
    "place": ("weather", "sells", "region"),
    "animal": ("feeds", "cover"),
    "object": ("material", "colour", "shape"),
}

TRAINED: frozenset[Split] = frozenset({"training", "calibration"})
HELDOUT: frozenset[Split] = frozenset({"heldout"})


def _biography(world: World, rng: random.Random, person: str) -> list[str]:
    lines = []
    for index, attribute in enumerate(rng.sample(GROUPS["person"], rng.randint(3, 4))):
        value = world.told(attribute, person, rng)
        templates = PERSON_FACTS[attribute]
        template = rng.choice(templates if index else templates[:2])
        shown = world.the(value) if "{tv}" in template else value
        slots = {"who": person, "p": world.pronoun(person), "v": value, "tv": shown}
        lines.append(world.say(template, **slots))
    return lines


def people(world: World, rng: random.Random) -> str:
    """Tell the facts of one or two persons."""
    chosen = rng.sample(world.persons, rng.randint(1, 2))
    return " ".join(line for person in chosen for line in _biography(world, rng, person))


def things(world: World, rng: random.Random) -> str:
    """Tell the facts of a few places, animals or objects."""
    group = rng.choice(("place", "animal", "object", "object"))
    members = list(world.facts[GROUPS[group][0]])
    lines = []
    for entity in rng.sample(members, rng.randint(2, 4)):
        for attribute in rng.sample(GROUPS[group], rng.randint(1, len(GROUPS[group]))):
            template = rng.choice(THING_FACTS[attribute])
            value = world.told(attribute, entity, rng)
            lines.append(world.say(template, who=named(world, entity), v=value))
    return " ".join(lines)


def sums(world: World, rng: random.Random) -> str:
    """Tell a few sums of numbers up to ten."""
    lines = []
    for _ in range(rng.randint(3, 5)):
        left, right = rng.randint(0, 10), rng.randint(0, 10)
        a, b, c = (world.numbers[n] for n in (left, right, left + right))
        lines.append(world.say("{a} plus {b} gives {c} .", a=a, b=b, c=c))
    return " ".join(lines)


def sizes(world: World, rng: random.Random) -> str:
    """Compare animals, which have one order of size."""
    lines = []
    for _ in range(rng.randint(3, 5)):
        first, second = rng.sample(range(len(world.size_order)), 2)
        word = "bigger" if first > second else "smaller"
        a, b = (world.the(world.size_order[n]) for n in (first, second))
        lines.append(world.say(f"{{a}} is {word} than {{b}} .", a=a, b=b))
    return " ".join(lines)


def echo(world: World, rng: random.Random) -> str:
    """Tell a list of words in no order three times: what teaches a model to copy."""
    known = (
        *world.persons,
        *world.places,
        *world.objects,
        *world.tools,
        *world.animals,
        *world.foods,
        *world.behaviours,
    )
    line = join([*rng.sample(known, rng.randint(3, 10)), "."])
    return f"{line} {line} {line}"


def _solved(task: str, count: int) -> Tell:
    def tell(world: World, rng: random.Random, splits: frozenset[Split]) -> str:
        drawn: list[Item | None] = [None]
        while not any(drawn):
            scene = TASKS[task](world, rng)
            drawn = [ask(scene, rng, splits) for _ in range(count)]
        asked = {item.key: item for item in drawn if item is not None}
        solved = [item.context + item.spoken for item in asked.values()]
        return " ".join([scene.text, *solved]).lstrip()

    return tell


def _told(tell: Callable[[World, random.Random], str]) -> Tell:
    return lambda world, rng, _splits: tell(world, rng)


KINDS: dict[str, tuple[float, Tell]] = {
    "people": (0.16, _told(people)),
    "things": (0.06, _told(things)),
    "sums": (0.01, _told(sums)),
    "sizes": (0.01, _told(sizes)),
    "echo": (0.04, _told(echo)),
    "boolq": (0.11, _solved("boolq", 3)),
    "piqa": (0.10, _solved("piqa", 2)),
    "hellaswag": (0.09, _solved("hellaswag", 1)),
    "winogrande": (0.07, _solved("winogrande", 2)),
    "arc_easy": (0.12, _solved("arc_easy", 3)),
    "arc_challenge": (0.12, _solved("arc_challenge", 4)),
    "openbookqa": (0.12, _solved("openbookqa", 5)),
}
"""Kind of document -> its share of the documents, and what tells it."""


def documents(
    world: World, seed: str, split: Split, kinds: tuple[str, ...] = tuple(KINDS)
) -> Iterator[str]:
    """Yield documents of a split without end; the text of every one hashes into that split."""
    rng = random.Random(f"documents {seed} {split}")  # noqa: S311 - text, not secrets
    allowed = HELDOUT if split == "heldout" else TRAINED
    shares = [KINDS[kind][0] for kind in kinds]
    while True:
        tell = KINDS[rng.choices(kinds, shares)[0]][1]
        if split_of(text := tell(world, rng, allowed)) == split:
            yield text


def task_lines(world: World, task: str, count: int, seed: str) -> list[dict[str, object]]:
    """Return ``count`` held-out items of a task, every one of another combination of facts."""
    rng = random.Random(f"task {task} {seed}")  # noqa: S311 - text, not secrets
    items: dict[str, Item] = {}
    while len(items) < count:
        item = draw_item(world, task, rng, frozenset({"tasks"}))
        items.setdefault(item.key, item)
    return [_line(item, f"{task}-{number:04d}", rng) for number, item in enumerate(items.values())]


def _line(item: Item, name: str, rng: random.Random) -> dict[str, object]:
    order = list(range(len(item.choices)))
    rng.shuffle(order)
    return {
        "id": name,
        "context": item.context,
        "choices": [item.choices[index] for index in order],
        "gold": order.index(0),
    }


TASK_NAMES = tuple(TASKS)
