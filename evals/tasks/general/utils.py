"""The function that the YAML file beside this one names."""

import json
from pathlib import Path


def load(**_):
    import datasets

    lines = Path(__file__).with_name("general_knowledge.jsonl").read_text(encoding="utf-8").splitlines()
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines])}
