"""What is looked for in a whole set on request: near-duplicates, other languages, overlap with benchmark items."""

from collections.abc import Iterable, Sequence
from typing import Any

from tunebook.common.data import quality
from tunebook.common.data.rows import question, system
from tunebook.common.data.statistics import SHOWN, short_names

Problem = dict[str, Any]  # {"rows": int, "first": [{"row", "source"}, ...], "why": what the name means}


def search(
    rows: Iterable[dict], near: bool = False, language: str = "", benchmarks: Sequence[str] = ()
) -> tuple[dict[str, Problem], list[dict[str, str]]]:
    """Problems by name, as statistics.survey gives them, with what was searched for and not found as 0 rows.

    Args:
        rows: canonical rows, gone through once for each search.
        near: compare all questions with each other.
        language: name rows that are not in it (an ISO 639-1 code).
        benchmarks: files or folders of benchmark items.

    Returns:
        The problems, and of the first overlaps with benchmarks {"row", "item", "words"}.

    Raises:
        UserError: an unknown language, or benchmark files that cannot be read.
    """
    found, overlaps = {}, []
    if language:
        other = (row for row in rows if not quality.speaks(row, language))
        found[f"not_{language}"] = _problem(other, f"question or answer is in another language than {language}")
    if near:
        found["near_duplicate"] = _problem(_near(rows), quality.EXPLAIN["near_duplicate"])
    if benchmarks:
        found["benchmark_overlap"], overlaps = _overlaps(rows, benchmarks)
    return found, overlaps


def _problem(rows: Iterable[dict], why: str) -> Problem:
    places = [{"row": row["row"], "source": row["source"]} for row in rows]
    return {"rows": len(places), "first": places[:SHOWN], "why": why}


def _near(rows: Iterable[dict]) -> list[dict]:
    from tunebook.common.data import dedup, splitting

    places, questions, systems = [], [], []
    for row in rows:
        places.append({"row": row["row"], "source": row["source"]})
        questions.append(question(row))
        systems.append(system(row))
    texts = splitting.asked(questions, systems)
    return [places[later] for later in sorted({j for _, j, _ in dedup.near(texts)})]


def _overlaps(rows: Iterable[dict], benchmarks: Sequence[str]) -> tuple[Problem, list[dict[str, str]]]:
    from tunebook.common.data import contamination

    places: list[dict] = []

    def numbered() -> Iterable[dict]:
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
