"""A judge's report in words: for the terminal, as Markdown, and as one HTML file that opens offline."""

from pathlib import Path
from typing import Any

from tunebook.common import files, format
from tunebook.common.format import p_value, percent
from tunebook.evals.judge.prompt import OUTCOMES

HEADS = ["", "judged", "won", "lost", "tied", "position-inconsistent", "equal answers", "unparsed", "win rate",
         "95 % interval", "characters, base → tuned"]  # fmt: skip
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
    groups = [(text, [item for item in report["items"] if item["outcome"] == kind]) for kind, text in KINDS.items()]
    return files.page(
        Path(__file__).with_name("judge.html.jinja"),
        report=report,
        result=lines(report)[: 5 if report["total"]["judged"] else 4],
        heads=HEADS,
        rows=table(report),
        notes=notes(report),
        explained=explained(report),
        groups=[(text, items) for text, items in groups if items],
    )
