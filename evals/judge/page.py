"""A judge's report in words: for the terminal, as Markdown, and as one HTML file that opens offline."""

from pathlib import Path
from typing import Any

from tunebook.common import format, pages
from tunebook.common.flags import redaction
from tunebook.common.format import p_value, percent
from tunebook.common.pages import Cell
from tunebook.evals.judge.prompt import OUTCOMES

HEADS = ["", "judged", "won", "lost", "tied", "position-inconsistent", "equal answers", "unparsed", "win rate",
         "95 % interval", "characters, base → tuned"]  # fmt: skip
COUNTS = {"won": "Won", "lost": "Lost", "tied": "Tied", "position_inconsistent": "Orders disagreed",
          "identical": "Equal answers", "unparsed": "Unparsed"}  # fmt: skip
COUNTED = {"won": "Won", "tied": "Tied in both orders", "position_inconsistent": "Orders disagreed (a tie)",
           "identical": "Equal answers (a tie)", "lost": "Lost"}  # fmt: skip
LENGTHS = ("characters_base", "characters_tuned")
FEW = 10  # items below which a rate is told to be of few
SAYS_NOTHING = 0.9  # width of an interval
KINDS = {
    "lost": "Lost: base's answer is better in both orders",
    "won": "Won: the tuned model's answer is better in both orders",
    "position_inconsistent": "The two orders disagreed: counted as a tie",
    "tied": "Tied in both orders",
    "unparsed": "A verdict is missing or cannot be read: left out",
    "identical": "Equal answers: a tie, and not asked",
}
WORDS = {
    "better": "the tuned model's answers are better",
    "worse": "the tuned model's answers are worse",
    "no difference found": "no difference found",
    "nothing judged": "nothing judged",
}


def interval(row: dict[str, Any]) -> str:
    return format.DASH if row["low"] is None else format.interval(row["low"], row["high"]) + " %"


def cells(name: str, row: dict[str, Any]) -> list[str]:
    """A row of the table, in the order of HEADS."""
    counts = [f"{row[key]:,}" for key in ("judged", *OUTCOMES)]
    base, tuned = row["characters_base"], row["characters_tuned"]
    lengths = format.DASH if base is None else f"{base:,.0f} → {tuned:,.0f}"
    return [name, *counts, percent(row["rate"]), interval(row), lengths]


def table(report: dict[str, Any]) -> list[list[str]]:
    rows = [cells("all", report["total"])]
    return rows + [cells(name, row) for part in ("by_turn", "by_category") for name, row in report[part].items()]


def lines(report: dict[str, Any]) -> list[str]:
    """The result for the terminal."""
    total = report["total"]
    result = [
        f"{report['tuned']['name']} against {report['base']['name']}, judged by {report['judge']['name']}",
        f"win rate {percent(total['rate'])} ({interval(total)}), p {p_value(total['p'])}: {WORDS[report['verdict']]}",
        length_line(report["length_controlled"]),
        f"{total['judged']:,} judged: {total['won']:,} won, {total['lost']:,} lost, {total['tied']:,} tied, "
        f"{total['position_inconsistent']:,} ties as the two orders disagreed, {total['identical']:,} equal answers; "
        f"{total['unparsed']:,} unparsed and left out",
    ]
    if total["judged"]:
        result.append(
            f"mean length in characters: base {total['characters_base']:,.0f}, tuned {total['characters_tuned']:,.0f}"
        )
    return result + [f"note: {note}" for note in notes(report)]


def length_line(controlled: dict[str, Any]) -> str:
    """The win rate between answers of equal length, or why there is none."""
    if controlled["rate"] is None:
        return f"length-controlled win rate: none; {controlled['why']}"
    why = f"; {controlled['why']}" if controlled["why"] else ""
    if not known(controlled):
        return f"length-controlled win rate: not known, as its interval is {interval(controlled)}{why}"
    return f"length-controlled win rate {percent(controlled['rate'])} ({interval(controlled)}){why}"


def notes(report: dict[str, Any]) -> list[str]:
    """What a reader must know of these verdicts."""
    found = list(report["notes"])
    if report["stopped"]:
        found.append(f"stopped before the end: {report['stopped']}; the same command resumes")
    if report["not_asked"]:
        found.append(
            f"{report['not_asked']:,} of {report['pairs']:,} items are not judged yet; the others are a random sample"
        )
    found += [f"unparsed, {count:,} replies: {why}" for why, count in report["unparsed"].items()]
    place = report["position"]
    decided = place["first"] + place["second"]
    if decided:
        found.append(
            f"the judge chose the answer that stood first in {place['first']:,} of {decided:,} decided verdicts"
        )
    for name in ("base", "tuned"):
        model = report[name]
        found += [f"{name}: {note}" for note in model["notes"]]
        if model["cut"]:
            found.append(f"{name}: {model['cut']:,} answers were cut at the limit of tokens")
        if count := report["speaks_to_judge"][name]:
            found.append(
                f"{name}: {count:,} answers hold what looks like a verdict; they are marked off from the judge's "
                "instructions, which a judge may still disregard: look at them"
            )
    calls = report["calls"]
    line = f"calls: {calls['sent']:,} sent ({calls['retries']:,} retries), {calls['kept']:,} cached"
    line += f", {calls['tokens']:,} tokens"
    if calls["tokens_unsaid"]:
        line += f" ({calls['tokens_unsaid']:,} replies at most, as the server does not say)"
    return [*found, line]


def explained(report: dict[str, Any]) -> list[str]:
    """What the numbers mean."""
    several = " and knows that turns of one question go together" if report["by_turn"] else ""
    return [
        "A win takes the same verdict in both orders; ties, orders that disagree and equal answers are half a win.",
        f"The interval of the win rate is Tango's score interval{several}; p is of the exact two-sided sign test"
        f"{' on questions' if several else ''}, which leaves ties out.",
        "Length-controlled: a logistic regression of the verdicts on the difference of lengths, read where it is zero "
        "(after Dubois et al., 2024), with Firth's penalty; the interval is the wider of bootstrap and profile.",
        "Rows for turns and categories are looks at the same verdicts; no p is given for them.",
        "A judge is a model with a taste of its own: it may favor its own family, a style, or flattery.",
    ]


def markdown(report: dict[str, Any]) -> str:
    """The result, the table, and what the numbers mean."""
    first = "".join(f"{line}  \n" for line in lines(report)[:3])
    return first + "\n" + format.markdown_table(HEADS, table(report), [*notes(report), *explained(report)])


def page(report: dict[str, Any]) -> str:
    """One HTML file: the figures, and all items with both verdicts."""
    total, controlled = report["total"], report["length_controlled"]
    models = [report[name]["name"] for name in ("base", "tuned", "judge")]
    facts = zip(("Base", "Tuned", "Judge"), map(redaction.without_paths, models), strict=True)
    result, words = lines(report), WORDS[report["verdict"]]
    rate = f"{percent(total['rate'])} ({interval(total)}), p {p_value(total['p'])}"
    lengths = [format.DASH if total[key] is None else f"{total[key]:,.0f}" for key in LENGTHS]
    return pages.render(
        Path(__file__).with_name("judge.html.jinja"),
        facts=[*facts, ("Items judged", f"{total['judged']:,} of {report['pairs']:,}")],
        tone=pages.tone(report["verdict"]),
        sentences=[f"{words[0].upper()}{words[1:]}: win rate {rate}.", result[2]],
        tiles=[
            ("Win rate of the tuned model", percent(total["rate"]), interval(total), report["verdict"]),
            ("Between answers of equal length", percent(controlled["rate"]) if known(controlled) else format.DASH,
             interval(controlled) if known(controlled) else "not known", ""),
            ("Characters of an answer, tuned", lengths[1], f"base: {lengths[0]}", ""),
        ],
        bar=[(key, name, total[key], total[key] / (total["judged"] or 1)) for key, name in COUNTED.items()],
        **_table(report),
        notes=[*notes(report), *explained(report)],
        kinds=[(kind, text, count) for kind, text in KINDS.items()
               if (count := sum(item["outcome"] == kind for item in report["items"]))],
        items=report["items"],
    )  # fmt: skip


def known(controlled: dict[str, Any]) -> bool:
    """Whether a length-controlled rate says anything: its interval is not nearly all there is."""
    return controlled["rate"] is not None and controlled["high"] - controlled["low"] < SAYS_NOTHING


def _table(report: dict[str, Any]) -> dict[str, Any]:
    """`heads` and `rows`; a count that is zero everywhere has no column."""
    rows = {"all": report["total"], **report["by_turn"], **report["by_category"]}
    counts = [key for key in OUTCOMES if key in ("won", "lost", "tied") or any(row[key] for row in rows.values())]
    found: list[list[Any]] = []
    for name, row in rows.items():
        base, tuned = row["characters_base"], row["characters_tuned"]
        lengths = format.DASH if base is None else f"{base:,.0f} → {tuned:,.0f}"
        few = f"{row['judged']:,} items" + (": too few to tell" if 0 < row["judged"] < FEW else "")
        found.append([
            Cell(name, few, sort=name), Cell(percent(row["rate"]), interval(row), sort=row["rate"]),
            *(f"{row[key]:,}" for key in counts), Cell(lengths, sort=(tuned or 0) - (base or 0)),
        ])  # fmt: skip
    heads = ["", "Win rate, 95 % interval", *(COUNTS[key] for key in counts), "Characters, base → tuned"]
    return {"heads": heads, "rows": found}
