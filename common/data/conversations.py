"""Conversations: role names normalized, their order checked, tools read."""

import json
import re
from typing import Any

from tunebook.common.data import tools
from tunebook.common.errors import type_name

Turn = dict[str, Any]
Fault = tuple[str, str] | tuple[str, str, str]  # the field, what is wrong with it, and the kind of fault to count it by
ROLES = {
    **dict.fromkeys(("system",), "system"),
    **dict.fromkeys(("developer",), "developer"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "chatgpt", "bing", "bard", *tools.CALLERS), "assistant"),
    **dict.fromkeys(("tool", "observation", "function", "tool_response"), "tool"),
}
LIGHTEST, HEAVIEST = 1e-6, 1e6  # weights: products and sums of them stay exact enough in float32
MAY_FOLLOW = {
    None: ("system", "developer", "user"),
    "system": ("developer", "user"),
    "developer": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}


def not_text(value: Any) -> str | None:
    """Why a value cannot be used as text, or None."""
    if not isinstance(value, str):
        return f"is {type_name(value)}, expected text"
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            half = f"\\u{ord(value[error.start]):04x}"
            return f"holds half a character ({half} at place {error.start + 1}), which no tokenizer takes"
    return None


def number(value: Any) -> Any:
    """The number that a csv cell holds, null of an empty one, anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return float(value) if value.strip() else None
    except ValueError:
        return value


def not_weight(value: Any) -> str | None:
    """Why a value is no weight of a row or a turn, or None. Null is 1."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"is {type_name(value)}, expected a number from 0"
    if value == 0 or LIGHTEST <= value <= HEAVIEST:
        return None
    shown = str(value)
    return f"is {shown[:20]}{'...' * (len(shown) > 20)}, expected 0 or a number from 0.000001 to 1000000"


def chat(found: dict, columns: dict[str, str], faults: list[Fault], tree: bool = False) -> dict:
    """A chat of found["messages"], with found["system"] before it where it is there."""
    field = columns["messages"]
    raw = _best_path(found["messages"]) if tree else _parsed(found["messages"])
    messages = _turns(raw, field, faults)
    _add_system(messages, found.get("system"), field, columns, faults)
    if not faults:
        _order(messages, field, faults)
    return {"messages": messages}


def with_tools(row: dict, value: Any, column: str, faults: list[Fault]) -> dict:
    """The row with its `tools`, where there are any."""
    try:
        found = tools.tools(value)
    except tools.Wrong as error:
        faults.append((column, str(error)))
        return row
    return {**row, "tools": found} if found else row


def joined(found: dict, columns: dict[str, str], faults: list[Fault]) -> dict:
    """A chat of a prompt that is a list of turns, and a completion that is one, too, or text."""
    last = found["completion"]
    turns = _turns(found["prompt"], columns["prompt"], faults)
    turns += _turns(
        [{"role": "assistant", "content": last}] if isinstance(last, str) else last, columns["completion"], faults
    )
    _add_system(turns, found.get("system"), columns["prompt"], columns, faults)
    if not faults:
        _order(turns, columns["prompt"], faults)
    return {"messages": turns}


def _add_system(turns: list[Turn], system: Any, field: str, columns: dict[str, str], faults: list[Fault]) -> None:
    """Put the row's own system text before the turns."""
    if system is not None and (fault := not_text(system)):
        faults.append((columns["system"], fault))
    elif system and turns and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": system})
    elif system and turns and turns[0]["content"].strip() != system.strip():
        text = f"says another thing than the system turn of `{field}`; a row has one system text"
        faults.append((columns["system"], text, "two_system_texts"))


def with_history(row: dict, history: Any, columns: dict[str, str], faults: list[Fault]) -> dict:
    """A chat of an instruction row and the turns before it: [[question, answer], ...]. The last question is what
    rows.messages makes of a row without history."""
    turns: list[Turn] = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    history = _parsed(history)
    if not isinstance(history or [], list):
        faults.append((columns["history"], f"is {type_name(history)}, expected a list of turns{quoted(history)}"))
        return row
    for place, pair in enumerate(history or [], 1):
        if not isinstance(pair, list) or len(pair) != 2 or any(not_text(text) for text in pair):
            faults.append((columns["history"], f"turn {place} is not a list of two texts, question and answer"))
            break
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    asked = "\n\n".join(filter(None, (row["instruction"], row["input"])))
    turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": row["output"]}]
    return {"messages": turns}


def has_turns(history: Any) -> bool:
    """Whether a history holds anything; a csv cell may hold `[]`."""
    return bool(_parsed(history))


def _parsed(value: Any) -> Any:
    """A list that came as JSON text, as in a csv cell; anything else as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def quoted(value: Any) -> str:
    """What is told of a text that is a list or an object as Python prints it."""
    if isinstance(value, str) and re.match(r"\s*(\[\s*)?[\[{]\s*'", value):
        return "; it is Python's text of it, with single quotes: write such cells with json.dumps"
    return ""


def _turned(value: Any) -> Any:
    """Turns that stand by column, {"role": [...], "content": [...]}, as parquet files of older sets have them."""
    if isinstance(value, dict) and {"role", "from"} & value.keys():
        columns = {key: items for key, items in value.items() if items is not None}
        if all(isinstance(items, list) for items in columns.values()) and len(set(map(len, columns.values()))) == 1:
            return [dict(zip(columns, items, strict=True)) for items in zip(*columns.values(), strict=True)]
    return value


def _turns(raw: Any, field: str, faults: list[Fault]) -> list[Turn]:
    raw = _turned(raw)
    if not isinstance(raw, list):
        faults.append((field, f"is {type_name(raw)}, expected a list of turns{quoted(raw)}"))
        return []
    if not raw:
        faults.append((field, "is empty, expected at least a user's and an assistant's turn"))
    turns = []
    for place, value in enumerate(raw, 1):
        turn = _turn(value)
        if isinstance(turn, str):
            faults.append((field, f"turn {place}: {turn}"))
        else:
            turns.append(turn)
    return turns


def _turn(value: Any) -> Turn | str:
    """A turn with `role` and `content`, or what is wrong with it. Keys that are null count as absent."""
    if not isinstance(value, dict):
        return f"is {type_name(value)}, expected an object"
    role_key = _key(value, ("role", "from"))
    text_key = _key(value, ("content", "value", "text"))
    role = value.get(role_key)
    if not isinstance(role, str):
        return (
            f"`{role_key}` is {type_name(role)}"
            if role_key in value
            else f"no `role` or `from`; it has {', '.join(value)}"
        )
    if role.lower() not in ROLES:
        return f"unknown {role_key} {role!r}; known are {', '.join(ROLES)}"
    try:
        calls = tools.calls(value, role.lower(), text_key)
    except tools.Wrong as error:
        return str(error)
    if calls and ROLES[role.lower()] != "assistant":
        return f"calls stand in a turn of {role}; only the assistant calls"
    content = "" if role.lower() in tools.CALLERS else _content(value.get(text_key))
    if content is None and calls:
        content = ""
    if text_key not in value and content is None:
        return f"no `content` or `value`; it has {', '.join(value)}"
    if fault := not_text(content):
        return f"`{text_key}` {fault}"
    if fault := not_weight(weight := value.get("weight")):
        return f"`weight` {fault}"
    if ROLES[role.lower()] != "assistant" and weight not in (None, 0, 1):
        return f"`weight` is {weight}, expected 0 or 1: a turn of the {ROLES[role.lower()]} does not train"
    known = (role_key, text_key, *tools.KEYS)
    kept = {key: item for key, item in value.items() if key not in known and item is not None}
    return {"role": ROLES[role.lower()], "content": content, **({"tool_calls": calls} if calls else {}), **kept}


def _key(value: dict, names: tuple[str, ...]) -> str:
    """The first of the names that is filled, else the first that is there, else the first."""
    filled = (key for key in names if value.get(key) is not None)
    return next(filled, None) or next((key for key in names if key in value), names[0])


def _content(value: Any) -> Any:
    """Text that is given in parts, [{"type": "text", "text": ...}], as one text."""
    if value == []:
        return None
    if isinstance(value, list) and all(isinstance(part, dict) and "text" in part for part in value):
        texts = [part["text"] for part in value]
        return "".join(texts) if all(isinstance(text, str) for text in texts) else value
    return value


def _order(turns: list[Turn], field: str, faults: list[Fault]) -> None:
    before = None
    for place, turn in enumerate(turns, 1):
        if turn["role"] not in MAY_FOLLOW[before]:
            after = f" after {before}" if before else ""
            wanted = " or ".join(MAY_FOLLOW[before])
            faults.append((field, f"turn {place} is {turn['role']}{after}, expected {wanted}", "turn_order"))
            return
        before = turn["role"]
    if before != "assistant":
        text = f"the last turn is {before}, expected assistant: there is nothing to learn after it"
        faults.append((field, text, "turn_order"))


def _best_path(root: Any) -> Any:
    """Of an OpenAssistant tree the turns along the best-ranked replies, to the last answer; the rest is not used."""
    turns, node = [], root
    while isinstance(node, dict):
        turns.append({"role": node.get("role"), "content": node.get("text")})
        replies = node.get("replies") or []
        if not isinstance(replies, list) or not all(isinstance(reply, dict) for reply in replies):
            break
        ranked = [reply for reply in replies if not reply.get("deleted")]
        node = min(ranked, key=_rank, default=None)
    while len(turns) > 1 and turns[-1]["role"] in ("prompter", "user"):
        turns.pop()
    return turns


def _rank(reply: dict) -> float:
    rank = reply.get("rank")
    return rank if isinstance(rank, (int, float)) else float("inf")
