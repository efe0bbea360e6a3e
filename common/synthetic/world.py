"""The small world as Python values: words with plurals, facts about countries and people, opposites, verbs."""

from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass(frozen=True)
class World:
    plural: dict[str, str]  # cat -> cats
    category: dict[str, str]  # cat -> animal
    members: dict[str, list[str]]  # animal -> [cat, dog, ...]
    remark: dict[str, str]  # animal -> one sentence that is true of all of them
    colour: dict[str, str]  # banana -> yellow
    countries: dict[str, tuple[str, str]]  # Arvania -> (Ardel, apples)
    people: dict[str, str]  # Ann -> baker
    opposite: dict[str, str]  # hot -> cold and cold -> hot
    past: dict[str, str]  # go -> went
    good: list[str]
    bad: list[str]
    reviewed: list[str]

    @property
    def words(self) -> list[str]:
        """Everything that lists of words are made of: nouns, adjectives and colours, each once."""
        return list(dict.fromkeys([*self.plural, *self.opposite, *self.colour.values()]))


def load() -> World:
    """Read world.yaml. A word without a slash takes +s as its plural."""
    raw = yaml.safe_load(Path(__file__).with_name("world.yaml").read_text(encoding="utf-8"))
    plural, category, members = {}, {}, {}
    for name, (_, words) in raw["categories"].items():
        for word in words.split():
            one, _, many = word.partition("/")
            plural[one] = many or one + "s"
            category[one] = name
            members.setdefault(name, []).append(one)
    pairs = [pair.split("/") for pair in raw["opposites"].split()]
    return World(
        plural=plural,
        category=category,
        members=members,
        remark={name: remark for name, (remark, _) in raw["categories"].items()},
        colour={word: colour for colour, words in raw["colours"].items() for word in words.split()},
        countries={name: tuple(facts) for name, facts in raw["countries"].items()},
        people=raw["people"],
        opposite=dict(pairs) | {b: a for a, b in pairs},
        past=dict(pair.split("/") for pair in raw["verbs"].split()),
        good=raw["good"].split(),
        bad=raw["bad"].split(),
        reviewed=raw["reviewed"].split(),
    )


def article(word: str) -> str:
    """The word with its indefinite article: an apple, a cat."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
