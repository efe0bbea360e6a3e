"""Jinja chat templates: our own, and rendering with any of them (see chat_templates.py)."""

import json
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from tunebook.common.errors import UserError, nearest
from tunebook.common.tokens import sandbox
from tunebook.common.tokens.tokenization import bos_eos_ids

_CALLS = (
    "{%- macro said(message) -%}{{ message['content'] or '' }}{%- for call in message['tool_calls'] or [] -%}"
    "{{ '<tool_call>\\n' + ((call['function'] or call) | tojson) + '\\n</tool_call>' }}{%- endfor -%}{%- endmacro -%}"
)
_TOOLS = "{{ 'You may call these tools:\\n' + (tools | tojson) }}"
JINJA = {
    "chatml": _CALLS + "{{- bos_token }}"
    "{%- if tools %}{{ '<|im_start|>system\\n' }}" + _TOOLS + "{{ end_of_turn + '\\n' }}{% endif -%}"
    "{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['role'] == 'assistant' -%}"
    "{% generation %}{{ said(message) + end_of_turn }}{% endgeneration %}{{ '\\n' }}"
    "{%- else -%}{{ said(message) + end_of_turn + '\\n' }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}",
    "llama3": _CALLS + "{{- bos_token }}"
    "{%- if tools %}{{ '<|start_header_id|>system<|end_header_id|>\\n\\n' }}" + _TOOLS + "{{ end_of_turn }}{% endif -%}"
    "{%- for message in messages -%}"
    "{{ '<|start_header_id|>' + (message['role'] if message['role'] != 'tool' else 'ipython') "
    "+ '<|end_header_id|>\\n\\n' }}"
    "{%- if message['role'] == 'assistant' -%}"
    "{% generation %}{{ said(message) + end_of_turn }}{% endgeneration %}"
    "{%- else -%}{{ said(message) + end_of_turn }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}",
    "llama2": _CALLS + "{%- set place = namespace(system='', open=false) -%}"
    "{%- if tools %}{% set place.system %}" + _TOOLS + "{% endset %}{% endif -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}"
    "{%- set place.system = (place.system + '\\n\\n' if place.system else '') + message['content'] -%}"
    "{%- elif message['role'] == 'assistant' -%}"
    "{{ ' ' }}{% generation %}{{ said(message) + ' ' + end_of_turn }}{% endgeneration %}"
    "{%- else -%}{{ bos_token + '[INST] ' }}"
    "{%- if place.system -%}{{ '<<SYS>>\\n' + place.system + '\\n<</SYS>>\\n\\n' }}"
    "{%- set place.system = '' -%}{%- endif -%}"
    "{{ said(message) + ' [/INST]' }}{%- endif -%}{%- endfor -%}",
}
_END_OF_TURN = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>"}

# What every template is given, and none reads from a user.
GIVEN = {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "end_of_turn",
         "text_of_rendering"}  # fmt: skip


class Unstable(ValueError):
    """The template refuses a conversation, or gives no proof of which characters a turn stands in."""


@dataclass(frozen=True)
class JinjaTemplate:
    """A Jinja chat template, bound to the beginning and end tokens of the tokenizer that it is used with.

    Attributes:
        tokens: bos_token, eos_token, ... as the template names them.
        tool_use: another Jinja template for rows with tools, where the tokenizer has one.
        options: variables that the template reads (enable_thinking); those of a row's `chat_template_kwargs` win.
        thinking: "keep" what rows hold, or "drop" it.
    """

    name: str
    jinja: str
    tokens: dict[str, str] = field(default_factory=dict)
    tool_use: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    thinking: str = "keep"

    def jinja_for(self, tools: Any) -> str:
        return self.tool_use if tools and self.tool_use else self.jinja

    def render(
        self,
        turns: list[dict],
        tools: list | None,
        open_turn: bool = False,
        options: dict[str, Any] | None = None,
    ) -> str:
        """The conversation as text; `open_turn` adds the header of the assistant turn that is to come.

        Raises:
            Unstable: the template refuses it.
        """
        options = self.options if options is None else options
        return self._render(turns, tools, add_generation_prompt=open_turn, **options)[0]

    def generated(self, turns: list[dict], tools: list | None, options: dict[str, Any]) -> Any:
        """The conversation as text, and the stretches that the template itself marks as the assistant's."""
        if "endgeneration" not in self.jinja_for(tools):
            return self.render(turns, tools, options=options), []
        return self._render(turns, tools, marked=True, **options)

    def probe(self, turn: dict) -> str:
        """A small conversation that ends with the turn, as the template writes it; "" where it takes none."""
        for opening in openings():
            try:
                return self.render([*opening, turn], None)
            except Unstable:
                continue
        return ""

    def _render(self, turns: list[dict], tools: list | None, marked: bool = False, **options: Any) -> Any:
        variables = {"add_generation_prompt": False, **self.tokens, **options, "tools": tools}
        try:
            return sandbox.render(self.jinja_for(tools), turns, variables, marked)
        except sandbox.OutOfBounds as error:
            if sandbox.size(turns) < sandbox.PART:  # it is the template, and no row could be rendered
                raise UserError(f"the template {self.name} cannot be used: {error}; choose another") from None
            raise Unstable(f"the template cannot write so long a conversation: {error}") from None
        except Exception as error:  # whatever a template makes Jinja or Python raise
            developer = any(turn["role"] == "developer" for turn in turns)
            remedy = " (if it does not know the role developer, make it system)" if developer else ""
            raise Unstable(f"the template refuses this conversation: {error}{remedy}") from None


def openings() -> list[list[dict]]:
    """Beginnings of a conversation: a template may insist on a system text, or on none."""
    question = {"role": "user", "content": "Qasked"}
    return [[question], [{"role": "system", "content": "Qsystem"}, question]]


def tokens_of(tokenizer: Any, jinja: str, name: str) -> dict[str, str]:
    """The special tokens that a template may name. Our own templates end a turn with the tokenizer's own token for it.

    Raises:
        UserError: the template is not Jinja.
    """
    try:
        sandbox.compiled(jinja)
    except Exception as error:  # of Jinja's parser, or of Python where it is nested too deep
        raise UserError(f"--template {name} is not a Jinja template: {error}") from None
    given = tokenizer.special_tokens_map.items()
    tokens: dict[str, str] = {key: value for key, value in given if isinstance(value, str)}
    if name in JINJA:
        wanted = _END_OF_TURN.get(name, str(tokenizer.eos_token))
        known = wanted in tokenizer.get_vocab()
        tokens["end_of_turn"] = wanted if known else str(tokenizer.eos_token)
        tokens["bos_token"] = str(tokenizer.bos_token) if bos_eos_ids(tokenizer)[0] else ""
    return tokens


def options_of(jinja: str, requested: Any, defaults: dict[str, Any]) -> dict[str, Any]:
    """Variables of a template as `given` (an object or its JSON text, null for none), over those of `before`.

    Raises:
        ValueError: it is no object, or names what the template does not read.
    """
    if not requested:
        return defaults
    try:
        values = json.loads(requested) if isinstance(requested, str) else requested
    except ValueError:
        values = requested
    if not isinstance(values, dict):
        raise ValueError(f'is {values!r}, expected an object such as {{"enable_thinking": false}}')
    values = {name: value for name, value in values.items() if value is not None}
    known = _variables(jinja)
    if unknown := sorted(values.keys() - known):
        reads = f"it reads {', '.join(sorted(known))}" if known else "it reads none"
        raise ValueError(f"names {unknown[0]}, which the template does not read{nearest(unknown[0], known)}; {reads}")
    return defaults | values


@lru_cache(maxsize=16)
def _variables(jinja: str) -> frozenset[str]:
    """Variables of a template besides the conversation, its tools and the tokenizer's tokens."""
    from jinja2 import meta, nodes

    environment = sandbox.compiled(jinja).environment
    tree = environment.parse(jinja)
    named = meta.find_undeclared_variables(tree) - set(environment.globals)
    # What a template sets itself is its own, unless it asks first whether it was given.
    stored = {one.name for one in tree.find_all(nodes.Name) if one.ctx == "store"}
    asked = [one.node for one in tree.find_all(nodes.Test) if one.name in ("defined", "undefined")]
    asked += [one.node for one in tree.find_all(nodes.Filter) if one.name in ("default", "d")]
    named -= stored - {one.name for one in asked if isinstance(one, nodes.Name)}
    return frozenset(name for name in named if name not in GIVEN and not name.endswith("_token"))
