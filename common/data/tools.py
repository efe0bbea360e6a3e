"""Tools of a row and calls of its turns, in one form.

A tool is {"type": "function", "function": {"name", "description", "parameters"}}, a call {"type": "function",
"function": {"name", "arguments"}[, "id"]}. Arguments stay an object or its JSON text: some templates concatenate the
text, others iterate over the object.
"""

from typing import Any

from tunebook.common.data import json_array
from tunebook.common.errors import type_name

KEYS = ("tool_calls", "function_call")  # of a turn; the second is OpenAI's older one, for a single call
CALLERS = ("function_call", "tool_call")  # roles of ShareGPT whose text is a call, or a list of them
TOOLS = "expected a list of tools, a list of their JSON texts, or the list as one JSON text"
CALLS = 'expected {"name", "arguments"} or a list of such calls'


class Wrong(ValueError):
    """Why tools or calls cannot be used: goes on from the name of their field."""


def tools(value: Any) -> list[dict]:
    """The tools of a row from a list of objects or JSON texts, or one JSON text; flat ones are wrapped, nulls go.

    Raises:
        Wrong: it is none of these, or a tool has no name.
    """
    return [_wrapped(tool, f"tool {place}", ("type",)) for place, tool in enumerate(_listed(value, TOOLS), 1)]


def calls(turn: dict, role: str, text_key: str) -> list[dict]:
    """The calls of a turn, from `tool_calls`, `function_call`, or the text of a turn whose role is one of CALLERS.

    Raises:
        Wrong: a call is no object with a name and arguments, or stands where no call can; begins with the field.
    """
    given = {key: turn[key] for key in KEYS if turn.get(key) not in (None, "", [])}
    if role in CALLERS:
        given[text_key] = turn.get(text_key)
    if len(given) > 1:
        raise Wrong(f"has {' and '.join(f'`{key}`' for key in given)}, expected one of them")
    for key, value in given.items():
        try:
            found = _listed(value, CALLS)
            if key == text_key and not found:
                raise Wrong(f"holds no call, {CALLS}")
            return [_call(call, f"call {place}") for place, call in enumerate(found, 1)]
        except Wrong as error:
            raise Wrong(f"`{key}` {error}") from None
    return []


def _listed(value: Any, expected: str) -> list:
    """A list, or the list that a JSON text is; one call is a list of one."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    found = _parsed(value, expected) if isinstance(value, str) else without_nulls(value)
    if found is None:  # the text null
        return []
    if isinstance(found, dict) and expected is CALLS:
        return [found]
    if not isinstance(found, list):
        raise Wrong(f"is {type_name(found)}, {expected}")
    return found


def _parsed(text: str, expected: str) -> Any:
    try:
        return json_array.value(text)
    except json_array.Wrong as error:
        raise Wrong(f"is {error}, {expected}") from None


def _wrapped(value: Any, what: str, outside: tuple[str, ...]) -> dict:
    """A tool or call under `function`; of a flat one the keys `outside` stand beside `function`."""
    found = _within(value, what) if isinstance(value, str) else value
    if not isinstance(found, dict):
        raise Wrong(f"{what} is {type_name(value)}, expected an object or its JSON text")
    if isinstance(found.get("function"), str):
        found = {**found, "function": _within(found["function"], f"{what}: `function`")}
    if isinstance(found.get("function"), dict):
        found = {"type": "function", **found}
    else:
        beside = {key: kept for key, kept in found.items() if key in outside}
        inner = {key: kept for key, kept in found.items() if key not in (*outside, "function")}
        found = {**beside, "type": "function", "function": inner}
    name = found["function"].get("name")
    if not isinstance(name, str) or not name.strip():
        raise Wrong(f"{what} has no `name`; it has {', '.join(map(str, found['function'])) or 'nothing'}")
    if isinstance(found["function"].get("parameters"), str):
        found["function"]["parameters"] = _within(found["function"]["parameters"], f"{what}: `parameters`")
    return found


def _within(text: str, what: str) -> dict:
    """The object that a JSON text inside of a tool or a call is."""
    try:
        found = _parsed(text, "expected an object or its JSON text") if text.strip() else {}
    except Wrong as error:
        raise Wrong(f"{what} {error}") from None
    if not isinstance(found, dict):
        raise Wrong(f"{what} is JSON of {type_name(found)}, expected an object or its JSON text")
    return found


def _call(value: Any, what: str) -> dict:
    found = _wrapped(value, what, ("id", "type", "index", "call_id"))
    function = found["function"]
    if "arguments" not in function:
        others = [key for key in function if key not in ("name", "parameters")]
        if others:
            raise Wrong(f"{what} has no `arguments`; it has {', '.join(function)}")
        function = {"name": function["name"], "arguments": function.get("parameters", {})}
    arguments = function["arguments"]
    if isinstance(arguments, str):
        whole = _within(arguments, f"{what}: `arguments`")
        arguments = arguments if whole else {}
    elif not isinstance(arguments, dict):
        raise Wrong(f"{what}: `arguments` is {type_name(arguments)}, expected an object or its JSON text")
    return {**found, "function": {**function, "arguments": arguments}}


def without_nulls(value: Any) -> Any:
    """The value without keys that are null, at any depth: parquet and `datasets` fill them in. Texts keep theirs."""
    if isinstance(value, dict):
        return {key: without_nulls(kept) for key, kept in value.items() if kept is not None}
    return [without_nulls(kept) for kept in value] if isinstance(value, list) else value
