"""Rows to train on: from the bundled set, a local file or the Hub, checked in one go, and split without leakage."""

import gzip
import hashlib
import json
from pathlib import Path

from common.cli import UserError
from common.pocket import FOLDER as POCKET

Row = dict[str, str]
FIELDS = ("instruction", "input", "output")
SHOWN = 10  # problems that a message lists; the rest are counted
EXPECTED = 'expected {"instruction": ..., "input": ..., "output": ...}, input may be missing'


def load(name: str, seed: int = 0) -> dict[str, list[Row]]:
    """The train, validation and test rows of a data set.

    Args:
        name: `pocket`, a local .json or .jsonl file (also .gz), or a Hub name.
        seed: of the split, where the data set has none of its own.

    Returns:
        {"train": [...], "validation": [...], "test": [...]}; rows hold at least instruction, input and output.

    Raises:
        UserError: the file or name does not exist, or rows are wrong: all of them in one message, with row numbers.
    """
    if name == "pocket":
        return {part: read(POCKET / f"{part}.jsonl") for part in ("train", "validation", "test")}
    if Path(name).exists() or Path(name).suffix in (".json", ".jsonl", ".gz"):
        return split(read(Path(name)), seed=seed)
    return _from_hub(name, seed)


def read(path: Path) -> list[Row]:
    """The checked rows of a .json file (a list of objects) or .jsonl file (an object a line)."""
    if path.is_dir():
        raise UserError(f"--dataset {path} is a folder; name a .json or .jsonl file in it")
    kind = path.suffixes[-2] if path.suffix == ".gz" and len(path.suffixes) > 1 else path.suffix
    if kind not in (".json", ".jsonl"):
        raise UserError(f"--dataset {path}: expected a .json or .jsonl file (also .gz), or a Hub name")
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"--dataset {path}: there is no such file") from None
    except (OSError, EOFError) as error:
        raise UserError(f"--dataset {path} cannot be read: {error}") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"--dataset {path} is not UTF-8: byte {error.start} is {error.object[error.start]:#x}"
        ) from None
    return check(_json_lines(text, path) if kind == ".jsonl" else _json_list(text, path), str(path))


def _json_lines(text: str, path: Path) -> list:
    values, problems = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                values.append(json.loads(line))
            except ValueError as error:
                problems.append(f"line {number}: not JSON ({error})")
    _raise(problems, str(path), "every line must be one JSON object")
    return values


def _json_list(text: str, path: Path) -> list:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        hint = "; one object a line is .jsonl: rename the file" if error.msg == "Extra data" else ""
        raise UserError(
            f"--dataset {path}: not JSON at line {error.lineno}, column {error.colno}: {error.msg}{hint}"
        ) from None
    if not isinstance(values, list):
        raise UserError(f"--dataset {path}: expected a list of rows, found {_kind(values)}")
    return values


def _from_hub(name: str, seed: int) -> dict[str, list[Row]]:
    import datasets

    try:
        parts = datasets.load_dataset(name)
    except Exception as error:
        # The Hub client raises many kinds; what a user needs is which name failed and that a file works, too.
        raise UserError(f"--dataset {name}: no such file, and the Hub says: {type(error).__name__}: {error}") from None
    rows = {part: check(list(values), f"{name} ({part})") for part, values in parts.items()}
    if {"train", "validation", "test"} <= rows.keys():
        return {part: rows[part] for part in ("train", "validation", "test")}
    return split(rows["train"] if "train" in rows else [row for part in rows.values() for row in part], seed=seed)


def check(values: list, source: str) -> list[Row]:
    """The rows, with a missing input as ''. Other fields are kept.

    Raises:
        UserError: names every wrong row (the first ten in full), counted from 1.
    """
    problems, rows = [], []
    for number, value in enumerate(values, 1):
        if not isinstance(value, dict):
            problems.append(f"row {number}: expected an object, found {_kind(value)}")
            continue
        row = {**value, "input": "" if value.get("input") is None else value["input"]}
        for field in FIELDS:
            if field not in row:
                problems.append(f"row {number}: no field `{field}` (it has {', '.join(map(str, value)) or 'none'})")
            elif not isinstance(row[field], str):
                problems.append(f"row {number}: `{field}` is {_kind(row[field])}, expected text")
        rows.append(row)
    _raise(problems, source, EXPECTED)
    if not rows:
        raise UserError(f"--dataset {source} has no rows")
    return rows


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def _raise(problems: list[str], source: str, expected: str) -> None:
    if problems:
        more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise UserError(f"--dataset {source}: {expected}\n  " + "\n  ".join(problems[:SHOWN]) + more)


def split(rows: list[Row], sizes: tuple[int, int, int] = (85, 10, 5), seed: int = 0) -> dict[str, list[Row]]:
    """Train, validation and test rows by percentage. Rows that ask the same thing stay on one side.

    The side depends only on the text of instruction and input and on the seed, so rows added later move no other row.
    """
    parts: dict[str, list[Row]] = {"train": [], "validation": [], "test": []}
    for row in rows:
        text = f"{seed}\x00{row['instruction'].strip()}\x00{row['input'].strip()}"
        place = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64 * 100
        side = "train" if place < sizes[0] else "validation" if place < sizes[0] + sizes[1] else "test"
        parts[side].append(row)
    if not parts["train"]:
        raise UserError(f"the data set has {len(rows)} rows, too few to split")
    return parts
