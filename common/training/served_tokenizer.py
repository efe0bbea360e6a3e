"""What a run has trained with travels with its weights: the template as Jinja, and the end of a turn as end token."""

import copy
import functools
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunebook.common import generation
from tunebook.common.tokens import rendering, sandbox, templates
from tunebook.common.tokens.templates import AnyTemplate, Template

PROBE = "Name a fruit."


def with_template(tokenizer: Any, template: AnyTemplate, model: Any) -> Any:
    """A copy of the tokenizer to be saved with what is trained: a trainer's `processing_class`, or saved by a loop.

    Its chat template is the template of the training, so that `apply_chat_template` gives the ids of training; its end
    token is the one that training puts after an answer, and model and generation config end there, too (at any end
    that the base had, as well). Wherever it is saved, template.json and generation_config.json are, too. What it says
    of a difference to the base is printed.
    """
    copied = copy.copy(tokenizer)  # its vocabulary is shared: a deep copy of a large one takes seconds
    copied._special_tokens_map = dict(tokenizer._special_tokens_map)
    end = generation.end_of_turn(tokenizer, template)
    copied.chat_template = jinja(template, tokenizer)
    if (
        not isinstance(template, Template) and template.tool_use
    ):  # transformers takes this one for conversations with tools
        with_tools = jinja(replace(template, jinja=template.tool_use), tokenizer)
        copied.chat_template = {"default": copied.chat_template, "tool_use": with_tools}
    config = model.generation_config
    ends = list(dict.fromkeys([end, *_listed(config.eos_token_id), int(tokenizer.eos_token_id)]))
    if end != tokenizer.eos_token_id:
        copied.eos_token = tokenizer.convert_ids_to_tokens(end)
        model.config.eos_token_id = end
        on_base = "; transformers reads that of the base: generate(eos_token_id=tokenizer.eos_token_id)"
        print(
            f"answers end with {copied.eos_token}, the base's texts with {tokenizer.eos_token}: the first is saved as "
            f"the end token, both in generation_config.json{on_base if hasattr(model, 'peft_config') else ''}"
        )
    if ends != _listed(config.eos_token_id):
        config.eos_token_id = ends
    if (said := _told(copied)) != (wanted := _trained(tokenizer, template)):
        print(f"the saved chat template says {copied.decode(said)!r}, where training has {copied.decode(wanted)!r}")
    own = model if "bottlenecks" in vars(model) else None
    copied.save_pretrained = functools.partial(_save, copied.save_pretrained, template, config, own)
    return copied


def _save(
    save: Any, template: AnyTemplate, config: Any, model: Any, folder: str | Path, *words: Any, **named: Any
) -> Any:
    """A tokenizer's save_pretrained, with what belongs to it; a bottleneck adapter, which no Trainer saves, as well."""
    files = save(folder, *words, **named)
    config.save_pretrained(folder)
    template.save(folder)
    if model is not None:
        from tunebook.common.models import bottleneck_adapters

        bottleneck_adapters.save(model, folder, bottleneck_adapters.names(model)[0])
    return files


def _listed(ids: int | list[int] | None) -> list[int]:
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)


def _told(tokenizer: Any) -> list[int]:
    turns = [{"role": "user", "content": PROBE}]
    return sandbox.apply_chat_template(tokenizer, turns, add_generation_prompt=True, return_dict=False)


def _trained(tokenizer: Any, template: AnyTemplate) -> list[int]:
    row = {"prompt": PROBE, "completion": ""}
    return rendering.prompts(tokenizer, template, [row])[0]


def jinja(template: AnyTemplate, tokenizer: Any) -> str:
    """The template as transformers, vLLM and llama.cpp take it: Jinja that needs nothing but the conversation.

    Of an instruction template, each question and its answer are what a row is in training, one after another; a system
    text stands before all, as in training. A question that holds the heading of an input ("### Input:") is a row with
    one. Tools, and turns that do not alternate, are refused.
    """
    if isinstance(template, Template):
        return _rows(template, tokenizer)
    # What the template calls bos_token, end_of_turn, ... must be what it was in training, whatever the tokenizer says.
    named = {name: template.tokens.get(name, "") for name in {*template.tokens, *tokenizer.special_tokens_map}}
    named = {name: text for name, text in sorted(named.items()) if re.search(rf"\b{name}\b", template.jinja)}
    given = "".join(f"{{% set {name} = {_text(text)} %}}" for name, text in named.items())
    given += "".join(
        f"{{% if {name} is not defined %}}{{% set {name} = {_literal(value)} %}}{{% endif %}}"
        for name, value in template.options.items()
    )
    opening = "\n" if given and template.jinja.startswith("\n") else ""  # the one that Jinja takes after a block
    return given + opening + template.jinja


def _literal(value: Any) -> str:
    """A variable's value as Jinja writes it: JSON, and none for null."""
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def _text(text: str) -> str:
    """A text as Jinja writes one."""
    return json.dumps(text, ensure_ascii=False)


def _rows(template: Template, tokenizer: Any) -> str:
    """Jinja that writes a conversation as rows of an instruction template."""
    refused = f"the template {template.name} has no place for "
    end = str(tokenizer.eos_token)
    first, later = _text(_begin(tokenizer)), _text(_begin(tokenizer, end))
    asked = _filled(template, False)
    if template.heading:
        split = f"{{%- set parts = message['content'].split({_text(template.heading)}, 1) -%}}"
        both = _filled(template, True)
        asked = f"{split}{{%- if parts | length == 2 -%}}{both}{{%- else -%}}{asked}{{%- endif -%}}"
    return (
        f"{{%- if tools -%}}{{{{ raise_exception({_text(refused + 'tools')}) }}}}{{%- endif -%}}"
        "{%- for message in messages -%}"
        "{%- set before = messages[loop.index0 - 1]['role'] if loop.index0 else '' -%}"
        f"{{%- if not before -%}}{{{{ {first} }}}}{{%- endif -%}}"
        "{%- if message['role'] == 'system' and not before -%}"
        "{%- if message['content'] -%}{{ message['content'] + '\\n\\n' }}{%- endif -%}"
        "{%- elif message['role'] == 'user' and before in ['', 'system', 'assistant'] -%}"
        f"{{%- if before == 'assistant' -%}}{{{{ {later} }}}}{{%- endif -%}}{asked}"
        "{%- elif message['role'] == 'assistant' and before == 'user' and not message['tool_calls'] -%}"
        f"{{% generation %}}{{{{ message['content'] + {_text(end)} }}}}{{% endgeneration %}}"
        f"{{%- else -%}}{{{{ raise_exception({_text(refused)} + 'a turn of ' + message['role'] + ' here') }}}}"
        "{%- endif -%}{%- endfor -%}"
    )


def _filled(template: Template, with_input: bool) -> str:
    """Jinja for the prompt of one row."""
    constants, names = template.halves[with_input]
    whole = {"instruction": "message['content']", "input": "''"}
    fields = {"instruction": "parts[0]", "input": "parts[1]"} if with_input else whole
    parts = [_text(constants[0])]
    for name, constant in zip(names, constants[1:], strict=True):
        parts += [fields[name], _text(constant)]
    return "{{ " + " + ".join(part for part in parts if part not in ('""', "''")) + " }}"


def _begin(tokenizer: Any, before: str = "") -> str:
    """The text that becomes, after `before`, the ids which open a row in training: with the space that a SentencePiece
    tokenizer puts before a text by itself, but only before the very first."""
    ids = rendering.prompts(tokenizer, templates.PLAIN, [{"prompt": PROBE, "completion": ""}])[0]
    begin = "".join(tokenizer.convert_ids_to_tokens(rendering.encoder(tokenizer).begin))
    opened = tokenizer.encode(before, add_special_tokens=False)
    as_trained = [
        tokenizer.encode(before + begin + space + PROBE, add_special_tokens=False) == opened + ids
        for space in ("", " ")
    ]
    return begin + " " if as_trained == [False, True] else begin
