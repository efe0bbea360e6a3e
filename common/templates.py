"""Prompt templates: one object that renders a row for training, evaluation and generation, byte for byte the same."""

import json
import re
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from common import chats, tools
from common.cli import UserError, first_process, nearest

EDGE = "\uf8f4"  # a private character that no conversation holds
FILE = "template.json"  # saved beside an adapter or model
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
        _save(folder, {"kind": "text", **asdict(self)})


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja chat template, bound to the beginning and end tokens of the tokenizer that it is used with."""

    name: str
    jinja: str
    tokens: dict[str, str] = field(default_factory=dict)  # bos_token, eos_token, ... as the template names them

    def prompt(self, row: dict) -> str:
        """The conversation before its last assistant turn, and the header of that turn."""
        turns, defined = self.fit(chats.messages(row)[:-1], row.get("tools"))
        return chats.render(self, turns, defined, open_turn=True)

    @cached_property
    def fit(self) -> tools.Fit:
        """Gives a conversation's calls and tools the form that this template writes."""
        return tools.Fit(self)

    def completion(self, row: dict) -> str:
        """The last assistant turn's text; of one that calls, what the template writes of it before its end."""
        turns, defined = self.fit(chats.messages(row), row.get("tools"))
        if not turns[-1].get("tool_calls"):
            return turns[-1]["content"]
        whole, prompt = chats.render(self, turns, defined), chats.render(self, turns[:-1], defined, open_turn=True)
        other = chats.render(self, [*turns[:-1], {"role": "assistant", "content": EDGE}], defined)
        end = other.rpartition(EDGE)[2]
        return whole.removeprefix(prompt).removesuffix(end) if whole.startswith(prompt) else turns[-1]["content"] or ""

    def save(self, folder: str | Path) -> None:
        _save(folder, {"kind": "chat", **asdict(self)})


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
NAMES = (*TEXT, *chats.JINJA, "tokenizer")


def fields_of(row: dict) -> dict[str, str]:
    """instruction, input and output of an instruction row or a prompt/completion pair."""
    if row.get("tools"):
        number = f"row {row['row']} has" if "row" in row else "these rows have"
        raise UserError(f"{number} `tools`; choose a template that writes them: chatml, llama2, llama3 or tokenizer")
    if "prompt" in row and "instruction" not in row:
        return {"instruction": row["prompt"], "input": "", "output": row["completion"]}
    if "messages" in row:
        raise UserError("these rows are conversations; choose a chat template: chatml, llama2, llama3 or tokenizer")
    return {"instruction": row["instruction"], "input": row.get("input") or "", "output": row["output"]}


def get(name: str, tokenizer: Any = None) -> AnyTemplate:
    """The template of that name: alpaca, plain, chatml, llama2, llama3, tokenizer (its own), a .jinja file, or a folder
    in which one was saved.

    Raises:
        UserError: there is no such template, the tokenizer has none of its own, or the file is not Jinja.
    """
    if name in TEXT:
        return TEXT[name]
    if name in chats.JINJA:
        jinja = chats.JINJA[name]
    elif name == "tokenizer":
        jinja = getattr(tokenizer, "chat_template", None)
        if not isinstance(jinja, str):
            raise UserError("--template tokenizer: this tokenizer has no chat template; use chatml, llama2 or llama3")
    elif (Path(name) / FILE).exists():
        return load(name)
    elif Path(name).suffix in (".jinja", ".j2"):
        try:
            jinja = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--template {name} cannot be read: {error}") from None
    else:
        raise UserError(f"--template {name}: there is {', '.join(NAMES)} and FILE.jinja{nearest(name, NAMES)}")
    return ChatTemplate(name, jinja, chats.tokens_of(tokenizer, jinja, name))


def load(folder: str | Path) -> AnyTemplate:
    """The template that was saved with an adapter or model."""
    path = Path(folder) / FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return {"text": Template, "chat": ChatTemplate}[values.pop("kind", "text")](**values)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: no template can be read here ({error})") from None


def _save(folder: str | Path, values: dict) -> None:
    text = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
    if first_process():
        (Path(folder) / FILE).write_text(text, encoding="utf-8")
