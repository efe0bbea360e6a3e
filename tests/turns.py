"""Conversations of every shape, and tokenizers with the chat templates that are tried on them."""

import json
import re
from pathlib import Path

from tokenizers import AddedToken
from transformers import AutoTokenizer

from tunebook.common.data import conversations
from tunebook.common.errors import UserError
from tunebook.common.pocket import FOLDER
from tunebook.common.tokens import encoding, jinja_templates

CONTROL = re.compile(r"<\|[\w▁]+\|?>|<[\w▁]+\|>|<｜[^｜]+｜>|<(?:start|end)_of_turn>|<\w+_TOKEN>|\[/?[A-Z_]{3,}\]")
PLAIN = ("<think>", "</think>", "<tool_call>", "</tool_call>")  # added tokens that tokenizers do not call special
ASK, MORE = {"role": "user", "content": "Is 91 prime?"}, {"role": "user", "content": "And 97?"}
NO, YES = {"role": "assistant", "content": "It is not."}, {"role": "assistant", "content": "It is, yes."}
THOUGHTS = ("Seven times thirteen makes it.", "No small divisor.")
TOOL = {"role": "tool", "name": "weather", "tool_call_id": "abcdefgh1", "content": "4 C"}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "where"}},
    "required": ["city"],
}
SCHEMA = {"type": "function", "function": {"name": "weather", "description": "tells it", "parameters": PARAMETERS}}


def call(number=1, city="Oslo"):
    function = {"name": "weather", "arguments": {"city": city}}
    return {"id": f"abcdefgh{number}", "type": "function", "function": function}


def thought(turn, number):
    return {**turn, "reasoning_content": THOUGHTS[number]}


def texted(turn, number):
    return {**turn, "content": f"<think>\n{THOUGHTS[number]}\n</think>\n\n{turn['content']}"}


ONE = {"role": "assistant", "content": "", "tool_calls": [call()]}
TWO = {"role": "assistant", "content": "", "tool_calls": [call(), call(2, "Bergen")]}
SHAPES = {
    "system": [{"role": "system", "content": "Be brief."}, ASK, NO],
    "several turns": [ASK, NO, MORE, YES],
    "thinking, a key": [ASK, thought(NO, 0)],
    "thinking, text": [ASK, texted(NO, 0)],
    "a call": [ASK, ONE],
    "parallel calls": [ASK, TWO],
    "call with text": [ASK, {**ONE, "content": "I will look it up."}],
    "tool answer": [ASK, ONE, TOOL, YES],
    "null content": [ASK, {**ONE, "content": None}, TOOL, YES],
    "developer": [{"role": "developer", "content": "Be brief."}, ASK, NO],
    "last turn user": [ASK, NO, MORE],
    "thinking, several turns": [ASK, thought(NO, 0), MORE, thought(YES, 1)],
}


def sources():
    """Name -> chat template of each that is tried."""
    import trl

    folder = Path(trl.__file__).parent / "chat_templates"
    names = [path.stem for path in sorted(folder.glob("*.jinja")) if not path.stem.endswith("_training")]
    pictures = ("vl", "vlm", "llava", "idefics", "diffusion")  # for pictures beside the text
    found = {f"own {name}": name for name in jinja_templates.JINJA}
    for name in names:
        if not any(word in name for word in pictures):
            found[name] = (folder / f"{name}.jinja").read_text(encoding="utf-8")
    return found


def made(jinja, special=True):
    """The bundled tokenizer with the control tokens that a template writes, called special or not."""
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / "model")
    known = tokenizer.get_vocab()
    control = [token for token in dict.fromkeys(CONTROL.findall(jinja)) if token not in known]
    added = [AddedToken(token, special=special, normalized=False) for token in control]
    tokenizer.add_tokens(added, special_tokens=special)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in PLAIN])
    if "bos_token" in jinja:
        tokenizer.add_special_tokens({"bos_token": "<|begin|>"})
    tokenizer.chat_template = jinja
    return tokenizer


def encoded(tokenizer, template, turns):
    """(the encoded sequences, None) or (None, why not), as for a row that was read."""
    faults = []
    row = conversations.chat({"messages": turns}, COLUMNS, faults)
    row = conversations.with_tools(row, [SCHEMA] if "tool_calls" in str(turns) else None, "tools", faults)
    if faults:
        return None, faults[0][1]
    try:
        return encoding.encode([row], tokenizer, template, 100_000)[0], None
    except UserError as error:
        return None, (str(error).partition("row 1: ")[2] or str(error)).splitlines()[0]


COLUMNS = {"messages": "messages", "tools": "tools", "system": "system"}


def spellings(turns):
    """The same conversation with its thinking under each key, or as text, and calls as objects, JSON text, no null."""
    tried = []
    for form in ("given", "reasoning_content", "thinking", "reasoning", "text"):
        for as_text in (False, True):
            for content in ("given", "", None):
                found = []
                for turn in turns:
                    turn = dict(turn)
                    said = turn.get("reasoning_content")
                    if form != "given" and turn["role"] == "assistant":
                        said = turn.pop("reasoning_content", None)
                        if said is None and "</think>" in (turn["content"] or ""):
                            said, turn["content"] = turn["content"].removeprefix("<think>\n").split("\n</think>\n\n")
                        if said and form == "text":
                            turn["content"] = f"<think>\n{said}\n</think>\n\n{turn['content']}"
                        elif said:
                            turn[form] = said
                    if "tool_calls" in turn:
                        calls = json.loads(json.dumps(turn["tool_calls"]))
                        if as_text:
                            for one in calls:
                                one["function"]["arguments"] = json.dumps(one["function"]["arguments"])
                        turn["tool_calls"] = calls
                        if not turn["content"] and content != "given":
                            turn["content"] = content
                    found.append(turn)
                if found not in tried:
                    tried.append(found)
                    yield found


def theirs(tokenizer, jinja, turns, **options):
    """apply_chat_template's ids of each spelling that the template takes, and the masks where asked for."""
    tools = [SCHEMA] if "tool_calls" in str(turns) else None
    for spelling in spellings(turns):
        try:
            yield tokenizer.apply_chat_template(spelling, tools=tools, chat_template=jinja, return_dict=True, **options)
        except Exception:
            continue
