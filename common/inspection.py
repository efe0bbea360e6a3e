"""A data set looked at: statistics, what training would keep, and every token of chosen rows, as one plain dict."""

import copy
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common import categories, lengths, masking, quality, statistics, tokenizers
from common.errors import UserError
from common.lengths import LOSS_WEIGHTS
from common.view import tokens as tokens_of

NO_LIMIT = 2**31 - 1
EXAMPLES = 3  # rows shown where none is asked for


def look(
    rows: Iterable[dict],
    tokenizer: Any,
    template: Any,
    max_length: int | None = None,
    too_long: str = "drop",
    train_on: str = "answers",
    chosen: Sequence[int] = (),
    packed: bool = False,
    more: dict[str, Any] | None = None,
) -> tuple[dict[str, Any], Any]:
    """Everything there is to say about the rows, and the encoded rows that training would keep.

    Args:
        rows: canonical rows, iterated twice.
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
    encoded, counts = masking.encode(rows, tokenizer, template, NO_LIMIT, train_on=train_on)
    total, trained = lengths.token_counts(encoded)
    if max_length and too_long == "truncate" and (total > max_length).any():
        kept, counts = masking.encode(rows, tokenizer, template, max_length, too_long="truncate", train_on=train_on)
    else:
        kept, counts = without_long(encoded, counts, total, trained, max_length or NO_LIMIT)
    views, absent = shown(kept, tokenizer, chosen, counts, list(survey["sources"]))
    report = {
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "max_length": max_length,
        "statistics": survey,
        "tokens": lengths.token_statistics(total, trained),
        "tokens_with_begin": with_begin(tokenizer, total, trained),
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
    if tokenizer.bos_token_id is None or not len(total) or tokenizers.affixes(tokenizer)[0]:
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
    """The rows of at most max_length tokens, and the counts that masking.encode gives for them.

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
    for number in dict.fromkeys(chosen):
        found = [view(kept[int(place)], tokenizer) for place in np.flatnonzero(numbers == number)]
        views += found
        for source in [name for name in sources if name not in {one["source"] for one in found}]:
            reasons = [reason for reason, rows in counts.dropped_rows.items() if number in rows and len(sources) == 1]
            why = f"was dropped as {reasons[0]}" if reasons else "is not among the rows that are kept"
            absent.append(f"row {number} of {statistics.short_names(sources)[source]} {why}")
    return views, absent


def view(example: dict, tokenizer: Any) -> dict[str, Any]:
    """One encoded row with each of its tokens, and their weights where it has some."""
    tokens = [[int(token), text, bool(trains)] for token, text, trains in tokens_of(example, tokenizer)]
    weights = {"weights": [float(f"{weight:g}") for weight in found]} if (found := example.get(LOSS_WEIGHTS)) else {}
    return {"row": int(example["row"]), "source": example["source"], "tokens": tokens, **weights}


def pack(kept: Any, tokenizer: Any, max_length: int, views: list[dict]) -> dict[str, Any]:
    """How the kept rows pack, and each token of the pack that holds the first row of `views`."""
    from common import packing

    total, _ = lengths.token_counts(kept)
    bins = packing.pack(total, max_length)
    wanted = {(view["source"], view["row"]) for view in views[:1]}
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


def page(report: dict[str, Any]) -> str:
    """The report as one HTML page that needs nothing else: it opens offline, in the dark and on a phone."""
    import jinja2

    from common.report import number

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=number, percent=percent, bars=bars, visible=visible, places=places)
    return environment.get_template("inspection.html.jinja").render(
        **report, short=statistics.short_names(report["statistics"]["sources"])
    )


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


def percent(share: float) -> str:
    """0.5432 -> 54.3 %; small shares keep two digits."""
    if 0 < share < 0.0001:
        return "<0.01 %"
    return f"{100 * share:.1f} %" if share >= 0.001 or share == 0 else f"{100 * share:.2g} %"


def visible(text: str) -> str:
    """A token's text with what cannot be seen written out, so that it commands neither a terminal nor the eye."""
    for plain, sign in ((" ", "·"), ("\n", "⏎"), ("\t", "⇥"), ("\r", "␍")):
        text = text.replace(plain, sign)
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def bars(histogram: dict[str, Any]) -> dict[str, Any]:
    """Rectangles of a histogram in a box of 640 x 160 and labels under it."""
    counts, step = histogram["counts"], histogram["step"]
    if not counts:
        return {"rects": [], "labels": []}
    width, top = 640 / len(counts), max(counts)
    rects = [
        {"x": round(place * width + 0.5, 2), "width": round(width - 1, 2), "height": round(150 * count / top, 2),
         "says": f"{place * step:,} to {(place + 1) * step - 1:,}: {count:,} rows"}
        for place, count in enumerate(counts)
    ]  # fmt: skip
    labels = [f"{round(len(counts) * step * part / 4):,}" for part in range(5)]
    if histogram["beyond"]:
        rects[-1]["says"] = f"{(len(counts) - 1) * step:,} and more: {counts[-1]:,} rows"
        labels[-1] = f"over {(len(counts) - 1) * step:,}"
    return {"rects": rects, "labels": labels, "top": top}
