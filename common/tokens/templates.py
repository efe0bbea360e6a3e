"""Prompt templates: one object renders a row for training, evaluation and generation."""

import json
import re
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tunebook.common.data.rows import InstructionRow, Row, instruction, last_answer
from tunebook.common.errors import UserError, nearest
from tunebook.common.tokens.chat_templates import FILE as FILE
from tunebook.common.tokens.chat_templates import ChatTemplate, write
from tunebook.common.tokens.jinja_templates import JINJA, options_of, tokens_of

FIELD = re.compile(r"\{(instruction|input)\}")


@dataclass(frozen=True)
class Template:
    """An instruction template. `{instruction}` and `{input}` are filled with the row's text, never scanned again."""

    name: str
    with_input: str
    without_input: str

    def parts(self, row: dict) -> tuple[list[str], list[str]]:
        """The prompt's constant texts and the row's own texts between them: constants[0] + texts[0] + constants[1] ...

        A row's `system` text, where it has one, stands before everything.
        """
        fields = fields_of(row)
        constants, names = self.halves[bool(fields["input"])]
        texts = [fields[name] for name in names]
        if row.get("system"):
            return ["", "\n\n" + constants[0], *constants[1:]], [row["system"], *texts]
        return constants, texts

    def prompt(self, row: dict) -> str:
        """What the model is given, up to where its answer begins."""
        constants, texts = self.parts(row)
        return "".join(a + b for a, b in zip(constants, [*texts, ""], strict=True))

    def completion(self, row: dict) -> str:
        """What the model is to say. The end token is not part of it; masking adds its id."""
        return fields_of(row)["output"]

    def turn(self, row: dict) -> str:
        """Instruction and input as the one text of a user's turn, with what the template writes between them."""
        fields = fields_of(row)
        return self._between.join(filter(None, (fields["instruction"], fields["input"])))

    def row(self, turn: str) -> dict[str, str]:
        """The row that a user's turn stands for: with an input where the turn holds the heading of one."""
        parts = turn.split(self.heading, 1) if self.heading else [turn]
        return {"instruction": parts[0], "input": "".join(parts[1:]), "output": ""}

    @cached_property
    def heading(self) -> str:
        """What tells an input from the instruction before it (Alpaca's "### Input:"); "" where nothing does."""
        return self._between if self._between.strip() else ""

    @cached_property
    def _between(self) -> str:
        constants, names = self.halves[True]
        return constants[1] if names == ["instruction", "input"] else "\n\n"

    @cached_property
    def halves(self) -> tuple[tuple[list[str], list[str]], ...]:
        halves = (FIELD.split(text) for text in (self.without_input, self.with_input))
        return tuple((half[::2], half[1::2]) for half in halves)

    def save(self, folder: str | Path) -> None:
        write(folder, {"kind": "text", **asdict(self)})


AnyTemplate = Template | ChatTemplate

ALPACA = Template(
    name="alpaca",
    with_input=(
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
    ),
    without_input=(
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Response:\n"
    ),
)
PLAIN = Template(name="plain", with_input="{instruction}\n{input}", without_input="{instruction}")
TEXT = {template.name: template for template in (ALPACA, PLAIN)}
NAMES = (*TEXT, *JINJA, "tokenizer")


def fields_of(row: Row) -> InstructionRow:
    """instruction, input and output of an instruction row or a prompt/completion pair."""
    if row.get("tools"):
        number = f"row {row['row']} has" if "row" in row else "these rows have"
        raise UserError(f"{number} `tools`; choose a template that writes them: chatml, llama2, llama3 or tokenizer")
    if "messages" in row:
        raise UserError("these rows are conversations; choose a chat template: chatml, llama2, llama3 or tokenizer")
    input_text = row.get("input") or "" if "instruction" in row else ""
    return {"instruction": instruction(row), "input": input_text, "output": last_answer(row)}


def get(
    name: str, tokenizer: Any = None, thinking: str = "keep", options: dict[str, Any] | str | None = None
) -> AnyTemplate:
    """A template by name: alpaca, plain, chatml, llama2, llama3, tokenizer (its own), FILE.jinja, or a folder of one.

    Args:
        name: `tokenizer:NAME` is one of several templates of a tokenizer; without a name it is the default one, and
            that for tools in rows with tools, as in transformers.
        thinking: `keep` the thinking in rows, or `drop` it.
        options: variables for a chat template, such as {"enable_thinking": False}, or their JSON text.

    Raises:
        UserError: no such template or variable, or the file is not Jinja.
    """
    if thinking not in ("keep", "drop"):
        raise UserError(f"thinking is {thinking!r}; it can be keep or drop")
    if name in TEXT:
        if options or thinking != "keep":
            raise UserError(f"--template {name} has no variables and no place for thinking; choose a chat template")
        return TEXT[name]
    tool_use = ""
    if name in JINJA:
        jinja = JINJA[name]
    elif name.partition(":")[0] == "tokenizer":
        jinja, tool_use = _own(name, getattr(tokenizer, "chat_template", None))
    elif (Path(name) / FILE).exists():
        return _changed(load(name), thinking, options)
    elif Path(name).suffix in (".jinja", ".j2"):
        try:
            jinja = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--template {name} cannot be read: {error}") from None
    else:
        raise UserError(f"--template {name}: there is {', '.join(NAMES)} and FILE.jinja{nearest(name, NAMES)}")
    tokens = tokens_of(tokenizer, jinja, name)
    try:
        variables = options_of(jinja, options, {})
    except ValueError as error:
        raise UserError(f"--chat_template_kwargs {error}") from None
    return ChatTemplate(name, jinja, tokens, tool_use, variables, thinking)


def _changed(template: AnyTemplate, thinking: str, options: dict[str, Any] | str | None) -> AnyTemplate:
    """A saved template, with what is asked for besides in place of what was saved."""
    if not options and thinking == "keep":
        return template
    if isinstance(template, Template):
        raise UserError(f"the template {template.name} has no variables and no place for thinking")
    try:
        return replace(template, thinking=thinking, options=options_of(template.jinja, options, template.options))
    except ValueError as error:
        raise UserError(f"--chat_template_kwargs {error}") from None


def _own(name: str, jinja: Any) -> tuple[str, str]:
    """The tokenizer's own template, and the one that it has for rows with tools ("" where it is the same)."""
    if isinstance(jinja, str) and name == "tokenizer":
        return jinja, ""
    if not jinja:
        raise UserError("--template tokenizer: this tokenizer has no chat template; use chatml, llama2 or llama3")
    named = jinja if isinstance(jinja, dict) else {}
    wanted = name.partition(":")[2] or "default"
    if wanted not in named:
        available = ", ".join(f"tokenizer:{one}" for one in named) or "tokenizer"
        raise UserError(f"--template {name}: its templates are {available}{nearest(wanted, named)}")
    return named[wanted], named.get("tool_use", "") if name == "tokenizer" else ""


def load(folder: str | Path) -> AnyTemplate:
    """The template that was saved with an adapter or model."""
    path = Path(folder) / FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(values.get(name, ""), str) for name in ("name", "jinja", "tool_use", "with_input")):
            raise TypeError("a template is no text")
        return {"text": Template, "chat": ChatTemplate}[values.pop("kind", "text")](**values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: no template can be read here ({error})") from None
