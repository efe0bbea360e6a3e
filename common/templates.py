"""Prompt templates: one object that renders a row for training, evaluation and generation, byte for byte the same."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from common.cli import UserError, nearest

FILE = "template.json"  # saved beside an adapter or model


@dataclass(frozen=True)
class Template:
    """An instruction template. `{instruction}` and `{input}` are filled with the row's text, never scanned again."""

    name: str
    with_input: str
    without_input: str

    def prompt(self, row: dict) -> str:
        """What the model is given, up to where its answer begins."""
        given = row.get("input") or ""
        parts = (self.with_input if given else self.without_input).split("{instruction}")
        return row["instruction"].join(part.replace("{input}", given) for part in parts)

    def completion(self, row: dict) -> str:
        """What the model is to say. The end token is not part of it; masking adds its id."""
        return row["output"]

    def save(self, folder: str | Path) -> None:
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"
        (Path(folder) / FILE).write_text(text, encoding="utf-8")


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
TEMPLATES = {template.name: template for template in (ALPACA,)}


def get(name: str) -> Template:
    """The template of that name."""
    if name not in TEMPLATES:
        raise UserError(f"--template {name}: there is {', '.join(TEMPLATES)}{nearest(name, TEMPLATES)}")
    return TEMPLATES[name]


def load(folder: str | Path) -> Template:
    """The template that was saved with an adapter or model."""
    path = Path(folder) / FILE
    try:
        return Template(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: no template can be read here ({error})") from None
