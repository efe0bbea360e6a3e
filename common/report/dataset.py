"""A report on a dataset: statistics, what training would keep, and every token of chosen rows, as one plain dict."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tunebook.common import files, pages
from tunebook.common.data import categories, quality, statistics
from tunebook.common.errors import UserError
from tunebook.common.flags import redaction
from tunebook.common.format import number, percent
from tunebook.common.report import figures
from tunebook.common.tokens import encoding, lengths, tokenization
from tunebook.common.tokens.lengths import LOSS_WEIGHTS
from tunebook.common.tokens.view import tokens as tokens_of

NO_LIMIT = 2**31 - 1
EXAMPLES = 3  # rows shown where none is asked for, and of each problem
RAW = 1500  # characters of a row with a problem that are shown


def look(
    rows: Iterable[dict],
    tokenizer: Any,
    template: Any,
    max_length: int | None = None,
    too_long: str = "drop",
    train_on: str = "assistant",
    chosen: Sequence[int] = (),
    packed: bool = False,
    more: dict[str, Any] | None = None,
) -> tuple[dict[str, Any], Any]:
    """Everything there is to say about the rows, and the encoded rows that training would keep.

    Args:
        rows: canonical rows, iterated several times.
        tokenizer, template: of tokenizers.load and templates.get.
        max_length: tokens; None cuts nothing. Lengths are counted over all rows either way.
        too_long: drop or truncate, for rows over max_length.
        chosen: row numbers whose tokens are shown; none: the first few that are kept.
        packed: also pack the kept rows to max_length and show the pack of the first row shown.
        more: further problems, as findings.search gives them.

    Returns:
        A dict of plain values for JSON and the page, and the kept rows as a datasets.Dataset.
    """
    if packed and not max_length:
        raise UserError("--packed needs --max_length N: the tokens that a pack holds")
    survey = surveyed(rows, more or {})
    encoded, counts = encoding.encode(rows, tokenizer, template, NO_LIMIT, train_on=train_on)
    total, trained = lengths.token_counts(encoded)
    if max_length and too_long == "truncate" and (total > max_length).any():
        kept, counts = encoding.encode(rows, tokenizer, template, max_length, too_long="truncate", train_on=train_on)
    else:
        kept, counts = without_long(encoded, counts, total, trained, max_length or NO_LIMIT)
    views, absent = shown(kept, tokenizer, chosen, counts, list(survey["sources"]))
    report = {
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "max_length": max_length,
        "statistics": survey,
        "tokens": lengths.token_statistics(total, trained),
        "tokens_with_begin": with_begin(tokenizer, total, trained),
        "problem_rows": raw(rows, survey["problems"]),
        "histograms": {"Tokens a row": lengths.histogram(total), "Of which train": lengths.histogram(trained)},
        "counts": counts.as_dict(),
        "line": counts.summary(),
        **verdict(counts, max_length),
        "rows": views,
        "absent": absent,
        "packed": pack(kept, tokenizer, max_length, views) if packed and max_length and len(kept) else None,
    }
    return report, kept


def with_begin(tokenizer: Any, total: Any, trained: Any) -> dict[str, Any] | None:
    """statistics.tokens with a beginning token a row, for a tokenizer that names one and leaves it out by itself.

    Other programs add it to such a tokenizer's rows, so their counts are one higher.
    """
    if tokenizer.bos_token_id is None or not len(total) or tokenization.bos_eos_ids(tokenizer)[0]:
        return None
    return lengths.token_statistics(total + 1, trained)


def surveyed(rows: Iterable[dict], more: dict[str, Any]) -> dict[str, Any]:
    """statistics.survey with the problems of each row's text and `more`, each with `why`: what its name means."""
    answers = quality.Answers()
    survey = statistics.survey(rows, lambda row: [*quality.examine(row), *answers.examine(row)])
    survey["problems"].update(more)
    for name, problem in survey["problems"].items():
        problem["why"] = problem.get("why") or quality.EXPLAIN[name]
    survey["category_method"] = categories.METHOD
    return {**survey, "alpaca": beside_quoted(survey) if survey["looks_like_alpaca"] else []}


def without_long(encoded: Any, counts: Any, total: Any, trained: Any, max_length: int) -> tuple[Any, Any]:
    """The rows of at most max_length tokens, and the counts that encoding.encode gives for them.

    The rows are encoded already, for the statistics over all lengths; this spares encoding them again.
    """
    import numpy as np

    fits = total <= max_length
    counts = copy.deepcopy(counts)
    if not fits.all():
        long = np.flatnonzero(~fits)
        counts.dropped["too_long"] += int(long.size)
        numbers = encoded.select(long[: statistics.SHOWN])["row"]
        counts.dropped_rows["too_long"] = list(numbers)
        counts.kept = int(fits.sum())
        counts.tokens, counts.trained_tokens = int(total[fits].sum()), int(trained[fits].sum())
        encoded = encoded.select(np.flatnonzero(fits))
        counts.weighted = sum(map(bool, encoded[LOSS_WEIGHTS])) if counts.weighted else 0
    return encoded, counts


def verdict(counts: Any, max_length: int | None) -> dict[str, Any]:
    """`refused`: why training would refuse these rows, or None; `lost`: a sentence on each larger share lost."""
    return {"refused": refusal(counts, max_length), "lost": counts.warnings(max_length or NO_LIMIT)}


def refusal(counts: Any, max_length: int | None) -> str | None:
    """Why training would refuse these rows, or None."""
    problem = counts.problem(max_length or NO_LIMIT)
    return (
        problem if max_length or not problem else f"nothing would train: {counts.summary()}. Look at the data's outputs"
    )


def shown(
    kept: Any, tokenizer: Any, chosen: Sequence[int], counts: Any, sources: Sequence[str]
) -> tuple[list[dict], list[str]]:
    """Chosen rows as {"row", "source", "tokens": [[id, text, trains]]}, and a sentence for each that is not there.

    A number is looked for in every source; without any, the first few rows are shown.
    """
    import numpy as np

    numbers = np.asarray(kept.with_format("numpy")["row"]) if len(kept) else np.zeros(0, np.int64)
    if not chosen:
        return [view(kept[place], tokenizer) for place in range(min(EXAMPLES, len(kept)))], []
    views, absent = [], []
    for place in dict.fromkeys(chosen):
        found = [view(kept[int(one)], tokenizer) for one in np.flatnonzero(numbers == place)]
        views += found
        for source in [name for name in sources if name not in {one["source"] for one in found}]:
            reasons = [reason for reason, rows in counts.dropped_rows.items() if place in rows and len(sources) == 1]
            why = f"was dropped as {reasons[0]}" if reasons else "is not among the rows that are kept"
            absent.append(f"row {place} of {statistics.short_names(sources)[source]} {why}")
    return views, absent


def view(example: dict, tokenizer: Any) -> dict[str, Any]:
    """One encoded row with each of its tokens, and their weights where it has some."""
    tokens = [[int(token), text, bool(trains)] for token, text, trains in tokens_of(example, tokenizer)]
    weights = {"weights": [float(f"{weight:g}") for weight in found]} if (found := example.get(LOSS_WEIGHTS)) else {}
    return {"row": int(example["row"]), "source": example["source"], "tokens": tokens, **weights}


def pack(kept: Any, tokenizer: Any, max_length: int, views: list[dict]) -> dict[str, Any]:
    """How the kept rows pack, and each token of the pack that holds the first row of `views`."""
    from tunebook.common.batching import packing

    total, _ = lengths.token_counts(kept)
    bins = packing.pack(total, max_length)
    wanted = {(one["source"], one["row"]) for one in views[:1]}  # not `view`: 3.12.1 mixes it up below
    names = list(zip(kept["source"], kept["row"], strict=True))
    chosen = next((one for one in bins if any(names[int(place)] in wanted for place in one)), bins[0])
    return {
        "packs": len(bins),
        "rows": len(total),
        "max_length": max_length,
        "fill_share": int(total.sum()) / (len(bins) * max_length),
        "padded_share": 1 - int(total.sum()) / (len(total) * int(total.max())),
        "shown": [view(kept[int(place)], tokenizer) for place in chosen],
    }


def beside_quoted(survey: dict[str, Any]) -> list[list[str]]:
    """[what, quoted for Alpaca, counted here] for each figure that lectures quote."""
    shares = "/".join(f"{100 * rows / survey['rows']:.0f}" for rows in survey["categories"].values())
    here = {
        "rows": f"{survey['rows']:,}",
        "unique instructions": f"{survey['unique_instructions']:,}",
        "rows with input": f"{survey['with_input']:,}",
        "characters of an instruction, mean": f"{survey['characters']['instruction']['mean']:.1f}",
        "categories": f"{shares} % ({', '.join(survey['categories'])})",
    }
    return [[name, quoted, here[name]] for name, quoted in statistics.ALPACA_QUOTED.items()]


@dataclass
class Section:
    """A part of the report in words, as the terminal and the page show it; so many columns from the left are texts."""

    title: str
    heads: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    words: int = 1


def sections(report: dict[str, Any]) -> list[Section]:
    """The figures of a report."""
    found, counts = report["statistics"], report["counts"]
    short, kinds = statistics.short_names(found["sources"]), found["kinds"]
    figures = {"Rows": found["rows"]}
    figures |= {f"Rows from {short[name]}": rows for name, rows in found["sources"].items() if len(short) > 1}
    figures |= {f"Rows of kind {name}": rows for name, rows in kinds.items() if len(kinds) > 1}
    figures[f"Unique {'first questions' if 'chat' in kinds else 'instructions'}"] = found["unique_instructions"]
    figures |= {"With input": found["with_input"]} if "instruction" in kinds else {}
    figures |= {"Empty outputs": found["empty_outputs"], "Exact duplicates": found["exact_duplicates"]}
    figures |= {f"Dropped as {reason}": rows for reason, rows in counts["dropped"].items()}
    figures |= {"Truncated": counts["truncated"]} if counts["truncated"] else {}
    figures |= {"Kept for training": counts["kept"]}
    figures |= {"With special-token text, kept as text": counts["special_text"]} if counts["special_text"] else {}
    rows = [[name, number(count)] for name, count in figures.items()]
    parts = [Section("Rows", [], rows)]
    if found["alpaca"]:
        notes = ["Quoted figures come from lectures, about the set as it was first published; copies have been edited"]
        heads = ["", "Quoted", "Counted here"]
        parts.append(Section("Beside what is quoted for Alpaca", heads, found["alpaca"], notes, words=3))
    parts += [_lengths(found, report["tokens"], report["tokens_with_begin"]), _costs(report["tokens"])]
    rows = [[name, number(rows), percent(rows / found["rows"])] for name, rows in found["categories"].items()]
    return [*parts, Section("What is asked", [], rows, [f"Told by {found['category_method']}"])]


def _lengths(found: dict[str, Any], tokens: dict[str, Any], more: dict[str, Any] | None) -> Section:
    spreads = {"Tokens": tokens["spread"], "Tokens that train": tokens["trained_spread"]}
    spreads |= {"Tokens with a beginning token": more["spread"]} if more else {}
    spreads |= {f"Characters of {name}": values for name, values in found["characters"].items()}
    spreads |= {"Turns": found["turns"]} if found["turns"] else {}
    rows = [
        [name, number(of["mean"], 1), number(of["median"], 0), number(of["p95"], 0), number(of["longest"])]
        for name, of in spreads.items()
    ]
    notes = [f"{percent(tokens['trained_share'])} of {tokens['tokens']:,} tokens train (rows of every length)"]
    if more:
        share = percent(more["trained_share"])
        notes.append(f"{share} with a beginning token, which this tokenizer names and does not add")
    return Section("Lengths", ["", "Mean", "Median", "95 % up to", "Longest"], rows, notes)


def _costs(tokens: dict[str, Any]) -> Section:
    rows = [
        [number(cut["max_length"]), number(cut["rows_over"]),
         *(percent(cut[name]) for name in ("rows_share", "dropped_share", "cut_share"))]
        for cut in tokens["cuts"]
    ]  # fmt: skip
    heads = ["Max length", "Rows over it", "Of rows", "Tokens lost if dropped", "If truncated"]
    return Section("What a length costs", heads, rows, words=0)


def packed_line(packed: dict[str, Any]) -> str:
    """How the rows pack, in words."""
    return (
        f"{packed['rows']:,} rows make {packed['packs']:,} packs of {packed['max_length']:,} tokens, "
        f"{percent(packed['fill_share'])} full; padding each row to the longest would waste "
        f"{percent(packed['padded_share'])}. This one holds {len(packed['shown'])} rows, of which none sees another:"
    )


def page(report: dict[str, Any]) -> str:
    """The report as one HTML page that needs nothing else: it opens offline, in the dark and on a phone."""
    short = statistics.short_names(report["statistics"]["sources"])
    drawn = [figures.bars(f"histogram-{place}", name, histogram)
             for place, (name, histogram) in enumerate(report["histograms"].items())]  # fmt: skip
    counts, rows = report["counts"], report["statistics"]["rows"]
    limit = f"{report['max_length']:,} tokens; longer rows: {report['too_long']}" if report["max_length"] else "none"
    because = f" ({report['template_because']})" if report.get("template_because") else ""
    facts = {"Tokenizer": report["tokenizer"], "Template": f"{report['template']}{because}", "Limit of length": limit,
             "Columns": "; ".join(report.get("columns", [])), "Written": report["written"]}  # fmt: skip
    left_out = rows - counts["kept"]
    verdict = f"Training would take {counts['kept']:,} of {rows:,} rows" + (
        f" and leave out {left_out:,}." if left_out else "."
    )
    sentences = ["Training would refuse this set.", report["refused"]] if report["refused"] else [verdict]
    tone = "worse" if report["refused"] else "mixed" if report["lost"] else "better"
    return pages.render(
        Path(__file__).with_name("dataset.html.jinja"),
        **report,
        facts=redaction.without_paths(list(facts.items())),
        tone=tone,
        sentences=[*sentences, *(f"{sentence}." for sentence in report["lost"]),
                   *(f"Tokenizer: {sentence}." for sentence in report["warnings"])],
        sections=sections(report),
        packed_line=packed_line,
        places=places,
        overlap_rows=[[one["row"], one["item"], one["words"]] for one in report["overlaps"]],
        short=short,
        plots=drawn,
        library=figures.library(),
    )  # fmt: skip


def raw(rows: Iterable[dict], problems: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """problem -> its first few rows as they were read: {"row", "source", "text"}."""
    wanted: dict[tuple[str, Any], list[str]] = {}
    for name, problem in problems.items():
        for at in problem["first"][:EXAMPLES]:
            wanted.setdefault((at["source"], at["row"]), []).append(name)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in problems}
    for row in rows if wanted else ():
        source, number_of = row.get("source", ""), row.get("row")
        for name in wanted.pop((source, number_of), []):
            content = {key: value for key, value in row.items() if key not in ("row", "source")}
            text = files.json_line(content).decode().strip()
            found[name].append(
                {"row": number_of, "source": source, "text": text[:RAW] + ("…" if len(text) > RAW else "")}
            )
        if not wanted:
            break
    return found


def places(problem: dict[str, Any], sources: Iterable[str]) -> str:
    """Where a problem is: row numbers, under the short name of each source where there are several."""
    short = statistics.short_names(sources)
    found: dict[str, list[str]] = {}
    for at in problem["first"]:
        found.setdefault(at["source"], []).append(f"{at['row']:,}")
    parts = [(f"{short[name]}: " if len(short) > 1 else "") + ", ".join(rows) for name, rows in found.items()]
    listed = sum(map(len, found.values()))
    more = f" and {problem['rows'] - listed:,} more" if problem["rows"] > listed else ""
    return "; ".join(parts) + more
