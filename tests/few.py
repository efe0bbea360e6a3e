"""A part of a bundled data set as a folder of files: what a test does not look at need not be scored five times."""

from itertools import islice
from pathlib import Path

from tunebook.common.pocket import FOLDER


def rows(folder: Path, kind: str = "", train: int = 200, others: int = 16) -> Path:
    """The first rows of each side in `folder`, whose name is that of the data in messages.

    Args:
        kind: "" for instructions, "pairs" or "chat".
    """
    folder.mkdir(exist_ok=True)
    for side in ("train", "validation", "test"):
        with (FOLDER / f"{kind}{'_' if kind else ''}{side}.jsonl").open(encoding="utf-8") as file:
            (folder / f"{side}.jsonl").write_text("".join(islice(file, train if side == "train" else others)))
    return folder
