"""Tools of a row and calls of its turns: several customs read as one, and handed to a template in the form it writes.

A tool is {"type": "function", "function": {"name", "description", "parameters"}}, a call {"type": "function",
"function": {"name", "arguments"}[, "id"]}. Arguments stay what the row has, an object or JSON text of one: some
templates concatenate the text, others walk through the object.
"""

import itertools
import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from common import chats, json_text
from common.errors import type_name

if TYPE_CHECKING:
    from common.templates import ChatTemplate

KEYS = ("tool_calls", "function_call")  # of a turn; the second is OpenAI's older one, for a single call
CALLERS = ("function_call", "tool_call")  # roles of ShareGPT whose text is a call, or a list of them
TOOLS = "expected a list of tools, a list of their JSON texts, or the list as one JSON text"
CALLS = 'expected {"name", "arguments"} or a list of such calls'
REMEDY = "chatml, llama2 and llama3 write"


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
        Wrong: a call is no object with a name and arguments, or stands where no call can stand; it begins with the
            field.
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
        return json_text.value(text)
    except json_text.Wrong as error:
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


@dataclass(frozen=True)
class Form:
    """How calls are handed to a template."""

    content: str | None  # of a turn that calls and says nothing
    flat: bool  # {"name", "arguments"} without `function` around it
    text: bool  # arguments as JSON text

    def turn(self, turn: dict) -> dict:
        if not turn.get("tool_calls"):
            return turn
        content = turn.get("content") or self.content
        return {**turn, "content": content, "tool_calls": [self._call(call) for call in turn["tool_calls"]]}

    def _call(self, call: dict) -> dict:
        function = _function(call)
        arguments = function.get("arguments", {})
        if self.text and not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        elif not self.text and isinstance(arguments, str):
            arguments = json.loads(arguments)
        beside = {key: kept for key, kept in call.items() if key not in ("function", *function)}
        function = {**function, "arguments": arguments}
        return {**beside, **function} if self.flat else {**beside, "function": function}


# The first in which a template writes a row's calls holds.
FORMS = tuple(Form(content, flat, text) for content in ("", None) for flat in (False, True) for text in (False, True))


class Fit:
    """Hands conversations to a template with calls and tools in the form that it writes.

    Which one that is shows a rendering of the row itself with marks in place of names and arguments. Each row is tried,
    as a template may write a call in one place and leave it out in another, such as beside text.

    Attributes:
        unwritten: the template left out the tools of the last row. Only one that writes calls may (DeepSeek's do): its
            model is told of tools in another way, or not at all.
    """

    def __init__(self, template: "ChatTemplate"):
        self.template, self.unwritten = template, False
        self.forms, self.flats = FORMS, (False, True)  # those that the last row was written in come first

    def __call__(
        self, turns: list[dict], tools: list[dict] | None, options: dict[str, Any] | None = None
    ) -> tuple[list[dict], list[dict] | None]:
        """The turns and tools as the template takes them, with its variables as in `options`.

        Raises:
            chats.Unstable: the template refuses the conversation, or leaves out a call or a tool.
        """
        self.unwritten = False
        if not tools and not _calls(turns):
            return turns, tools
        tools, reasons = tools or [], {}
        for form, flat in itertools.product(self.forms, self.flats):
            try:
                lost_call, lost_tool, named = self._lost(turns, tools, form, flat, options)
            except chats.Unstable as error:
                reasons.setdefault("refused", str(error))
                continue
            if not lost_call and not lost_tool:
                self.forms = (form, *(other for other in FORMS if other != form))
                self.flats = (flat, not flat) if tools else self.flats
                return [form.turn(turn) for turn in turns], _shaped(tools, flat) or None
            reasons.setdefault("call" if lost_call else "tool", lost_call or lost_tool)
            if not lost_call and flat == self.flats[-1]:
                if not named and (_calls(turns) or self._writes_calls):
                    self.unwritten = True
                    return [form.turn(turn) for turn in turns], tools
                break  # every other form of the calls would leave out the tools as well
        found = reasons.get("tool") or reasons.get("call") or self._refusal(reasons["refused"], turns, options)
        raise chats.Unstable(found)

    @cached_property
    def _writes_calls(self) -> bool:
        """Whether the template writes the call of a small conversation."""
        call = {"id": "call00000", "type": "function", "function": {"name": "f", "arguments": {}}}
        turn = {"role": "assistant", "content": "", "tool_calls": [call]}
        for opening, form in itertools.product(chats.openings(), FORMS):
            try:
                if not self._lost([*opening, turn], [], form, False, None)[0]:
                    return True
            except chats.Unstable:
                continue
        return False

    def _lost(
        self, turns: list[dict], tools: list[dict], form: Form, flat: bool, options: dict[str, Any] | None
    ) -> tuple[str, str, bool]:
        """What the template does not write of the calls and of the tools in that form, empty where it writes all; and
        whether it names any tool."""
        marked = [form.turn(_marked_turn(turn, place)) for place, turn in enumerate(turns)]
        shaped = _shaped([_marked_tool(tool, place) for place, tool in enumerate(tools)], flat)
        text = chats.render(self.template, marked, shaped or None, options=options)
        calls = (_lost_call(turn, place, text, form) for place, turn in enumerate(turns))
        defined = (_lost_tool(tool, place, text) for place, tool in enumerate(tools))
        named = any(_mark(place, "name") in text for place in range(len(tools)))
        return next(filter(None, calls), ""), next(filter(None, defined), ""), named

    def _refusal(self, reason: str, turns: list[dict], options: dict[str, Any] | None) -> str:
        """With a remedy where the template takes the conversation without its calls, their answers and the tools."""
        plain = [turn for turn in turns if turn["role"] != "tool" and not turn.get("tool_calls")]
        try:
            chats.render(self.template, plain, None, options=options)
        except chats.Unstable:
            return reason
        return f"{reason}; {REMEDY} calls and tools"


def _calls(turns: list[dict]) -> bool:
    return any(turn.get("tool_calls") for turn in turns)


def _function(value: dict) -> dict:
    """Of a tool or a call what is said of its function, wrapped or flat."""
    inner = value.get("function")
    return inner if isinstance(inner, dict) else value


def _shaped(tools: list[dict], flat: bool) -> list[dict]:
    return [_function(tool) for tool in tools] if flat else tools


def _mark(*places: object) -> str:
    """A word that no conversation holds and every template writes as it is."""
    return f"zq{'x'.join(map(str, places))}qz"


def _marked_turn(turn: dict, place: int) -> dict:
    if not turn.get("tool_calls"):
        return turn
    marked = [
        {**call, "function": {**_function(call), "name": _mark(place, number), "arguments": _arguments(place, number)}}
        for number, call in enumerate(turn["tool_calls"])
    ]
    return {**turn, "tool_calls": marked}


def _arguments(place: int, number: int) -> dict[str, str]:
    return {_mark(place, number, "key"): _mark(place, number, "value")}


def _lost_call(turn: dict, place: int, text: str, form: Form) -> str:
    for number, _ in enumerate(turn.get("tool_calls") or []):
        arguments = _arguments(place, number)
        written = json.dumps(arguments)
        if form.text:  # neither escaped as text inside JSON nor with braces around its braces
            whole = written in text and "{" + written not in text
        else:
            whole = all(mark in text for mark in itertools.chain(*arguments.items())) and repr(arguments) not in text
        if not whole or _mark(place, number) not in text:
            beside = " beside its text" if turn.get("content") else ""
            return f"the template leaves out a call of turn {place + 1}{beside}; {REMEDY} calls"
    return ""


def _marked_tool(tool: dict, place: int) -> dict:
    function = _function(tool)
    marked = {**function, **{name: _mark(place, name) for name in ("name", "description") if function.get(name)}}
    properties = _properties(function)
    if properties:
        first, *others = properties
        renamed = {_mark(place, "property"): properties[first], **{name: properties[name] for name in others}}
        marked["parameters"] = {**function["parameters"], "properties": renamed}
    return marked if function is tool else {**tool, "function": marked}


def _lost_tool(tool: dict, place: int, text: str) -> str:
    function = _function(tool)
    parts = [name for name in ("name", "description") if function.get(name)]
    parts += ["property"] if _properties(function) else []
    lost = [part for part in parts if _mark(place, part) not in text]
    if not lost:
        return ""
    part = "" if "name" in lost else f"the {lost[0]} of "
    return f"the template leaves out {part}tool {place + 1} of `tools`; {REMEDY} tools"


def _properties(function: dict) -> dict:
    """The parameters by name, where the schema has them so."""
    parameters = function.get("parameters")
    properties = parameters.get("properties") if isinstance(parameters, dict) else None
    return properties if isinstance(properties, dict) else {}
