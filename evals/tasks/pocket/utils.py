"""Functions that the YAML files beside this one name. The prompt is the recipes' own template, so both are the same."""

import json

from tunebook.common.pocket import FOLDER
from tunebook.common.tokens.templates import ALPACA


def _read(name: str):
    import datasets

    lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines])}


def load(**_):
    return _read("test.jsonl")


def load_facts(**_):
    return _read("facts.jsonl")


def load_text(**_):
    return _read("text.jsonl")


def seen(docs):
    return docs.filter(lambda row: row["phrasing"] == "seen")


def unseen(docs):
    return docs.filter(lambda row: row["phrasing"] == "unseen")


def prompt(row):
    return ALPACA.prompt(row)


def completion(row):
    return ALPACA.completion(row)
