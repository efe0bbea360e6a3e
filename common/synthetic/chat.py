"""Writes pocket's conversations: an opening question, follow-ups that need what was said before, system and tool turns.

python -m tunebook.common.synthetic.chat    # writes the committed chat_*.jsonl files again
"""

import itertools
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tunebook.common.files import json_line, write_atomic
from tunebook.common.pocket import FOLDER
from tunebook.common.synthetic import skills
from tunebook.common.synthetic.corpus import pool
from tunebook.common.synthetic.follow_ups import FOLLOW_UPS, LISTS, UPPER, WORLD, Said, opened

SIZES = {"train": 2400, "validation": 150, "test": 200}  # rows; half of the test rows have new phrasings
TURNS = {2: 25, 3: 35, 4: 40}  # questions of a conversation, in percent
NEW_TOPIC = 0.25  # of the questions after the second
PLAIN_SYSTEM, CAPITALS = 0.1, 0.5  # chance of a system turn; the second only where answers are known in capitals
WEIGHT = {"backwards": 4, "instead": 4, "without": 3, "and_of": 3, "plus": 3, "minus": 2, "one_more": 2} | {
    **dict.fromkeys(("and_in_shop", "its_letter", "commas"), 2)
}
LONGEST = 3  # words of a list that is asked about again
TRIES = 100  # draws of one turn
Turn = tuple[str, Said, str, str]  # question, answer, call and system turn ("" where there is none)


@dataclass
class Talk:
    """A conversation as it grows: its messages, what was last said, and the key of what each question is about."""

    split: str
    rng: random.Random
    asks: str  # the phrasings in use: asks or asks_new
    messages: list[dict[str, str]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    said: Said = field(default_factory=Said)
    capitals: bool = False

    def add(self, question: str, said: Said, call: str, system: str) -> None:
        """A question and its answer, with the tool's turns between them where there is a call."""
        if system:
            self.messages.append({"role": "system", "content": system})
        self.messages.append({"role": "user", "content": question})
        if call:
            self.messages += [{"role": "assistant", "content": call}, {"role": "tool", "content": said.answer}]
        answer = said.answer.upper() if self.capitals else said.answer
        self.messages.append({"role": "assistant", "content": answer})
        self.keys.append(said.key)
        self.said = said


@cache
def phrasings() -> dict[str, Any]:
    """chat.yaml as it is."""
    return yaml.safe_load(Path(__file__).with_name("chat.yaml").read_text(encoding="utf-8"))


@cache
def _asks_of_skills() -> dict[str, dict[str, list[str]]]:
    return skills.phrasings()


def rows(split: str, count: int, seed: int, new_phrasings: bool = False) -> Iterator[dict[str, Any]]:
    """Conversations: {"messages", "skill" of the opening, "follow_up", "phrasing"}. No conversation comes twice.

    What the second question of a validation or test row is about stands in no training row, nor does any combination
    of words or numbers of these rows. A fact that an opening gives away may be one of the training rows.
    """
    rng = random.Random(f"chat {split} {seed} {new_phrasings}")
    weights = WEIGHT if split == "train" else {}  # what a small model learns slowly is told more often
    names = [name for name in phrasings()["follow_ups"] for _ in range(weights.get(name, 1))]
    phrasing = "unseen" if new_phrasings else "seen"
    seen: set[str] = set()
    for name in itertools.cycle(names):  # some follow-ups find no fact in a small split: those are passed over
        for _ in range(TRIES):
            opening = rng.choice(phrasings()["follow_ups"][name]["openings"])
            turns = rng.choices(list(TURNS), list(TURNS.values()))[0]
            talk = _talk(split, rng, "asks_new" if new_phrasings else "asks", opening, name, turns)
            if talk and (text := json.dumps(talk.messages)) not in seen:
                seen.add(text)
                yield {"messages": talk.messages, "skill": opening, "follow_up": name, "phrasing": phrasing}
                break
        if len(seen) == count:
            return


def _talk(split: str, rng: random.Random, asks: str, opening: str, name: str, turns: int) -> Talk | None:
    """A whole conversation, or None where a draw led nowhere."""
    talk = Talk(split, rng, asks)
    chance = rng.random()
    if chance < CAPITALS and opening in ("copy", "reverse") and name in ("backwards", "the_first", "the_last"):
        talk.capitals = True
        talk.messages.append({"role": "system", "content": rng.choice(phrasings()["capitals_system"])})
    elif chance > 1 - PLAIN_SYSTEM and opening != "me":
        talk.messages.append({"role": "system", "content": rng.choice(phrasings()["plain_system"])})
    upper = talk.capitals or name == "capitals"
    if not _try(talk, lambda: _open(talk, opening, upper)) or not _try(talk, lambda: _follow(talk, name)):
        return None
    while len(talk.keys) < turns:
        fitting = [other for other, make in FOLLOW_UPS.items() if make(talk.said, rng) and not talk.capitals]
        go_on = bool(fitting) and rng.random() > NEW_TOPIC
        other = (
            rng.choices(fitting, [WEIGHT.get(name, 1) for name in fitting])[0]
            if go_on
            else rng.choice(list(skills.SKILLS))
        )
        if talk.capitals or not _try(talk, lambda: _follow(talk, other) if go_on else _open(talk, other, False)):  # noqa: B023
            return None
    return talk


def _try(talk: Talk, draw: Callable[[], Turn | None]) -> bool:
    """Draw a turn until there is one that may stand in this split, and add it. False where there is none."""
    for _ in range(TRIES):
        turn = draw()
        if turn is None:
            return False
        if _belongs(talk, turn[1].key):
            talk.add(*turn)
            return True
    return False


def _belongs(talk: Talk, key: str) -> bool:
    """Whether the next question may be about `key`: what the second is about, and every combination, is of the split.

    Other facts may be those of a training row in a row that is held out; in a training row nothing is held out.
    """
    fact = key.startswith(tuple(f"{name} " for name in skills.FACTS))
    return pool(key) == talk.split or (fact and talk.split != "train" and len(talk.keys) != 1)


def _open(talk: Talk, skill: str, upper: bool) -> Turn | None:
    """A question about something new."""
    own = phrasings()
    if skill == "stock":
        return _stock(talk, talk.rng.choice(own["stock"][talk.asks]))
    if skill == "me":
        who = talk.rng.choice(list(WORLD.people))
        system = talk.rng.choice(own["me"]["system"]).format(x=who)
        said = Said(WORLD.people[who], f"job {who}", relation="me", it=who)
        return talk.rng.choice(own["me"][talk.asks]), said, "", system
    slots = skills.draw(skill, talk.rng)
    while skill in LISTS and len(slots["y"].split()) > LONGEST:
        slots = skills.draw(skill, talk.rng)
    if upper:
        words = talk.rng.sample(UPPER, talk.rng.randint(2, 3))
        x = " ".join(words)
        slots = {"x": x, "y": x if skill == "copy" else " ".join(reversed(words)), "key": x}
    ask = talk.rng.choice(_asks_of_skills()[skill][talk.asks])
    complete = "{x}" in ask or "{ax}" in ask or (skill in skills.SUMS and "{a}" in ask)
    question = ask.format(**slots)
    if not complete:  # one line, as one types it into a terminal
        question = f"{question.removesuffix('.')}{' ' if question.endswith('?') else ': '}{slots['x']}"
    return question, opened(skill, slots), "", ""


def _follow(talk: Talk, name: str) -> Turn | None:
    """A follow-up of what was said; None where it cannot be asked."""
    found = FOLLOW_UPS[name](talk.said, talk.rng)
    if found is None:
        return None
    ask = talk.rng.choice(phrasings()["follow_ups"][name][talk.asks])
    if name == "and_in_shop":
        return _stock(talk, ask)
    slots, said = found
    return ask.format(**slots), said, "", ""


def _stock(talk: Talk, ask: str) -> Turn:
    """A question about the shop, with the call of the tool that counts there."""
    thing = talk.rng.choice([many for one, many in WORLD.plural.items() if one != many and many != talk.said.it])
    number = talk.rng.randint(1, 30)
    said = Said(str(number), f"stock {thing}", relation="stock", it=thing, number=number)
    return ask.format(x=thing), said, phrasings()["stock"]["call"].format(x=thing), ""


def main() -> None:
    """Write the committed files."""
    half = SIZES["test"] // 2
    files = {
        "chat_train.jsonl": list(rows("train", SIZES["train"], seed=0)),
        "chat_validation.jsonl": list(rows("validation", SIZES["validation"], seed=0)),
        "chat_test.jsonl": [*rows("test", half, seed=0), *rows("test", half, seed=0, new_phrasings=True)],
    }
    random.Random(0).shuffle(files["chat_train.jsonl"])
    for name, lines in files.items():
        write_atomic(FOLDER / name, map(json_line, lines))
        print(f"{name}: {len(lines)} rows")


if __name__ == "__main__":
    main()
