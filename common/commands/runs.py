"""All runs below a folder: state, losses, scores with intervals, cost, and the arguments in which they differ.

    tunebook runs runs
    tunebook runs runs --html runs.html

Nothing of a run is loaded or changed; what a run is doing is told by its lock and its log. A folder whose run cannot be
read is named, and left out.
"""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tunebook.common import files
from tunebook.common.errors import UserError


@dataclass
class Args:
    # The folder with the runs, at any depth down to four.
    folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")] = "runs"
    html: str = ""  # write one page that opens offline, with the curves of all runs over each other


def main(args: Args) -> None:
    from tunebook.common.report import runs, runs_view

    folder = Path(args.folder)
    if not folder.is_dir():
        what = "is a file; name a folder with runs" if folder.exists() else "does not exist; recipes write to runs/"
        raise UserError(f"{args.folder} {what}")
    if args.html and not Path(args.html).absolute().parent.is_dir():
        raise UserError(f"--html {args.html}: there is no folder {Path(args.html).parent}")
    found, left_out = runs.collect(folder)
    if not found:
        why = f" ({'; '.join(left_out)})" if left_out else ""
        raise UserError(f"{args.folder} holds no run of tunebook{why}; a run's folder has a run.json or report.json")
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    print(runs_view.terminal(found, left_out, width))
    if args.html:
        page = Path(args.html)
        files.write_atomic(page, runs_view.page(folder, found, left_out, page.absolute().parent))
        print(f"written: {page}")
