"""What is in a dataset, what is wrong with it by row, and every token of chosen rows with whether it trains.

    tunebook inspect my_rows.json
    tunebook inspect my_rows.json --tokenizer my_model/ --template chatml --max_length 1024 --html look.html
    tunebook inspect my_rows.csv instruction=question output=answer --rows 1 5 9
    tunebook inspect my_chats.jsonl --tokenizer my_model/ --recipe chat_sharegpt --bad_rows drop

Ends with 1 where training would refuse the set, with 2 where the data cannot be read.
"""

import dataclasses
import json
import sys
import time
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from tunebook.common import files
from tunebook.common.errors import CheckFailed, UserError
from tunebook.common.process import progress
from tunebook.common.tokens.lengths import LOSS_WEIGHTS

BATCH = 2000  # rows held as Python lists while --tokens writes


@dataclass
class Args:
    # Files, folders, a Hub name or pocket; words like output=COLUMN after a file name its columns.
    data: Annotated[tyro.conf.Positional[list[str]], tyro.conf.arg(metavar="DATA ...", help_behavior_hint="")] = field(
        default_factory=list
    )
    tokenizer: str = "pocket"  # a folder, a Hub name, or the bundled one
    recipe: str = ""  # a recipe or a copy of one: its template, max_length and train_on; flags win over it
    template: str = "auto"  # alpaca, chatml, llama2, llama3, tokenizer, FILE.jinja; auto: as recipes train such rows
    max_length: int = 0  # tokens; 0: no limit
    too_long: Literal["drop", "truncate"] = "drop"  # what becomes of rows over max_length
    train_on: Literal["assistant", "last_assistant", "all"] = "assistant"  # all: the prompt trains, too
    bad_rows: Literal["refuse", "drop"] = "refuse"  # drop: leave rows out that cannot be trained on, and count them
    thinking: Literal["keep", "drop"] = "keep"  # of a chat's answers; drop: train without it
    chat_template_kwargs: str = ""  # variables of the chat template as JSON: '{"enable_thinking": false}'
    rows: list[int] = field(default_factory=list)  # row numbers whose tokens are shown; default: the first three
    packed: bool = False  # also pack to max_length, and show the pack that the first row shown is in
    near: bool = False  # also name rows whose question is nearly that of an earlier one
    language: str = ""  # also name rows that are not in it: en, de, zh, ...
    benchmarks: list[str] = field(default_factory=list)  # files or folders of items that no row should share words with
    html: str = ""  # write one page that opens offline
    json: str = ""  # write all figures for programs
    tokens: str = ""  # write {"row", "input_ids", "labels"} of each kept row, a line each; with weights, "loss_weights"


def main(args: Args) -> dict[str, Any]:
    from tunebook.common.commands import inputs, trained

    started = time.monotonic()
    if args.max_length < 0:
        raise UserError(f"--max_length {args.max_length}: expected a number of tokens, or 0 for no limit")
    if args.recipe:
        args = as_in(trained.by(args.recipe), args)
    if args.packed and not args.max_length:
        raise UserError("--packed needs --max_length N: the tokens that a pack holds")
    inputs.writable({"--html": args.html, "--json": args.json, "--tokens": args.tokens}, args.data)
    with inputs.plain_names():
        rows = inputs.rows(args.data, "inspect", bad_rows=args.bad_rows)
        with progress.start("reading"):
            rows.check()
        from tunebook.common.commands import inspect_view
        from tunebook.common.data import quality
        from tunebook.common.report import dataset
        from tunebook.common.tokens import templates, tokenization

        tokenizer, warnings = tokenization.load(args.tokenizer)
        if args.tokenizer == "pocket" and args.data != ["pocket"]:
            warnings = [*warnings, "it is the bundled one; name your model's with --tokenizer for its counts"]
        name, because = args.template, f"of {args.recipe}" if args.recipe else ""
        if name == "auto":
            name, because = inputs.template(rows, tokenizer)
        template = templates.get(name, tokenizer, args.thinking, args.chat_template_kwargs)
        more, overlaps = quality.search(rows, args.near, args.language, args.benchmarks)
        limit = args.max_length or None
        report, kept = dataset.look(
            rows, tokenizer, template, limit, args.too_long, args.train_on, args.rows, args.packed, more
        )
    report = {
        "data": " ".join(args.data), "tokenizer": args.tokenizer, "recipe": args.recipe,
        "template": template.name, "template_because": because, "train_on": args.train_on, "too_long": args.too_long,
        "columns": rows.columns(), "warnings": warnings, "overlaps": overlaps, **report,
        "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip
    inspect_view.show(report, bool(args.rows))
    write(report, kept, args)
    if report["refused"]:
        raise CheckFailed(report["refused"])
    return report


def as_in(recipe: Any, args: Args) -> Args:
    """The arguments with what a recipe does where no flag says otherwise."""
    default = Args()
    names = ("template", "max_length", "train_on", "too_long")
    own = {name: getattr(recipe, name) for name in names if getattr(args, name) == getattr(default, name)}
    return dataclasses.replace(args, recipe=recipe.recipe, **own)


def write(report: dict[str, Any], kept: Any, args: Args) -> None:
    """The files that were asked for, each whole or not at all."""
    from tunebook.common.report import dataset

    if args.html:
        files.write_atomic(args.html, dataset.page(report))
    if args.json:
        files.write_json(args.json, report)
    if args.tokens:
        files.write_atomic(args.tokens, _lines(kept))
    for path in filter(None, (args.html, args.json, args.tokens)):
        print(f"written: {path}", file=sys.stderr)


def _lines(kept: Any) -> Any:
    names = ["row", "input_ids", "labels", *(name for name in kept.column_names if name == LOSS_WEIGHTS)]
    for batch in kept.select_columns(names).iter(batch_size=BATCH):
        for values in zip(*(batch[name] for name in names), strict=True):
            yield json.dumps(dict(zip(names, values, strict=True))) + "\n"
