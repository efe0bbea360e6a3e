"""Two models on the same lm-eval items: differences with intervals, and the items won and lost.

    tunebook compare runs/lora_alpaca runs/qlora_alpaca
    tunebook compare runs/qlora_alpaca/eval/before runs/qlora_alpaca/eval/after --html compared.html
    tunebook compare scores/base scores/tuned --tasks mmlu gsm8k --metrics gsm8k=exact_match,flexible-extract
    tunebook compare scores/plain scores/with_chat_template --any_prompt

BASE and TUNED are folders with lm-eval's results and samples (lm_eval run --log_samples --output_path FOLDER), or runs,
whose scores after training are taken. Exit codes: 2 if the two were not asked the same, 1 if nothing can be tested.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from tunebook.common import files
from tunebook.common.errors import CheckFailed, UserError


@dataclass
class Args:
    # The scores before and the scores after: two folders.
    folders: Annotated[tyro.conf.Positional[list[str]], tyro.conf.arg(metavar="BASE TUNED", help_behavior_hint="")] = (
        field(default_factory=list)
    )
    tasks: list[str] = field(default_factory=list)  # compare only these tasks or groups; default: all
    metrics: list[str] = field(default_factory=list)  # TASK=METRIC to test; default: acc_norm or the first
    any_prompt: bool = False  # accept other templates, examples and settings for the same items
    html: str = ""  # write one page that opens offline
    markdown: str = ""  # write the table
    json: str = ""  # write all figures


def main(args: Args) -> dict[str, Any]:
    from tunebook.common.commands import inputs

    if len(args.folders) == 1 and (Path(args.folders[0]) / "eval" / "before").is_dir():
        place = Path(args.folders[0]) / "eval"
        raise UserError(f"expected two folders; before and after training are {place / 'before'} {place / 'after'}")
    if len(args.folders) != 2:
        raise UserError(f"expected two folders, BASE and TUNED, found {len(args.folders)}: tunebook compare --help")
    inputs.writable({"--html": args.html, "--markdown": args.markdown, "--json": args.json}, args.folders)
    metrics = {}
    for word in args.metrics:
        task, equals, metric = word.partition("=")
        if not equals:
            raise UserError(f"--metrics {word}: expected TASK=METRIC, as gsm8k=exact_match,flexible-extract")
        metrics[task] = metric

    from tunebook.evals.compare import comparison, page

    base, tuned = map(Path, args.folders)
    report = comparison.compare(base, tuned, args.tasks, metrics, args.any_prompt)
    show(report)
    if args.html:
        files.write_atomic(args.html, page.page(report))
    if args.markdown:
        files.write_atomic(args.markdown, page.markdown(report))
    if args.json:
        files.write_json(args.json, report)
    for name in filter(None, (args.html, args.markdown, args.json)):
        print(f"written: {name}")
    if not any(row["headline"] and row["test"] for row in report["rows"]):
        raise CheckFailed("none of these tasks has a metric that can be tested item by item")
    return report


def show(report: dict[str, Any]) -> None:
    """Print a line for each headline row, and what the numbers mean."""
    from tunebook.evals.compare import page

    for row in report["rows"]:
        if row["headline"]:
            print(page.line(row))
    print("", *report["notes"], *page.explained(report), sep="\n")
