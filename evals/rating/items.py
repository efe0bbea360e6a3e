"""Two models' answers to the same prompts, to be judged without knowing whose they are."""

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tunebook.common.data import readers
from tunebook.common.errors import RowErrors, UserError
from tunebook.common.files import write_json

FILE = "answers.json"
QUESTIONS = ("prompt", "instruction", "question")
ANSWERS = ("answer", "output", "completion", "response")
SIDES = ("base", "tuned")


@dataclass(frozen=True)
class Item:
    """A prompt with the answers of base and tuned. `key` is made of all three: another answer is another item."""

    prompt: str
    answers: tuple[str, str]

    @property
    def key(self) -> str:
        text = json.dumps([self.prompt, *self.answers], ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True)
class RatingItems:
    """The items of a rating, the files or models that the two sides are, and the seed of every shuffle."""

    names: tuple[str, str]
    items: tuple[Item, ...]
    seed: int = 0

    def order(self) -> list[Item]:
        """The order of rating, the same for all raters: who stops early has rated a random part, and the same part."""
        return sorted(self.items, key=lambda item: self._hash("order", item.key))

    def first(self, item: Item, rater: str) -> int:
        """Which side this rater sees as A: 0 (base) or 1 (tuned), by a hash that nobody can guess from the page."""
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
        if path.exists():
            if load(folder) != self:
                raise UserError(
                    f"{folder} holds a rating of other answers, names or seed ({FILE}); name another --output_dir, or "
                    "give --output_dir alone to go on with it"
                )
            return
        write_json(path, asdict(self))


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
        files: base and tuned; the columns are called as in QUESTIONS and ANSWERS, and `input` follows the prompt.

    Raises:
        UserError: a column is missing, a prompt is there twice, or the files have not the same prompts.
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
        words = _words(row)
        if isinstance(words, str):
            problems.add(f"{source.place(number)}: {words}")
        elif words[0] in found:
            problems.add(f"{source.place(number)}: this prompt was there before: {words[0][:60]!r}")
        else:
            found[words[0]] = words[1]
    problems.stop()
    if not found:
        raise UserError(f"{name} has no rows")
    return found


def _words(row: Any) -> tuple[str, str] | str:
    """Prompt and answer of a row, or what is wrong with it."""
    if not isinstance(row, dict):
        return f"expected an object, found a {type(row).__name__}"
    found = []
    for names in (QUESTIONS, ANSWERS):
        name = next((name for name in names if name in row), None)
        if name is None:
            return f"none of {', '.join(names)}; it has {', '.join(map(str, row)) or 'no fields'}"
        if not isinstance(row[name], str):
            return f"{name}: expected text, found a {type(row[name]).__name__}"
        found.append(row[name])
    prompt = f"{found[0]}\n\n{row['input']}" if row.get("input") else found[0]
    return (prompt, found[1]) if prompt.strip() else "the prompt is empty"


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
    twice = [prompt for prompt, count in Counter(item.prompt for item in items).items() if count > 1]
    if twice:
        raise UserError(f"--report {name}: {len(twice)} prompts are there twice, the first: {twice[0][:80]!r}")
    return RatingItems((f"{path}, before", f"{path}, after"), tuple(items), seed)


def from_models(words: list[str], prompts: str, limit: int, tokens: int, folder: Path, seed: int) -> RatingItems:
    """Two models' answers to the first turns of some questions; those that were made are kept in the folder.

    Args:
        words: base and tuned, each a model, an adapter or a run, as tunebook.evals.responses.generate.Model takes them.
        prompts, limit: a file of questions or `pocket`, and how many of them, evenly spread; 0: all.
        tokens: that an answer may have.

    Raises:
        UserError: there is no such model or file, or no question that both have answered.
    """
    from tunebook.common.generation.decoding import Decoding
    from tunebook.evals.responses import generate, questions, store

    if len(words) != 2 or words[0] == words[1]:
        raise UserError(f"--models takes two models or adapters, base and tuned; found {' '.join(words)}")
    found, notes = questions.load(prompts)
    if several := sum(len(question.turns) > 1 for question in found):
        notes.append(f"{several} of {len(found)} conversations have later turns; their first questions alone are asked")
    found = [replace(question, turns=question.turns[:1]) for question in questions.spread(found, limit)]
    template = generate.shared_template(*words)
    models = [generate.Model(word, template=template, decoding=Decoding(max_new_tokens=tokens)) for word in words]
    kept = store.ResponseCache(folder / "answers.jsonl")
    try:
        sides = [model.side(found, kept) for model in models]
    finally:
        kept.close()
    items: dict[str, Item] = {}
    for question, base, tuned in zip(found, sides[0].answers, sides[1].answers, strict=True):
        if base and tuned:
            items.setdefault(question.turns[0], Item(question.turns[0], (base[0], tuned[0])))
    notes += [note] if (note := generate.unlike(*sides)) else []
    for side in sides:
        notes += [f"{side.name}: {note}" for note in side.notes]
        notes += [f"{side.name}: {side.cut} answers are cut at {tokens} tokens"] if side.cut else []
    if left_out := len(found) - len(items):
        notes.append(
            f"{left_out} of {len(found)} questions are left out: asked twice, or a model has no room to answer"
        )
    for note in notes:
        print(f"note: {note}", flush=True)
    if not items:
        raise UserError(f"--prompts {prompts}: there is no question that both models have answered")
    return RatingItems((words[0], words[1]), tuple(items.values()), seed)
