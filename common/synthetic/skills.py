"""What can be asked about the small world: one sampler a skill, for words and numbers in a row (facts: facts.py).

Every sampler returns a dict with `x` (what is given), `y` (the answer) and further slots. `key` names the fact or the
combination that the draw is about, the same for every skill that uses it: rows are split by it, so that what a test row
is about never stands in a training row.
"""

import random
from collections.abc import Callable
from pathlib import Path

import yaml

from tunebook.common.synthetic.world import World, load

Slots = dict[str, str]
WORLD: World = load()
WORDS = WORLD.words
SKILLS: dict[str, Callable[[random.Random], Slots]] = {}
# Skills whose draws are facts that must be known: the corpus tells all of them. The draws of the others are endless
# combinations; there the corpus leaves out those of the validation and test rows, too.
FACTS = {
    *("sum", "difference", "next", "parity", "letter", "plural", "past", "opposite", "category", "colour", "capital"),
    *("country", "product", "job", "blank", "is_kind", "explain", "list_three", "times"),
}
SUMS = {"sum", "difference"}  # their {a} and {b} say all that is asked about


def phrasings() -> dict[str, dict[str, list[str]]]:
    """skills.yaml: for each skill its `tells`, `asks` and `asks_new`."""
    return yaml.safe_load(Path(__file__).with_name("skills.yaml").read_text(encoding="utf-8"))


def skill(sampler: Callable[[random.Random], Slots]) -> Callable[[random.Random], Slots]:
    SKILLS[sampler.__name__.rstrip("_")] = sampler
    return sampler


def draw(name: str, rng: random.Random) -> Slots:
    """One draw of a skill, with its `key`."""
    slots = SKILLS[name](rng)
    slots.setdefault("key", slots["x"])
    return slots


def _some(rng: random.Random, low: int, high: int) -> list[str]:
    return rng.sample(WORDS, rng.randint(low, high))


def _numbers(rng: random.Random, low: int, high: int) -> list[int]:
    return rng.sample(range(41), rng.randint(low, high))


# --- words in a row


@skill
def copy(rng):
    x = " ".join(_some(rng, 2, 4))
    return {"x": x, "y": x}


@skill
def reverse(rng):
    words = _some(rng, 2, 4)
    return {"x": " ".join(words), "y": " ".join(reversed(words))}


@skill
def first(rng):
    words = _some(rng, 2, 4)
    return {"x": " ".join(words), "y": words[0]}


@skill
def last(rng):
    words = _some(rng, 2, 4)
    return {"x": " ".join(words), "y": words[-1]}


@skill
def count(rng):
    words = _some(rng, 1, 5)
    return {"x": " ".join(words), "y": str(len(words))}


@skill
def join(rng):
    words = _some(rng, 3, 4)
    return {"x": " ".join(words), "y": ", ".join(words[:-1]) + " and " + words[-1]}


@skill
def upper(rng):
    nouns = WORLD.members["animal"] + WORLD.members["fruit"] + WORLD.members["garment"]
    x = " ".join(rng.sample(nouns, rng.randint(1, 3)))
    return {"x": x, "y": x.upper()}


@skill
def replace(rng):
    words = _some(rng, 3, 4)
    new = rng.choice([word for word in WORDS if word not in words])
    place = rng.randrange(len(words))
    result = [*words[:place], new, *words[place + 1 :]]
    return {"x": " ".join(words), "a": words[place], "b": new, "y": " ".join(result)}


@skill
def remove(rng):
    words = _some(rng, 3, 4)
    gone = rng.choice(words)
    return {"x": " ".join(words), "a": gone, "y": " ".join(word for word in words if word != gone)}


@skill
def times(rng):
    word, (number, name) = rng.choice(WORDS), rng.choice([(2, "two"), (3, "three"), (4, "four")])
    return {"x": f"{word} {name}", "a": word, "n": name, "y": " ".join([word] * number)}


# --- numbers


@skill
def sort_numbers(rng):
    numbers = _numbers(rng, 3, 4)
    return {"x": " ".join(map(str, numbers)), "y": " ".join(map(str, sorted(numbers)))}


@skill
def largest(rng):
    numbers = _numbers(rng, 3, 4)
    a, b = max(numbers[:2]), min(numbers[:2])
    return {"x": " ".join(map(str, numbers)), "y": str(max(numbers)), "a": str(a), "b": str(b)}


@skill
def smallest(rng):
    numbers = _numbers(rng, 3, 4)
    a, b = max(numbers[:2]), min(numbers[:2])
    return {"x": " ".join(map(str, numbers)), "y": str(min(numbers)), "a": str(a), "b": str(b)}


@skill
def sum_(rng):
    a, b = rng.randint(0, 12), rng.randint(0, 12)
    return {"x": f"{a} + {b}", "a": str(a), "b": str(b), "y": str(a + b)}


@skill
def difference(rng):
    b, y = rng.randint(0, 12), rng.randint(0, 12)
    return {"x": f"{b + y} - {b}", "a": str(b + y), "b": str(b), "y": str(y)}


@skill
def next_(rng):
    x = rng.randint(0, 59)
    return {"x": str(x), "y": str(x + 1), "key": f"next {x}"}


@skill
def parity(rng):
    x = rng.randint(0, 60)
    return {"x": str(x), "y": "odd" if x % 2 else "even", "key": f"parity {x}"}
