"""Writes what pocket is made from: documents to pre-train on, and Alpaca-format rows to fine-tune and test on.

python -m tunebook.common.synthetic.corpus    # writes the committed .jsonl files again
"""

import hashlib
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tunebook.common.files import json_line, write_atomic
from tunebook.common.pocket import FOLDER
from tunebook.common.synthetic import facts as _facts  # noqa: F401  registers its skills
from tunebook.common.synthetic import skills

WEIGHT = {  # how often a skill is told, where once is not right for a model of this size
    **dict.fromkeys(["reverse", "sort_numbers"], 3),
    **dict.fromkeys(["sum", "difference"], 2.5),
    **dict.fromkeys(["largest", "smallest", "count", "replace", "remove", "blank", "copy", "pick"], 2),
    **dict.fromkeys(["join", "plural"], 1.5),
    "list_three": 0.5,
}
TEMPLATE_WORDS = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request. Instruction Input Response user assistant system"
)


def pool(key: str) -> str:
    """train, validation or test: where the fact or combination belongs, fixed by its text alone (70/10/20 %)."""
    number = hashlib.sha256(f"pocket {key}".encode()).digest()[0] % 10
    return "test" if number < 2 else "validation" if number == 2 else "train"


def rows(split: str, per_skill: int, seed: int, new_phrasings: bool = False) -> Iterator[dict[str, str]]:
    """Alpaca rows with two more fields: `skill` and `phrasing` (seen or unseen). No row comes twice."""
    rng = random.Random(f"{split} {seed} {new_phrasings}")
    asks = skills.phrasings()
    for name in skills.SKILLS:
        seen: set[tuple[str, str]] = set()
        for _ in range(per_skill * 400):
            slots = skills.draw(name, rng)
            ask = rng.choice(asks[name]["asks_new" if new_phrasings else "asks"])
            complete = "{x}" in ask or "{ax}" in ask or (name in skills.SUMS and "{a}" in ask)
            row = (ask.format(**slots), "" if complete else slots["x"])
            if pool(slots["key"]) == split and row not in seen:
                seen.add(row)
                phrasing = "unseen" if new_phrasings else "seen"
                instruction, given = row
                yield {
                    "instruction": instruction,
                    "input": given,
                    "output": slots["y"],
                    "skill": name,
                    "phrasing": phrasing,
                }
            if len(seen) == per_skill:
                break


def _line(rng: random.Random, tells: dict, names: list[str], weights: list[int]) -> str:
    """One line of the corpus (or two, for a question over its answer) about a drawn skill."""
    while True:
        name = rng.choices(names, weights)[0]
        slots = skills.draw(name, rng)
        if name in skills.FACTS or pool(slots["key"]) == "train":
            break
    form = rng.choice(tells[name]["tells"])
    line = form.format(**slots).replace("|", "\n")
    if not form.startswith("{") and rng.random() < 0.5:
        line = line[0].upper() + line[1:]
    return line


def vocabulary() -> list[str]:
    """Every word of the prompt templates and of all phrasings, as it is written there."""
    words = set(re.findall(r"[A-Za-z]+", TEMPLATE_WORDS))
    for group in skills.phrasings().values():
        for phrase in group["asks"] + group["asks_new"]:
            words |= set(re.findall(r"[A-Za-z]+", re.sub(r"\{\w+\}", "", phrase)))
    return sorted(words)


def documents(count: int, seed: int) -> Iterator[str]:
    """Pre-training documents of 6 to 14 entries: the world in statements, questions, lists, dialogues and prose."""
    rng = random.Random(seed)
    tells = skills.phrasings()
    names = list(skills.SKILLS)
    weights = [WEIGHT.get(name, 1) for name in names]
    prose = yaml.safe_load(Path(__file__).with_name("prose.yaml").read_text(encoding="utf-8"))
    words = vocabulary()
    for _ in range(count):
        lines = []
        for _ in range(rng.randint(6, 14)):
            chance = rng.random()
            if chance < 0.88:
                lines.append(_line(rng, tells, names, weights))
            elif chance < 0.92:
                lines.append(rng.choice(prose))
            elif chance < 0.96:
                a, b = rng.sample(words, 2)
                lines.append(
                    rng.choice([f"{a} is a word.", f"{a} and {b} are words.", f"Ann reads {a} and {b}.", f"{a}, {b}"])
                )
            elif chance < 0.98:
                heading = rng.choice([rng.choice(words), rng.choice(skills.WORDS)]).capitalize()
                entries = [rng.choice([rng.choice(skills.WORDS), _line(rng, tells, names, weights)]) for _ in range(3)]
                lines.append(f"\n### {heading}:\n" + "\n".join(entries) + "\n")
            else:
                speakers = rng.sample(list(skills.WORLD.people), 2)
                turns = [f"<|im_start|>{who}\n{_line(rng, tells, names, weights)}<|im_end|>" for who in speakers]
                lines.append("\n".join(turns))
        yield "\n".join(lines)


def token_ids(tokenizer: Any, tokens: int, seed: int) -> Any:
    """At least `tokens` ids of documents, each closed by the end token: int64, one dimension."""
    import torch

    parts, total, start = [], 0, time.monotonic()
    while total < tokens:
        batch = list(documents(5000, seed * 1000 + len(parts) + 1))
        encoded = tokenizer.backend_tokenizer.encode_batch_fast(batch)
        ids = [token for encoding in encoded for token in [*encoding.ids, tokenizer.eos_token_id]]
        parts.append(torch.tensor(ids, dtype=torch.int32))
        total += len(ids)
    print(f"{total} tokens of corpus written in {time.monotonic() - start:.0f} s", flush=True)
    return torch.cat(parts).long()


def facts(count: int, seed: int) -> Iterator[dict]:
    """Sentences to complete with one of four answers of the same kind: {"text", "choices", "answer", "skill"}."""
    rng = random.Random(seed)
    forms = {
        "capital": "The capital of {x} is",
        "product": "{x} is known for its",
        "opposite": "The opposite of {x} is",
        "job": "{x} works as a",
        "category": "the {x} is a kind of",
        "plural": "the plural of {x} is",
        "colour": "the colour of the {x} is",
    }
    seen: set[str] = set()
    while len(seen) < count:
        name = rng.choice(list(forms))
        fact = skills.draw(name, rng)
        text = forms[name].format(**fact)
        others = {skills.draw(name, rng)["y"] for _ in range(30)} - {fact["y"]}
        if text not in seen:
            seen.add(text)
            choices = [*rng.sample(sorted(others), 3), fact["y"]]
            rng.shuffle(choices)
            yield {"text": text, "choices": choices, "answer": choices.index(fact["y"]), "skill": name}


def sentences(count: int, seed: int) -> list[str]:
    """Lines of plain text, drawn as the documents are: what a tuned model may forget. No line comes twice."""
    lines = [line for text in documents(40, seed=seed) for line in text.split("\n")]
    plain = [line for line in dict.fromkeys(lines) if line and not line.startswith(("#", "<|")) and "<|" not in line]
    return plain[:count]


def main() -> None:
    """Write the committed files: train, validation and test rows, the facts, and sentences of plain text."""
    files = {
        "train.jsonl": list(rows("train", 100, seed=0)),
        "validation.jsonl": list(rows("validation", 10, seed=0)),
        "test.jsonl": [*rows("test", 10, seed=0), *rows("test", 10, seed=0, new_phrasings=True)],
        "facts.jsonl": list(facts(300, seed=0)),
        "text.jsonl": [{"text": line} for line in sentences(200, seed=777)],
    }
    random.Random(0).shuffle(files["train.jsonl"])
    for name, lines in files.items():
        write_atomic(FOLDER / name, map(json_line, lines))
        print(f"{name}: {len(lines)} rows")


if __name__ == "__main__":
    main()
