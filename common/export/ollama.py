"""A Modelfile whose TEMPLATE writes what the chat template of the training writes, or a refusal.

Ollama's templates are Go's: they loop over turns and compare roles, and can neither split nor strip a text. So the
parts around system, user and assistant turns are read off the chat template, and what is put together from them is
compared with it on every held-out conversation.
"""

from dataclasses import dataclass
from typing import Any

from tunebook.common.errors import UserError
from tunebook.common.export.reference import Reference
from tunebook.common.tokens import sandbox

ROLES = ("system", "user", "assistant")
MARK = "\ue000{}\ue001"  # private characters around a turn's name, which no template writes
OTHERWISE = "`--to gguf` carries the chat template itself, for llama.cpp's server and for clients that render it"


@dataclass
class Parts:
    """What stands around the texts of turns.

    Attributes:
        opening: before everything. no_system: in place of a system turn where there is none.
        system, user, assistant: (before, after) the text of such a turn.
        header: before the answer that is to come.
    """

    opening: str
    no_system: str
    system: tuple[str, str] | None
    user: tuple[str, str]
    assistant: tuple[str, str]
    header: str

    def render(self, messages: list[dict[str, Any]]) -> str:
        """A conversation as the Go template writes it."""
        text = self.opening
        if messages[0]["role"] != "system":
            text += self.no_system
        for message in messages:
            around = {"system": self.system, "user": self.user, "assistant": self.assistant}[message["role"]]
            if around is None:
                raise UserError("no place for a system text")
            text += message["content"].join(around)
        return text + self.header

    def go(self) -> str:
        """The same in Go's template language."""
        lines = [_literal(self.opening)]
        loop = []
        for role, around in (("system", self.system), ("user", self.user), ("assistant", self.assistant)):
            if around is None:
                continue
            word = "if" if not loop else "else if"
            loop.append(
                f'{{{{ {word} eq .Role "{role}" }}}}{_literal(around[0])}{{{{ .Content }}}}{_literal(around[1])}'
            )
        if self.no_system:
            first = '{{ if ne (index .Messages 0).Role "system" }}' + _literal(self.no_system) + "{{ end }}"
            lines.append(first)
        lines.append("{{ range .Messages }}" + "".join(loop) + "{{ end }}{{ end }}")
        return "".join(lines) + _literal(self.header)


def modelfile(reference: Reference, gguf: str) -> str:
    """The text of a Modelfile for a GGUF beside it.

    Raises:
        UserError: the template writes something that Go's cannot.
    """
    from tunebook.common.training import served_tokenizer

    tokenizer = reference.tokenizer
    jinja = tokenizer.chat_template
    if not isinstance(jinja, str):
        jinja = served_tokenizer.jinja(reference.template, tokenizer)

    name = reference.template.name
    if "strftime_now" in jinja:
        raise UserError(f"the template {name} cannot be written for Ollama: it writes the day's date; {OTHERWISE}")

    def render(messages: list[dict[str, Any]]) -> str:
        found = sandbox.apply_chat_template(
            tokenizer, messages, chat_template=jinja, tokenize=False, add_generation_prompt=True
        )
        begin = tokenizer.bos_token if getattr(tokenizer, "add_bos_token", False) else None
        return found.removeprefix(begin) if begin else found  # Ollama adds it by itself

    try:
        parts = read_off(render)
    except Exception as error:  # a template may raise anything
        raise UserError(f"the template {name} cannot be written for Ollama: {error}; {OTHERWISE}") from None
    for place, one in enumerate(reference.conversations, 1):
        if one.tools or any(set(turn) != {"role", "content"} or turn["role"] not in ROLES for turn in one.messages):
            raise UserError(
                f"the template {name} cannot be written for Ollama: held-out conversation {place} has tools; "
                f"{OTHERWISE}"
            )
        _compare(parts, render, one.messages, name, f"held-out conversation {place}")
    for text in ("x", "a\n\nb"):
        turns = [
            {"role": "user", "content": text},
            {"role": "assistant", "content": text},
            {"role": "user", "content": "y"},
        ]
        _compare(parts, render, turns, name, f"a text like {text!r}")
        if parts.system is not None:
            _compare(parts, render, [{"role": "system", "content": text}, *turns], name, f"a system text like {text!r}")
    stops = [tokenizer.convert_ids_to_tokens(number) for number in reference.ends]
    lines = [f"FROM ./{gguf}", f'TEMPLATE """{parts.go()}"""', *(f'PARAMETER stop "{_quoted(stop)}"' for stop in stops)]
    return "\n".join([*lines, "PARAMETER temperature 0", "PARAMETER repeat_penalty 1.0", ""])


def read_off(render: Any) -> Parts:
    """The parts of a template, from conversations whose texts are marks.

    Raises:
        UserError: a text is not written once, as it is, in its turn.
    """
    marks = {name: MARK.format(name) for name in ("s", "u", "a", "v", "b", "w")}
    turn = lambda role, name: {"role": role, "content": marks[name]}  # noqa: E731
    three = [turn("user", "u"), turn("assistant", "a"), turn("user", "v"), turn("assistant", "b"), turn("user", "w")]
    texts = _between(render(three), [marks[name] for name in ("u", "a", "v", "b", "w")])
    lone = _between(render(three[:1]), [marks["u"]])
    before_first, after_user, after_answer, again_user, again_answer, header = texts
    if after_user != again_user or after_answer != again_answer:
        raise UserError("it writes the first turn in another way than later ones")
    if lone != [before_first, header]:
        raise UserError("it writes the last turn in another way than earlier ones")
    if header != after_user:
        raise UserError("it opens an answer that is to come in another way than one that was given")
    try:
        system = _between(render([turn("system", "s"), *three[:1]]), [marks["s"], marks["u"]])
    except Exception:  # a template without a place for it raises
        system = None
    # What ends a user's turn and what opens the answer need not be told apart: both stand before every answer.
    user_before, assistant_after = _common_end(before_first, after_answer)
    opening = before_first.removesuffix(user_before)
    if system is None:
        return Parts(opening, "", None, (user_before, ""), (header, assistant_after), header)
    if system[2] != header:
        raise UserError("it writes a user's turn in another way after a system text")
    if not system[1].endswith(user_before):
        user_before, assistant_after = _common_end(system[1], after_answer)
        opening = before_first.removesuffix(user_before)
    around = (system[0], system[1].removesuffix(user_before))
    start = _common_start(opening, around[0])
    return Parts(start, opening.removeprefix(start), (around[0].removeprefix(start), around[1]), (user_before, ""),
                 (header, assistant_after), header)  # fmt: skip


def _between(text: str, marks: list[str]) -> list[str]:
    """What stands before, between and after the marks."""
    parts = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found or mark in text:
            raise UserError("it does not write every text once")
        parts.append(before)
    return [*parts, text]


def _common_end(first: str, after_answer: str) -> tuple[str, str]:
    """What opens a user's turn, first or later, and what ends an answer before it."""
    length = 0
    while length < min(len(first), len(after_answer)) and first[-length - 1] == after_answer[-length - 1]:
        length += 1
    cut = len(after_answer) - length
    return after_answer[cut:], after_answer[:cut]


def _common_start(first: str, second: str) -> str:
    length = 0
    while length < min(len(first), len(second)) and first[length] == second[length]:
        length += 1
    return first[:length]


def _compare(parts: Parts, render: Any, messages: list[dict[str, Any]], name: str, what: str) -> None:
    try:
        wanted = render(messages)
    except Exception:  # it refuses them, as a server does
        return
    if parts.render(messages) != wanted:
        raise UserError(
            f"the template {name} cannot be written for Ollama: of {what} it makes another text than turns one after "
            f"another; {OTHERWISE}"
        )


def _literal(text: str) -> str:
    """A text in a Go template inside a Modelfile's three quotes."""
    if '"""' in text:
        raise UserError(f'the template writes """, which ends a TEMPLATE in a Modelfile; {OTHERWISE}')
    return text.replace("{{", '{{ "{{" }}')


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
