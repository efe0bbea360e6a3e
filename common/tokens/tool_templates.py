"""Tools and calls handed to a chat template in the form that it writes."""

import itertools
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tunebook.common.tokens.jinja_templates import JinjaTemplate, Unstable, openings

REMEDY = "chatml, llama2 and llama3 write"


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

    The form is found by rendering the row itself with marks in place of names and arguments; each row is tried, as a
    template may write a call in one place and leave it out in another.

    Attributes:
        unwritten: the template left out the tools of the last row. Only one that writes calls may (DeepSeek's do).
    """

    def __init__(self, template: JinjaTemplate):
        self.template, self.unwritten = template, False
        self.forms, self.flats = FORMS, (False, True)  # those that the last row was written in come first

    def __call__(
        self, turns: list[dict], tools: list[dict] | None, options: dict[str, Any] | None = None
    ) -> tuple[list[dict], list[dict] | None]:
        """The turns and tools as the template takes them, with its variables as in `options`.

        Raises:
            Unstable: the template refuses the conversation, or leaves out a call or a tool.
        """
        self.unwritten = False
        if not tools and not _calls(turns):
            return turns, tools
        tools, reasons = tools or [], {}
        for form, flat in itertools.product(self.forms, self.flats):
            try:
                lost_call, lost_tool, named = self._lost(turns, tools, form, flat, options)
            except Unstable as error:
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
        raise Unstable(found)

    @cached_property
    def _writes_calls(self) -> bool:
        """Whether the template writes the call of a small conversation."""
        call = {"id": "call00000", "type": "function", "function": {"name": "f", "arguments": {}}}
        turn = {"role": "assistant", "content": "", "tool_calls": [call]}
        for opening, form in itertools.product(openings(), FORMS):
            try:
                if not self._lost([*opening, turn], [], form, False, None)[0]:
                    return True
            except Unstable:
                continue
        return False

    def _lost(
        self, turns: list[dict], tools: list[dict], form: Form, flat: bool, options: dict[str, Any] | None
    ) -> tuple[str, str, bool]:
        """What the template does not write of the calls and of the tools in that form, empty where it writes all; and
        whether it names any tool."""
        marked = [form.turn(_marked_turn(turn, place)) for place, turn in enumerate(turns)]
        shaped = _shaped([_marked_tool(tool, place) for place, tool in enumerate(tools)], flat)
        text = self.template.render(marked, shaped or None, options=options)
        calls = (_lost_call(turn, place, text, form) for place, turn in enumerate(turns))
        defined = (_lost_tool(tool, place, text) for place, tool in enumerate(tools))
        named = any(_mark(place, "name") in text for place in range(len(tools)))
        return next(filter(None, calls), ""), next(filter(None, defined), ""), named

    def _refusal(self, reason: str, turns: list[dict], options: dict[str, Any] | None) -> str:
        """With a remedy where the template takes the conversation without its calls, their answers and the tools."""
        plain = [turn for turn in turns if turn["role"] != "tool" and not turn.get("tool_calls")]
        try:
            self.template.render(plain, None, options=options)
        except Unstable:
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
