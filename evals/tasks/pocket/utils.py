"""Functions that the YAML files beside this one name. The prompt is the recipes' own template, so both are the same."""

import json

from common.pocket import FOLDER
from common.templates import ALPACA


def _read(name: str):
    import datasets

    lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines])}


def load(**_):
    return _read("test.jsonl")


def load_facts(**_):
    return _read("facts.jsonl")


def load_text(**_):
    import datasets

    from common.pocket import corpus

    lines = [line for text in corpus.documents(40, seed=777) for line in text.split("\n")]
    plain = [line for line in dict.fromkeys(lines) if line and not line.startswith(("#", "<|")) and "<|" not in line]
    return {"test": datasets.Dataset.from_list([{"text": line} for line in plain[:200]])}


def seen(docs):
    return docs.filter(lambda row: row["phrasing"] == "seen")


def unseen(docs):
    return docs.filter(lambda row: row["phrasing"] == "unseen")


def prompt(row):
    return ALPACA.prompt(row)


def completion(row):
    return ALPACA.completion(row)
