"""Skills about facts of the small world: what a word is, what belongs to a country or person, what a sentence says."""

import random

from tunebook.common.synthetic.skills import WORLD, Slots, draw, skill
from tunebook.common.synthetic.world import article


def _fact(rng: random.Random, relation: str, facts: dict[str, str]) -> Slots:
    x = rng.choice(list(facts))
    return {"x": x, "y": facts[x], "key": f"{relation} {x}"}


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
