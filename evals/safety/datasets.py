"""Rows of the safety and bias datasets, from local files as their authors publish them."""

import csv
import json
import os
import re
from pathlib import Path
from typing import Any

from tunebook.common.errors import UserError
from tunebook.evals.harness.catalog import TASKS

OWN = TASKS / "safety" / "prompts.jsonl"
FILES = {  # name -> (file, source)
    "xstest": (
        "xstest/xstest_prompts.csv",
        "xstest_prompts.csv of github.com/paul-rottger/exaggerated-safety (CC BY 4.0)",
    ),
    "crows_pairs": (
        "crows_pairs/crows_pairs_anonymized.csv",
        "data/crows_pairs_anonymized.csv of github.com/nyu-mll/crows-pairs (CC BY-SA 4.0)",
    ),
    "winogender": (
        "winogender/all_sentences.tsv",
        "data/all_sentences.tsv of github.com/rudinger/winogender-schemas (MIT)",
    ),
}
COLUMNS = {
    "xstest": ("id", "prompt", "type", "label"),
    "crows_pairs": ("sent_more", "sent_less", "bias_type"),
    "winogender": ("sentid", "sentence"),
}
PRONOUNS = {
    "male": {"he", "his", "him"},
    "female": {"she", "her", "hers"},
    "neutral": {"they", "their", "them", "theirs"},
}
VARIABLE = "TUNEBOOK_SAFETY_DIR"


def dataset(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The rows as lm-eval's tasks take them."""
    import datasets

    return {"test": datasets.Dataset.from_list(rows)}


def find(name: str, folder: str = "") -> Path:
    """The file of a dataset: in `folder`, else in that of the environment variable, else in the working directory
    (which is --benchmark_dir while tunebook eval loads its tasks) or beside it.

    Raises:
        UserError: it is missing; says where to get it and where to put it.
    """
    file, source = FILES[name]
    named = folder or os.environ.get(VARIABLE, "")
    places = [Path(named)] if named else [Path.cwd(), Path.cwd().parent]
    for place in places:
        if (place / file).is_file():
            return place / file
    raise UserError(
        f"the {name} dataset is missing: put {source} at {places[0] / file}. Looked in: "
        f"{', '.join(str(place) for place in places)}; {VARIABLE}=FOLDER or --benchmark_dir names another folder. "
        "safety_prompts_safe and safety_prompts_unsafe need no data"
    )


def rows_of(name: str, folder: str = "") -> list[dict[str, str]]:
    """The rows of a dataset's file.

    Raises:
        UserError: it is missing, or lacks a column.
    """
    path = find(name, folder)
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
        try:
            rows = list(reader)
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path}, near line {reader.line_num + 1}: {error}") from None
    wanted = COLUMNS[name]
    missing = [column for column in wanted if column not in (reader.fieldnames or ())]
    if missing or not rows:
        raise UserError(f"{path}: expected rows with the columns {', '.join(wanted)}; missing: {missing or 'rows'}")
    short = next((place for place, row in enumerate(rows, 1) if any(not row[column] for column in wanted)), 0)
    if short:
        raise UserError(f"{path}, row {short}: one of {', '.join(wanted)} is empty")
    return rows


def prompts(name: str, label: str, template: str = "", tokenizer: str = "", folder: str = "") -> list[dict[str, Any]]:
    """The prompts of one label: `prompt`, `label`, `skill` (its type) and `asked`, what the model is given.

    Args:
        name: xstest, or prompts for our own.
        template: a name or a folder with a saved one; "": none.
        tokenizer: a folder or Hub name, which a chat template needs.
    """
    if name == "prompts":
        rows = [json.loads(line) for line in OWN.read_text(encoding="utf-8").splitlines()]
    else:
        rows = [row | {"kind": row["type"]} for row in rows_of(name, folder)]
        if unknown := {row["label"] for row in rows} - {"safe", "unsafe"}:
            raise UserError(f"{find(name, folder)}: the label is safe or unsafe, found {', '.join(sorted(unknown))}")
    found = [row for row in rows if row["label"] == label]
    if not found:
        raise UserError(f"{find(name, folder)}: no row is labeled {label}")
    ask = _asker(template, tokenizer)
    return [
        {"id": row["id"], "prompt": row["prompt"], "asked": ask(row["prompt"]), "label": label, "skill": row["kind"]}
        for row in found
    ]


def _asker(template: str, tokenizer: str) -> Any:
    if not template:
        return str
    from tunebook.common.tokens import templates, tokenization

    loaded = tokenization.load(tokenizer)[0] if tokenizer else None
    chosen = templates.get(template, loaded)
    return lambda prompt: chosen.prompt({"instruction": prompt, "input": "", "output": ""})


def crows_pairs(folder: str = "") -> list[dict[str, Any]]:
    """Pairs of sentences: `sent_more` (the more stereotypical), `sent_less`, `skill` (the kind of bias)."""
    return [
        {"sent_more": row["sent_more"], "sent_less": row["sent_less"], "skill": row["bias_type"]}
        for row in rows_of("crows_pairs", folder)
    ]


def winogender(folder: str = "") -> list[dict[str, Any]]:
    """Sentences: `sentence`, its `pronoun`, `gender`, `choices`, `answer` (0: the occupation), `pair` (equal for
    sentences that differ in the pronoun's gender alone), `skill` (the gender, for tables).

    Raises:
        UserError: a row's name is not occupation.participant.answer.gender.txt, or it has no such single pronoun.
    """
    found = []
    for place, row in enumerate(rows_of("winogender", folder), 1):
        match = re.fullmatch(r"([\w ]+)\.([\w ]+)\.([01])\.(male|female|neutral)\.txt", row["sentid"])
        words = re.findall(r"\w+", row["sentence"])
        pronouns = [word for word in words if match and word.lower() in PRONOUNS[match[4]]]
        if not match or len(pronouns) != 1:
            raise UserError(
                f"{find('winogender', folder)}, row {place}: expected a name like technician.customer.1.male.txt and "
                f"one pronoun of that gender, found {row['sentid']!r} and {pronouns}"
            )
        names = [name if name == "someone" else f"the {name}" for name in (match[1], match[2])]
        found.append(
            {
                "sentence": row["sentence"], "pronoun": pronouns[0], "gender": match[4], "skill": match[4],
                "choices": names, "answer": int(match[3]), "pair": f"{match[1]}.{match[2]}.{match[3]}",
            }
        )  # fmt: skip
    return found
