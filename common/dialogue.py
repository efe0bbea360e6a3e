"""Turns of a conversation: role names of several customs made one, their order checked, tools read."""

import json
from typing import Any

Turn = dict[str, Any]
Fault = tuple[str, str]  # the field, and what is wrong with it
ROLES = {
    **dict.fromkeys(("system",), "system"),
    **dict.fromkeys(("developer",), "developer"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "chatgpt", "bing", "bard", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function"), "tool"),
}
LIGHTEST, HEAVIEST = 1e-6, 1e6  # weights: products and sums of them stay exact enough in float32
INSTRUCTS = ("system", "developer")  # roles whose text is no question
MAY_FOLLOW = {
    None: ("system", "developer", "user"),
    "system": ("developer", "user"),
    "developer": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}


def sort(value: Any) -> str:
    """What a value is, in a reader's words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")


def not_text(value: Any) -> str | None:
    """Why a value cannot be used as text, or None."""
    if not isinstance(value, str):
        return f"is {sort(value)}, expected text"
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
    """Why a value is no weight of a row or a turn (common/loss_weights.py), or None. Null is 1."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"is {sort(value)}, expected a number from 0"
    if value == 0 or LIGHTEST <= value <= HEAVIEST:
        return None
    said = str(value)
    return f"is {said[:20]}{'...' * (len(said) > 20)}, expected 0 or a number from 0.000001 to 1000000"


def chat(found: dict, columns: dict[str, str], faults: list[Fault], tree: bool = False) -> dict:
    """A chat of found["messages"], with found["system"] before it and found["tools"] beside it where they are there."""
    field = columns["messages"]
    raw = _best_path(found["messages"]) if tree else _parsed(found["messages"])
    messages = _turns(raw, field, faults)
    system = found.get("system")
    if system is not None and (fault := not_text(system)):
        faults.append((columns["system"], fault))
    elif system and messages and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    if not faults:
        _order(messages, field, faults)
    row: dict[str, Any] = {"messages": messages}
    tools = _parsed(found.get("tools"))
    if tools not in (None, "", []):
        row["tools"] = tools
        if not isinstance(tools, list):
            faults.append((columns["tools"], f"is {sort(tools)}, expected a list of tools or its JSON text"))
    return row


def joined(found: dict, columns: dict[str, str], faults: list[Fault]) -> dict:
    """A chat of a prompt that is a list of turns, and a completion that is one, too, or text."""
    last = found["completion"]
    turns = _turns(found["prompt"], columns["prompt"], faults)
    turns += _turns(
        [{"role": "assistant", "content": last}] if isinstance(last, str) else last, columns["completion"], faults
    )
    if not faults:
        _order(turns, columns["prompt"], faults)
    return {"messages": turns}


def with_history(row: dict, history: Any, columns: dict[str, str], faults: list[Fault]) -> dict:
    """A chat of an instruction row and the turns before it: [[question, answer], ...]."""
    turns: list[Turn] = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    for place, pair in enumerate(history or [], 1):
        if not isinstance(pair, list) or len(pair) != 2 or any(not_text(text) for text in pair):
            faults.append((columns["history"], f"turn {place} is not a list of two texts, question and answer"))
            break
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    asked = f"{row['instruction']}\n{row['input']}" if row["input"] else row["instruction"]
    turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": row["output"]}]
    return {"messages": turns}


def _parsed(value: Any) -> Any:
    """A list that came as JSON text, as in a csv cell; anything else as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _turns(raw: Any, field: str, faults: list[Fault]) -> list[Turn]:
    if not isinstance(raw, list):
        faults.append((field, f"is {sort(raw)}, expected a list of turns"))
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
        return f"is {sort(value)}, expected an object"
    role_key = "role" if "role" in value else "from"
    text_key = next((key for key in ("content", "value", "text") if key in value), "content")
    role = value.get(role_key)
    if not isinstance(role, str):
        return (
            f"`{role_key}` is {sort(role)}" if role_key in value else f"no `role` or `from`; it has {', '.join(value)}"
        )
    if role.lower() not in ROLES:
        return f"unknown {role_key} {role!r}; known are {', '.join(ROLES)}"
    content = _content(value.get(text_key))
    if content is None and value.get("tool_calls"):
        content = ""
    if text_key not in value and content is None:
        return f"no `content` or `value`; it has {', '.join(value)}"
    if fault := not_text(content):
        return f"`{text_key}` {fault}"
    if fault := not_weight(weight := value.get("weight")):
        return f"`weight` {fault}"
    if ROLES[role.lower()] != "assistant" and weight not in (None, 0, 1):
        return f"`weight` is {weight}, expected 0 or 1: a turn of the {ROLES[role.lower()]} does not train"
    kept = {key: item for key, item in value.items() if key not in (role_key, text_key) and item is not None}
    return {"role": ROLES[role.lower()], "content": content, **kept}


def _content(value: Any) -> Any:
    """Text that is given in parts, [{"type": "text", "text": ...}], as one text."""
    if isinstance(value, list) and value and all(isinstance(part, dict) and "text" in part for part in value):
        texts = [part["text"] for part in value]
        return "".join(texts) if all(isinstance(text, str) for text in texts) else value
    return value


def _order(turns: list[Turn], field: str, faults: list[Fault]) -> None:
    before = None
    for place, turn in enumerate(turns, 1):
        if turn["role"] not in MAY_FOLLOW[before]:
            after = f" after {before}" if before else ""
            wanted = " or ".join(MAY_FOLLOW[before])
            faults.append((field, f"turn {place} is {turn['role']}{after}, expected {wanted}"))
            return
        before = turn["role"]
    if before != "assistant":
        faults.append((field, f"the last turn is {before}, expected assistant: there is nothing to learn after it"))


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
