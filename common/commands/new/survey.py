"""What a dataset is: its rows, what its columns became, lengths in tokens, languages, problems."""

import contextlib
import itertools
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from tunebook.common import local_models
from tunebook.common.commands import inputs
from tunebook.common.commands.new import model_facts
from tunebook.common.data import layouts, quality
from tunebook.common.data.rows import Row, kind, texts
from tunebook.common.data.schema import PEEKED
from tunebook.common.data.spec import ANSWERS
from tunebook.common.errors import RowErrors, UserError

MOST_LOST = 0.5  # share of rows that are wrong, above which the file is refused and not cleaned
LANGUAGE_ROWS = 200  # rows whose language is looked at
LANGUAGE_LETTERS = 40  # a shorter text tells no language
POCKET = "pocket"


@dataclass
class Found:
    """What a dataset is, and the template that its rows would be trained in.

    Attributes:
        kind: instruction, pair, chat or preference; of most rows.
        bad_rows: drop, where some rows are wrong; `lost`: what was dropped, in words.
        chat_tuned: the model's tokenizer ends an answer as its chat template does.
        parameters, positions: of the model, as model_facts gives them.
        lengths: tokens of each row; of a preference pair, those of its longer side.
        refused: why training would refuse these rows, or None.
    """

    data: list[str]
    model: str
    model_given: bool
    kind: str
    template: str
    template_because: str
    chat_tuned: bool
    columns: list[str]
    statistics: dict[str, Any]
    lengths: list[int]
    trained_tokens: int
    tokens: int
    languages: dict[str, float]
    refused: str | None
    parameters: int | None
    positions: int | None
    bad_rows: str = "refuse"
    lost_rows: int = 0
    lost: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "lengths"}

    @property
    def rows(self) -> int:
        return int(self.statistics["rows"])


def look(words: list[str], model: str) -> Found:
    """Read the rows and encode them as the model would get them. Where some are wrong, they are left out.

    Raises:
        UserError: they cannot be read, their columns are not known, too many are wrong, or there is no such model.
    """
    try:
        return _look(words, model, "refuse")
    except UserError as error:
        first = error
    try:
        found = _look(words, model, "drop")
    except UserError:
        raise first from None
    if not found.lost_rows or found.lost_rows > MOST_LOST * (found.rows + found.lost_rows):
        raise first
    return found


def _look(words: list[str], model: str, bad_rows: str) -> Found:
    given, model = bool(model), model or default_model()
    rows, preference = read(words, bad_rows)
    from tunebook.common.tokens import tokenization
    from tunebook.common.training import defaults

    place, parameters, positions = model_facts.facts(model)
    tokenizer, warnings = tokenization.load(place)
    chat_tuned = defaults.end_of_turn(None, tokenizer) is not None
    kinds = Counter(kind(row) for row in itertools.islice(rows, 1000))
    name, because = template_of(rows, tokenizer, "chat" in kinds, chat_tuned)
    report, lengths, name, because, bad_rows = encoded(rows, tokenizer, name, because, preference, bad_rows)
    return Found(
        data=words,
        model=model,
        model_given=given,
        kind="preference" if preference else kinds.most_common(1)[0][0],
        template=name,
        template_because=because,
        chat_tuned=chat_tuned,
        columns=rows.columns(),
        statistics=report["statistics"],
        lengths=sorted(lengths),
        trained_tokens=report["counts"]["trained_tokens"],
        tokens=report["counts"]["tokens"],
        languages=languages(rows),
        refused=report["refused"],
        parameters=parameters,
        positions=positions,
        bad_rows=bad_rows,
        lost_rows=rows.dropped.total() + report["counts"]["dropped"].get("template", 0),
        lost=report["lost"],
        warnings=warnings,
    )


def default_model() -> str:
    """The real model that is here, where there is one."""
    with contextlib.suppress(UserError):
        local_models.smollm2()
        return "smollm2"
    return POCKET


def read(words: list[str], bad_rows: str) -> tuple[inputs.AllRows, bool]:
    """The rows, and whether they are preference pairs. Small sources are read to their end."""
    from tunebook.common.preference import pairs

    try:
        rows = inputs.rows(words, "new", bad_rows=bad_rows)
        preference = all(map(_has_pairs, (table for table, _ in rows.tables)))
    except layouts.PreferencePairs:
        preference = True
    if preference:
        rows = inputs.rows(words, "new", bad_rows=bad_rows, reads=pairs.PairReader)
    rows.check()
    return rows, preference


def _has_pairs(table: Any) -> bool:
    """Whether a source has the columns of preference pairs, and nobody has said that it is to be read otherwise."""
    peeked = itertools.islice(table.source.rows(RowErrors(table.name, drop=True)), PEEKED)
    return not table.mapped and any(set(ANSWERS) <= value.keys() for _, value in peeked if isinstance(value, dict))


def template_of(rows: inputs.AllRows, tokenizer: Any, chats: bool, chat_tuned: bool) -> tuple[str, str]:
    """The template to train in, and why."""
    has_own = isinstance(getattr(tokenizer, "chat_template", None), str)
    if chat_tuned:
        return "tokenizer", "the model is tuned to chat in its own template; another would cost what it has learned"
    if not chats:
        return "alpaca", "a base model has no prompt of its own, and rows of one question each need no turns"
    if has_own:
        return "tokenizer", "conversations; the tokenizer brings a chat template"
    return "chatml", "conversations; this tokenizer has no chat template of its own, and ChatML is the usual one"


def encoded(
    rows: inputs.AllRows, tokenizer: Any, name: str, because: str, preference: bool, bad_rows: str
) -> tuple[dict[str, Any], list[int], str, str, str]:
    """dataset.look's report, the length of each row, and the template that takes the rows, with its reason.

    A template that cannot write some rows gives way to ChatML, which writes tools and calls; else they are dropped.
    """
    from tunebook.common.tokens import templates

    first: UserError | None = None
    tries = [(name, rows.drop)]
    if name != "chatml":
        tries.append(("chatml", rows.drop))
    if name != "alpaca" and not rows.drop:
        tries.append((name, True))
    for one, drop in tries:
        rows.drop = drop
        try:
            report, lengths = _encoded(rows, tokenizer, templates.get(one, tokenizer), preference)
        except UserError as error:
            first = first or error
            continue
        if one != name:
            why = " ".join(str(first).split()).rpartition("cannot take these rows: ")[2]
            because = f"{name} cannot write all rows: {why.split(';')[0][:120]}"
        return report, lengths, one, because, "drop" if drop else bad_rows
    assert first is not None
    raise first


def _encoded(rows: inputs.AllRows, tokenizer: Any, template: Any, preference: bool) -> tuple[dict[str, Any], list[int]]:
    from tunebook.common.report import dataset
    from tunebook.common.tokens import lengths

    if not preference:
        report, kept = dataset.look(rows, tokenizer, template)
        return report, lengths.lengths_of(kept).tolist()
    from tunebook.common.preference import encode

    kept, counts = encode(rows, tokenizer, template, dataset.NO_LIMIT)
    problem = counts.problem(dataset.NO_LIMIT)
    report = {
        "statistics": dataset.surveyed(rows, {}), "counts": counts.as_dict(), "refused": problem,
        "lost": counts.warnings(dataset.NO_LIMIT),
    }  # fmt: skip
    return report, lengths.lengths_of(kept).tolist()


def languages(rows: inputs.AllRows) -> dict[str, float]:
    """Share of the likeliest languages among rows that are long enough to tell; {} where none is."""
    found: Counter[str] = Counter()
    for row in itertools.islice(rows, LANGUAGE_ROWS):
        text = _said(row)
        if len(text) >= LANGUAGE_LETTERS:
            found[quality.language(text[:1000])[0]] += 1
    total = found.total()
    return {code: count / total for code, count in found.most_common(3) if count / total >= 0.05}


def _said(row: Row) -> str:
    return quality.CODE.sub(" ", "\n".join(text for role, _, text in texts(row) if role in ("ask", "answer"))).strip()
