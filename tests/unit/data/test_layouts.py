"""Layouts: each row takes the one that it fills, every column is used or named, and nothing wrong trains in silence."""

import itertools

import pytest
from tables import HELLO, Rows, canonical, fault, talk

from tunebook.common.data import rows, schema
from tunebook.common.tokens import encoding, templates, tokenization

CHAT = {"messages": HELLO}
ORDER = {"instruction": "a", "output": "b"}
PAIR = {"question": "q", "answer": "r"}


def table(*values, **options):
    found = schema.SchemaReader(Rows(*values), "mine", **options)
    return list(found), found


@pytest.fixture(scope="module")
def pocket():
    return tokenization.load("pocket")[0]


@pytest.mark.parametrize("rows", itertools.permutations([CHAT, ORDER, PAIR], 2))
@pytest.mark.parametrize("nothing", [None, "", []])
def test_a_union_gives_the_rows_of_its_parts(rows, nothing):
    """As concatenate_datasets and csv files join: every row has every column."""
    names = {name for row in rows for name in row}
    union = [{**dict.fromkeys(names, nothing), **row} for row in rows for _ in range(3)]
    kept = [{name: value for name, value in row.items() if not name.startswith("their_")} for row in canonical(*union)]
    alone = [found for row in rows for found in canonical(*[row] * 3)]
    assert [{name: row[name] for name in one} for row, one in zip(kept, alone, strict=True)] == alone


def test_a_union_trains_as_apply_chat_template_renders_it(pocket):
    pytest.importorskip("datasets")
    import datasets

    parts = [datasets.Dataset.from_list([row]) for row in (CHAT, ORDER, {"prompt": "p", "completion": "c"})]
    union = datasets.concatenate_datasets(parts)
    encoded, counts = encoding.encode(canonical(*union), pocket, templates.get("tokenizer", pocket), 99)
    turns = [HELLO, talk(("user", "a"), ("assistant", "b")), talk(("user", "p"), ("assistant", "c"))]
    assert counts.kept == 3
    assert encoded["input_ids"] == [pocket.apply_chat_template(chat)["input_ids"] for chat in turns]


@pytest.mark.parametrize("ask", ["question", "prompt", "instruction"])
@pytest.mark.parametrize("answer", ["answer", "response"])
@pytest.mark.parametrize("text", ["context", "input"])
def test_a_text_to_read_is_part_of_the_prompt(ask, answer, text, pocket):
    if (ask, answer) == ("instruction", "answer"):
        pytest.skip("not a known layout")
    row = canonical({text: "Alba is a town.", ask: "What is Alba?", answer: "A town."})[0]
    assert row == {"instruction": "What is Alba?", "input": "Alba is a town.", "output": "A town."}
    asked = [{"role": "user", "content": "What is Alba?\n\nAlba is a town."}]
    wanted = pocket.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    assert templates.get("tokenizer", pocket).prompt(row) == wanted
    assert not canonical({ask: "a", answer: "b", text: None})[0].get("input")


def test_what_stands_beside_a_pair_is_used():
    assert canonical({**PAIR, "system": "s"})[0] == {"prompt": "q", "completion": "r", "system": "s"}
    found = canonical({**PAIR, "history": [["x", "y"]]})[0]
    assert found["messages"] == talk(("user", "x"), ("assistant", "y"), ("user", "q"), ("assistant", "r"))
    found = canonical({"prompt": HELLO[:1], "completion": "hi", "system": "s"})[0]
    assert found["messages"] == [*talk(("system", "s")), *HELLO]
    late = [PAIR] * schema.PEEKED + [{**PAIR, "context": "c"}]
    assert canonical(*late)[-1] == {"instruction": "q", "input": "c", "output": "r"}
    assert canonical({**PAIR, "passage": "c"}, input="passage")[0]["input"] == "c"
    assert canonical({"q": "a", "a": "b", "c": "d"}, prompt="q", completion="a", input="c")[0]["input"] == "d"


@pytest.mark.parametrize("history", [[], None, "[]", [["q", "r"]]])
def test_an_input_stands_alike_with_and_without_history(history):
    """One join of question and input, whatever other rows of the file have: the chat template's."""
    row = {"instruction": "Add", "input": "1 2", "output": "3", "history": history}
    found = canonical(row, {**row, "history": [["q", "r"]]})[0]
    assert rows.messages(found)[-2:] == talk(("user", "Add\n\n1 2"), ("assistant", "3"))


def test_turns_with_two_key_styles_and_by_column():
    styles = [
        {"role": None, "content": None, "from": "human", "value": "hello"},
        {"role": "assistant", "content": "hi", "from": None, "value": None},
    ]
    by_column = {"from": ["human", "gpt"], "value": ["hello", "hi"], "role": None}
    for turns in (styles, by_column):
        assert canonical({"messages": turns}) == [CHAT]
    assert "is an object" in fault({"messages": {"role": ["user"], "content": ["a", "b"]}})


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({**CHAT, "images": ["a.jpg"]}, "`images` holds what a text model does not see"),
        ({**ORDER, "image": {"bytes": b"x"}}, "`image` holds"),
        ({**PAIR, "audio": "a.wav"}, "`audio` holds"),
        ({"prompt": "a", "completion": "b", "label": False}, "`label` is false"),
        ({"prompt": "a", "completion": "b", "label": "False"}, "`label` is false"),
        ({**CHAT, "kto_tag": False}, "`kto_tag` is false"),
        ({"messages": [*talk(("system", "x")), *HELLO], "system": "y"}, "`system` says another thing"),
        ({"messages": "[{'role': 'user', 'content': 'a'}]"}, "write such cells with json.dumps"),
        ({**ORDER, "history": "[['a', 'b']]"}, "write such cells with json.dumps"),
    ],
)
def test_what_would_train_wrongly_is_refused_or_dropped(row, says):
    good = {name: value for name, value in row.items() if name in ("prompt", "completion")} or ORDER
    found = fault(good, row)
    assert says in found and "row 2" in found and "--bad_rows drop" in found and "row 1" not in found
    rows, left = table(good, row, bad_rows="drop")
    assert [row["row"] for row in rows] == [1] and left.problems.dropped.total() == 1
    assert says in left.problems.left()


def test_what_is_no_fault():
    same = {"messages": [*talk(("system", "x ")), *HELLO], "system": "x"}
    assert canonical(same)[0]["messages"] == same["messages"]
    for more in ({"images": []}, {"image": None}, {"label": True}, {"label": 0}, {"label": "spam"}):
        assert len(canonical({**ORDER, **more})) == 1


def test_names_of_earlier_files_are_kept():
    once = canonical({**ORDER, "source": "web", "row": 9})[0]
    again = next(iter(schema.SchemaReader(Rows({**once, "row": 1, "source": "first.jsonl"}), "second.jsonl")))
    assert (again["their_source"], again["their_their_source"], again["source"]) == (
        "web",
        "first.jsonl",
        "second.jsonl",
    )


@pytest.mark.parametrize(
    ("rows", "mapping", "line"),
    [
        ([{**PAIR, "id": 3, "n": None}], {}, "mine: columns prompt=question, completion=answer; not used: id"),
        ([{**ORDER, "input": "x"}], {}, "mine: columns instruction, output, input"),
        ([CHAT, ORDER, CHAT], {}, "mine: columns messages (2 rows); instruction, output (1 row)"),
        ([{"q": "a", "a": "b", "context": "c"}], {"prompt": "q", "completion": "a"},
         "mine: columns prompt=q, completion=a; not used: context; input=context after the file makes it part of the "
         "prompt"),
        ([{**CHAT, "weight": 1, "chat_template_kwargs": {}, "tools": []}], {}, "mine: columns messages, tools"),
    ],
)  # fmt: skip
def test_what_columns_became_is_one_line(rows, mapping, line):
    _, found = table(*rows, mapping=mapping)
    assert found.summary() == line


def test_a_source_of_which_nothing_is_left_is_refused():
    from tunebook.common.errors import UserError

    with pytest.raises(
        UserError, match=r"no row is left; 2 rows dropped: 1 as incomplete, 1 as turn_order; such as row 1"
    ):
        table({"messages": None}, {"messages": HELLO[:1]}, bad_rows="drop")
    with pytest.raises(UserError, match="--bad_rows skip"):
        table(ORDER, bad_rows="skip")
