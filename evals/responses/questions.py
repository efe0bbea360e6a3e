"""Questions to models, of one turn or several, and files of answers to them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunebook.common import pocket
from tunebook.common.data import readers
from tunebook.common.errors import UserError, first_lines

ANSWERS = ("answer", "output", "completion", "response", "generation")  # columns that hold an answer
QUESTION_COLUMNS = "turns, instruction, prompt, question or messages"


@dataclass(frozen=True)
class Question:
    """What a user asks, turn by turn."""

    name: str  # its question_id or id, else its row
    turns: tuple[str, ...]  # as a judge reads them
    category: str = ""
    references: tuple[str, ...] = ()  # a correct answer for each turn, "" where there is none
    system: str = ""
    instruction: str = ""  # with input: the first turn, for templates that have a place for each
    input: str = ""


def load(name: str, references: str = "") -> tuple[list[Question], list[str]]:
    """The questions of a file, or of the bundled test rows (`pocket`, `pocket_chat`); and notes on what was left out.

    Rows are MT-Bench's (`turns`), AlpacaEval's (`instruction`; with a `generator`, its output is no reference),
    instruction rows, `prompt` and `completion`, `question` and `answer`, or `messages`, whose user turns are asked.

    Args:
        references: a file of answers (rows of `question_id` and `choices`, as MT-Bench's) to use as references.

    Raises:
        UserError: the file cannot be read, or rows hold no question; all in one message, with their numbers.
    """
    path = str(pocket.rows(name).get("test", name))
    rows = _rows(path, "--prompts", _question_problem)
    found = [_question(row, str(number)) for number, row in rows if not _calls(row)]
    notes = []
    if left_out := len(rows) - len(found):
        notes.append(f"{left_out} conversations with turns of tools are left out: a call would stay without an answer")
    if not found:
        raise UserError(f"--prompts {name}: it holds no questions")
    if references:
        file = Answers(references, "--references")
        answers = [file.of(question) for question in found]
        if not any(answers):
            raise UserError(f"--references {references}: none of its rows is for a question of {name}")
        found = [
            replace(question, references=texts) if texts else question
            for question, texts in zip(found, answers, strict=True)
        ]
    return found, notes


def spread(questions: list[Question], count: int) -> list[Question]:
    """`count` of the questions, evenly spread; 0: all."""
    if not 0 < count < len(questions):
        return questions
    return [questions[place * len(questions) // count] for place in range(count)]


class Answers:
    """The answers of one model in a file: rows with a question and its answer, or MT-Bench's `choices`.

    Attributes:
        name: what the file calls the model, else the file's name.

    Raises:
        UserError: rows hold no answer, or two rows answer one question differently.
    """

    def __init__(self, path: str, flag: str):
        self.name, self.asked = Path(path).stem, []
        self._by_text: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._by_name: dict[str, tuple[str, ...]] = {}
        names, problems = set(), []
        for number, row in _rows(path, flag, _answer_problem):
            names |= {str(row[key]) for key in ("generator", "model_id") if row.get(key)}
            answers = _answers(row)
            places: list[tuple[dict, Any]] = []
            if not _question_problem(row):
                question = _question(row, str(number))
                self.asked.append(question)
                places.append((self._by_text, question.turns))
            if "question_id" in row:
                places.append((self._by_name, str(row["question_id"])))
            if not places:
                problems.append(f"row {number}: neither a question ({QUESTION_COLUMNS}) nor a question_id")
            for known, key in places:
                if known.setdefault(key, answers) != answers:
                    problems.append(f"row {number}: another row answers the same question differently")
        _stop(path, flag, problems)
        if len(names) == 1:
            self.name = names.pop()

    def of(self, question: Question) -> tuple[str, ...] | None:
        """The answers to the question's turns; by its text, else by its id. None where the file has none."""
        found = self._by_text.get(question.turns) or self._by_name.get(question.name)
        return found if found and len(found) == len(question.turns) else None


def _rows(path: str, flag: str, problem: Any) -> list[tuple[int, dict[str, Any]]]:
    """(number, row) of a file; an error names all rows with a problem."""
    try:
        rows = list(readers.read(path))
    except UserError as error:
        raise UserError(str(error).replace("--dataset ", f"{flag} ")) from None
    _stop(path, flag, [f"row {number}: {why}" for number, row in rows if (why := problem(row))])
    return rows


def _stop(path: str, flag: str, problems: list[str]) -> None:
    if problems:
        raise UserError(f"{flag} {path}:{first_lines(problems)}")


def _question_problem(row: Any) -> str:
    """Why the row holds no question, or ""."""
    if not isinstance(row, dict):
        return f"expected an object with {QUESTION_COLUMNS}, found a {type(row).__name__}"
    if "turns" in row:
        valid = isinstance(row["turns"], list) and row["turns"] and all(map(_is_text, row["turns"]))
        return "" if valid else "turns: expected a list of texts"
    if "messages" in row:
        return _messages_problem(row["messages"])
    name = next((key for key in ("instruction", "prompt", "question") if key in row), None)
    if name is None:
        return f"no {QUESTION_COLUMNS}; it has {', '.join(map(repr, row)) or 'nothing'}"
    if not _is_text(row[name]):
        return f"{name}: expected a text, found {row[name]!r:.60}"
    return "" if isinstance(row.get("input") or "", str) else f"input: expected a text, found {row['input']!r:.60}"


def _messages_problem(turns: Any) -> str:
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return "messages: expected a list of role and content"
    if any(turn.get("role") == "tool" for turn in turns):
        return ""  # left out, and counted
    roles = [turn.get("role") for turn in turns]
    asked = roles[1:] if roles[:1] == ["system"] else roles
    expected = [("user", "assistant")[place % 2] for place in range(len(asked))]
    if not asked or asked != expected:
        return "messages: expected user and assistant in turn, after at most one system"
    return "" if all(isinstance(turn.get("content"), str) for turn in turns) else "messages: a content is no text"


def _calls(row: dict[str, Any]) -> bool:
    return any(turn.get("role") == "tool" for turn in row.get("messages", ()))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _question(row: dict[str, Any], place: str) -> Question:
    name = str(row.get("question_id", row.get("id", place)))
    category = next((str(row[key]) for key in ("category", "skill", "dataset") if row.get(key)), "")
    if "turns" in row:
        turns = tuple(row["turns"])
        reference = row.get("reference") or row.get("references") or []
        texts = [reference] if isinstance(reference, str) else reference
        references = tuple(str(texts[n] or "") if n < len(texts) else "" for n in range(len(turns)))
        return Question(name, turns, category, references, str(row.get("system") or ""), turns[0])
    if "messages" in row:
        messages = row["messages"]
        system = messages[0]["content"] if messages[0]["role"] == "system" else ""
        turns = tuple(turn["content"] for turn in messages if turn["role"] == "user")
        references = tuple(turn["content"] for turn in messages if turn["role"] == "assistant")
        references += ("",) * (len(turns) - len(references))
        return Question(name, turns, category, references, system, turns[0])
    asked = next(row[key] for key in ("instruction", "prompt", "question") if key in row)
    extra = (row.get("input") or "") if "instruction" in row else ""
    columns = ("reference", *(() if "generator" in row else ANSWERS), "chosen")
    reference = next((row[key] for key in columns if isinstance(row.get(key), str)), "")
    text = "\n\n".join(filter(None, (asked, extra)))
    return Question(name, (text,), category, (reference,), str(row.get("system") or ""), asked, extra)


def _answer_problem(row: Any) -> str:
    """Why the row holds no answer, or ""."""
    if not isinstance(row, dict):
        return f"expected an object with an answer, found a {type(row).__name__}"
    try:
        answers = _answers(row)
    except (KeyError, IndexError, TypeError):
        return f"no answer: expected one of {', '.join(ANSWERS)}, answers, choices or messages"
    return "" if answers and all(isinstance(text, str) for text in answers) else "an answer is no text"


def _answers(row: dict[str, Any]) -> tuple[str, ...]:
    if "choices" in row:
        return tuple(row["choices"][0]["turns"])
    if "answers" in row:
        return tuple(row["answers"])
    if "messages" in row:
        return tuple(turn["content"] for turn in row["messages"] if turn["role"] == "assistant")
    return (row[next((key for key in ANSWERS if key in row), ANSWERS[0])],)
