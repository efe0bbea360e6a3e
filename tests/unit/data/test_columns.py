"""Columns: what rows are recognised as, how roles and turns are read, and how faults are named."""

import json

import pytest
from tables import HELLO, Rows, canonical, fault, talk

from tunebook.common.data import schema
from tunebook.common.data.conversations import ROLES
from tunebook.common.data.rows import kind, question
from tunebook.common.data.tools import CALLERS


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ({"instruction": "a", "output": "b"}, {"instruction": "a", "input": "", "output": "b"}),
        ({"instruction": "a", "input": None, "output": "b", "system": ""},
         {"instruction": "a", "input": "", "output": "b"}),
        ({"instruction": "a", "input": "c", "output": "b", "system": "s", "n": 1},
         {"instruction": "a", "input": "c", "output": "b", "system": "s", "n": 1}),
        ({"instruction": "a", "context": "c", "response": "b"}, {"instruction": "a", "input": "c", "output": "b"}),
        ({"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b"}),
        ({"prompt": "a", "response": "b"}, {"prompt": "a", "completion": "b"}),
        ({"prompt": "a", "answer": "b"}, {"prompt": "a", "completion": "b"}),
        ({"question": "a", "answer": "b"}, {"prompt": "a", "completion": "b"}),
        ({"question": "a", "response": "b"}, {"prompt": "a", "completion": "b"}),
        ({"messages": HELLO}, {"messages": HELLO}),
        ({"messages": json.dumps(HELLO)}, {"messages": HELLO}),
        ({"conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}]}, {"messages": HELLO}),
        ({"prompt": HELLO[:1], "completion": HELLO[1:]}, {"messages": HELLO}),
        ({"prompt": HELLO[:1], "completion": "hi"}, {"messages": HELLO}),
        ({"messages": HELLO, "system": "be kind", "prompt": "x"},
         {"messages": [*talk(("system", "be kind")), *HELLO], "their_prompt": "x"}),
    ],
)  # fmt: skip
def test_known_columns(value, wanted):
    assert canonical(value, value) == [wanted, wanted]


def test_kinds_and_questions():
    found = [
        canonical({"instruction": "a", "output": "b", "prompt": "other"})[0],
        canonical({"prompt": "x ### Instruction:\nwhat?", "completion": "b"})[0],
        canonical(
            {"messages": talk(("system", "s"), ("user", "u"), ("assistant", "v"), ("user", "w"), ("assistant", "x"))}
        )[0],
    ]
    assert [kind(row) for row in found] == ["instruction", "pair", "chat"]
    assert [question(row) for row in found] == ["a\n", "\nwhat?", "u\nv\nw"]


def test_fields_that_are_kept_and_ours_that_win():
    row = next(
        iter(
            schema.SchemaReader(Rows({"instruction": "a", "output": "b", "row": 9, "source": "web", "tags": [1]}), "f")
        )
    )
    assert row["row"] == 1 and row["their_row"] == 9 and row["source"] == "f" and row["their_source"] == "web"
    assert row["tags"] == [1]


def test_most_rows_decide_what_one_bad_row_is():
    says = fault({"prompt": "x"}, *[{"instruction": "a", "output": "b"}] * 3, {"messages": HELLO}, {"left": 1})
    assert "row 1: `instruction` is missing (it has prompt)" in says and "row 6: `instruction` is missing" in says
    assert "row 5" not in says  # it is whole
    assert "output=COLUMN" in says and "expected `instruction`, `output`" in says


def test_mapping():
    value = {"question": "a", "ask": "c", "reply": "b", "output": "old"}
    assert canonical(value, instruction="ask", output="reply") == [
        {"instruction": "c", "input": "", "output": "b", "question": "a", "their_output": "old"}
    ]
    assert canonical(value, instruction="ask") == [
        {"instruction": "c", "input": "", "output": "old", "question": "a", "reply": "b"}
    ]
    assert canonical({"dialog": HELLO, "n": 1}, messages="dialog") == [{"messages": HELLO, "n": 1}]
    assert canonical({"instruction": "a", "output": "b", "passage": "c"}, input="passage")[0]["input"] == "c"
    assert canonical({"p": "a", "completion": "b"}, prompt="p") == [{"prompt": "a", "completion": "b"}]


@pytest.mark.parametrize(
    ("mapping", "says"),
    [
        ({"output": "replly"}, "the nearest is reply"),
        ({"prompt": "ask"}, "name the column of completion"),
        ({"messages": "ask", "history": "reply"}, "does not belong"),
        ({"answer": "reply"}, "answer is none of"),
        ({"input": "ask"}, "no known columns"),
    ],
)
def test_mapping_that_cannot_be(mapping, says):
    assert says in fault({"ask": "a", "reply": "b"}, **mapping)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"left": "a", "right": "b"}, "'left', 'right'"),
        ({"chosen": "a", "rejected": "b"}, "preferences"),
        ({"text": "a"}, "data for pretraining"),
        ({"a;b": "1;2"}, "separator"),
        ({"How are you?": "Good", "x": "y"}, "header=no"),
    ],
)
def test_unknown_columns_are_listed_with_the_remedy(value, says):
    found = fault(value, value)
    assert says in found and "instruction=COLUMN" in found


@pytest.mark.parametrize("name", ROLES)
def test_role_names(name):
    turns = {
        "system": [name, "user", "assistant"],
        "developer": [name, "user", "assistant"],
        "user": [name, "assistant"],
        "assistant": ["user", name],
        "tool": ["user", "assistant", name, name, "assistant"],
    }[ROLES[name]]
    for key, text in (("role", "content"), ("from", "value")):
        said = {role: '{"name": "w"}' if role in CALLERS else "x" for role in turns}
        row = canonical({"messages": [{key: role.upper(), text: said[role]} for role in turns]})[0]
        assert [turn["role"] for turn in row["messages"]] == [ROLES[role] for role in turns]


def test_tool_turns_and_tools():
    turns = [("human", "rain?"), ("function_call", '{"name": "w"}'), ("observation", "{}"), ("gpt", "no")]
    value = {"conversations": [{"from": role, "value": text} for role, text in turns], "tools": '[{"name": "w"}]'}
    row = canonical(value)[0]
    assert row["tools"] == [{"type": "function", "function": {"name": "w"}}]
    calls = [{"type": "function", "function": {"name": "w", "arguments": {}}}]
    assert row["messages"][1:3] == [{**talk(("assistant", ""))[0], "tool_calls": calls}, *talk(("tool", "{}"))]
    assert "tools" not in canonical({**value, "tools": "[]"})[0] and "tools" not in canonical({**value, "tools": ""})[0]
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "name": "w"}], "name": None}
    row = canonical({"messages": [HELLO[0], call, {"role": "tool", "content": "3", "name": "w"}, HELLO[1]]})[0]
    assert row["messages"][1] == {"role": "assistant", "content": "", "tool_calls": [{"id": "1", **calls[0]}]}
    assert row["messages"][2]["name"] == "w"


def test_text_in_parts():
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    assert canonical({"messages": [{"role": "user", "content": parts}, HELLO[1]]}) == [{"messages": HELLO}]


def test_history_makes_every_row_a_chat():
    first = {"instruction": "a", "input": "b", "output": "c", "system": "s", "history": [["q", "r"]]}
    found = canonical({**first, "history": []}, first)
    assert found[0]["messages"] == talk(("system", "s"), ("user", "a\n\nb"), ("assistant", "c"))
    assert found[1]["messages"] == talk(
        ("system", "s"), ("user", "q"), ("assistant", "r"), ("user", "a\n\nb"), ("assistant", "c")
    )
    assert kind(canonical({**first, "history": []}, {**first, "history": None})[0]) == "instruction"


def test_trees_give_their_best_ranked_path():
    def node(text, role, *replies, **more):
        return {"text": text, "role": role, "replies": list(replies), **more}

    answer = node("second", "assistant", node("thanks", "prompter"), rank=0)
    tree = node(
        "ask", "prompter", node("first", "assistant", rank=1), node("gone", "assistant", rank=-1, deleted=True), answer
    )
    row = canonical({"message_tree_id": "1", "prompt": tree})[0]
    assert row == {"messages": talk(("user", "ask"), ("assistant", "second")), "message_tree_id": "1"}
    assert "the last turn is user" in fault({"message_tree_id": "1", "prompt": node("ask", "prompter")})


@pytest.mark.parametrize(
    ("turns", "says"),
    [
        ([], "is empty"),
        ("hello", "is text, expected a list of turns"),
        (None, "is null"),
        ([7], "turn 1: is a number"),
        (talk(("user", "a")), "the last turn is user"),
        (talk(("assistant", "a")), "turn 1 is assistant, expected system or developer or user"),
        (talk(("user", "a"), ("user", "b"), ("assistant", "c")), "turn 2 is user after user, expected assistant"),
        (talk(("user", "a"), ("assistant", "b"), ("assistant", "c")), "turn 3 is assistant after assistant"),
        (talk(("user", "a"), ("system", "b"), ("assistant", "c")), "turn 2 is system after user"),
        (talk(("user", "a"), ("tool", "b"), ("assistant", "c")), "turn 2 is tool after user"),
        (talk(("user", "a"), ("assistant", "b"), ("tool", "c")), "the last turn is tool"),
        (talk(("user", "a"), ("narrator", "b")), "turn 2: unknown role 'narrator'; known are system"),
        ([{"content": "a"}, HELLO[1]], "turn 1: no `role` or `from`; it has content"),
        ([{"role": None, "content": "a"}], "turn 1: `role` is null"),
        ([{"role": "user"}, HELLO[1]], "turn 1: no `content`"),
        ([{"role": "user", "content": None}, HELLO[1]], "turn 1: `content` is null, expected text"),
        (
            [{"role": "user", "content": [{"type": "image", "url": "x"}]}, HELLO[1]],
            "`content` is a list, expected text",
        ),
        ([{"role": "user", "content": "\ud83d"}, HELLO[1]], "half a character"),
    ],
)
def test_turns_that_are_wrong(turns, says):
    found = fault({"messages": HELLO}, {"messages": turns}, {"messages": HELLO})
    assert says in found and "row 2: `messages`" in found and "row 3" not in found


def test_texts_that_are_none():
    found = fault(
        {"instruction": "a", "input": ["x"], "output": "b"},
        {"instruction": None, "output": 3.5},
        {"instruction": "a", "output": {"b": True}},
        "words",
        {"instruction": "a", "output": "\udc00"},
        {"instruction": "a", "output": "b", "system": False},
    )
    for says in ("row 1: `input` is a list", "row 2: `instruction` is null", "row 3: `output` is an object",
                 "row 4: is text, expected an object", "row 5: `output` holds half a character",
                 "row 6: `system` is true or false"):  # fmt: skip
        assert says in found


def test_one_source_has_one_kind():
    text, turns = {"prompt": "a", "completion": "b"}, {"prompt": HELLO[:1], "completion": HELLO[1:]}
    assert "row 2: `prompt` is a list, expected text" in fault(text, turns, text)
    assert "row 1: `prompt` is text, expected a list of turns" in fault(text, turns, turns)


def test_messages_can_be_printed():
    fault({"instruction": "a", "\ud800": "b"}).encode("utf-8")
    fault({"\ud800": "b"}).encode("utf-8")


def test_no_rows():
    assert "has no rows" in fault()
