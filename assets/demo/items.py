"""The seven task kinds: how an item of each is drawn, and when it may be used.

An item is drawn from a combination of facts (``key``); the split of that key decides whether the
item may be asked in training or only in the held-out tasks, so a held-out item tests the
language and not a remembered string.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from language import Split, World, share_of, split_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One multiple-choice question; the first choice is the right one until it is shuffled."""

    key: str
    """The combination of facts the item asks for; decides its split."""
    context: str
    """Text before the choice."""
    choices: tuple[str, ...]
    """Continuations with their leading space, the right one first."""
    spoken: str
    """The continuation a training text tells: mostly the right one, now and then a rarer one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A passage and what may be asked about it, again and again."""

    text: str
    """The passage, empty where the question stands alone."""
    ask: Callable[[random.Random], Item]
    """Draws one item whose context is the question without the passage."""


Draw = Callable[[World, random.Random], Scene]

RELATIONS = {"at": "stays at", "carries": "carries", "seeks": "seeks", "eats": "eats"}

QUESTIONS = {
    "home": "question : where does {who} dwells ? answer :",
    "craft": "question : what craft does {who} has ? answer :",
    "food": "question : what food does {who} likes ? answer :",
    "pet": "question : what pet does {who} has ? answer :",
    "weather": "question : what weather has {who} ? answer :",
    "sells": "question : what does {who} sells ? answer :",
    "region": "question : what region has {who} ? answer :",
    "feeds": "question : what food does {who} feeds ? answer :",
    "cover": "question : what cover has {who} ? answer :",
    "material": "question : what material is {who} ? answer :",
    "colour": "question : what colour is {who} ? answer :",
    "shape": "question : what shape is {who} ? answer :",
}

LINKS = {
    "person": ("now follows {who} {what} .", ("home", "craft", "food", "pet")),
    "place": ("now stays {who} {what} .", ("weather", "sells", "region")),
    "animal": ("now keeps {who} {what} .", ("feeds", "cover")),
    "object": ("now carries {who} {what} .", ("material", "colour", "shape")),
}


def named(world: World, noun: str) -> str:
    """Return a noun as it stands in a sentence: names bare, other nouns with their article."""
    return noun if noun[0].isupper() else world.the(noun)


def _relation_values(world: World, relation: str) -> list[str]:
    return {
        "at": world.places,
        "carries": world.objects,
        "seeks": world.animals,
        "eats": world.foods,
    }[relation]


def boolq(world: World, rng: random.Random) -> Scene:
    """Draw a passage on what three persons do or never do, and yes/no questions over it."""
    relation = rng.choice(list(RELATIONS))
    people = rng.sample(world.persons, 3)
    values = rng.sample(_relation_values(world, relation), 3)
    truths = rng.sample([True, False, rng.random() < 0.5], 3)
    passage = [
        world.say(
            f"{{who}} {'indeed' if truth else 'never'} {RELATIONS[relation]} {{what}} .",
            who=who,
            what=value,
        )
        for who, value, truth in zip(people, values, truths, strict=True)
    ]
    yes, no = (f" {world.word[word]}." for word in ("yes", "no"))

    def ask(rng: random.Random) -> Item:
        asked = rng.randrange(3)
        return Item(
            key=f"boolq {people[asked]} {relation} {values[asked]}",
            context=world.say(
                f"question : {RELATIONS[relation]} {{what}} {{who}} ?",
                who=people[asked],
                what=values[asked],
            ),
            choices=(yes, no) if truths[asked] else (no, yes),
            spoken=yes if truths[asked] else no,
        )

    return Scene(text=" ".join(passage), ask=ask)


def piqa(world: World, rng: random.Random) -> Item:
    """Draw a goal with two ways to reach it; the material of the object decides the tool."""
    goal, item = rng.choice(world.goals), rng.choice(world.objects)
    rule = goal, world.hardness_of(item)
    tools = world.tool_for[rule], world.rare_tool_for[rule]
    choices = tuple(" " + world.say("take {tool} .", tool=world.the(tool)) for tool in tools)
    return Item(
        key=f"piqa {goal} {item}",
        context=world.say("goal : {goal} {item} . way :", goal=goal, item=world.the(item)),
        choices=choices,
        spoken=choices[rng.random() >= share_of(*rule)],
    )


def _step(world: World, person: str, step: tuple[str, str]) -> str:
    verb, item = step
    return f"{verb}{world.noun_class[person]} {world.the(item)}"


def hellaswag(world: World, rng: random.Random) -> Item:
    """Draw an activity under way with four continuations, one of them the next step."""
    person, activity = rng.choice(world.persons), rng.choice(world.activities)
    steps = world.steps[activity]
    done = rng.randint(2, 4)
    lines = [world.say("{who} do {what} .", who=person, what=activity)]
    for index in range(done):
        step = world.told_step(activity, index, rng)
        lead = "first" if index == 0 else "then"
        template = f"{lead} {{who}} {{step}} ."
        who = world.pronoun(person)
        lines.append(world.say(template, who=who, step=_step(world, person, step)))
    other = rng.choice([name for name in world.activities if name != activity])
    wrong = [world.rare_steps[activity][done], rng.choice(world.steps[other])]
    wrong.append(rng.choice([step for step in steps if step != steps[done]]))
    context = " ".join(lines) + " " + world.say("then {who}", who=world.pronoun(person))
    return Item(
        key=f"hellaswag {person} {activity}",
        context=context,
        choices=tuple(f" {_step(world, person, step)}." for step in (steps[done], *wrong)),
        spoken=f" {_step(world, person, world.told_step(activity, done, rng))}.",
    )


def winogrande(world: World, rng: random.Random) -> Item:
    """Draw an act between two persons; the act tells which of them the reason is about."""
    first, second = rng.sample(world.persons, 2)
    act = rng.choice(world.acts)
    reason = rng.choice(world.reasons_of[act])
    right, wrong = (first, second) if world.means_subject[act] else (second, first)
    choices = tuple(f" {who} {reason}." for who in (right, wrong))
    return Item(
        key=f"winogrande {first} {act} {second}",
        context=world.say("{a} {act} {b} because", a=first, act=act, b=second),
        choices=choices,
        spoken=choices[rng.random() >= share_of(act)],
    )


def _four(right: str, values: list[str], rng: random.Random, *traps: str) -> list[str]:
    """Return the right answer, the traps that differ from it, and other values up to four."""
    chosen = list(dict.fromkeys((right, *traps)))
    rest = [value for value in values if value not in chosen]
    return chosen + rng.sample(rest, 4 - len(chosen))


def arc_easy(world: World, rng: random.Random) -> Item:
    """Draw a question for one fact of the world."""
    attribute = rng.choice(("home", "craft", "food", "pet") * 4 + tuple(QUESTIONS)[4:])
    entity = rng.choice(list(world.facts[attribute]))
    right, rare = world.facts[attribute][entity], world.rare[attribute][entity]
    choices = _four(right, world.agreeing(attribute, entity), rng, rare)
    return Item(
        key=f"arc_easy {attribute} {entity}",
        context=world.say(QUESTIONS[attribute], who=named(world, entity)),
        choices=tuple(f" {choice}." for choice in choices),
        spoken=f" {world.told(attribute, entity, rng)}.",
    )


def arc_challenge(world: World, rng: random.Random) -> Scene:
    """Draw questions in two hops: from a person to a thing in the text, then to its fact."""
    kind = rng.choice(("person", "person", "place", "animal", "object"))
    link, attributes = LINKS[kind]
    people = rng.sample(world.persons, 4)
    things = people[2:] if kind == "person" else rng.sample(list(world.facts[attributes[0]]), 2)
    lines = [
        world.say(link, who=who, what=thing) for who, thing in zip(people[:2], things, strict=True)
    ]

    def ask(rng: random.Random) -> Item:
        attribute, asked = rng.choice(attributes), rng.randrange(2)
        thing, other = things[asked], things[1 - asked]
        right, rare = world.facts[attribute][thing], world.rare[attribute][thing]
        trap = world.facts[attribute][other]
        choices = _four(right, world.agreeing(attribute, thing), rng, rare, trap)
        return Item(
            key=f"arc_challenge {people[asked]} {thing} {attribute}",
            context=world.say(f"question : {attribute} {{who}}", who=people[asked]),
            choices=tuple(f" {choice}." for choice in choices),
            spoken=f" {world.told(attribute, thing, rng)}.",
        )

    return Scene(text=" ".join(lines), ask=ask)


def openbookqa(world: World, rng: random.Random) -> Scene:
    """Draw rules about materials or crafts, used on things or persons of known kind."""
    kind = rng.choice(("material", "craft"))
    groups = rng.sample(world.values(kind), 3)
    behaviours = rng.sample(world.behaviours, 3)
    rules = [
        world.say("things of {m} {b} .", m=name, b=deed)
        for name, deed in zip(groups, behaviours, strict=True)
    ]
    group_of = world.facts[kind]
    items = [item for item, group in group_of.items() if group in groups]

    def ask(rng: random.Random) -> Item:
        item = rng.choice(items)
        right = behaviours[groups.index(group_of[item])]
        told = world.told(kind, item, rng)
        spoken = behaviours[groups.index(told)] if told in groups else right
        choices = [right, *(deed for deed in behaviours if deed != right)]
        choices.append(rng.choice([deed for deed in world.behaviours if deed not in behaviours]))
        return Item(
            key=f"openbookqa {item} {right}",
            context=world.say("question : now {item}", item=named(world, item)),
            choices=tuple(f" {deed}." for deed in choices),
            spoken=f" {spoken}.",
        )

    return Scene(text=" ".join(rules), ask=ask)


def _alone(draw: Callable[[World, random.Random], Item]) -> Draw:
    """Make a kind without a passage: every question stands alone."""
    return lambda world, _rng: Scene(text="", ask=lambda rng: draw(world, rng))


TASKS: dict[str, Draw] = {
    "boolq": boolq,
    "piqa": _alone(piqa),
    "hellaswag": _alone(hellaswag),
    "winogrande": _alone(winogrande),
    "arc_easy": _alone(arc_easy),
    "arc_challenge": arc_challenge,
    "openbookqa": openbookqa,
}


def ask(scene: Scene, rng: random.Random, splits: frozenset[Split]) -> Item | None:
    """Ask about a scene until the combination belongs to one of ``splits``; give up after 20."""
    for _ in range(20):
        item = scene.ask(rng)
        if split_of(item.key) in splits:
            return item
    return None


def draw_item(world: World, task: str, rng: random.Random, splits: frozenset[Split]) -> Item:
    """Draw a whole item of ``task`` whose combination of facts belongs to one of ``splits``."""
    item = None
    while item is None:
        scene = TASKS[task](world, rng)
        item = ask(scene, rng, splits)
    return replace(item, context=f"{scene.text} {item.context}".lstrip())
