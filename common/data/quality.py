"""Problems of a row's text, by name (`examine`), and those that need the whole dataset (`search`)."""

import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from tunebook.common.data import rows as row_of
from tunebook.common.data.rows import Row
from tunebook.common.data.statistics import SHOWN, short_names
from tunebook.common.errors import UserError

Problem = dict[str, Any]  # {"rows": int, "first": [{"row", "source"}, ...], "why": what the name means}
SHORTEST, LONGEST = 2, 20_000  # characters of an instruction; of a whole row
LOOP_LENGTH, LOOP_RATIO = 200, 0.12  # a long answer that compresses this well says one thing over and over
EXPLAIN = {
    "empty_instruction": "no question: the instruction, the prompt or a user turn is blank",
    "empty_output": "no answer: the output, the completion or an assistant turn is blank",
    "null_text": "a field holds a word for nothing, such as null, NaN or <noinput>, as text",
    "control_characters": "characters that no text needs: C0 and C1 controls other than tab and line ends",
    "encoding_damage": "wrongly decoded text: U+FFFD, lone surrogates, or UTF-8 read as Latin-1 (such as Ã©)",
    "too_short": f"the question has fewer than {SHORTEST} characters",
    "too_long": f"the row has more than {LONGEST:,} characters",
    "repeated_text": "the answer says one thing over and over",
    "open_code_fence": "the answer opens a ``` block that it does not close",
    "echo": "the answer repeats the question",
    "html": "text with HTML tags, such as <p> or <br>, outside of code",
    "email_address": "an e-mail address, which a model may learn by heart",
    "media_placeholder": "text that stands for a picture or a sound, such as <image>, which a text model does not get",
    "two_answers": "the question is that of an earlier row, and its answer another",
    "repeated_row": "question and answer are those of an earlier row",
    "near_duplicate": "the question is nearly that of an earlier row",
}
NULLS = {"null", "none", "nan", "n/a", "undefined", "nil", "<noinput>", "<no input>", "<nooutput>", "<no output>"}
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]")
CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+", re.DOTALL)
HTML = re.compile(
    r"</(?:p|div|span|li|ul|ol|table|tr|td|a|b|i|h[1-6]|strong|em)>|<br ?/?>|&(?:nbsp|amp|lt|gt|quot);", re.I
)
EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]+@(?!example\.)[\w-]+(?:\.[\w-]+)*\.[a-z]{2,}\b", re.I)
PLACEHOLDER = re.compile(r"<\|?(?:image|video|audio)(?:_pad|_\d+)?\|?>", re.I)
# UTF-8 bytes read as Latin-1 or Windows-1252: a lead byte, then what a continuation byte became. Only leads and runs
# that real text does not have: a capital before Ã or Â is an ordinary word (MAÇÃ»), and French has «à » with U+00A0.
_TAIL = "\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"
_TIGHT = _TAIL.replace("\x80-\xbf", "\x80-\x9f\xa1-\xbf")
DAMAGE = re.compile(
    "[\ufffd\ud800-\udfff]"
    f"|(?<![A-ZÀ-Þ])[ÂÃ][{_TAIL}]"
    f"|â[\x80-\x82€‚†ˆ‰][{_TAIL}]"
    f"|ðŸ[{_TAIL}]{{2}}"
    f"|(?:[ÐÑ][{_TIGHT}]){{2}}|(?:[ã-é][{_TIGHT}]{{2}}){{2}}"
)


def examine(row: Row, shortest: int = SHORTEST, longest: int = LONGEST) -> list[str]:
    """The problems of a row (keys of EXPLAIN), each once.

    `shortest`: characters a question must have; `longest`: characters the whole row may have.
    """
    problems: dict[str, None] = {}  # a set that keeps its order
    questions, answers, length = [], [], 0
    for role, field, text in row_of.texts(row):
        length += len(text)
        stripped = text.strip()
        if stripped:
            problems.update(dict.fromkeys(_characters(text)))
            if len(stripped) <= 11 and stripped.casefold() in NULLS:
                problems["null_text"] = None
        if role == "ask":
            questions.append(stripped)
            if not stripped and field != "input":
                problems["empty_instruction"] = None
        elif role == "answer":
            answers.append(stripped)
            problems.update(dict.fromkeys(_answer(stripped)))
    question = "\n".join(part for part in questions if part)
    if 0 < len(question) < shortest:
        problems["too_short"] = None
    if length > longest:
        problems["too_long"] = None
    if answers and answers[-1] and answers[-1] in (question, *questions[-1:]):
        problems["echo"] = None
    return list(problems)


def _characters(text: str) -> Iterator[str]:
    if "@" in text and EMAIL.search(text):
        yield "email_address"
    if ("<" in text or "&" in text) and HTML.search(CODE.sub(" ", text)):
        yield "html"
    if "<" in text and PLACEHOLDER.search(text):
        yield "media_placeholder"
    if not text.isprintable() and CONTROL.search(text):
        yield "control_characters"
    if not text.isascii() and DAMAGE.search(text):
        yield "encoding_damage"


def _answer(text: str) -> Iterator[str]:
    if not text:
        yield "empty_output"
    if text.count("```") % 2:
        yield "open_code_fence"
    if len(text) >= LOOP_LENGTH:
        data = text.encode("utf-8", "surrogatepass")
        if len(zlib.compress(data, 1)) < LOOP_RATIO * len(data):
            yield "repeated_text"


class Answers:
    """Remembers what each question was answered with (a number for each text), to find another answer to it."""

    def __init__(self) -> None:
        self.first: dict[int, int] = {}

    def examine(self, row: Row) -> list[str]:
        """`two_answers`, where an earlier row asks the same under the same system text and answers otherwise."""
        from tunebook.common.data.dedup import digests

        asked, said = digests([f"{row_of.system(row)}\0{row_of.question(row)}", row_of.last_answer(row)]).tolist()
        return ["two_answers"] if self.first.setdefault(asked, said) != said else []


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # half a second: the model comes with the package

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def language(text: str) -> tuple[str, float]:
    """The likeliest language of a text (ISO 639 code) and its probability; under 20 characters it is a guess."""
    code, probability = _identifier().classify(text.encode("utf-8", "replace"))
    return str(code), float(probability)


def speaks(row: Row, code: str, least: float = 0.9, shortest: int = 40) -> bool:
    """Whether question and answer, without code and URLs, are in the language `code` or too short to tell.

    A text counts as another language only where that is at least `least` likely and `shortest` characters support it.

    Raises:
        UserError: a code that the identifier does not know.
    """
    known = set(_identifier().nb_classes)
    if code not in known:
        raise UserError(f"language {code!r} is not known; these are: {', '.join(sorted(known))}")
    for side in ("ask", "answer"):
        text = CODE.sub(" ", "\n".join(text for role, _, text in row_of.texts(row) if role == side)).strip()
        if len(text) >= shortest:
            found, probability = language(text)
            if found != code and probability >= least:
                return False
    return True


def search(
    rows: Iterable[Row], near: bool = False, language: str = "", benchmarks: Sequence[str] = ()
) -> tuple[dict[str, Problem], list[dict[str, str]]]:
    """Problems by name, as statistics.survey gives them, with what was searched for and not found as 0 rows.

    Args:
        near: compare all questions with each other.
        language: name rows that are not in it (an ISO 639-1 code).
        benchmarks: files or folders of benchmark items.

    Returns:
        The problems, and of the first overlaps with benchmarks {"row", "item", "words"}.

    Raises:
        UserError: an unknown language, or benchmark files that cannot be read.
    """
    problems, overlaps = {}, []
    if language:
        other = (row for row in rows if not speaks(row, language))
        problems[f"not_{language}"] = _problem(other, f"question or answer is in another language than {language}")
    if near:
        problems["near_duplicate"] = _problem(_near(rows), EXPLAIN["near_duplicate"])
    if benchmarks:
        problems["benchmark_overlap"], overlaps = _overlaps(rows, benchmarks)
    return problems, overlaps


def _problem(rows: Iterable[Row], why: str) -> Problem:
    places = [{"row": row["row"], "source": row["source"]} for row in rows]
    return {"rows": len(places), "first": places[:SHOWN], "why": why}


def _near(rows: Iterable[Row]) -> list[Row]:
    from tunebook.common.data import dedup, splitting

    places, questions, systems = [], [], []
    for row in rows:
        places.append({"row": row["row"], "source": row["source"]})
        questions.append(row_of.question(row))
        systems.append(row_of.system(row))
    texts = splitting.asked(questions, systems)
    return [places[later] for later in sorted({j for _, j, _ in dedup.near(texts)})]


def _overlaps(rows: Iterable[Row], benchmarks: Sequence[str]) -> tuple[Problem, list[dict[str, str]]]:
    from tunebook.common.data import contamination

    places: list[dict] = []

    def numbered() -> Iterable[Row]:
        """Rows numbered through all sources, so that an overlap names one row."""
        for number, row in enumerate(rows):
            places.append({"row": row["row"], "source": row["source"]})
            yield {**row, "row": number}

    items = (item for path in benchmarks for item in contamination.read(path))
    found = contamination.find(numbered(), items)
    short = short_names(dict.fromkeys(place["source"] for place in places))
    first = [
        {
            "row": f"{places[one.row]['row']:,} of {short[places[one.row]['source']]}",
            "item": one.item,
            "words": one.words,
        }
        for one in found.overlaps[:SHOWN]
    ]
    why = f"shares a run of words with one of {found.items:,} benchmark items"
    return _problem((places[number] for number in found.row_numbers), why), first
