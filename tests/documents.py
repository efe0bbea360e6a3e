"""What README, docs/*.md and docstrings hold: fenced blocks with their marks, commands, links, anchors of headings."""

import ast
import re
import shlex
from dataclasses import dataclass

from paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CODE = [path for folder in ("recipes", "common/commands", "evals/commands") for path in (ROOT / folder).rglob("*.py")]
FENCE = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)
STARTS = (
    "tunebook ",
    "accelerate launch ",
    "torchrun ",
    "python recipes/",
    "python my_recipe.py",
    "make ",
    "pip ",
    "source ",
)
REASONS = ("gpu", "hub", "long", "needs")  # a mark: `<!-- not run: REASON ... -->`


@dataclass(frozen=True)
class Block:
    """A fenced block. `mark`: the comment on the line before it, or ""."""

    place: str
    language: str
    mark: str
    text: str


@dataclass(frozen=True)
class Command:
    """A command line. `reason`: why its mark says that it is not run, or ""."""

    place: str
    words: tuple[str, ...]
    reason: str = ""

    @property
    def line(self) -> str:
        return shlex.join(self.words)


def blocks():
    """All fenced blocks of all pages, in their order."""
    for page in PAGES:
        for found in FENCE.finditer(page.read_text(encoding="utf-8")):
            yield Block(page.name, found["language"], found["mark"] or "", found["text"])


def commands():
    """All commands, first of pages, then of docstrings; one that is there twice, once."""
    found = {}
    for block in blocks():
        if block.language == "bash":
            reason = block.mark.removeprefix("not run: ") if block.mark.startswith("not run: ") else ""
            assert not block.mark or reason.startswith(REASONS), (block.place, block.mark)
            for words in lines(block.text):
                found.setdefault(words, Command(block.place, words, reason))
    for path in CODE:
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        for words in lines(text, any_line=False):
            found.setdefault(words, Command(str(path.relative_to(ROOT)), words))
    return list(found.values())


def lines(text, any_line=True):
    """Words of each command in a text, without comments, continued lines joined."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if line.strip() and (any_line or line.strip().startswith(STARTS)):
            yield tuple(shlex.split(line, comments=True))


def anchors(page):
    """The anchors of a page's headings, as code hosts make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links(page):
    """(file, anchor) of each link to a place in this repository."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"\w+://|mailto:", target):
            file, _, anchor = target.partition("#")
            yield (page.parent / file).resolve() if file else page, anchor


def constants():
    """Every text in the code, those of an f-string with … for what is filled in."""
    for folder in ("common", "evals"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value
