"""A model's answers to questions: from a file, or asked of a model or adapter and kept as they come."""

import gc
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunebook.common import files, models
from tunebook.common.errors import UserError
from tunebook.common.generation.decoding import Decoding
from tunebook.common.models import inference
from tunebook.common.tokens import templates
from tunebook.evals.responses.questions import Answers, Question
from tunebook.evals.responses.store import ResponseCache, key_of

TOGETHER = 32  # conversations that are answered at a time, and kept when all their turns are
WEIGHTS = 1 << 20  # bytes from which a file is known by its size and time, not by its content


@dataclass
class ModelOutputs:
    """One of the two that are compared.

    Attributes:
        name: of the file or model. answers: to each question, one a turn; None where there is none, and `why` says.
        cut: answers that ended at the limit of tokens. notes: what a reader should know of it.
    """

    name: str
    answers: list[tuple[str, ...] | None]
    template: str = ""  # its name, of a model that was asked
    why: dict[int, str] = field(default_factory=dict)
    cut: int = 0
    notes: list[str] = field(default_factory=list)


def from_file(path: str, flag: str, questions: list[Question]) -> ModelOutputs:
    """The answers that a file has.

    Raises:
        UserError: it has none for some of the questions.
    """
    given = Answers(path, flag)
    answers = [given.of(question) for question in questions]
    missing = [question.name for question, found in zip(questions, answers, strict=True) if found is None]
    if missing:
        first = ", ".join(missing[:5])
        raise UserError(
            f"{flag} {path}: no answer to {len(missing)} of {len(questions)} questions (first: {first}). An answer "
            "belongs to a question by its text or question_id, and needs as many turns"
        )
    return ModelOutputs(given.name, answers)


class Model:
    """A model or adapter that is asked.

    Args:
        word: a Hub name, a folder with a model or an adapter, a run's folder, or pocket.
        base: what the adapter goes on, where it is not what it was trained on.
        template: a name or a folder with one; "": the one that it was trained in, else the tokenizer's own.
    """

    def __init__(self, word: str, base: str = "", template: str = "", decoding: Decoding | None = None):
        inside = [Path(word), Path(word) / "adapter"]
        self.adapter = any((path / file).exists() for path in inside for file in (inference.PEFT, inference.BOTTLENECK))
        self.word, self.base, self.template = word, base, template
        self.decoding = decoding or Decoding()
        if not self.adapter and not (Path(word) / "model").is_dir():
            models.resolve(word)  # a name that is wrong is told before anything is loaded

    def key(self) -> list[Any]:
        """What the answers depend on, beside the question."""
        words = [self.word, self.base]
        if self.adapter:
            words += [
                self.base or inference.base_of(folder) or "pocket" for folder in inference.named([self.word]).values()
            ]
        asked = repr(templates.load(self.template)) if trained_template(self.template) else self.template
        return [[fingerprint(word) for word in words if word], asked, vars(self.decoding)]

    def side(self, questions: list[Question], journal: ResponseCache) -> ModelOutputs:
        """The answers, from the journal where they are there; the model is loaded only where some are not."""
        shared = self.key()
        asked = [[question.system, question.instruction, question.input, *question.turns] for question in questions]
        keys = [key_of(shared, texts) for texts in asked]
        missing = [place for place, key in enumerate(keys) if journal.get(key) is None]
        notes = self._answer(questions, keys, missing, journal) if missing else []
        found = [journal.get(key) or {} for key in keys]
        side = ModelOutputs(
            self.word, [None if record["why"] else tuple(record["answers"]) for record in found], notes=notes
        )
        side.why = {place: record["why"] for place, record in enumerate(found) if record["why"]}
        side.cut = sum(record["cut"] for record in found)
        side.template = ", ".join(sorted({record["template"] for record in found}))
        side.notes.append(f"asked in the template {side.template}")
        return side

    def _answer(
        self, questions: list[Question], keys: list[str], missing: list[int], journal: ResponseCache
    ) -> list[str]:
        from tqdm import tqdm

        model = inference.InferenceModel(
            self.base if self.adapter else self.word, [self.word] if self.adapter else [], self.template
        )
        for start in tqdm(range(0, len(missing), TOGETHER), desc=f"answers of {self.word}", unit="batch"):
            places = missing[start : start + TOGETHER]
            for place, record in zip(
                places, converse(model, [questions[n] for n in places], self.decoding), strict=True
            ):
                turns = list(questions[place].turns)
                journal.add(
                    keys[place], {"model": self.word, "question_id": questions[place].name, "turns": turns, **record}
                )
        notes = list(model.notes)
        del model
        free()
        return notes


def trained_template(word: str) -> str:
    """The folder of the template that a model, an adapter or a run was trained in; "" where none was saved."""
    places = (Path(word), Path(word) / "adapter", Path(word) / "model") if word else ()
    return next((str(place) for place in places if (place / templates.FILE).exists()), "")


def shared_template(base: str, tuned: str) -> str:
    """What both are asked in where nothing else is said: the template of TUNED's training, where BASE has none of its
    own; "": each in its own."""
    return "" if trained_template(base) else trained_template(tuned)


def unlike(base: ModelOutputs, tuned: ModelOutputs) -> str:
    """A note where two models were asked in other templates; "" where they were not, or answers are from a file."""
    if not (base.template and tuned.template) or base.template == tuned.template:
        return ""
    return f"BASE was asked in the template {base.template}, TUNED in {tuned.template}: that alone changes answers"


def converse(model: Any, questions: list[Question], decoding: Decoding) -> list[dict[str, Any]]:
    """What the model says turn by turn: {"answers", "template": its name, "cut": answers cut at the limit, "why": it
    has no answer, or ""} for each question."""
    from tunebook.common import generation
    from tunebook.common.generation.chat import Conversation

    stop = generation.stop_conditions(model.tokenizer, model.template, model.model)
    talks = [Conversation(model.tokenizer, model.template, question.system) for question in questions]
    start = {"template": model.template.name, "cut": 0, "why": ""}
    records: list[dict[str, Any]] = [{**start, "answers": []} for _ in questions]
    for turn in range(max(len(question.turns) for question in questions)):
        going, prompts = [], []
        for place, question in enumerate(questions):
            if turn >= len(question.turns) or records[place]["why"]:
                continue
            talks[place].input = question.input if turn == 0 else ""
            text = question.instruction if turn == 0 else question.turns[turn]
            try:
                prompt, _ = talks[place].prompt(text)
                generation.remaining_tokens(model.model, prompt, decoding)
            except UserError as error:
                records[place]["why"] = str(error)
                continue
            going.append((place, text))
            prompts.append(prompt)
        found = generation.generate(model.model, model.tokenizer, prompts, decoding, stop) if prompts else []
        for (place, text), answer in zip(going, found, strict=True):
            records[place]["answers"].append(answer.text.strip())
            records[place]["cut"] += answer.limit is not None
            talks[place].add(text, answer.text)
    return records


def fingerprint(word: str) -> list[Any]:
    """What tells one state of a model from another: its files, or the Hub's commit of the copy that is here."""
    import hashlib

    folder = Path(models.resolve("pocket") if word == "pocket" else word)
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        return [word, str(try_to_load_from_cache(word, "config.json"))]
    found = []
    for path in sorted(
        file for part in ("", "model", "adapter") for file in (folder / part).glob("*") if file.is_file()
    ):
        status = path.stat()
        small = status.st_size < WEIGHTS
        known = hashlib.sha256(path.read_bytes()).hexdigest() if small else [status.st_size, status.st_mtime_ns]
        found.append([str(path.relative_to(folder)), known])
    return found


def free() -> None:
    """Give a model's memory back before the next one is loaded; nothing may refer to it any more."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def save(path: Path, questions: list[Question], side: ModelOutputs) -> None:
    """The answers as a file that `tunebook judge` and, where questions have one turn, `tunebook rate` take."""
    rows = []
    for question, answers in zip(questions, side.answers, strict=True):
        if answers is None:
            continue
        row: dict[str, Any] = {"question_id": question.name, "generator": side.name}
        if len(answers) == 1:
            row |= {"instruction": question.instruction, "input": question.input, "output": answers[0]}
        else:
            row |= {"turns": list(question.turns), "answers": list(answers)}
        rows.append(files.json_line(row))
    files.write_atomic(path, rows)
