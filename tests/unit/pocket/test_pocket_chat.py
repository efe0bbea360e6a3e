"""Pocket's conversations: what the generator writes, follow-ups that need the turns before, nothing on two sides."""

import json
from collections import Counter

import pytest
from transformers import AutoTokenizer

from tunebook.common import data
from tunebook.common.pocket import FOLDER
from tunebook.common.synthetic import chat, corpus
from tunebook.common.synthetic.follow_ups import FOLLOW_UPS, RELATIONS, UPPER
from tunebook.common.tokens import encoding, lengths, templates

SIDES = ("train", "validation", "test")


def read(name):
    return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def files():
    return {side: read(f"chat_{side}.jsonl") for side in SIDES}


def second(row):
    """The messages up to the second question, and the answer to it."""
    places = [place for place, turn in enumerate(row["messages"]) if turn["role"] == "user"]
    return row["messages"][: places[1] + 1], row["messages"][places[1] + 1]["content"]


def asked(row):
    return [turn["content"] for turn in row["messages"] if turn["role"] == "user"]


def test_files_are_what_the_generator_writes(files, tmp_path, monkeypatch):
    monkeypatch.setattr(chat, "FOLDER", tmp_path)
    chat.phrasings.cache_clear()
    chat.main()
    for side in SIDES:
        assert (tmp_path / f"chat_{side}.jsonl").read_bytes() == (FOLDER / f"chat_{side}.jsonl").read_bytes()


def test_sizes_and_kinds(files):
    assert {side: len(rows) for side, rows in files.items()} == chat.SIZES
    for side, rows in files.items():
        assert {len(asked(row)) for row in rows} == {2, 3, 4}
        first = [row["messages"][0] for row in rows]
        systems = Counter(turn["content"].split()[0] for turn in first if turn["role"] == "system")
        tools = sum(any(turn["role"] == "tool" for turn in row["messages"]) for row in rows)
        assert sum(systems.values()) > len(rows) / 10 and tools > len(rows) / 30, side
    assert Counter(row["phrasing"] for row in files["test"]) == {"seen": 100, "unseen": 100}
    assert {row["follow_up"] for row in files["train"]} == set(FOLLOW_UPS) == set(chat.phrasings()["follow_ups"])
    assert min(Counter(row["follow_up"] for row in files["test"]).values()) >= 4


def test_no_conversation_comes_twice_and_new_phrasings_are_new(files):
    texts = [json.dumps(row["messages"]) for rows in files.values() for row in rows]
    assert len(set(texts)) == len(texts)
    for group in chat.phrasings()["follow_ups"].values():
        assert not set(group["asks"]) & set(group["asks_new"])


def test_what_a_held_out_follow_up_is_about_is_in_no_training_row():
    """The keys are asked of the generator: every one of a training row is of the training pool, and the second of a
    held-out row, and each of its combinations, of its own."""
    import random

    from tunebook.common.synthetic import skills

    facts = tuple(f"{name} " for name in skills.FACTS)
    for side in SIDES:
        rng = random.Random(side)
        for name, group in chat.phrasings()["follow_ups"].items():
            for opening in group["openings"]:
                talk = chat._talk(side, rng, "asks", opening, name, 3)
                pools = [corpus.pool(key) for key in talk.keys] if talk else []
                if side == "train":
                    assert set(pools) <= {"train"}
                elif talk:
                    assert pools[1] == side
                    assert {p for p, key in zip(pools, talk.keys, strict=True) if not key.startswith(facts)} <= {side}


def test_a_follow_up_means_nothing_without_the_first_question(files):
    """The same second question has several answers among the rows, by what was said before."""
    answers = {}
    for row in files["train"]:
        said, answer = second(row)
        answers.setdefault((row["follow_up"], said[-1]["content"]), set()).add(answer)
    often = {key: found for key, found in answers.items() if "{" not in key[0]}
    alone = [key for key, found in often.items() if len(found) == 1]
    repeated = Counter((row["follow_up"], asked(row)[1]) for row in files["train"])
    assert not [key for key in alone if repeated[key] > 8]


def test_answers_are_right_where_they_can_be_worked_out_again(files):
    words = {
        "backwards": lambda said: said[::-1],
        "the_first": lambda said: said[:1],
        "the_last": lambda said: said[-1:],
    }
    checked = Counter()
    for row in [row for rows in files.values() for row in rows]:
        said, answer = second(row)
        before = said[-2]["content"]
        name = row["follow_up"]
        if name in words and row["skill"] not in ("first", "last"):
            assert answer.split() == words[name](before.split())
        elif name == "capitals":
            assert answer == before.upper() and {word.lower() for word in answer.split()} <= set(UPPER)
        elif name == "how_many":
            assert int(answer) == len(before.split())
        elif name == "one_more":
            assert int(answer) == int(before) + 1
        elif name in ("plus", "minus"):
            number = int("".join(char for char in said[-1]["content"] if char.isdigit()))
            assert int(answer) == int(before) + (number if name == "plus" else -number)
        elif name == "its_capital":
            country = next(country for country in RELATIONS["capital"] if country in json.dumps(said))
            assert answer == RELATIONS["capital"][country]
        else:
            continue
        checked[name] += 1
    assert len(checked) == 9 and min(checked.values()) > 40


def test_rows_are_short_and_train_answers_alone(files):
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / "model")
    encodings = []
    for template in ("tokenizer", "chatml"):
        rows, counts = encoding.encode(files["test"], tokenizer, templates.get(template, tokenizer), 200)
        assert counts.kept == counts.rows
        encodings.append([(row["input_ids"], row["labels"]) for row in rows])
    assert encodings[0] == encodings[1]  # pocket's own template is ChatML
    for row, (ids, labels) in zip(files["test"], encodings[0], strict=True):
        said = [turn["content"] for turn in row["messages"] if turn["role"] == "assistant"]
        trained = tokenizer.decode(
            [token for token, label in zip(ids, labels, strict=True) if label != lengths.IGNORE_INDEX]
        )
        assert trained == "".join(f"{text}<|im_end|>" for text in said)


def test_the_data_set_loads_by_its_name(files):
    sides = data.load("pocket_chat")
    assert {side: len(rows) for side, rows in sides.items()} == chat.SIZES
    assert sides["test"][0]["messages"] == files["test"][0]["messages"] and sides.notes == []


def test_the_task_of_lm_eval_asks_as_training_did(files):
    from lm_eval.tasks import TaskManager

    from tunebook.common.tokens import rendering

    folder = FOLDER.parent.parent / "evals" / "tasks"
    task = TaskManager(include_path=str(folder), include_defaults=False).load(["pocket_chat"])["tasks"]["pocket_chat"]
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / "model")
    docs = list(task.test_docs())
    assert len(docs) == len(files["test"])
    template = templates.get("tokenizer", tokenizer)
    for doc, row in zip(docs, files["test"], strict=True):
        said, answer = second(row)
        assert task.doc_to_target(doc) == answer
        whole = {"messages": [*said, {"role": "assistant", "content": answer}]}
        assert tokenizer(task.doc_to_text(doc))["input_ids"] == rendering.prompts(tokenizer, template, [whole])[0]
