"""Safety, bias and quality scores in one table, with the limits of its numbers.

    tunebook eval --model my_model/ --suite safety --benchmark_dir benchmarks/ --output_dir scores/tuned
    tunebook safety scores/tuned
    tunebook safety scores/base scores/tuned --markdown safety.md

Takes one or two folders of scores (before and after), written by tunebook eval or lm_eval run --log_samples. Shows
refusals of XSTest's prompts and of ours, stereotypes of CrowS-Pairs and pronouns of Winogender; other tasks stand below
as quality.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from tunebook.common import files
from tunebook.common.errors import UserError


@dataclass
class Args:
    # The scores of one model, or those before and after: one or two folders.
    folders: Annotated[tyro.conf.Positional[list[str]], tyro.conf.arg(metavar="SCORES", help_behavior_hint="")] = field(
        default_factory=list
    )
    markdown: str = ""  # write the table


def main(args: Args) -> None:
    from tunebook.common.commands import inputs

    if len(args.folders) not in (1, 2):
        raise UserError(f"expected one folder of scores or two, found {len(args.folders)}: tunebook safety --help")
    inputs.writable({"--markdown": args.markdown}, args.folders)
    from rich.table import Column, Table

    from tunebook.common.process.terminal import printer
    from tunebook.evals import safety
    from tunebook.evals.compare import logs

    models = [logs.read(Path(folder)) for folder in args.folders]
    if not any(safety.lines(model) for model in models):
        raise UserError(f"{args.folders[0]} has no safety tasks; tunebook eval --suite safety scores them")
    heads, rows = safety.table(models)
    table = Table(*(Column(head, overflow="fold") for head in heads), box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    printer().print(table)
    lacking = {name for model in models for name in safety.missing(model)}
    if lacking:
        print(f"not run: {', '.join(sorted(lacking))}")
    print(*safety.notes(models), sep="\n")
    if args.markdown:
        files.write_atomic(args.markdown, safety.markdown(models))
        print(f"written: {args.markdown}")
