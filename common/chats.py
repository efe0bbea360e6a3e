"""Chat templates: rendering a conversation, and which of its characters the model is to learn."""

import json
from typing import TYPE_CHECKING, Any

from common.cli import UserError

if TYPE_CHECKING:
    from common.templates import ChatTemplate

Span = tuple[int, int]

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
_EDGE = "\uf8f4"  # a private character that no conversation holds


class Unstable(ValueError):
    """The template refuses a conversation, or gives no proof of which characters a turn stands in."""


def messages(row: dict) -> list[dict]:
    """The row as a conversation: its own messages, or one question and its answer."""
    if "messages" in row:
        return [{key: value for key, value in turn.items() if key != "weight"} for turn in row["messages"]]
    system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    if "prompt" in row and "instruction" not in row:
        question, answer = row["prompt"], row["completion"]
    else:
        question = "\n\n".join(filter(None, (row["instruction"], row.get("input"))))
        answer = row["output"]
    return [*system, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def tokens_of(tokenizer: Any, jinja: str, name: str) -> dict[str, str]:
    """The special tokens that a template may name. Our own templates end a turn with the tokenizer's own token for it.

    Raises:
        UserError: the template is not Jinja.
    """
    import jinja2
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        _compile_jinja_template(jinja)
    except jinja2.TemplateError as error:
        raise UserError(f"--template {name} is not a Jinja template: {error}") from None
    given = tokenizer.special_tokens_map.items()
    tokens: dict[str, str] = {key: value for key, value in given if isinstance(value, str)}
    if name in JINJA:
        from common.tokenizers import affixes

        wanted = _END_OF_TURN.get(name, str(tokenizer.eos_token))
        known = wanted in tokenizer.get_vocab()
        tokens["end_of_turn"] = wanted if known else str(tokenizer.eos_token)
        tokens["bos_token"] = str(tokenizer.bos_token) if affixes(tokenizer)[0] else ""
    return tokens


def render(template: "ChatTemplate", turns: list[dict], tools: list | None, open_turn: bool = False) -> str:
    """The conversation as text; `open_turn` adds the header of the assistant turn that is to come."""
    return _render(template, turns, tools, add_generation_prompt=open_turn)[0][0]


def turn_tokens(template: "ChatTemplate", tokenizer: Any) -> frozenset[str]:
    """Added tokens of the tokenizer that the template writes around turns, whether it calls them special or not."""
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
    text = render(template, turns, None)
    return frozenset(
        t.content for t in tokenizer.added_tokens_decoder.values() if t.content.strip() and t.content in text
    )


def _render(template: "ChatTemplate", turns: list[dict], tools: list | None, **options: Any) -> Any:
    import jinja2
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        return render_jinja_template([turns], tools=tools, chat_template=template.jinja, **template.tokens, **options)
    except (jinja2.TemplateError, TypeError, KeyError) as error:
        raise Unstable(f"the template refuses this conversation: {error}") from None


def spans(template: "ChatTemplate", turns: list[dict], tools: list | None, control: Any) -> tuple[str, list[Span]]:
    """The rendered conversation and, for each assistant turn, the characters of its answer and its end.

    The template's own generation markers say it where it has them. Otherwise the text up to each answer is rendered
    again and must be a beginning of the whole.

    Args:
        control: a compiled pattern of the tokenizer's special tokens; text of the turns must not match it.

    Raises:
        Unstable: neither gives a proof, or the template leaves out text of an answer.
    """
    if "endgeneration" in template.jinja:
        texts, marked = _render(template, turns, tools, return_assistant_tokens_mask=True)
        text, found = texts[0], [(start, end) for start, end in marked[0]]
    else:
        text = render(template, turns, tools)
        found = _by_prefix(template, turns, tools, control, text)
    _check(turns, text, "".join(text[start:end] for start, end in found))
    return text, found


def _check(turns: list[dict], text: str, trained: str) -> None:
    """Refuse a template that leaves out thinking, all but the last answer, calls, or roles that it does not know.

    What the row says must be there, but for spaces; templates may write a tool's answer as JSON.
    """
    text, trained = "".join(text.split()), "".join(trained.split())
    answers = [(place, turn) for place, turn in enumerate(turns, 1) if turn["role"] == "assistant"]
    at = 0
    for place, turn in answers:
        said = "".join((turn.get("content") or "").split())
        at = trained.find(said, at)
        if at < 0:
            raise Unstable(f"the template leaves out text of turn {place}")
        at += len(said)
        if not all(_name(call) in trained for call in turn.get("tool_calls") or []):
            raise Unstable(f"the template leaves out a call of turn {place}; chatml, llama2 and llama3 write calls")
    for place, turn in enumerate(turns, 1):
        content = turn.get("content") or ""
        if turn["role"] == "assistant" or "".join(content.split()) in text:
            continue
        written = (json.dumps(content, ensure_ascii=ascii)[1:-1] for ascii in (True, False))
        if not any("".join(form.split()) in text for form in written):
            raise Unstable(f"the template leaves out the text of turn {place} ({turn['role']})")


def _name(call: Any) -> str:
    """The name of the function that is called."""
    function = call.get("function") or call if isinstance(call, dict) else {}
    return "".join(str(function.get("name") or "").split())


def _by_prefix(template: "ChatTemplate", turns: list[dict], tools: list | None, control: Any, text: str) -> list[Span]:
    places = [place for place, turn in enumerate(turns) if turn["role"] == "assistant"]
    openings = [render(template, turns[:place], tools, open_turn=True) for place in places]
    starts = [
        len(opening)
        if text.startswith(opening)
        else _start(text, opening, render(template, turns[:place], tools), control)
        for place, opening in zip(places, openings, strict=True)
    ]
    limits = [*starts[1:], len(text)]
    return [
        (start, _end(template, turns, place, tools, text, start, limit, control))
        for place, start, limit in zip(places, starts, limits, strict=True)
    ]


def _start(text: str, opening: str, before: str, control: Any) -> int:
    """Where an answer begins whose turn is opened with words (`<think>`) that the answered turn lacks.

    That is after the control token that opens the turn both ways; `before` is the text of the turns before it.
    """
    ends = [found.end() for found in control.finditer(opening)] if control else []
    shared = [end for end in ends if text[:end] == opening[:end]]
    if shared and before[: shared[-1]] != opening[: shared[-1]]:
        return shared[-1]
    raise Unstable("the template writes what stands before an answer in another way once it is answered")


def _end(
    template: "ChatTemplate",
    turns: list[dict],
    place: int,
    tools: list | None,
    text: str,
    start: int,
    limit: int,
    control: Any,
) -> int:
    """Where the answer that begins at `start` ends: after its first control token, or with its text where none is."""
    said = (turns[place].get("content") or "").strip()
    at = text.find(said, start, limit) if said else -1
    if at >= 0:
        found = control.search(text, at + len(said), limit) if control else None
        return found.end() if found else at + len(said)
    # A call without text, or text that the template reshapes: the turn ends where the conversation up to it does.
    closed = render(template, turns[: place + 1], tools)
    if text.startswith(closed):
        ends = [found.end() for found in control.finditer(closed, start)] if control else []
        return ends[-1] if ends else len(closed.rstrip())
    # A turn that is written in another way while it is the last (Qwen3): what follows it stays when it says another
    # thing.
    other = [*turns[:place], {"role": "assistant", "content": _EDGE}, *turns[place + 1 :]]
    marked = render(template, other, tools)
    pairs = zip(reversed(text), reversed(marked), strict=False)
    rest = next((count for count, (a, b) in enumerate(pairs) if a != b), 0)
    end = len(text) - rest
    if text[:start] != marked[:start] or not marked[: len(marked) - rest].endswith(_EDGE) or not start <= end <= limit:
        raise Unstable(f"the template changes the text of turn {place + 1} once the conversation goes on")
    found = control.search(text, end, limit) if control else None
    return found.end() if found else end
