"""Which tokens of a conversation train, on every real tokenizer and template, against texts that are written here."""

import pytest
import real
from paths import LACKING, TOKENIZERS

from tunebook.common.errors import UserError
from tunebook.common.pocket import FOLDER
from tunebook.common.tokens import encoding, templates, tokenization

REAL = ["deepseek", "gpt-neox-20b", "gpt2", "llama2", "llama3", "mistral-v3", "phi-3-mini", "qwen2.5", "qwen3"]
# What ends a document, and what ends a turn in the tokenizer's own template; None: it has no template.
ENDS = {
    "pocket": ("<|endoftext|>", "<|im_end|>"),
    "deepseek": ("<｜end▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "gpt-neox-20b": ("<|endoftext|>", None),
    "gpt2": ("<|endoftext|>", None),
    "llama2": ("</s>", None),
    "llama3": ("<|end_of_text|>", "<|eot_id|>"),
    "mistral-v3": ("</s>", None),
    "phi-3-mini": ("<|endoftext|>", "<|end|>"),
    "qwen2.5": ("<|im_end|>", "<|im_end|>"),
    "qwen3": ("<|im_end|>", "<|im_end|>"),
}
# The tokenizers that have the end of a turn of ChatML and of Llama 3; with others a turn ends as a document does.
CHATML, LLAMA3 = {"pocket", "qwen2.5", "qwen3"}, {"llama3"}
SYSTEM = {"role": "system", "content": "Be brief."}
TALK = [
    {"role": "user", "content": "Name a fruit."},
    {"role": "assistant", "content": "An apple."},
    {"role": "user", "content": "And a tool?"},
    {"role": "assistant", "content": "A hammer,\nor two nails."},
    {"role": "user", "content": "Stop."},
    {"role": "assistant", "content": "Done"},
]
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
WORK = [
    {"role": "user", "content": "Add one."},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "it is 2", "tool_call_id": "abcdefghi", "name": "add"},
    {"role": "assistant", "content": "Two"},
    {"role": "user", "content": "Again?"},
    {"role": "assistant", "content": "No"},
]
PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}}}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "adds", "parameters": PARAMETERS}}]
OURS = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
DEEPSEEK = (
    '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{"a": 1}\n```<｜tool▁call▁end｜>'
)
LLAMA3_CALL = '{"name": "add", "parameters": {"a": 1}}'
CALLS = {"llama3": LLAMA3_CALL, "qwen2.5": OURS, "qwen3": OURS, "deepseek": DEEPSEEK}  # own templates


@pytest.fixture(scope="module", params=["pocket", *REAL])
def named(request):
    if request.param == "pocket":
        return "pocket", tokenization.load(str(FOLDER / "model"))[0]
    if not TOKENIZERS.exists():
        pytest.skip(LACKING)
    return request.param, real.tokenizer(request.param)


def trained(row, tokenizer, template, train_on="assistant"):
    """The text of each stretch of tokens that train."""
    (example,), counts = encoding.encode([row], tokenizer, template, 4096, train_on=train_on)
    assert counts.kept == 1
    stretches, open_ = [], False
    for token, label in zip(example["input_ids"], example["labels"], strict=True):
        assert label in (token, -100)
        if label != -100:
            stretches = [*stretches[:-1], [*stretches[-1], token]] if open_ else [*stretches, [token]]
        open_ = label != -100
    return [tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in stretches]


def end_of_turn(name, tokenizer, template):
    document, own = ENDS[name]
    assert tokenizer.eos_token == document
    if template == "llama2":
        return " " + document
    known = {"tokenizer": own, "chatml": "<|im_end|>" if name in CHATML else document}
    return known.get(template, "<|eot_id|>" if name in LLAMA3 else document)


def without_lead(texts, template):
    """Llama 2 writes a space before an answer, which some tokenizers make one token with its first word."""
    return [text.removeprefix(" ") for text in texts] if template == "llama2" else texts


@pytest.mark.parametrize("template", ["tokenizer", "chatml", "llama2", "llama3"])
def test_answers_and_their_ends_train_and_nothing_else(named, template):
    name, tokenizer = named
    if template == "tokenizer" and ENDS[name][1] is None:
        with pytest.raises(UserError, match="has no chat template"):
            templates.get(template, tokenizer)
        return
    chosen, end = templates.get(template, tokenizer), end_of_turn(name, tokenizer, template)
    wanted = ["An apple." + end, "A hammer,\nor two nails." + end, "Done" + end]
    for talk in (TALK, [SYSTEM, *TALK]):
        assert without_lead(trained({"messages": talk}, tokenizer, chosen), template) == wanted
        assert without_lead(trained({"messages": talk}, tokenizer, chosen, "last_assistant"), template) == wanted[-1:]
    row = {"messages": [SYSTEM, *WORK], "tools": TOOLS}
    if template == "tokenizer" and name not in CALLS:
        with pytest.raises(UserError, match=r"leaves out (a call of turn 3|tool 1)"):
            trained(row, tokenizer, chosen)
        return
    call = CALLS[name] if template == "tokenizer" else OURS
    # DeepSeek's writes no end after a single call.
    wanted = [call + end * (call != DEEPSEEK), "Two" + end, "No" + end]
    assert without_lead(trained(row, tokenizer, chosen), template) == wanted
    assert without_lead(trained(row, tokenizer, chosen, "last_assistant"), template) == wanted[-1:]


def test_what_a_template_drops_is_refused(tmp_path):
    """Calls, a tool's answers and system texts that a template has no place for are not left out in silence."""
    tokenizer = tokenization.load(str(FOLDER / "model"))[0]
    file = tmp_path / "own.jinja"
    line = "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    for role, rows, says in (
        ("user", [SYSTEM, *TALK], r"the text of turn 1 \(system\)"),
        ("user", [WORK[0], {"role": "assistant", "content": "Well"}, *WORK[2:]], r"the text of turn 3 \(tool\)"),
        ("user", WORK, "a call of turn 2"),
    ):
        file.write_text(
            "{% for message in messages %}{% if message['role'] in ['assistant', '" + role + "'] %}"
            + line + "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        )  # fmt: skip
        with pytest.raises(UserError, match=says):
            trained({"messages": rows}, tokenizer, templates.get(str(file), tokenizer))
