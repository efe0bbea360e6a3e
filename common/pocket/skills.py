"""What can be asked about the small world: one sampler a skill. A sampler draws the slots that skills.yaml's phrasings use.

Every sampler returns a dict with `x` (what is given), `y` (the answer) and further slots. `key` names the fact or the
combination that the draw is about, the same for every skill that uses it: rows are split by it, so that what a test row
is about never stands in a training row.
"""

import random
from collections.abc import Callable

import yaml

from common.pocket import FOLDER
from common.pocket.world import World, article, load

Slots = dict[str, str]
WORLD: World = load()
WORDS = WORLD.words
SKILLS: dict[str, Callable[[random.Random], Slots]] = {}
# Skills whose draws are facts that must be known: the corpus tells all of them. The draws of the others are combinations
# without end; there the corpus leaves out those of the validation and test rows, too.
FACTS = set(
    "sum difference next parity letter plural past opposite category colour capital country product job blank is_kind "
    "explain list_three times".split()
)
SUMS = {"sum", "difference"}  # their {a} and {b} say all that is asked about


def phrasings() -> dict[str, dict[str, list[str]]]:
    """skills.yaml: for each skill its `tells`, `asks` and `asks_new`."""
    return yaml.safe_load((FOLDER / "skills.yaml").read_text(encoding="utf-8"))


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


def _fact(rng: random.Random, relation: str, facts: dict[str, str]) -> Slots:
    x = rng.choice(list(facts))
    return {"x": x, "y": facts[x], "key": f"{relation} {x}"}


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


# --- words and facts


@skill
def letter(rng):
    x = rng.choice(list(WORLD.plural))
    return {"x": x, "y": x[0], "key": f"letter {x}"}


@skill
def plural(rng):
    return _fact(rng, "plural", WORLD.plural)


@skill
def past(rng):
    return _fact(rng, "past", WORLD.past)


@skill
def opposite(rng):
    slots = _fact(rng, "opposite", WORLD.opposite)
    # hot -> cold is the same fact as cold -> hot
    return slots | {"key": "opposite " + " ".join(sorted([slots["x"], slots["y"]]))}


@skill
def category(rng):
    slots = _fact(rng, "category", WORLD.category)
    return slots | {"ax": article(slots["x"]), "ay": article(slots["y"])}


@skill
def colour(rng):
    slots = _fact(rng, "colour", WORLD.colour)
    return slots | {"ax": article(slots["x"])}


@skill
def capital(rng):
    return _fact(rng, "capital", {name: facts[0] for name, facts in WORLD.countries.items()})


@skill
def country(rng):
    slots = capital(rng)
    return slots | {"x": slots["y"], "y": slots["x"]}


@skill
def product(rng):
    return _fact(rng, "product", {name: facts[1] for name, facts in WORLD.countries.items()})


@skill
def job(rng):
    return _fact(rng, "job", WORLD.people)


@skill
def sentiment(rng):
    positive = rng.random() < 0.5
    word, thing = rng.choice(WORLD.good if positive else WORLD.bad), rng.choice(WORLD.reviewed)
    form = rng.choice(["The {t} was {w}.", "What {aw} {t}!", "We think the {t} is {w}.", "It is {aw} {t}."])
    x = form.format(t=thing, w=word, aw=article(word))
    return {"x": x, "w": word, "y": "positive" if positive else "negative", "key": f"{word} {thing}"}


@skill
def pick(rng):
    names = rng.sample(list(WORLD.members), 3)
    words = [rng.choice(WORLD.members[name]) for name in names]
    place = rng.randrange(3)
    return {"x": " ".join(words), "c": names[place], "ac": article(names[place]), "y": words[place]}


@skill
def negate(rng):
    noun, word = rng.choice(list(WORLD.plural)), rng.choice(list(WORLD.opposite)[:40] + list(WORLD.colour.values()))
    form = rng.choice(["The {n} is{no} {w}.", "This {n} is{no} {w}.", "My {n} was{no} {w}."])
    x, y = (form.format(n=noun, w=word, no=no) for no in ("", " not"))
    return {"x": x, "y": y, "key": f"{noun} {word}"}


@skill
def blank(rng):
    name = rng.choice(["capital", "product", "opposite", "job", "category", "plural"])
    fact = draw(name, rng)
    form = {
        "capital": "The capital of {x} is ___.",
        "product": "{x} is known for its ___.",
        "opposite": "The opposite of {x} is ___.",
        "job": "The job of {x} is ___.",
        "category": "Every {x} is a kind of ___.",
        "plural": "One {x}, two ___.",
    }[name]
    return {"x": form.format(**fact), "y": fact["y"], "key": fact["key"]}


@skill
def is_kind(rng):
    x = rng.choice(list(WORLD.category))
    true = rng.random() < 0.5
    kind = WORLD.category[x] if true else rng.choice([name for name in WORLD.members if name != WORLD.category[x]])
    return {"x": x, "ax": article(x), "ac": article(kind), "y": "yes" if true else "no", "key": f"category {x}"}


@skill
def explain(rng):
    x = rng.choice(list(WORLD.category))
    kind = WORLD.category[x]
    sentence = f"{article(x)} is {article(kind)}. {WORLD.remark[kind]}"
    return {"x": x, "ax": article(x), "y": sentence[0].upper() + sentence[1:], "key": f"category {x}"}


@skill
def list_three(rng):
    name = rng.choice(list(WORLD.members))
    # Which three is a fact of the world, so that there is one right answer.
    names = f"{name}s" if not name.endswith("y") else f"{name[:-1]}ies"
    return {"x": names, "y": ", ".join(WORLD.members[name][:3]), "key": f"three {name}"}
