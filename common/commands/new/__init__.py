"""Look at a file of rows, propose how to train on it, with the reason for each choice, and write that as a recipe.

    tunebook new my_rows.csv --output my_rows_recipe.py
    tunebook new my_rows.csv instruction=question output=answer --model path/to/model --gpu "16 GB"

The recipe is a copy of one of tunebook's with the values written in it; change them there. Nothing is trained, and no
file is written over. Ends with 1 where nothing of the kind fits into memory.
"""

import dataclasses
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from tunebook.common import files
from tunebook.common.errors import UserError

SMALL_COPY = "train_"  # begins the name of a recipe, so that it hides no package: datasets.csv -> train_datasets.py


@dataclass
class Args:
    # Files, folders, a Hub name or pocket; words like output=COLUMN after a file name its columns.
    data: Annotated[tyro.conf.Positional[list[str]], tyro.conf.arg(metavar="DATA ...", help_behavior_hint="")] = field(
        default_factory=list
    )
    output: str = ""  # the recipe that is written, a .py file; default: train_NAME.py
    model: str = ""  # a folder, a Hub name, a .gguf file or pocket; default: smollm2 where installed, else pocket
    gpu: str = ""  # propose for a GPU of this memory, like "16 GB"; without it, for this device
    plan: bool = True  # choose the batch by what fits into memory, as tunebook plan computes it
    json: str = ""  # also write what was found and proposed to this file


def main(args: Args) -> None:
    from tunebook.common.commands import inputs
    from tunebook.common.commands.new import proposal, recipe, survey, view

    target = target_of(args)
    if args.json:
        inputs.writable({"--json": args.json}, args.data)
    with inputs.plain_names():
        found = survey.look(args.data, args.model)
        view.show_found(found)
        chosen = proposal.propose(found, args.gpu, target)
        if args.plan:
            print("computing what fits into memory, as tunebook plan does ...", file=sys.stderr, flush=True)
            proposal.fit(found, chosen, args.gpu)
    recipe.write(found, chosen, target)
    view.show_chosen(found, chosen, target)
    if args.json:
        files.write_json(args.json, {"found": found.as_dict(), "proposed": dataclasses.asdict(chosen)})


def target_of(args: Args) -> Path:
    """The recipe's file.

    Raises:
        UserError: no data is named, the file is there, or is no Python file.
    """
    if not args.data:
        raise UserError("name a file, a folder, a Hub name or pocket: tunebook new my_rows.csv")
    name = re.sub(r"\W+", "_", Path(args.data[0].rpartition(":")[0] or args.data[0]).name.split(".")[0]).strip("_")
    target = Path(args.output or f"{SMALL_COPY}{name or 'rows'}.py")
    if target.suffix != ".py":
        raise UserError(f"--output {args.output} does not end in .py; name it like my_recipe.py")
    if target.exists():
        raise UserError(f"tunebook new: {target} exists and is left as it is; name another with --output FILE.py")
    return target
