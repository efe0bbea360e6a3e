"""Rows of a user's test split as items of lm-eval: prompt and answer in a run's template, with what training counts."""

import hashlib
import json
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from tunebook.common import data, generation
from tunebook.common.data import rows
from tunebook.common.data.schema import SchemaReader
from tunebook.common.data.spec import parse
from tunebook.common.errors import UserError, nearest
from tunebook.common.tokens import rendering, templates, tokenization
from tunebook.common.tokens.chat_templates import ChatTemplate
from tunebook.common.tokens.jinja_templates import Unstable
from tunebook.common.tokens.templates import AnyTemplate
from tunebook.evals.harness.requests import Requests


@cache
def read(dataset: tuple[str, ...]) -> list[dict]:
    """The test split of what --dataset names, or all rows of a file without splits. Notes are printed.

    Raises:
        UserError: it cannot be read, or it has splits but no test split.
    """
    read_rows: list[dict] = []
    sources, _ = parse(list(dataset))
    notes: list[str] = []
    for name, spec in sources.items():
        splits = data.splits_of(name, spec, notes)
        split = "test" if "test" in splits else ""
        if split not in splits:
            raise UserError(f"--dataset {name}: it has no test split, only {', '.join(splits)}; name the file of one")
        read_rows += SchemaReader(splits[split], f"{name} ({split})" if split else name, spec.mapping)
        if spec.share is not None:
            notes.append(f"{name}: a share is for training; all its rows are scored")
    answered = [row for row in read_rows if not rows.answers_nothing(row)]
    if len(answered) < len(read_rows):
        notes.append(f"{len(read_rows) - len(answered)} of {len(read_rows)} rows have no answer and are left out")
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if not answered:
        raise UserError(f"--dataset {' '.join(dataset)}: no row has an answer")
    return answered


@cache
def docs(dataset: tuple[str, ...], template: str, tokenizer: str, bare: bool = False) -> list[dict[str, Any]]:
    """Items of the rows: `row` (a hash of what it says, whatever the template), `prompt`, `answer`, `context` and
    `scored` (what is scored after it: the rest of the prompt with the answer and its end; the rest of the prompt alone,
    where there is any), `tokens` (how many train), `bytes` (of the answer), `as_trained` (1.0 where lm-eval makes the
    tokens of it that training does).

    Args:
        dataset: as --dataset takes it.
        template: a name, or a folder with a saved one.
        tokenizer: a folder or Hub name.
        bare: as for `Requests`.
    """
    if not (dataset and template and tokenizer):
        raise UserError('--metadata needs {"dataset": [FILE], "template": NAME, "tokenizer": FOLDER}')
    loaded, _ = tokenization.load(tokenizer)
    return items(read(dataset), loaded, templates.get(template, loaded), bare)


def items(rows: list[dict], tokenizer: Any, template: AnyTemplate, bare: bool = False) -> list[dict[str, Any]]:
    """What `docs` gives, of rows that have been read."""
    render = rendering.renderer(tokenizer, template, "last_assistant")
    encoded, bad, _ = render(rows)
    if bad:
        place, reason = next(iter(bad.items()))
        number = rows[place].get("row", place + 1)
        raise UserError(f"the template {template.name} cannot take {len(bad)} rows, such as row {number}: {reason}")
    requests = Requests(tokenizer, bare)
    found = []
    for row, (ids, spans) in zip(rows, encoded, strict=True):
        start, end, _ = spans[-1]
        prompt, answer = requests.opened(template.prompt(row), ids), template.completion(row)
        text = requests.opened(_text(row, template, render), ids)
        last = tokenizer.convert_ids_to_tokens(ids[end - 1])
        request = requests.of(text if text.endswith(last) else text + last, ids[:end], start, prompt)
        found.append(
            {
                "row": _row_hash(row),
                "prompt": prompt,
                "answer": answer,
                "context": request.context,
                "scored": [request.scored, request.lead] if request.lead else [request.scored],
                "tokens": end - start,
                "bytes": len(answer.encode("utf-8", "surrogatepass")),
                "as_trained": float(request.exact),
            }
        )
    return found


def _row_hash(row: dict) -> str:
    text = json.dumps({key: row[key] for key in sorted(row) if key not in ("row", "source")}, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def bare(dataset: tuple[str, ...], template: str, tokenizer: str) -> bool:
    """Whether more rows are the tokens of training where lm-eval puts none before a text, or none after it."""
    usual = [doc["as_trained"] for doc in docs(dataset, template, tokenizer)]
    return 0 in usual and sum(doc["as_trained"] for doc in docs(dataset, template, tokenizer, True)) > sum(usual)


def _text(row: dict, template: AnyTemplate, render: Any) -> str:
    """The row up to the end of its answer, as the template writes it."""
    if isinstance(template, ChatTemplate):
        with suppress(Unstable):  # what looks like a special token in it is control to lm-eval: other tokens, anyway
            return render.through(row)
    return template.prompt(row) + template.completion(row)


def stops(tokenizer: Any, template: AnyTemplate, *more: int) -> dict[str, Any]:
    """Where answers end, as lm-eval's --gen_kwargs: the ids and texts of generation.stop_conditions, and `more` ids."""
    ends = generation.stop_conditions(tokenizer, template)
    ids = sorted({*ends.ids, *more})
    return {"until": [*ends.texts, *map(tokenizer.convert_ids_to_tokens, ids)], "eos_token_id": ids}


def choose(name: str, folders: list[str], tokenizer: Any) -> tuple[str, str]:
    """The template as --metadata takes it, and a note where nobody has chosen it.

    Args:
        name: as typed; "": the one saved in the first of the folders that has one, else the tokenizer's own.
    """
    if name:
        if name.partition(":")[0] not in templates.NAMES and not Path(name).exists():
            known = f"there is {', '.join(templates.NAMES)} and FILE.jinja"
            raise UserError(f"--template {name}: {known}{nearest(name, templates.NAMES)}")
        return name, ""
    for folder in folders:
        if (Path(folder) / templates.FILE).exists():
            return str(Path(folder).resolve()), ""
    if tokenizer.chat_template:
        return "tokenizer", "the tokenizer's own chat template is used; --template names another"
    return "alpaca", "there is no saved template and no chat template: Alpaca's is used; --template names another"
