"""Chat templates are programs that come with a model: they run in Jinja's sandbox, within bounds of time and memory.

Transformers renders them without bounds; a template that loops for ever, or makes a text of gigabytes, would take the
process with it. The sandbox, filters and functions here are those of transformers.
"""

import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

if sys.platform != "win32":
    import resource

SECONDS = 2.0  # of CPU for one conversation of PART characters, and again for each further PART
PART = 200_000
MEMORY = 2 << 30  # bytes that a rendering may take beside what the process has
TEXT = 10_000_000  # characters that an operator may make, or a text beyond SHARE times the conversation
SHARE = 50
BITS = 100_000  # of a whole number
WIDTH = re.compile(r"%[^a-zA-Z%]*(\d{6,}|\*)")  # in text % values


class OutOfBounds(ValueError):
    """A template takes more time or memory than any that writes a conversation."""


class Text:
    """A text that is being rendered: its parts, their length together, and what stands in generation blocks."""

    def __init__(self, marked: bool):
        self.parts: list[str] = []
        self.characters = 0
        self.spans: list[tuple[int, int]] = []
        self.marked = marked

    def add(self, part: str) -> None:
        self.parts.append(part)
        self.characters += len(part)


def render(
    jinja: str, turns: list[dict], variables: dict[str, Any], marked: bool = False, documents: Any = None
) -> tuple[str, list]:
    """The text of a conversation, and the (start, end) of what stands in the template's generation blocks.

    Args:
        variables: what the template reads beside `messages`.
        marked: look for those blocks.

    Raises:
        OutOfBounds: it takes too much time or memory.
        Exception: whatever the template makes Jinja or Python raise.
    """
    text = Text(marked)
    with Bounds(turns):
        template = _compiled(jinja)
        for part in template.generate(messages=turns, documents=documents, text_of_rendering=text, **variables):
            text.add(part)
            if text.characters > TEXT and text.characters > SHARE * size(turns):
                raise OutOfBounds(f"it writes more than {text.characters:,} characters")
        return "".join(text.parts), text.spans


def apply_chat_template(tokenizer: Any, turns: list[dict], **words: Any) -> Any:
    """The tokenizer's own apply_chat_template, within the bounds.

    Raises:
        OutOfBounds: as `render`.
    """
    with bounds_in_transformers():
        return tokenizer.apply_chat_template(turns, **words)


@contextmanager
def bounds_in_transformers() -> Iterator[None]:
    """Inside, whoever renders a chat template by transformers does so within the bounds."""
    from transformers.utils import chat_template_utils

    _environment()  # which calls what is replaced
    given = chat_template_utils._compile_jinja_template
    chat_template_utils._compile_jinja_template = _Bounded
    try:
        yield
    finally:
        chat_template_utils._compile_jinja_template = given


class _Bounded:
    """A template as transformers calls it."""

    def __init__(self, jinja: str):
        self.jinja = jinja

    def render(self, messages: list[dict], documents: Any = None, **variables: Any) -> str:
        return render(self.jinja, messages, variables, documents=documents)[0]


def compiled(jinja: str) -> Any:
    """The jinja2.Template of a text; in its environment what transformers gives a chat template.

    Raises:
        jinja2.TemplateError: it is not Jinja.
    """
    with Bounds([]):
        return _compiled(jinja)


@lru_cache(maxsize=64)
def _compiled(jinja: str) -> Any:
    return _environment().from_string(jinja)


@lru_cache(maxsize=1)
def _environment() -> Any:
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from transformers.utils.chat_template_utils import _compile_jinja_template

    given = _compile_jinja_template("").environment

    class Generation(Extension):
        """{% generation %}: what stands in it is the assistant's. Transformers' own joins all that is written so far at
        each such block, which a long conversation feels."""

        tags = {"generation"}  # noqa: RUF012  as jinja2 has it

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            text = nodes.Name("text_of_rendering", "load")
            return nodes.CallBlock(self.call_method("mark", [text]), [], [], body).set_lineno(line)

        def mark(self, text: Text, caller: Any) -> str:
            part = caller()
            if text.marked:
                text.spans.append((text.characters, text.characters + len(part)))
            return part

    class Environment(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(["*", "**", "%"])

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _check(operator, left, right)
            return super().call_binop(context, operator, left, right)

    others = [type(one) for one in given.extensions.values() if "generation" not in one.tags]
    environment = Environment(trim_blocks=given.trim_blocks, lstrip_blocks=given.lstrip_blocks,
                              extensions=[Generation, *others])  # fmt: skip
    environment.filters.update(given.filters)
    environment.globals.update(given.globals)
    return environment


def _check(operator: str, left: Any, right: Any) -> None:
    """Refuse what one operator makes endless: Python computes it in one piece, which no signal ends."""
    if operator == "%":
        if isinstance(left, str) and WIDTH.search(left):
            raise OutOfBounds("it fills a text up to a width of millions")
        return
    whole = isinstance(left, int) and isinstance(right, int)
    if whole and operator == "**" and left.bit_length() * abs(right) > BITS:
        raise OutOfBounds("it computes a number of thousands of digits")
    if operator == "*" and whole and left.bit_length() + right.bit_length() > BITS:
        raise OutOfBounds("it computes a number of thousands of digits")
    for text, times in ((left, right), (right, left)) if operator == "*" else ():
        if isinstance(text, (str, list, tuple)) and isinstance(times, int) and len(text) * times > TEXT:
            raise OutOfBounds(f"it repeats a text {times:,} times")


def size(turns: list[dict]) -> int:
    """Characters of a conversation, roughly."""
    return sum(len(turn["content"]) if isinstance(turn.get("content"), str) else 100 for turn in turns)


class Bounds:
    """A context in which CPU time and memory are bounded, where the system can do so and this is the main thread.

    It costs some microseconds, as the signal's handler stays and the process's size is looked up now and then.

    Args:
        turns: that are rendered; a long conversation has more time.
    """

    _running: "ClassVar[Bounds | None]" = None
    _taken: ClassVar[int] = 0  # bytes of address space
    _entered: ClassVar[int] = 0

    def __init__(self, turns: list[dict]):
        self.turns, self.extended, self.limits = turns, False, None

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread() or sys.platform == "win32":
            return
        Bounds._running = self
        if signal.getsignal(signal.SIGVTALRM) is not Bounds._late:
            signal.signal(signal.SIGVTALRM, Bounds._late)
        if sys.platform == "linux":
            self._bound_memory()
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if Bounds._running is self:
            Bounds._running = None
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        if self.limits:
            resource.setrlimit(resource.RLIMIT_AS, self.limits)
        if kind is not None and issubclass(kind, (MemoryError, OverflowError)):
            raise OutOfBounds(f"it takes more than {MEMORY >> 30} GiB of memory, or too long a range") from None

    @staticmethod
    def _late(number: int, frame: object) -> None:
        running = Bounds._running
        if running is None:
            return
        more = SECONDS * (size(running.turns) // PART)
        if more and not running.extended:
            running.extended = True
            signal.setitimer(signal.ITIMER_VIRTUAL, more)
        else:
            raise OutOfBounds("it does not come to an end")

    def _bound_memory(self) -> None:
        if Bounds._entered % 256 == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            Bounds._taken = pages * resource.getpagesize()
        Bounds._entered += 1
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = Bounds._taken + MEMORY
        if soft == resource.RLIM_INFINITY or limit < soft:
            self.limits = soft, hard
            resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
