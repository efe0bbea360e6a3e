"""Functions of pocket_chat.yaml. The prompt is what pocket's own chat template gives, so it is that of training."""

import json
from functools import cache

from common.chats import ChatTemplate
from common.pocket import FOLDER, chat


def load(**_):
    import datasets

    lines = (FOLDER / "chat_test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    docs = []
    for row in rows:
        said, answer = chat.second(row)
        skill = row["follow_up"]  # what a report's table by skill tells apart
        docs.append({"messages": said, "answer": answer, "skill": skill, "phrasing": row["phrasing"]})
    return {"test": datasets.Dataset.from_list(docs)}


@cache
def template():
    return ChatTemplate("pocket", (FOLDER / "model" / "chat_template.jinja").read_text(encoding="utf-8"))


def prompt(row):
    return template().prompt({"messages": [*row["messages"], {"role": "assistant", "content": ""}]})


def answer(row):
    return row["answer"]
