"""Thinking before an answer: its spellings read as one, and written where a template has a place for it."""

import re
from typing import Any

from tunebook.common.tokens.jinja_templates import JinjaTemplate

KEYS = ("reasoning_content", "thinking", "reasoning")  # of a turn, as datasets call it
OPEN, CLOSE = TAGS = ("<think>", "</think>")  # around it, where it stands in the text
BLOCK = re.compile(r"(\s*<think>\s*|)(.*?)(\s*</think>\s*)(.*)", re.DOTALL)
PROBE = ("Qthinking", "Qsaid")  # stand for thinking and answer where a template is tried


def split(content: Any) -> tuple[str, str, str, str] | None:
    """(opening, thinking, closing, answer) of a text that begins with thinking; joined they are the text.

    None where there is no such block, or more than one. The opening tag may be missing, as where the prompt writes it.
    """
    if not isinstance(content, str) or content.count(CLOSE) != 1:
        return None
    found = BLOCK.fullmatch(content)
    parts = found.groups() if found else None
    return parts if parts and OPEN not in parts[1] and OPEN not in parts[3] else None  # pyright: ignore[reportReturnType]


def of(turn: dict) -> tuple[str, str] | None:
    """(form, thinking) of an assistant turn: the form is a key, `text` or `closed` (text without the opening tag).

    An empty block that the text spells is thinking, too; an empty key is none.

    Raises:
        ValueError: the turn says two different things.
    """
    found = [(key, turn[key]) for key in KEYS if isinstance(turn.get(key), str) and turn[key].strip()]
    if parts := split(turn.get("content")):
        found.append(("text" if parts[0] else "closed", parts[1]))
    if len({thinking.strip() for _, thinking in found}) > 1:
        raise ValueError(f"has different thinking in {' and '.join(form for form, _ in found)}; keep one")
    return found[0] if found else None


def of_any(turn: dict) -> bool:
    """Whether there may be thinking in the turn; quick, for every row is asked."""
    return CLOSE in (turn.get("content") or "") or (len(turn) > 2 and any(key in turn for key in KEYS))


def has_block(turn: dict) -> bool:
    """Whether a placed turn has thinking, or spells an empty block of it."""
    return any(key in turn for key in KEYS) or split(turn.get("content")) is not None


def written(turn: dict, form: str, thinking: str) -> dict:
    """The turn with its thinking in that form alone; form "": without it."""
    parts = split(turn.get("content"))
    content = parts[3] if parts else turn.get("content")
    found = {key: value for key, value in turn.items() if key not in KEYS} | {"content": content}
    if form in KEYS:
        return found | {form: thinking}
    if form:
        inner = thinking.strip("\n")
        found["content"] = f"{OPEN}\n{inner}\n{CLOSE}\n\n{content or ''}"
    return found


class Places:
    """Where a template has a place for thinking, found out by rendering small conversations with it.

    Attributes:
        key: the key that it reads, or "".
        forms: the forms that it takes as they are.
    """

    def __init__(self, template: JinjaTemplate, calls: bool):
        self.template, self.calls = template, calls
        shown = {form: self._rendered(form) for form in (*KEYS, "text", "closed")}
        keys = [key for key in KEYS if shown[key]]
        self.key = keys[0] if keys else ""
        if self.key:
            same = "".join(shown[self.key].split())
            texts = [form for form in ("text", "closed") if "".join(shown[form].split()) == same]
        else:
            texts = [form for form in ("text", "closed") if shown[form] and shown[form].count(CLOSE) == 1]
        self.forms = frozenset([*keys, *texts])
        self.tags = _around(shown[self.key]) if self.key else TAGS

    def place(self, turn: dict) -> dict:
        """The turn as the template takes it. What has no place is under a key that it does not read: left out, and
        found to be.

        Raises:
            ValueError: the turn has two thinkings.
        """
        found = of(turn)
        if not found:
            return {key: value for key, value in turn.items() if key not in KEYS}
        form, thinking = found
        if self.template.thinking == "drop":
            return written(turn, "", "")
        if form in self.forms:
            if form in KEYS:
                return written(turn, form, thinking)
            return {key: value for key, value in turn.items() if key not in KEYS}
        if self.key:
            return written(turn, self.key, thinking)
        return written(turn, "text" if "text" in self.forms else KEYS[0], thinking)

    def _rendered(self, form: str) -> str:
        """The conversation with thinking in that form; "" where the template leaves it out or refuses it."""
        thinking, said = PROBE
        turn: dict[str, Any] = {"role": "assistant", "content": said}
        if self.calls:
            call = {"id": "call00000", "type": "function", "function": {"name": "f", "arguments": {}}}
            turn["tool_calls"] = [call]
            if form in KEYS:  # some templates take thinking or text beside a call, not both
                turn["content"] = ""
        turn = written(turn, "text" if form == "closed" else form, thinking)
        if form == "closed":
            turn["content"] = turn["content"].removeprefix(f"{OPEN}\n")
        text = self.template.probe(turn)
        if thinking not in text or (turn["content"] and text.find(said) < text.find(thinking)):
            return ""
        return text


def _around(text: str) -> tuple[str, str]:
    """What stands right before and after the probe's thinking."""
    before, _, after = text.partition(PROBE[0])
    return (before.split() or [OPEN])[-1], (after.split() or [CLOSE])[0]
