"""Rows of a user's test split as items of lm-eval: prompt and answer in a run's template, with what training counts."""

import sys
from functools import cache
from pathlib import Path
from typing import Any

from common import data, generation, rendering, templates, tokenizers
from common.cli import UserError, nearest
from common.columns import Table
from common.templates import AnyTemplate


def rows_of(words: list[str]) -> list[dict]:
    """The test side of what --dataset names, or all rows of a file without sides.

    Raises:
        UserError: it cannot be read, or it has sides but no test side.
    """
    found: list[dict] = []
    wanted, _ = data.parse(words)
    notes: list[str] = []
    for name, want in wanted.items():
        sides = data.sides_of(name, want, notes)
        side = "test" if "test" in sides else ""
        if side not in sides:
            raise UserError(f"--dataset {name}: it has no test side, only {', '.join(sides)}; name the file of one")
        found += Table(sides[side], f"{name} ({side})" if side else name, want.mapping)
        if want.share is not None:
            notes.append(f"{name}: a share is for training; all its rows are scored")
    kept = [row for row in found if not rendering.answers_nothing(row)]
    if len(kept) < len(found):
        notes.append(f"{len(found) - len(kept)} of {len(found)} rows have no answer and are left out")
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if not kept:
        raise UserError(f"--dataset {' '.join(words)}: no row has an answer")
    return kept


def template_of(name: str, tokenizer: Any) -> AnyTemplate:
    """The template of a name, or the one that was saved in a folder."""
    return templates.load(name) if (Path(name) / templates.FILE).exists() else templates.get(name, tokenizer)


@cache
def docs(words: tuple[str, ...], template: str, tokenizer: str) -> list[dict[str, Any]]:
    """Items of the rows: `prompt`, `answer`, `context` and `scored` (what is scored after it: the prompt's last white
    space with the answer and its end; the white space alone, where there is any), `tokens` (how many train), `bytes`
    (of the answer), `as_trained` (1.0 where lm-eval makes the tokens of it that training does).

    Args:
        words: as --dataset takes them.
        template: a name, or a folder with a saved one.
        tokenizer: a folder or Hub name.
    """
    if not (words and template and tokenizer):
        raise UserError('--metadata needs {"dataset": [FILE], "template": NAME, "tokenizer": FOLDER}')
    loaded, _ = tokenizers.load(tokenizer)
    return items(rows_of(list(words)), loaded, template_of(template, loaded))


def items(rows: list[dict], tokenizer: Any, template: AnyTemplate) -> list[dict[str, Any]]:
    """What `docs` gives, of rows that have been read."""
    encoded, bad, _ = rendering.renderer(tokenizer, template, "last")(rows)
    if bad:
        place, reason = next(iter(bad.items()))
        number = rows[place].get("row", place + 1)
        raise UserError(f"the template {template.name} cannot take {len(bad)} rows, such as row {number}: {reason}")
    found = []
    for row, (ids, spans) in zip(rows, encoded, strict=True):
        start, end = spans[-1]
        prompt, answer = template.prompt(row), template.completion(row)
        whole = answer + tokenizer.convert_ids_to_tokens(ids[end - 1])
        space = prompt[len(prompt.rstrip()) :]
        before, after = _as_lm_eval(tokenizer, prompt), _as_lm_eval(tokenizer, prompt + whole)
        found.append(
            {
                "prompt": prompt,
                "answer": answer,
                "context": prompt.rstrip(),
                "scored": [space + whole, space] if space else [whole],
                "tokens": end - start,
                "bytes": len(answer.encode("utf-8", "surrogatepass")),
                "as_trained": float(after == ids[:end] and len(before) == start and before == ids[:start]),
            }
        )
    return found


def _as_lm_eval(tokenizer: Any, text: str) -> list[int]:
    """The ids that lm-eval makes of a text: its own special tokens are control, a beginning is not put twice."""
    opens = tokenizer.bos_token if tokenizer.bos_token is not None else tokenizer.eos_token
    return tokenizer.encode(text, **({"add_special_tokens": False} if text.startswith(opens) else {}))


def stops(tokenizer: Any, template: AnyTemplate) -> dict[str, Any]:
    """Where answers end, as lm-eval's --gen_kwargs: the ids and texts of generation.ends."""
    ends = generation.ends(tokenizer, template)
    texts = [*ends.texts, *(tokenizer.convert_ids_to_tokens(place) for place in sorted(ends.ids))]
    return {"until": texts, "eos_token_id": sorted(ends.ids)}


def choose(wanted: str, folders: list[str], tokenizer: Any) -> tuple[str, str]:
    """The template as --metadata takes it, and a note where nobody has chosen it.

    Args:
        wanted: as typed; "": the one saved in the first of the folders that has one, else the tokenizer's own.
    """
    if wanted:
        if wanted.partition(":")[0] not in templates.NAMES and not Path(wanted).exists():
            known = f"there is {', '.join(templates.NAMES)} and FILE.jinja"
            raise UserError(f"--template {wanted}: {known}{nearest(wanted, templates.NAMES)}")
        return wanted, ""
    for folder in folders:
        if (Path(folder) / templates.FILE).exists():
            return str(Path(folder).resolve()), ""
    if tokenizer.chat_template:
        return "tokenizer", "the tokenizer's own chat template is used; --template names another"
    return "alpaca", "there is no saved template and no chat template: Alpaca's is used; --template names another"
