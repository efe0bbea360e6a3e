"""Thinking of assistant turns: read from keys and text alike, written where the template has a place, never lost."""

import pytest
from turns import ASK, MORE, NO, YES, made, sources, texted, theirs, thought

from tunebook.common.errors import UserError
from tunebook.common.tokens import encoding, lengths, templates

KEYS = ("reasoning_content", "thinking", "reasoning")
ANALYSIS = "<|channel|>analysis<|message|>{}<|end|><|start|>assistant"
BESIDE = {"role": "assistant", "content": "8"}


@pytest.fixture(scope="module")
def tokenizer():
    """(name of a template of TRL) -> the bundled tokenizer with it; made once each."""
    known, kept = sources(), {}
    return lambda name: kept.setdefault(name, made(known[name]))


def encode(tokenizer, turns, name="tokenizer", train_on="assistant", options=None, thinking="keep", **row):
    template = templates.get(name, tokenizer, thinking, options)
    return encoding.encode([{"messages": turns, **row}], tokenizer, template, 100_000, train_on=train_on)


def trained(tokenizer, turns, *words, **named):
    """The text of what trains in each sequence."""
    encoded, _ = encode(tokenizer, turns, *words, **named)
    rows = [[token for token in example["labels"] if token != lengths.IGNORE_INDEX] for example in encoded]
    return [tokenizer.decode(row, clean_up_tokenization_spaces=False) for row in rows]


@pytest.mark.parametrize(
    ("name", "key", "text"),
    [
        ("gptoss", "thinking", ANALYSIS + "<|channel|>final<|message|>8<|return|>"),
        ("qwen3", "reasoning_content", "<think>\n{}\n</think>\n\n8<|im_end|>"),
        ("qwen3_8", "reasoning_content", "{}\n</think>\n\n8<|im_end|>"),
        ("nemotron_3_nano", "reasoning_content", "{}\n</think>\n8<|im_end|>"),
        ("glm4moe", "reasoning_content", "\n<think>{}</think>\n8<|user|>"),
        ("gemma4_v5", "reasoning", "<|channel>thought\n{}\n<channel|>8<turn|>"),
    ],
)  # fmt: skip
def test_an_answer_that_its_thinking_holds_trains_to_its_end(tokenizer, name, key, text):
    for thinking in ("17 minus 9 makes 8.", "It is about numbers."):
        found = trained(tokenizer(name), [ASK, {**BESIDE, key: thinking}])
        assert found == [text.format(thinking)]


@pytest.mark.parametrize(
    "name", ["qwen3", "qwen3_5_think", "qwen3_6", "qwen3_8", "nemotron_3_nano", "glm4moe", "gptoss"]
)
def test_keys_and_text_are_one(tokenizer, name):
    """Whatever the thinking is called, ids are apply_chat_template's with it where the template reads it."""
    rows = [[ASK, {**NO, key: "Seven times thirteen makes it."}] for key in KEYS]
    rows.append([ASK, texted(NO, 0)])
    rows.append([ASK, {**NO, "content": "Seven times thirteen makes it.\n</think>\n\nIt is not."}])
    key = "thinking" if name == "gptoss" else "reasoning_content"
    (wanted, *_) = theirs(tokenizer(name), tokenizer(name).chat_template, rows[KEYS.index(key)])
    found = [encode(tokenizer(name), row)[0][0] for row in rows]
    texts = ["".join(tokenizer(name).decode(one["input_ids"]).split()) for one in found]
    assert len(set(texts)) == 1  # but for line breaks, which Nemotron keeps as the text has them
    ids = [one["input_ids"][: len(wanted["input_ids"])] for one in found]
    assert ids[:3] == [wanted["input_ids"]] * 3
    assert len({"".join(text.split()) for row in rows for text in trained(tokenizer(name), row)}) == 1


@pytest.mark.parametrize("special", [False, True])
def test_tags_become_the_tokens_that_the_tokenizer_has(tokenizer, special):
    from tokenizers import AddedToken

    one = made(sources()["qwen3_instruct_2507"])  # it has no place for thinking and passes text through
    if special:
        one.add_tokens([AddedToken(tag, special=True) for tag in ("<think>", "</think>")], special_tokens=True)
    (example,), counts = encode(one, [ASK, thought(NO, 0)])
    tags = one.convert_tokens_to_ids(["<think>", "</think>"])
    assert [token for token in example["input_ids"] if token in tags] == tags
    assert counts.special_text == 0 and "written as text" in counts.summary()
    assert example["input_ids"] == one.apply_chat_template([ASK, texted(NO, 0)], return_dict=True)["input_ids"]
    attack = [ASK, {**NO, "content": "<think>\na <|im_end|> b\n</think>\n\nIt is not."}]
    (example,), counts = encode(one, attack)
    ends = one.convert_tokens_to_ids("<|im_end|>")
    assert counts.special_text == 1 and example["input_ids"].count(ends) == 2
    assert [token for token in example["input_ids"] if token in tags] == tags


def test_own_templates_write_it_as_text(tokenizer):
    found = trained(tokenizer("qwen3"), [ASK, thought(NO, 0), MORE, thought(YES, 1)], "chatml")
    assert found[0].count("<think>") == 2 and "No small divisor." in found[0] and "Seven times" in found[0]


@pytest.mark.parametrize("turn", [thought(NO, 0), texted(NO, 0)])
@pytest.mark.parametrize("name", ["deepseek_r1_distill", "deepseekv3", "gemma4"])
def test_a_template_without_a_place_is_refused_and_said(tokenizer, name, turn):
    with pytest.raises(UserError, match=r"row 1: the template leaves out the thinking of turn 2; .*thinking=drop"):
        trained(tokenizer(name), [ASK, turn])
    encoded, counts = encode(tokenizer(name), [ASK, turn], thinking="drop")
    assert encoded[0]["input_ids"] == encode(tokenizer(name), [ASK, NO])[0][0]["input_ids"]
    assert "thinking dropped in 1 rows" in counts.summary()


@pytest.mark.parametrize("write", [thought, texted])
@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think", "gptoss", "glm4moe", "gemma4_v5", "lfm2_2_5"])
def test_earlier_thinking_trains_in_sequences_of_its_own(tokenizer, name, write):
    """Each is apply_chat_template's of the conversation up to the turn, which is what the model is given."""
    one, turns = tokenizer(name), [ASK, write(NO, 0), MORE, write(YES, 1)]
    encoded, counts = encode(one, turns)
    assert counts.rows == counts.kept == 2 and counts.by_turn == 1 and "1 rows added" in counts.summary()
    for example, count, says in zip(encoded, (2, 4), ("Seven times thirteen", "No small divisor."), strict=True):
        known = [found["input_ids"] for found in theirs(one, one.chat_template, turns[:count])]
        assert example["input_ids"] in known or example["input_ids"][:-1] in known
        assert says in one.decode([token for token in example["labels"] if token != lengths.IGNORE_INDEX])
    texts = trained(one, turns)
    assert all(("It is not." in text) != ("It is, yes." in text) for text in texts)
    last, _ = encode(one, turns, train_on="last_assistant")
    assert last[:] == encoded[1:2]
    with pytest.raises(UserError, match=r"in another way once the conversation goes on|leaves out the thinking"):
        encode(one, turns, train_on="all")


def test_a_template_that_keeps_it_is_one_sequence(tokenizer):
    encoded, counts = encode(tokenizer("qwen3_8"), [ASK, thought(NO, 0), MORE, thought(YES, 1)])
    assert len(encoded) == 1 and counts.by_turn == 0


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think", "qwen3_8", "nemotron_3_nano", "glm4moe"])
def test_an_empty_block_trains_only_where_the_row_has_one(tokenizer, name):
    assert "think>" not in trained(tokenizer(name), [ASK, NO])[0]
    assert "</think>" in trained(tokenizer(name), [ASK, {**NO, "content": "<think>\n\n</think>\n\nIt is not."}])[0]


def test_two_thinkings_are_refused(tokenizer):
    with pytest.raises(
        UserError, match=r"row 1: turn 2 has different thinking in reasoning_content and text; keep one"
    ):
        trained(tokenizer("qwen3"), [ASK, {**texted(NO, 0), "reasoning_content": "Else."}])


def test_variables_of_a_template(tokenizer, tmp_path):
    """From the recipe or from the row, as apply_chat_template is given them, and kept with the template."""
    one = tokenizer("qwen3_8")
    for where in ({"options": {"enable_thinking": False}}, {"chat_template_kwargs": '{"enable_thinking": false}'}):
        (example,), _ = encode(one, [ASK, NO], **where)
        wanted = one.apply_chat_template([ASK, NO], return_dict=True, enable_thinking=False)["input_ids"]
        assert example["input_ids"] == wanted
    template = templates.get("tokenizer", one, options={"enable_thinking": False})
    template.save(tmp_path)
    again = templates.load(tmp_path)
    assert again == template and again.prompt({"messages": [ASK, NO]}) == one.apply_chat_template(
        [ASK], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    with pytest.raises(
        UserError, match=r"--chat_template_kwargs names enable_thinkin, .*; the nearest is enable_thinking"
    ):
        templates.get("tokenizer", one, options={"enable_thinkin": False})
    with pytest.raises(UserError, match=r"row 1: `chat_template_kwargs` is 3, expected an object"):
        encode(one, [ASK, NO], chat_template_kwargs=3)


def test_several_templates_of_a_tokenizer(tokenizer):
    known = sources()
    one = made(known["qwen2_5"])
    one.chat_template = {"default": known["qwen2_5"], "tool_use": known["qwen3_instruct_2507"], "rag": known["lfm2"]}
    tools = [{"type": "function", "function": {"name": "f", "description": "does", "parameters": {}}}]
    for given in (None, tools):
        wanted = one.apply_chat_template([ASK, NO], tools=given, return_dict=True)["input_ids"]
        assert encode(one, [ASK, NO], tools=given)[0][0]["input_ids"] == wanted
    other = one.apply_chat_template([ASK, NO], chat_template="rag", return_dict=True)["input_ids"]
    assert encode(one, [ASK, NO], "tokenizer:rag")[0][0]["input_ids"] == other
    with pytest.raises(UserError, match="tokenizer:default, tokenizer:tool_use, tokenizer:rag"):
        templates.get("tokenizer:tools", one)


def test_texts_that_look_like_tags_stay_what_they_are(tokenizer):
    """An unclosed tag, a question about tags, an answer of a tool inside a question (Qwen3 looks into it)."""
    one = tokenizer("qwen3")
    for turns in (
        [ASK, {**NO, "content": "The tag <think> opens it."}],
        [{**ASK, "content": "What does </think> mean?"}, NO],
        [ASK, NO, {**MORE, "content": "<tool_response>\n4 C\n</tool_response>"}, YES],
    ):
        assert encode(one, turns)[0][0]["input_ids"] == one.apply_chat_template(turns, return_dict=True)["input_ids"]
