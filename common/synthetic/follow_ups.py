"""What can be asked after an answer, so that it means nothing without what was said before.

A follow-up takes what was last said and returns the slots of its phrasing with what is said next, or None where it
cannot be asked. Keys are those of skills.py: what a question is about, the same for every way to ask it.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from tunebook.common.synthetic import facts as _facts  # noqa: F401  registers its skills
from tunebook.common.synthetic.skills import WORDS, WORLD, Slots


@dataclass
class Said:
    """An answer, the key of what it is about, and what «it», «that» and «them» stand for after it."""

    answer: str = ""
    key: str = ""
    relation: str = ""  # what was asked of a thing: capital, plural, ...
    it: str = ""  # the thing or country
    words: list[str] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    number: int | None = None


Found = tuple[Slots, Said] | None
FOLLOW_UPS: dict[str, Callable[[Said, random.Random], Found]] = {}
UPPER = [*WORLD.members["animal"], *WORLD.members["fruit"], *WORLD.members["garment"]]  # known in capital letters
LISTS = {"copy", "reverse", "remove", "replace"}  # skills whose answer is a list of words
RELATIONS: dict[str, dict[str, str]] = {
    "capital": {name: found[0] for name, found in WORLD.countries.items()},
    "country": {found[0]: name for name, found in WORLD.countries.items()},
    "product": {name: found[1] for name, found in WORLD.countries.items()},
    "job": WORLD.people,
    "plural": WORLD.plural,
    "past": WORLD.past,
    "opposite": WORLD.opposite,
    "colour": WORLD.colour,
    "category": WORLD.category,
    "letter": {word: word[0] for word in WORLD.plural},
}


def follow_up(make: Callable[[Said, random.Random], Found]) -> Callable[[Said, random.Random], Found]:
    FOLLOW_UPS[make.__name__] = make
    return make


def opened(skill: str, slots: Slots) -> Said:
    """What is said once an opening question has its answer."""
    x, y, said = slots["x"], slots["y"], Said(slots["y"], slots["key"])
    if skill in LISTS:
        said.words = y.split()
    elif skill in ("first", "last"):
        said.words, said.relation = x.split(), skill
    elif skill == "sort_numbers":
        said.numbers = [int(word) for word in y.split()]
    elif skill in RELATIONS:
        said.relation, said.it = skill, y if skill == "country" else x
    elif y.isdecimal():
        said.number = int(y)
    return said


def _fact(relation: str, x: str) -> Said:
    key = f"{relation} {x}"
    y = RELATIONS[relation][x]
    if relation == "opposite":
        key = "opposite " + " ".join(sorted([x, y]))
    elif relation == "country":
        key = f"capital {y}"
    return Said(y, key, relation, y if relation == "country" else x)


# --- the list of words in the last answer


def _list(said: Said) -> bool:
    return len(said.words) > 1 and not said.relation


def _of_list(said: Said, answer: str, words: list[str] | None = None, **slots: str) -> Found:
    return slots, Said(answer, " ".join(said.words), words=words or [])


@follow_up
def backwards(said, rng):
    words = said.words[::-1]
    return _of_list(said, " ".join(words), words) if _list(said) else None


@follow_up
def capitals(said, rng):
    fits = _list(said) and set(said.words) <= set(UPPER)
    return _of_list(said, " ".join(said.words).upper()) if fits else None


@follow_up
def how_many(said, rng):
    if not _list(said):
        return None
    count = len(said.words)
    return {}, Said(str(count), " ".join(said.words), number=count)


@follow_up
def the_first(said, rng):
    fits = _list(said) or (said.words and said.relation == "last")
    return ({}, Said(said.words[0], " ".join(said.words), "first", words=said.words)) if fits else None


@follow_up
def the_last(said, rng):
    fits = _list(said) or (said.words and said.relation == "first")
    return ({}, Said(said.words[-1], " ".join(said.words), "last", words=said.words)) if fits else None


@follow_up
def commas(said, rng):
    if not _list(said) or len(said.words) < 3:
        return None
    return _of_list(said, ", ".join(said.words[:-1]) + " and " + said.words[-1])


@follow_up
def without(said, rng):
    if not _list(said) or len(said.words) < 3:
        return None
    gone = rng.choice(said.words)
    words = [word for word in said.words if word != gone]
    return _of_list(said, " ".join(words), words, a=gone)


@follow_up
def instead(said, rng):
    if not _list(said):
        return None
    place, new = rng.randrange(len(said.words)), rng.choice([word for word in WORDS if word not in said.words])
    words = [*said.words[:place], new, *said.words[place + 1 :]]
    return _of_list(said, " ".join(words), words, a=said.words[place], b=new)


# --- the thing or country


def _its(relation: str, said: Said) -> Found:
    fits = said.it in RELATIONS[relation] and said.relation not in (relation, "job")
    return ({}, _fact(relation, said.it)) if fits else None


@follow_up
def its_plural(said, rng):
    return _its("plural", said)


@follow_up
def its_colour(said, rng):
    return _its("colour", said)


@follow_up
def its_kind(said, rng):
    return _its("category", said)


@follow_up
def its_letter(said, rng):
    return _its("letter", said)


@follow_up
def its_capital(said, rng):
    return _its("capital", said) if said.relation != "country" else None


@follow_up
def its_product(said, rng):
    return _its("product", said)


@follow_up
def and_of(said, rng):
    known = RELATIONS.get(said.relation)
    if not known or said.relation == "letter":
        return None
    x = rng.choice([name for name in known if name != said.it and known[name] != said.it])
    return {"x": x}, _fact(said.relation, x)


@follow_up
def and_person(said, rng):
    if said.relation != "me":
        return None
    x = rng.choice([name for name in WORLD.people if name != said.it])
    return {"x": x}, _fact("job", x)


@follow_up
def and_in_shop(said, rng):
    return ({}, said) if said.relation == "stock" else None  # chat.py draws what is asked for


# --- numbers


@follow_up
def one_more(said, rng):
    if said.number is None or said.number > 59:
        return None
    return {}, Said(str(said.number + 1), f"next {said.number}", number=said.number + 1)


@follow_up
def even_or_odd(said, rng):
    if said.number is None or said.number > 60:
        return None
    return {}, Said("odd" if said.number % 2 else "even", f"parity {said.number}")


@follow_up
def plus(said, rng):
    if said.number is None or said.number > 12:
        return None
    b = rng.randint(1, 12)
    return {"b": str(b)}, Said(str(said.number + b), f"{said.number} + {b}", number=said.number + b)


@follow_up
def minus(said, rng):
    if not said.number or said.number > 24:
        return None
    b = rng.randint(max(1, said.number - 12), min(12, said.number))
    return {"b": str(b)}, Said(str(said.number - b), f"{said.number} - {b}", number=said.number - b)


@follow_up
def the_largest(said, rng):
    key = " ".join(map(str, said.numbers))
    return ({}, Said(str(said.numbers[-1]), key, number=said.numbers[-1])) if said.numbers else None


@follow_up
def the_smallest(said, rng):
    key = " ".join(map(str, said.numbers))
    return ({}, Said(str(said.numbers[0]), key, number=said.numbers[0])) if said.numbers else None
