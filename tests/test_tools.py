"""Tools and calls: every custom reads as one row, and a template is handed the form that apply_chat_template wants."""

import importlib.metadata
import json
from pathlib import Path

import pytest
import real
from paths import DATA, needs_data
from transformers import AutoTokenizer

from tunebook.common.data import schema
from tunebook.common.errors import UserError
from tunebook.common.pocket import FOLDER
from tunebook.common.tokens import chat_templates, encoding, templates
from tunebook.common.tokens.jinja_templates import Unstable

TRL = Path(str(importlib.metadata.distribution("trl").locate_file("trl/chat_templates")))
ARGUMENTS = {"city": "Oslo", "days": [1, 2], "unit": {"kind": "C"}}
PADDED_ARGUMENTS = {**ARGUMENTS, "a": None, "unit": {"kind": "C", "b": None}}
PROPERTIES = {"city": {"type": "string", "description": "which town"}, "days": {"type": "array"}}
SCHEMA = {"type": "object", "properties": PROPERTIES}
PADDED = {"type": "object", "required": None, "properties": {**PROPERTIES, "b": None}}
FUNCTION = {"name": "weather", "description": "looks up", "parameters": SCHEMA}
TOOL = {"type": "function", "function": FUNCTION}
QUESTION = {"role": "user", "content": "Is it warm?"}
ANSWERS = [{"role": "tool", "content": "4 C"}, {"role": "assistant", "content": "It is 4 degrees."}]


class Rows:
    """Values in memory as a source."""

    def __init__(self, *values):
        self.values = values

    def rows(self, problems):
        return enumerate(self.values, 1)

    def place(self, number):
        return f"row {number}"


def read(*values, **mapping):
    rows = list(schema.SchemaReader(Rows(*values), "mine", mapping))
    return [{name: row[name] for name in ("messages", "tools") if name in row} for row in rows]


def fault(*values):
    with pytest.raises(UserError) as error:
        read(*values)
    return str(error.value)


def calling(*calls, content=None):
    return {"role": "assistant", "content": content, "tool_calls": list(calls)}


def call(arguments=ARGUMENTS, name="weather", **more):
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


def conversation(arguments=ARGUMENTS, content=None):
    return [QUESTION, calling(call(arguments), content=content), *ANSWERS]


def flat(turns):
    """As ShareGPT has it."""
    names = {"user": "human", "tool": "observation", "assistant": "gpt"}
    found = [{"from": names[turn["role"]], "value": turn["content"]} for turn in turns]
    return [found[0], {"from": "function_call", "value": json.dumps(turns[1]["tool_calls"][0]["function"])}, *found[2:]]


TEXT = json.dumps(ARGUMENTS)
OLDER = {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": TEXT}}
CUSTOMS = {
    "openai": {"messages": conversation(TEXT), "tools": [TOOL]},
    "objects": {"messages": conversation(content=""), "tools": [TOOL]},
    "flat": {"messages": [QUESTION, calling(call()["function"]), *ANSWERS], "tools": [FUNCTION]},
    "older": {"messages": [QUESTION, OLDER, *ANSWERS], "functions": [FUNCTION]},
    "older beside text": {"messages": [QUESTION, {**OLDER, "content": ""}, *ANSWERS], "tools": [TOOL]},
    "sharegpt": {"conversations": flat(conversation()), "tools": json.dumps([FUNCTION])},
    "swift": {"messages": [QUESTION, {"role": "tool_call", "content": json.dumps([call()["function"]])}, *ANSWERS],
              "tools": json.dumps([TOOL])},
    "tools as texts": {"messages": conversation(content=[]), "tools": [json.dumps(TOOL)]},
    "texts within": {
        "messages": [QUESTION, {**calling(), "tool_calls": json.dumps([call(TEXT)])}, *ANSWERS],
        "tools": [{"function": {**FUNCTION, "parameters": json.dumps(SCHEMA)}}],
    },
    "null and empty": {
        "messages": [
            {**QUESTION, "tool_calls": []},
            {**calling(call(PADDED_ARGUMENTS, id=None)), "function_call": None},
            *({**turn, "tool_calls": [], "tool_call_id": None} for turn in ANSWERS),
        ],
        "tools": [{"type": "function", "function": {**FUNCTION, "strict": None, "parameters": PADDED}}],
    },
    "in parts": {"messages": conversation(content=[{"type": "text", "text": ""}]), "tools": [TOOL]},
    "prompt and completion": {"prompt": conversation()[:3], "completion": ANSWERS[1:], "tools": [FUNCTION]},
}  # fmt: skip


@pytest.mark.parametrize("custom", CUSTOMS)
def test_every_custom_reads_as_one_row(custom):
    (row,) = read(CUSTOMS[custom])
    function = row["messages"][1]["tool_calls"][0]["function"]
    if isinstance(function["arguments"], str):
        function["arguments"] = json.loads(function["arguments"])
    assert row == {"messages": conversation(content=""), "tools": [TOOL]}


def test_parallel_calls_ids_and_names_are_kept():
    two = [call(id="a"), call({}, "clock", id="b")]
    answers = [{"role": "tool", "content": "4 C", "tool_call_id": "a", "name": "weather"},
               {"role": "tool", "content": "noon", "tool_call_id": "b", "name": "clock"}]  # fmt: skip
    turns = [QUESTION, calling(*two, content="Let me see."), *answers, ANSWERS[1]]
    assert read({"messages": turns}) == [{"messages": turns}]
    several = json.dumps([one["function"] for one in two])
    shared = [{"from": "human", "value": "x"}, {"from": "function_call", "value": several}]
    (row,) = read({"conversations": shared})
    assert row["messages"][1]["tool_calls"] == [call(), call({}, "clock")]


def test_nulls_in_texts_and_lists_are_said():
    """They are no padding."""
    (row,) = read(
        {"messages": conversation('{"city": null}'), "tools": [{"name": "w", "parameters": {"enum": [1, None]}}]}
    )
    assert row["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{"city": null}'
    assert row["tools"][0]["function"]["parameters"] == {"enum": [1, None]}
    (row,) = read(
        {"conversations": flat(conversation({"city": None})), "tools": json.dumps([{"name": "w", "x": None}])}
    )
    assert row["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"city": None}
    assert row["tools"][0]["function"] == {"name": "w", "x": None}


@pytest.mark.parametrize("value", [None, "", [], "[]", "null", " "])
def test_no_tools(value):
    assert read({"messages": [QUESTION, ANSWERS[1]], "tools": value}) == [{"messages": [QUESTION, ANSWERS[1]]}]


@pytest.mark.parametrize(
    ("tools", "says"),
    [
        ("[{", "`tools` is not JSON (Expecting"),
        ("def weather(city): ...", "`tools` is not JSON"),
        ('{"name": "w"}', "`tools` is an object, expected a list of tools, a list of their JSON texts"),
        ({"name": "w"}, "`tools` is an object, expected a list of tools"),
        (7, "`tools` is a number"),
        ([TOOL, "{"], "`tools` tool 2 is not JSON"),
        (["[]"], "`tools` tool 1 is JSON of a list, expected an object"),
        ([TOOL, None], "`tools` tool 2 is null"),
        ([{"description": "x"}], "`tools` tool 1 has no `name`; it has description"),
        ([{"type": "web_search"}], "`tools` tool 1 has no `name`; it has nothing"),
        ([{"name": "w", "parameters": "{"}], "`tools` tool 1: `parameters` is not JSON"),
    ],
)
def test_tools_that_are_none(tools, says):
    for row in (
        {"messages": [QUESTION, ANSWERS[1]]},
        {"instruction": "a", "output": "b"},
        {"prompt": "a", "completion": "b"},
    ):
        found = fault(row, {**row, "tools": tools})
        assert f"row 2: {says}" in found and "row 1" not in found


@pytest.mark.parametrize(
    ("turn", "says"),
    [
        (calling(call("{'city': 1}")), "`tool_calls` call 1: `arguments` is not JSON"),
        (calling(call(), call('["Oslo"]')), "`tool_calls` call 2: `arguments` is JSON of a list, expected an object"),
        (calling(call(["Oslo"])), "`tool_calls` call 1: `arguments` is a list, expected an object or its JSON text"),
        (calling({"function": {"arguments": {}}}), "`tool_calls` call 1 has no `name`; it has arguments"),
        (calling({"name": "w", "input": {}}), "`tool_calls` call 1 has no `arguments`; it has name, input"),
        (calling(7), "`tool_calls` call 1 is a number"),
        ({**calling(), "tool_calls": "weather()"}, "`tool_calls` is not JSON"),
        ({**OLDER, "tool_calls": [call()]}, "has `tool_calls` and `function_call`, expected one of them"),
        ({"role": "function_call", "content": "weather(Oslo)"}, "`content` is not JSON"),
        ({"role": "function_call", "content": "[]"}, "`content` holds no call"),
        ({"role": "function_call", "content": None}, "`content` holds no call"),
    ],
)  # fmt: skip
def test_calls_that_are_none(turn, says):
    assert f"row 1: `messages` turn 2: {says}" in fault({"messages": [QUESTION, turn, *ANSWERS]})


def test_only_the_assistant_calls():
    asks = {**QUESTION, "tool_calls": [call()]}
    assert "turn 1: calls stand in a turn of user" in fault({"messages": [asks, ANSWERS[1]]})


@pytest.fixture(scope="module")
def pocket():
    return AutoTokenizer.from_pretrained(FOLDER / "model")


@pytest.fixture(scope="module")
def chatml(pocket):
    template = templates.get("chatml", pocket)
    assert isinstance(template, chat_templates.ChatTemplate)
    return template


def own(jinja_of_call, jinja_of_tool="{{ tool | tojson }}"):
    return chat_templates.ChatTemplate(
        "own",
        "{% for tool in tools or [] %}" + jinja_of_tool + "{% endfor %}"
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for call in message['tool_calls'] or [] %}"
        "{% if message['content'] is MADE %}" + jinja_of_call + "{% endif %}{% endfor %}{{ message['content'] or '' }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    )


FORMS = {  # how a template writes a call: the form that it wants
    "{{ call.function.name + ' ' + call.function.arguments }}": (TEXT, None),
    "{{ call.function.name }} {{ call.function.arguments | tojson }}": (ARGUMENTS, ""),
    "{{ call.function.name }} {% for key, value in call.function.arguments.items() %}{{ key }}={{ value }}{% endfor %}":
        (ARGUMENTS, None),
    "{{ call.name }} {{ call.arguments | tojson }}": (ARGUMENTS, ""),
    "{{ call.name }} {{ call.arguments }}": (TEXT, None),
}  # fmt: skip


@pytest.mark.parametrize("written", FORMS)
@pytest.mark.parametrize("custom", ["openai", "objects"])
def test_the_form_is_what_the_template_writes(pocket, written, custom):
    arguments, content = FORMS[written]
    template = own(written)
    jinja = template.jinja.replace("MADE", "none" if content is None else "string")
    template = chat_templates.ChatTemplate("own", jinja)
    (row,) = read(CUSTOMS[custom])
    wanted = conversation(arguments, content)
    if "function" not in written:
        wanted[1]["tool_calls"] = [call(arguments)["function"]]
    theirs = pocket.apply_chat_template(wanted, tools=[TOOL], chat_template=jinja, return_dict=False)
    (example,), _ = encoding.encode([row], pocket, template, 4096)
    assert example["input_ids"] == theirs
    trained = [token for token, label in zip(theirs, example["labels"], strict=True) if label != -100]
    assert pocket.decode(trained).startswith("weather ")


def test_what_a_template_does_not_write_is_refused(pocket):
    (row,) = read(CUSTOMS["openai"])
    calls = "{{ call | tojson }}"
    for jinja, says in (
        (own(calls, "{{ tool.function.name }}").jinja, "the template leaves out the description of tool 1 of `tools`"),
        (own("i").jinja, "row 1: the template leaves out a call of turn 2; chatml"),
        ("{% if messages | length > 3 %}{{ raise_exception('too long') }}{% endif %}", "too long; chatml, llama2"),
    ):
        template = chat_templates.ChatTemplate("own", jinja.replace("MADE", "string"))
        with pytest.raises(UserError) as error:
            encoding.encode([row], pocket, template, 4096)
        assert says in str(error.value) and "the template own cannot take" in str(error.value)
    silent = own(calls).jinja.replace("MADE", "string and not message['content']")
    beside = {"messages": [QUESTION, calling(call(), content="I ask weather now."), *ANSWERS]}
    with pytest.raises(UserError, match="row 2: the template leaves out a call of turn 2 beside its text"):
        encoding.encode([row, *read(beside)], pocket, chat_templates.ChatTemplate("own", silent), 4096)


def test_tools_that_a_template_does_not_write(pocket):
    """Of one that writes calls its model is told in another way, as at inference: counted. Others lose them."""
    rows = read(CUSTOMS["openai"], {"messages": [QUESTION, {"role": "assistant", "content": "No."}], "tools": [TOOL]})
    template = chat_templates.ChatTemplate("own", own("{{ call | tojson }}", "").jinja.replace("MADE", "string"))
    _, counts = encoding.encode(rows, pocket, template, 4096)
    assert counts.noted == {"tools that the template does not write": 2} and counts.kept == 2
    with pytest.raises(UserError, match="row 1: the template leaves out tool 1 of `tools`; chatml"):
        encoding.encode(rows[1:], pocket, templates.get("tokenizer", pocket), 4096)


def test_text_templates_take_no_tools(pocket):
    row = {"instruction": "a", "output": "b", "tools": [TOOL], "row": 3}
    with pytest.raises(UserError, match="row 3 has `tools`; choose a template that writes them: chatml"):
        encoding.encode([row], pocket, templates.ALPACA, 512)


@pytest.mark.parametrize(
    "row", [{"instruction": "Is it warm?", "output": "Yes."}, {"prompt": "Is it warm?", "completion": "Yes."}]
)
def test_tools_beside_texts_are_rendered(pocket, chatml, row):
    (found,) = schema.SchemaReader(Rows({**row, "tools": json.dumps([FUNCTION])}), "mine")
    turns = [QUESTION, {"role": "assistant", "content": "Yes."}]
    theirs = pocket.apply_chat_template(
        turns, tools=[TOOL], chat_template=chatml.jinja, return_dict=False, **chatml.tokens
    )
    (example,), _ = encoding.encode([found], pocket, chatml, 4096)
    assert example["input_ids"] == theirs


def test_control_text_in_names_of_arguments_stays_text(pocket, chatml):
    rows = read(*({"messages": [QUESTION, calling(call({key: 1}))]} for key in ("a<|im_end|>", "ab")))
    encoded, counts = encoding.encode(rows, pocket, chatml, 4096)
    end = pocket.convert_tokens_to_ids("<|im_end|>")
    assert [ids.count(end) for ids in encoded["input_ids"]] == [2, 2] and counts.special_text == 1


def test_a_call_is_an_answer(pocket, chatml):
    """What evaluation scores of a row that ends with a call is what trains, without its end."""
    (row,) = read({"messages": conversation()[:2], "tools": [TOOL]})
    (example,), _ = encoding.encode([row], pocket, chatml, 4096)
    trained = pocket.decode([token for token in example["labels"] if token != -100])
    assert chatml.completion(row) + "<|im_end|>" == trained and '"Oslo"' in trained
    assert pocket.decode(example["input_ids"]).startswith(chatml.prompt(row) + chatml.completion(row))


def test_padding_of_parquet_is_not_trained(pocket, chatml, tmp_path):
    """`datasets` gives every call and schema the keys of all others."""
    import datasets

    from tunebook.common import data

    integers = {"type": "object", "properties": {"a": {"type": "integer"}}}
    functions = [FUNCTION, {"name": "add", "description": "adds", "parameters": integers}, {"name": "now"}]
    rows = [
        {"messages": [QUESTION, calling(call(arguments, function["name"])), *ANSWERS],
         "tools": [{"type": "function", "function": function}]}
        for function, arguments in zip(functions, (ARGUMENTS, {"a": 1}, {}), strict=True)
    ]  # fmt: skip
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "d.parquet")
    sides = data.load(str(tmp_path / "d.parquet"))
    found = sorted([row for side in sides.values() for row in side], key=lambda row: row["row"])
    encoded, _ = encoding.encode(found, pocket, chatml, 4096)
    for row, ids in zip(rows, encoded["input_ids"], strict=True):
        theirs = pocket.apply_chat_template(
            row["messages"], tools=row["tools"], chat_template=chatml.jinja, return_dict=False, **chatml.tokens
        )
        assert sorted(ids) == sorted(theirs) and len(ids) == len(theirs)


# What apply_chat_template is to be given by the template of TRL: arguments, content of a turn that calls, and tools.
OBJECT = ((ARGUMENTS, ""), [TOOL])
TAKE = {
    **dict.fromkeys(
        ("diffusion_gemma", "gemma4", "gemma4_v5", "glm4moe", "gptoss", "lfm2_2_5", "lfm2_v2", "llama3_1", "llama3_2",
         "muse_glimmer", "nemotron_3_5_lightning", "nemotron_3_nano", "nemotron_3_super", "nemotron_3_ultra", "qwen2_5",
         "qwen3", "qwen3_5_nothink", "qwen3_5_think", "qwen3_6", "qwen3_8", "qwen3_instruct_2507", "qwen3_vl"),
        OBJECT,
    ),
    **dict.fromkeys(("deepseekv3", "deepseek_r1_distill"), ((TEXT, None), None)),
}  # fmt: skip
HOLD_NONE = {
    **dict.fromkeys(("lfm2", "llama3", "phi3", "qwen2_5_vl"), "leaves out a call of turn 2; chatml"),
    **dict.fromkeys(
        ("cohere", "cohere2", "gemma", "gemma3"), "must alternate.*; chatml, llama2 and llama3 write calls and tools"
    ),
}


@pytest.mark.parametrize("name", [*TAKE, *HOLD_NONE])
def test_every_family_is_handed_its_form(pocket, name):
    """The structure is the template's; the tokens that it writes need no place in this vocabulary."""
    jinja = (TRL / f"{name}.jinja").read_text()
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    template = chat_templates.ChatTemplate(name, jinja, tokens)
    (arguments, content), tools = TAKE.get(name, OBJECT)
    theirs = name in TAKE and pocket.apply_chat_template(
        conversation(arguments, content), tools=tools, chat_template=jinja, tokenize=False, **tokens
    )
    for custom in CUSTOMS.values():
        (row,) = read(custom)
        if theirs:
            assert template.render(*template.fit(row["messages"], tools and row["tools"])) == theirs
            assert bool(tools) or (template.fit(row["messages"], row["tools"]) and template.fit.unwritten)
        else:
            with pytest.raises(Unstable, match=HOLD_NONE[name]):
                template.fit(row["messages"], row["tools"])


@pytest.mark.real_data
@needs_data
@pytest.mark.parametrize(("name", "trl_name"), [("qwen3", ""), ("qwen2.5", "qwen2_5"), ("llama3", "")])
def test_calls_train_on_real_tokenizers(name, trl_name):
    """The ids are those of the tokenizer's own template; where TRL's has the same text, its marks are the oracle."""
    tokenizer = real.tokenizer(name)
    theirs = tokenizer.apply_chat_template(conversation(), tools=[TOOL], return_dict=False)
    rows = [read(CUSTOMS[custom])[0] for custom in ("openai", "sharegpt", "older")]
    encoded, _ = encoding.encode(rows, tokenizer, templates.get("tokenizer", tokenizer), 4096)
    assert all(ids == theirs for ids in encoded["input_ids"])
    trains = [label != -100 for label in encoded[0]["labels"]]
    text = tokenizer.decode([token for token, label in zip(theirs, trains, strict=True) if label])
    call, end, answer = text.partition("<|eot_id|>" if name == "llama3" else "<|im_end|>")
    written = json.dumps({"name": "weather", "parameters" if name == "llama3" else "arguments": ARGUMENTS})
    assert call == (written if name == "llama3" else f"<tool_call>\n{written}\n</tool_call>")
    assert answer.endswith(f"It is 4 degrees.{end}")
    if trl_name:
        marked = tokenizer.apply_chat_template(
            conversation(), tools=[TOOL], chat_template=(TRL / f"{trl_name}_training.jinja").read_text(),
            return_dict=True, return_assistant_tokens_mask=True,
        )  # fmt: skip
        assert marked["input_ids"] == theirs
        more = [token for token, we, they in zip(theirs, trains, marked["assistant_masks"], strict=True) if we != they]
        assert set(tokenizer.convert_ids_to_tokens(more)) == {"\u010a"}  # the line breaks around turns, in theirs


@pytest.mark.real_data
@needs_data
def test_sharegpt_rows_are_the_openai_form():
    file = DATA / "chat" / "llamafactory_glaive_toolcall_en_demo.json"
    values = [row for row in json.loads(file.read_text(encoding="utf-8")) if row.get("tools")]
    tokenizer = real.tokenizer("qwen3")
    encoded, counts = encoding.encode(read(*values), tokenizer, templates.get("tokenizer", tokenizer), 100_000)
    assert counts.kept == len(values) > 100
    roles = {"human": "user", "gpt": "assistant", "observation": "tool"}
    for value, ids in zip(values, encoded["input_ids"], strict=True):
        turns = [
            calling({"type": "function", "function": json.loads(turn["value"])})
            if turn["from"] == "function_call"
            else {"role": roles[turn["from"]], "content": turn["value"]}
            for turn in value["conversations"]
        ]
        tools = [{"type": "function", "function": tool} for tool in json.loads(value["tools"])]
        assert ids == tokenizer.apply_chat_template(turns, tools=tools, return_dict=False)
