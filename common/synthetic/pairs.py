"""Writes pocket's preference pairs: the right answer against a plausible wrong one, a terse one against a rambling one.

python -m tunebook.common.synthetic.pairs    # writes the committed pairs_*.jsonl files again
"""

import random
from collections.abc import Callable, Iterator

from tunebook.common.files import json_line, write_atomic
from tunebook.common.pocket import FOLDER
from tunebook.common.synthetic import facts as _facts  # noqa: F401  registers its skills
from tunebook.common.synthetic import skills
from tunebook.common.synthetic.corpus import pool
from tunebook.common.synthetic.skills import WORLD, Slots
from tunebook.common.synthetic.world import article

SIZES = {"train": 24, "validation": 4, "test": 4}  # pairs of each skill and flaw; half of the test rows: new phrasings
TRIES = 400  # draws for each pair; small splits have fewer facts than are asked for
RAMBLES = {  # how a right answer is drowned; those of test rows stand in no other row
    "seen": [
        "Well, let me think about that for a while. The answer is {y}, I think.",
        "{y}. That is what I would say, and I hope that it helps you.",
        "That is a good question, and many people ask it. It is {y}.",
        "I think that it is {y}, but I may be wrong, and you can ask me again.",
        "To say it in one line is not easy. So here it is: {y}",
        "{y}, as you can see. If you want to know more, ask me more.",
        "You want to know it, so I will tell you what it is. It is this: {y}",
        "{y} is the answer, and that is all that I know about it for now.",
    ],
    "unseen": [
        "Thank you for the question. Here is the answer that you want: {y}",
        "{y}, and I am happy that I could help you with this one.",
        "First I looked at it, and then I looked again. Now I say {y}.",
    ],
}
Wrong = Callable[[Slots, random.Random], list[str]]
WRONG: dict[str, Wrong] = {}  # skill -> answers that one could give by mistake; those that are right are left out


def wrong(*names: str) -> Callable[[Wrong], Wrong]:
    def register(make: Wrong) -> Wrong:
        WRONG.update(dict.fromkeys(names, make))
        return make

    return register


def mistake(name: str, slots: Slots, rng: random.Random) -> str:
    """A wrong answer of the same kind as the right one."""
    found = [answer for answer in WRONG.get(name, _another(name))(slots, rng) if answer not in ("", slots["y"])]
    return rng.choice(found) if found else ""


def _another(name: str) -> Wrong:
    """What is right for another question of the skill: another capital, another colour."""
    return lambda slots, rng: [skills.draw(name, rng)["y"] for _ in range(4)]


def _swapped(words: list[str], rng: random.Random) -> str:
    place = rng.randrange(len(words) - 1)
    return " ".join([*words[:place], words[place + 1], words[place], *words[place + 2 :]])


@wrong("copy", "reverse", "sort_numbers")
def _order(slots, rng):
    words = slots["y"].split()
    return [_swapped(words, rng), " ".join(reversed(words)), " ".join(words[:-1])]


@wrong("first", "last", "pick", "largest", "smallest")
def _of_the_row(slots, rng):
    return slots["x"].split()


@wrong("count", "sum", "difference", "next")
def _beside(slots, rng):
    number = int(slots["y"])
    return [str(number + step) for step in (-2, -1, 1, 2) if number + step >= 0]


@wrong("join")
def _commas(slots, rng):
    words = slots["x"].split()
    return [", ".join(words), " and ".join(words), f"{' '.join(words[:-1])} and {words[-1]}"]


@wrong("upper")
def _case(slots, rng):
    return [slots["x"], slots["x"].capitalize(), slots["x"].title()]


@wrong("replace")
def _misplaced(slots, rng):
    words = slots["x"].split()
    others = [place for place, word in enumerate(words) if word != slots["a"]]
    place = rng.choice(others)
    return [slots["x"], " ".join([*words[:place], slots["b"], *words[place + 1 :]])]


@wrong("remove")
def _kept(slots, rng):
    words = slots["x"].split()
    other = rng.choice([word for word in words if word != slots["a"]])
    return [slots["x"], " ".join(word for word in words if word != other)]


@wrong("times")
def _miscounted(slots, rng):
    word, count = slots["a"], len(slots["y"].split())
    return [" ".join([word] * (count + step)) for step in (-1, 1) if count + step > 1] + [f"{word} {slots['n']}"]


@wrong("letter")
def _other_letter(slots, rng):
    return [slots["x"][-1], slots["x"][1], slots["x"]]


@wrong("plural")
def _other_plural(slots, rng):
    x = slots["x"]
    return [x, f"{x}s", f"{x}es", f"{slots['y']}s"]


@wrong("past")
def _other_past(slots, rng):
    x = slots["x"]
    return [x, f"{x}ed", f"{x}s", skills.draw("past", rng)["y"]]


@wrong("blank")
def _same_relation(slots, rng):
    drawn = [skills.draw("blank", rng) for _ in range(40)]
    return [other["y"] for other in drawn if other["key"].split()[0] == slots["key"].split()[0]]


@wrong("negate")
def _not_there(slots, rng):
    words = slots["x"].rstrip(".").split()
    return [slots["x"], f"Not {slots['x'][0].lower()}{slots['x'][1:]}", f"{' '.join(words)} not."]


@wrong("explain")
def _other_kind(slots, rng):
    kind = rng.choice([name for name in WORLD.members if name != WORLD.category[slots["x"]]])
    sentence = f"{article(slots['x'])} is {article(kind)}. {WORLD.remark[kind]}"
    return [sentence[0].upper() + sentence[1:]]


@wrong("list_three")
def _other_three(slots, rng):
    words = slots["y"].split(", ")
    return [skills.draw("list_three", rng)["y"], ", ".join([words[0], words[1], words[0]])]


def rows(split: str, per_kind: int, seed: int, new_phrasings: bool = False) -> Iterator[dict[str, str]]:
    """Rows of instruction, input, chosen and rejected, with `skill`, `flaw` of the rejected answer (wrong or rambling)
    and `phrasing`. No question comes twice; facts and combinations keep to their side as in corpus.rows."""
    rng = random.Random(f"pairs {split} {seed} {new_phrasings}")
    asks, phrasing = skills.phrasings(), "unseen" if new_phrasings else "seen"
    rambles = RAMBLES["unseen" if split == "test" else "seen"]
    for name in skills.SKILLS:
        seen: set[tuple[str, str]] = set()
        for flaw in ("wrong", "rambling"):
            count = 0
            for _ in range(per_kind * TRIES):
                slots = skills.draw(name, rng)
                ask = rng.choice(asks[name]["asks_new" if new_phrasings else "asks"])
                complete = "{x}" in ask or "{ax}" in ask or (name in skills.SUMS and "{a}" in ask)
                row = (ask.format(**slots), "" if complete else slots["x"])
                y = slots["y"]
                rejected = mistake(name, slots, rng) if flaw == "wrong" else rng.choice(rambles).format(y=y)
                if pool(slots["key"]) == split and row not in seen and rejected:
                    seen.add(row)
                    count += 1
                    answers = {"chosen": y, "rejected": rejected}
                    asked = {"instruction": row[0], "input": row[1]}
                    yield asked | answers | {"skill": name, "flaw": flaw, "phrasing": phrasing}
                if count == per_kind:
                    break


def files() -> dict[str, list[dict[str, str]]]:
    """The committed files: name -> rows."""
    found = {f"pairs_{split}.jsonl": list(rows(split, count, seed=0)) for split, count in SIZES.items()}
    found["pairs_test.jsonl"] += rows("test", SIZES["test"], seed=0, new_phrasings=True)
    random.Random(0).shuffle(found["pairs_train.jsonl"])
    return found


def main() -> None:
    for name, lines in files().items():
        write_atomic(FOLDER / name, map(json_line, lines))
        print(f"{name}: {len(lines)} rows")


if __name__ == "__main__":
    main()
