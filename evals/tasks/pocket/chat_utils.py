"""Functions of pocket_chat.yaml. The prompt is what pocket's own chat template gives, so it is that of training."""

import json
from functools import cache

from tunebook.common.pocket import FOLDER
from tunebook.common.tokens.chat_templates import ChatTemplate


def load(**_):
    import datasets

    lines = (FOLDER / "chat_test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    docs = []
    for row in rows:
        said, answer = second(row)
        skill = row["follow_up"]  # what a report's table by skill tells apart
        docs.append({"messages": said, "answer": answer, "skill": skill, "phrasing": row["phrasing"]})
    return {"test": datasets.Dataset.from_list(docs)}


def second(row):
    """The messages up to the second question, and what the assistant says next: what is scored."""
    places = [place for place, turn in enumerate(row["messages"]) if turn["role"] == "user"]
    place = places[1] + 1
    return row["messages"][:place], row["messages"][place]["content"]


@cache
def template():
    return ChatTemplate("pocket", (FOLDER / "model" / "chat_template.jinja").read_text(encoding="utf-8"))


def prompt(row):
    return template().prompt({"messages": [*row["messages"], {"role": "assistant", "content": ""}]})


def answer(row):
    return row["answer"]
