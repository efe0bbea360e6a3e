"""The tables of docs/first_run.md: what a GPU of 16 GB holds by `tunebook plan`, without any weights.

    python docs/first_run.py
    python docs/first_run.py --only Qwen3-0.6B

first_run.json holds what the public config of each model says of its shape. The rows are made: 1,024 tokens each, half
of them trained, counted by the bundled tokenizer, whose choice changes no size.
"""

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunebook.common import catalog, cli, files
from tunebook.common.estimate import gpus, planning
from tunebook.common.format import byte_size, markdown_table
from tunebook.common.pocket import FOLDER
from tunebook.common.tokens import templates, tokenization

HERE = Path(__file__).parent
GPU = "15 GB"  # of a card of 16: the CUDA context and fragmentation take about the rest
WIDTH = 1024
HEADS = ["model", "parameters", f"peak, 1 x {WIDTH:,}", f"rows of {WIDTH:,}", "recomputed", "longest row", "recomputed"]


@dataclass
class Args:
    only: str = ""  # a model of first_run.json
    json: str = ""  # also write the figures to this file


def main(args: Args) -> list[dict[str, Any]]:
    wanted = [one for one in json.loads((HERE / "first_run.json").read_text()) if args.only in ("", one["name"])]
    found = [plan(one) for one in wanted]
    for method in ("QLoRA", "LoRA"):
        print(f"{method}\n\n" + markdown_table(HEADS, [line(one, method) for one in found]))
    if args.json:
        files.write_json(args.json, found)
    return found


def plan(model: dict[str, Any]) -> dict[str, Any]:
    """The plan of lora_alpaca with this model, whose table has QLoRA, too."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "model").mkdir()
        for file in FOLDER.joinpath("model").glob("*token*"):
            shutil.copy(file, folder / "model")
        (folder / "model" / "config.json").write_text(json.dumps(model["config"]))
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
        words = ["--model", str(folder / "model"), "--dataset", str(folder / "rows.jsonl")]
        words += ["--max_length", str(WIDTH), "--per_device_train_batch_size", "1"]
        made = planning.plan(catalog.recipes()["lora_alpaca"], words, folder, gpus.named(GPU))
    assert made["longest"]["width"] == WIDTH
    return {"name": model["name"], "parameters": made["parameters"] - made["trainable"], "table": made["table"]}


def rows() -> list[dict[str, str]]:
    """Rows of WIDTH tokens each."""
    tokenizer, _ = tokenization.load("pocket")

    def length(words: int) -> int:
        row = {"instruction": " the" * (WIDTH // 2), "input": "", "output": " the" * words}
        text = templates.ALPACA.prompt(row) + row["output"]
        return len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1

    words = next(words for words in range(1, WIDTH) if length(words) == WIDTH)
    return [
        {"instruction": " the" * (WIDTH // 2), "input": "", "output": " the" * words, "number": str(place)}
        for place in range(40)
    ]


def line(found: dict[str, Any], method: str) -> list[str]:
    """A line of the table of a method."""
    kept, again = (
        next(row for row in found["table"] if row["method"] == method and row["checkpointing"] == how)
        for how in (False, True)
    )
    size = byte_size(kept["peak_bytes"]) if kept["fits"] else f"{byte_size(kept['peak_bytes'])}: no"
    sizes = [f"{row[key]:,}" if row[key] else "none" for key in ("rows", "width") for row in (kept, again)]
    return [found["name"], f"{found['parameters'] / 1e9:.2f} B", size, *sizes]


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    cli.run(main, Args)
