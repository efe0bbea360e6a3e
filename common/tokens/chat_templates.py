"""Chat templates: a row as the conversation that a template takes, and its rendering."""

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tunebook.common import files
from tunebook.common.data import rows
from tunebook.common.distributed import is_main_process
from tunebook.common.tokens import thinking
from tunebook.common.tokens.jinja_templates import JinjaTemplate, Unstable, openings, options_of
from tunebook.common.tokens.thinking import Places
from tunebook.common.tokens.tool_templates import Fit

FILE = "template.json"  # saved beside an adapter or model
EDGE = "\uf8f4"  # a private character that no conversation holds


@dataclass(frozen=True)
class ChatTemplate(JinjaTemplate):
    """A Jinja chat template that rows are given to as it takes them: thinking, calls and tools in its own form."""

    @cached_property
    def thinking_places(self) -> tuple[Places, Places]:
        """Where thinking goes in a turn without calls, and in one with them."""
        plain, calls = Places(self, calls=False), Places(self, calls=True)
        if calls.key and not plain.key:  # its own way to write thinking is not text in tags
            plain.forms = frozenset()
        return plain, calls

    def prompt(self, row: dict) -> str:
        """The conversation before its last assistant turn, and the header of that turn."""
        turns, defined, options = self.conversation(row)
        return self.render(turns[:-1], defined, open_turn=True, options=options)

    @cached_property
    def fit(self) -> Fit:
        """Gives a conversation's calls and tools the form that this template writes."""
        return Fit(self)

    def completion(self, row: dict) -> str:
        """The last assistant turn's text; of one that calls, what the template writes of it before its end."""
        last = rows.messages(row)[-1]
        if not last.get("tool_calls"):
            return last["content"]
        turns, defined, options = self.conversation(row)
        whole, other = (
            self.render([*turns[:-1], turn], defined, options=options)
            for turn in (turns[-1], {"role": "assistant", "content": EDGE})
        )
        prompt, end = self.prompt(row), other.rpartition(EDGE)[2]
        return whole.removeprefix(prompt).removesuffix(end) if whole.startswith(prompt) else last["content"] or ""

    def conversation(self, row: dict) -> tuple[list[dict], list | None, dict[str, Any]]:
        """A row's turns with thinking where the template takes it, calls and tools as it writes them, its variables.

        Raises:
            Unstable: a turn has two different thinkings, `chat_template_kwargs` is not what the template reads, or it
                leaves out a call or a tool.
        """
        turns = rows.messages(row)
        if any(turn["role"] == "assistant" and thinking.of_any(turn) for turn in turns):
            placed = []
            for place, turn in enumerate(turns, 1):
                if turn["role"] == "assistant":
                    try:
                        turn = self.thinking_places[bool(turn.get("tool_calls"))].place(turn)
                    except ValueError as error:
                        raise Unstable(f"turn {place} {error}") from None
                placed.append(turn)
            turns = placed
        options = row.get("chat_template_kwargs")
        try:
            options = options_of(self.jinja, options, self.options)
        except ValueError as error:
            raise Unstable(f"`chat_template_kwargs` {error}") from None
        return *self.fit(turns, row.get("tools") or None, options), options

    def turn_tokens(self, tokenizer: Any) -> frozenset[str]:
        """Added tokens of the tokenizer that the template writes around turns, whether it calls them special or not.

        The tags of thinking are not among them: what a row says between them is thinking, wherever the tags come from.
        """
        answer = {"role": "assistant", "content": "x"}
        text = self.probe(answer)
        for opening in openings():
            try:
                text += self.render([*opening, answer, *opening[-1:]], None)
                break
            except Unstable:
                continue
        tags = {*thinking.TAGS, *self.thinking_places[False].tags}
        return frozenset(
            t.content
            for t in tokenizer.added_tokens_decoder.values()
            if t.content.strip() and t.content in text and (t.special or t.content not in tags)
        )

    def save(self, folder: str | Path) -> None:
        write(folder, {"kind": "chat", **asdict(self)})


def write(folder: str | Path, values: dict) -> None:
    """Save the values of a template beside an adapter or model."""
    if is_main_process():
        files.write_json(Path(folder) / FILE, values)
