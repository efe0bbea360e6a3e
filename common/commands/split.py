"""Train, validation and test files from a dataset. Near-duplicates stay in one split, and the result is checked anew.

    tunebook split my_rows.json --output_dir my_split
    tunebook split my_rows.json --output_dir my_split --sizes 90 10 --stratify category --seed 1
    tunebook split my_rows.json --output_dir my_folds --folds 5

Ends with 1 where the check finds questions in two splits.
"""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from tunebook.common import files
from tunebook.common.data.spec import SPLITS
from tunebook.common.data.texts import normalized
from tunebook.common.errors import CheckFailed, UserError


@dataclass
class Args:
    # Files, folders, a Hub name or pocket; words like output=COLUMN after a file name its columns.
    data: Annotated[tyro.conf.Positional[list[str]], tyro.conf.arg(metavar="DATA ...", help_behavior_hint="")] = field(
        default_factory=list
    )
    output_dir: str = ""  # gets train.jsonl, validation.jsonl and test.jsonl, or a folder a fold
    sizes: list[float] = field(default_factory=lambda: [85.0, 10.0, 5.0])  # of train, validation and, if given, test
    seed: int = 0  # another seed, another split; the same seed, the same split
    stratify: Literal["no", "category", "length"] = "no"  # each kind of question, or each length, in every split alike
    folds: int = 0  # cross-validation: so many folders with a train and a validation file each; sizes do not matter
    near: Literal["auto", "yes", "no"] = "auto"  # keep near-duplicates together; auto: up to 200,000 rows
    bad_rows: Literal["refuse", "drop"] = "refuse"  # drop: leave rows out that cannot be trained on, and count them
    threshold: float = 0.8  # similarity from which two questions are near-duplicates
    overwrite: bool = False  # write over files of an earlier split
    json: str = ""  # also write the counts to this file


def main(args: Args) -> dict[str, Any]:
    from tunebook.common.commands import inputs

    check(args)
    inputs.writable({"--json": args.json}, args.data)
    with inputs.plain_names():
        rows = inputs.rows(args.data, "split", bad_rows=args.bad_rows)
        if len(rows.tables) > 1:
            print(f"{len(rows.tables)} parts are read as one and split anew")
        report = {**divide(rows, args), "columns": rows.columns(), "dropped": dict(rows.dropped)}
    show(report)
    if args.json:
        files.write_json(args.json, report)
    if report["leaks"]:
        raise CheckFailed(f"{report['leaks']} pairs of like questions are in different splits; the files are written")
    return report


def check(args: Args) -> None:
    """Refuse arguments that cannot work, before anything is read."""
    if not args.output_dir:
        raise UserError("name the folder for the files: --output_dir my_split")
    if len(args.sizes) not in (2, 3) or min(args.sizes) < 0 or args.sizes[0] <= 0 or not sum(args.sizes) < 1e9:
        raise UserError(f"--sizes {' '.join(map(str, args.sizes))}: expected train, validation and test, like 85 10 5")
    if args.folds and args.folds < 2:
        raise UserError(f"--folds {args.folds}: expected 2 or more")
    if not 0.5 <= args.threshold <= 1:
        raise UserError(f"--threshold {args.threshold}: expected 0.5 to 1")
    there = [path for name in targets(args).values() for path in name.values() if path.exists()]
    if there and not args.overwrite:
        raise UserError(f"{there[0]} exists; choose another --output_dir or add --overwrite")


def targets(args: Args) -> dict[int, dict[str, Path]]:
    """Where the rows go: fold (0 where there are none) -> split -> file."""
    folder = Path(args.output_dir)
    if args.folds:
        return {
            fold: {name: folder / f"fold-{fold + 1}" / f"{name}.jsonl" for name in SPLITS[:2]}
            for fold in range(args.folds)
        }
    return {0: {name: folder / f"{name}.jsonl" for name, size in zip(SPLITS, args.sizes, strict=False) if size}}


def divide(rows: Iterable[dict], args: Args) -> dict[str, Any]:
    """Assign, prove, write; what came of it as counts."""
    from tunebook.common.data import splitting
    from tunebook.common.data.rows import question, system

    near = {"auto": None, "yes": True, "no": False}[args.near]
    questions = [question(row) for row in rows]
    strata = stratify(rows, questions, args.stratify)
    texts = splitting.asked(questions, [system(row) for row in rows])
    if args.folds:
        found = splitting.folds(texts, args.folds, args.seed, strata)
        method = splitting.method(len(texts))
    else:
        found = splitting.assign(texts, args.sizes, args.seed, strata, near, args.threshold)
        method = splitting.method(len(texts), near)
    together = "near" if method.startswith("near") else "equal"
    pairs = splitting.leaks(texts, found, args.threshold) if together == "near" else across(texts, found)
    files = write(rows, found, args)
    threshold = args.threshold if together == "near" else None
    return {
        "rows": len(texts),
        "files": files,
        "method": method,
        "seed": args.seed,
        "stratify": args.stratify,
        "checked": together,
        "compared": "questions" if texts is questions else "system texts and questions",
        "empty": "" if args.folds else splitting.unfilled(texts, found, args.sizes, threshold),
        "threshold": args.threshold,
        "leaks": len(pairs),
        "first_leaks": [[int(i) + 1, int(j) + 1] for i, j, *_ in pairs[:10]],
    }


def stratify(rows: Iterable[dict], texts: Sequence[str], how: str) -> list[str] | None:
    """A name for each row by --stratify, or None."""
    from tunebook.common.data import categories, splitting
    from tunebook.common.data.rows import instruction

    if how == "category":
        return [categories.of(instruction(row)) for row in rows]
    return splitting.length_strata(texts) if how == "length" else None


def across(texts: Sequence[str], found: Any) -> list[tuple[int, int]]:
    """Pairs of rows in different splits whose texts are equal but for case and white space, from the result alone."""
    first: dict[str, int] = {}
    pairs = []
    for place, text in enumerate(texts):
        earlier = first.setdefault(normalized(text), place)
        if found[earlier] != found[place]:
            pairs.append((earlier, place))
    return pairs


def write(rows: Iterable[dict], found: Any, args: Args) -> dict[str, int]:
    """Write the files, each whole or not at all. Returns file -> rows."""
    counts = {str(path): 0 for paths in targets(args).values() for path in paths.values()}
    for fold, paths in targets(args).items():
        with contextlib.ExitStack() as stack:
            try:
                for path in paths.values():
                    path.parent.mkdir(parents=True, exist_ok=True)
                parts = {name: stack.enter_context(files.atomic(path)) for name, path in paths.items()}
                handles = {name: stack.enter_context(part.open("wb")) for name, part in parts.items()}
            except OSError as error:
                raise UserError(f"--output_dir {args.output_dir} cannot be written: {error.strerror}") from None
            for row, side in zip(rows, found.tolist(), strict=True):
                name = SPLITS[side] if not args.folds else SPLITS[side == fold]
                handles[name].write(files.json_line(row))
                counts[str(paths[name])] += 1
    return counts


def show(report: dict[str, Any]) -> None:
    """Print where the rows went and what the proof says."""
    print(*report["columns"], sep="\n")
    for file, rows in report["files"].items():
        print(f"{rows:>10,}  {100 * rows / report['rows']:5.2f} %  {file}")
    alike = f"alike ({report['threshold']} or more)" if report["checked"] == "near" else "equal"
    print(f"{report['method']}; seed {report['seed']}")
    if report["empty"]:
        print(f"{report['empty']}; --near no keeps only equal ones together")
    pairs = f"{report['leaks']} pairs of rows whose {report['compared']} are {alike}"
    print(f"checked on the result: {pairs} are on different sides")
    for i, j in report["first_leaks"]:
        print(f"  rows {i} and {j} of all that were read")
