"""Every chat template that TRL brings, the project's own, and the shared tokenizers', with every shape of conversation.

Ids are compared with transformers' apply_chat_template, what trains with TRL's training templates. The outcome of each
pair is written down in docs/templates.md; `TEMPLATE_TABLE=write pytest tests/test_template_matrix.py` writes it anew.
"""

import json
import os
import re
from pathlib import Path

import pytest
from paths import ROOT, TOKENIZERS, needs_data
from tokenizers import AddedToken
from transformers import AutoTokenizer

from tunebook.common.data import conversations
from tunebook.common.errors import UserError
from tunebook.common.pocket import FOLDER
from tunebook.common.tokens import encoding, lengths, templates
from tunebook.common.tokens.jinja_templates import JINJA

TABLE = ROOT / "docs" / "templates.md"
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
    found = {f"own {name}": name for name in JINJA}
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


@pytest.fixture(scope="module")
def cells():
    """(template, shape) -> (tokenizer, template object, sequences or None, why not)."""
    found = {}
    for name, source in sources().items():
        own = source in JINJA
        tokenizer = made(JINJA[source] if own else source)
        template = templates.get(source if own else "tokenizer", tokenizer)
        for shape, turns in SHAPES.items():
            found[name, shape] = (tokenizer, template, *encoded(tokenizer, template, turns))
    return found


def test_ids_are_those_of_apply_chat_template(cells):
    checked = 0
    for (name, shape), (tokenizer, template, sequences, _) in cells.items():
        for example in sequences or ():
            ids = example["input_ids"]
            counts = {len(SHAPES[shape]), *(n for n, t in enumerate(SHAPES[shape], 1) if t["role"] == "assistant")}
            options = template.tokens if name.startswith("own ") else {}
            known = (
                one["input_ids"]
                for count in sorted(counts)
                for one in theirs(tokenizer, template.jinja, SHAPES[shape][:count], **options)
            )
            # Where the template writes no end after the last answer, one token is added.
            assert any(one in (ids, ids[:-1]) for one in known), (name, shape, tokenizer.decode(ids))
            checked += 1
    assert checked > 200


def stretches(mask):
    """[start, end) of each run of ones."""
    edges = [0, *mask, 0]
    starts = [place for place in range(len(edges) - 1) if edges[place] < edges[place + 1]]
    return list(zip(starts, (place for place in range(len(edges) - 1) if edges[place] > edges[place + 1]), strict=True))


def test_what_trains_is_what_trls_training_templates_mark(cells):
    """But for three things: what the generation prompt writes, an empty block of thinking, and what follows the end."""
    from trl.chat_template_utils import get_training_chat_template

    checked = set()
    for (name, shape), (tokenizer, _, sequences, _) in cells.items():
        try:
            jinja = get_training_chat_template(tokenizer)
        except ValueError:  # it knows no training template for this one
            continue
        if jinja is None or not sequences:  # the template has its own markers
            continue
        counts = [n for n, turn in enumerate(SHAPES[shape], 1) if turn["role"] == "assistant"]
        asked = ([ASK], *(SHAPES[shape][: n - 1] for n in counts if SHAPES[shape][n - 2]["role"] == "tool"))
        openings = [
            "".join(tokenizer.decode(one["input_ids"]).split())[-60:]
            for turns in asked
            for one in theirs(tokenizer, tokenizer.chat_template, turns, add_generation_prompt=True)
        ]
        masks = {}
        for count in counts:
            for one in theirs(tokenizer, jinja, SHAPES[shape][:count], return_assistant_tokens_mask=True):
                masks[tuple(one["input_ids"])] = one["assistant_masks"]
        for example in sequences:
            ids = example["input_ids"]
            marked = stretches(masks.get(tuple(ids), ()))
            ours = stretches([int(label != lengths.IGNORE_INDEX) for label in example["labels"]])
            if not marked:  # it renders the conversation in another way
                continue
            for start, end in ours:
                around = [(a, b) for a, b in marked if a <= start and end <= b]
                assert around, (name, shape, tokenizer.decode(ids[start:end]))
                before = "".join(tokenizer.decode(ids[around[0][0] : start]).split()).replace("<think></think>", "")
                after = tokenizer.decode(ids[end : around[0][1]]).strip()
                assert any(before in opening for opening in openings), (name, shape, before)
                assert after in ("", tokenizer.eos_token), (name, shape, after)
            assert len(ours) == len(marked) or len(sequences) > 1, (name, shape)
            checked.add((name, shape))
    assert len(checked) > 100 and len({name for name, _ in checked}) > 15, len(checked)


def outcome(sequences, why, reasons):
    if sequences is None:
        why = re.sub(r"turn \d", "a turn", why)
        return f"no ({reasons.setdefault(why, len(reasons) + 1)})"
    return "by turn" if len(sequences) > 1 else "yes"


def test_the_table_says_what_happens(cells):
    reasons: dict[str, int] = {}
    names = list(dict.fromkeys(name for name, _ in cells))
    rows = [[name, *(outcome(*cells[name, shape][2:], reasons) for shape in SHAPES)] for name in names]
    lines = [
        "# Chat templates and conversations",
        "",
        "What becomes of a row of each shape under each chat template: `yes`: ids as `apply_chat_template` gives them,",
        "every answer and its end train; `by turn`: the same, in a sequence for each turn that the template writes in",
        "another way once the conversation goes on; `no`: refused, for the reason below. Written by",
        "`TEMPLATE_TABLE=write pytest tests/test_template_matrix.py`; templates are those of the pinned TRL.",
        "",
        "| template | " + " | ".join(SHAPES) + " |",
        "|---" * (len(SHAPES) + 1) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        *(f"{number}. {why}" for why, number in reasons.items()),
    ]
    text = "\n".join(lines) + "\n"
    if os.environ.get("TEMPLATE_TABLE") == "write":
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(text, encoding="utf-8")
    assert TABLE.read_text(encoding="utf-8") == text


@pytest.mark.real_data
@needs_data
@pytest.mark.parametrize("name", ["deepseek", "llama3", "mistral-v3", "phi-3-mini", "qwen2.5", "qwen3"])
def test_own_templates_of_real_tokenizers(name):
    file = TOKENIZERS / name / "chat_template.jinja"
    config = json.loads((TOKENIZERS / name / "tokenizer_config.json").read_text(encoding="utf-8"))
    jinja = file.read_text(encoding="utf-8") if file.exists() else config.get("chat_template")
    if jinja is None:
        pytest.skip(f"{name} has no chat template")
    tokenizer = made(jinja)
    template = templates.get("tokenizer", tokenizer)
    for shape, turns in SHAPES.items():
        sequences, why = encoded(tokenizer, template, turns)
        assert sequences is not None or why
        for example in sequences or ():
            ids = example["input_ids"]
            known = [
                one["input_ids"]
                for count in range(2, len(turns) + 1)
                for one in theirs(tokenizer, jinja, turns[:count])
            ]
            assert ids in known or ids[:-1] in known, (shape, tokenizer.decode(ids))
