"""Two models' answers to the same prompts, for blind rating."""

import hashlib
import json
from collections import Counter
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tunebook.common.data import readers
from tunebook.common.errors import RowErrors, UserError
from tunebook.common.files import write_json

FILE = "answers.json"
PROMPT_COLUMNS = ("prompt", "instruction", "question")
ANSWER_COLUMNS = ("answer", "output", "completion", "response")
MODELS = ("base", "tuned")


@dataclass(frozen=True)
class Item:
    """A prompt with the answers of base and tuned."""

    prompt: str
    answers: tuple[str, str]

    @property
    def key(self) -> str:
        """A hash of all three."""
        text = json.dumps([self.prompt, *self.answers], ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True)
class RatingItems:
    """The items of a rating, the files or models that answered, and the seed of every shuffle."""

    names: tuple[str, str]
    items: tuple[Item, ...]
    seed: int = 0

    def order(self) -> list[Item]:
        """A random order, the same for all raters, so that whoever stops early has rated the same random part."""
        return sorted(self.items, key=lambda item: self._hash("order", item.key))

    def first(self, item: Item, rater: str) -> int:
        """Which model this rater sees as A: 0 (base) or 1 (tuned), by a hash that the page does not reveal."""
        return self._hash("first", rater, item.key) % 2

    def _hash(self, *words: str) -> int:
        text = json.dumps([self.seed, *words])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")

    def save(self, folder: Path) -> None:
        """Keep the items beside the votes.

        Raises:
            UserError: the folder holds votes on other answers.
        """
        path = folder / FILE
        if not path.exists():
            write_json(path, asdict(self))
        elif load(folder) != self:
            raise UserError(
                f"{folder} holds a rating of other answers, names or seed ({FILE}); name another --output_dir, or give "
                "--output_dir alone to resume it"
            )


def load(folder: Path) -> RatingItems:
    """The rating that a folder holds.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = folder / FILE
    if not path.exists():
        raise UserError(f"{folder} holds no {FILE}; begin with tunebook rate --answers BASE.jsonl TUNED.jsonl")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        items = tuple(Item(item["prompt"], (item["answers"][0], item["answers"][1])) for item in found["items"])
        return RatingItems((found["names"][0], found["names"][1]), items, found["seed"])
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path} cannot be read: {error!r}") from None


def from_answers(files: list[str], seed: int) -> RatingItems:
    """Two files of rows with a prompt and an answer, joined on the prompt.

    Args:
        files: base and tuned, with columns of PROMPT_COLUMNS and ANSWER_COLUMNS; `input` follows the prompt.

    Raises:
        UserError: a column is missing, a prompt is repeated, or the files differ in their prompts.
    """
    if len(files) != 2:
        raise UserError(f"--answers takes two files, base and tuned; found {len(files)}")
    base, tuned = (_answers(name) for name in files)
    alone = [prompt for prompt in base if prompt not in tuned] + [prompt for prompt in tuned if prompt not in base]
    if alone:
        raise UserError(
            f"{len(alone)} prompts have an answer in {files[0]} or {files[1]} alone, the first: {alone[0][:80]!r}"
        )
    items = tuple(Item(prompt, (answer, tuned[prompt])) for prompt, answer in base.items())
    return RatingItems((files[0], files[1]), items, seed)


def _answers(name: str) -> dict[str, str]:
    """{prompt: answer} of a file."""
    source = readers.read(name)
    problems = RowErrors(name)
    problems.expected = "expected rows with a prompt and an answer"
    found: dict[str, str] = {}
    for number, row in source.rows(problems):
        try:
            prompt, answer = _prompt_and_answer(row)
        except ValueError as error:
            problems.add(f"{source.place(number)}: {error}")
            continue
        if prompt in found:
            problems.add(f"{source.place(number)}: repeated prompt: {prompt[:60]!r}")
        found[prompt] = answer
    problems.stop()
    if not found:
        raise UserError(f"{name} has no rows")
    return found


def _prompt_and_answer(row: Any) -> tuple[str, str]:
    """Prompt and answer of a row; ValueError tells what is wrong with it."""
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, found a {type(row).__name__}")
    texts = []
    for columns in (PROMPT_COLUMNS, ANSWER_COLUMNS):
        name = next((name for name in columns if name in row), None)
        if name is None:
            raise ValueError(f"none of {', '.join(columns)}; it has {', '.join(map(str, row)) or 'no fields'}")
        if not isinstance(row[name], str):
            raise ValueError(f"{name}: expected text, found a {type(row[name]).__name__}")
        texts.append(row[name])
    prompt = f"{texts[0]}\n\n{row['input']}" if row.get("input") else texts[0]
    if not prompt.strip():
        raise ValueError("the prompt is empty")
    return prompt, texts[1]


def from_report(name: str, seed: int) -> RatingItems:
    """The samples of a recipe's report.json, before and after tuning.

    Raises:
        UserError: it is no report, or has no samples with both answers.
    """
    path = Path(name) / "report.json" if Path(name).is_dir() else Path(name)
    try:
        samples = json.loads(path.read_text(encoding="utf-8"))["samples"]
        items = [Item(row["prompt"], (row["before"], row["after"])) for row in samples]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--report {name}: expected a recipe's report.json with samples: {error!r}") from None
    if not items:
        raise UserError(f"--report {name}: it has no samples")
    if any(not isinstance(text, str) for item in items for text in (item.prompt, *item.answers)):
        raise UserError(f"--report {name}: a sample has no answer before or after; the run was not finished")
    repeated = [prompt for prompt, count in Counter(item.prompt for item in items).items() if count > 1]
    if repeated:
        raise UserError(f"--report {name}: {len(repeated)} repeated prompts, the first: {repeated[0][:80]!r}")
    return RatingItems((f"{path}, before", f"{path}, after"), tuple(items), seed)


def from_models(
    names: list[str], prompts: str, limit: int, max_new_tokens: int, folder: Path, seed: int
) -> RatingItems:
    """Two models' answers to the first turns of some questions, cached in the folder.

    Args:
        names: base and tuned, as for AnsweringModel.
        prompts, limit: a file of questions or `pocket`, and how many of them, evenly spread; 0: all.

    Raises:
        UserError: there is no such model or file, or no question that both have answered.
    """
    from tunebook.common.generation.decoding import Decoding
    from tunebook.evals.responses import generate, questions, store

    if len(names) != 2 or names[0] == names[1]:
        raise UserError(f"--models takes two models or adapters, base and tuned; found {' '.join(names)}")
    asked, notes = questions.load(prompts)
    if several := sum(len(question.turns) > 1 for question in asked):
        notes.append(f"{several} of {len(asked)} conversations have later turns; their first questions alone are asked")
    asked = [replace(question, turns=question.turns[:1]) for question in questions.spread(asked, limit)]
    template, decoding = generate.shared_template(*names), Decoding(max_new_tokens=max_new_tokens)
    models = [generate.AnsweringModel(name, template=template, decoding=decoding) for name in names]
    with closing(store.ResponseCache(folder / "answers.jsonl")) as cache:
        outputs = [model.outputs(asked, cache) for model in models]
    items: dict[str, Item] = {}
    for question, base, tuned in zip(asked, outputs[0].answers, outputs[1].answers, strict=True):
        if base and tuned:
            items.setdefault(question.turns[0], Item(question.turns[0], (base[0], tuned[0])))
    notes += [note] if (note := generate.template_note(*outputs)) else []
    for model in outputs:
        notes += [f"{model.name}: {note}" for note in model.notes]
        notes += [f"{model.name}: {model.cut} answers are cut at {max_new_tokens} tokens"] if model.cut else []
    if left_out := len(asked) - len(items):
        notes.append(
            f"{left_out} of {len(asked)} questions are left out: asked twice, or a model has no room to answer"
        )
    for note in notes:
        print(f"note: {note}", flush=True)
    if not items:
        raise UserError(f"--prompts {prompts}: there is no question that both models have answered")
    return RatingItems((names[0], names[1]), tuple(items.values()), seed)
