"""Preview of encoded rows: each token's text, and whether it trains."""

from typing import Any

from tunebook.common.process import terminal
from tunebook.common.tokens.lengths import IGNORE_INDEX


def tokens(example: dict, tokenizer: Any) -> list[tuple[int, str, bool]]:
    """Id, text and whether it trains of each token; a character of several tokens stands at its last."""
    result, text = [], ""
    ids = example["input_ids"]
    for end, label in enumerate(example["labels"], 1):
        start = max(0, end - 24)  # a window is enough to know the last token's text, and keeps long rows quick
        now = tokenizer.decode(ids[start:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        before = tokenizer.decode(ids[start : end - 1], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        text = now[len(before.rstrip("\ufffd")) :] if not now.endswith("\ufffd") or end == len(ids) else ""
        result.append((ids[end - 1], text, label != IGNORE_INDEX))
    return result


def label_preview(example: dict, tokenizer: Any) -> list[tuple[str, bool]]:
    """The text of each token and whether it trains, without the tokens that only begin a character."""
    return [(text, trains) for _, text, trains in tokens(example, tokenizer) if text]


def print_preview(preview: list[list]) -> None:
    """Print [[text, trains], ...] with what trains in brackets and green."""
    from rich.text import Text

    line = Text()
    for text, trains in preview:
        text = text.replace("\n", "\u23ce" if trains else "\u23ce\n")
        # Brackets as well as color, so that the marks survive a log file.
        line.append(f"[{text}]" if trains else text, style="bold green" if trains else "dim")
    terminal.printer().print(line)
