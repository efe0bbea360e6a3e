"""A table of the safety, bias and quality scores of one or two models, and the limits of its numbers."""

from dataclasses import dataclass

from scipy import stats

from tunebook.common import format
from tunebook.evals.compare import matching, prompting
from tunebook.evals.compare.logs import ModelScores, Task
from tunebook.evals.stats import paired

# Task -> metric -> its name in the table, and the value to wish for.
SHARES = {
    "safety_xstest_unsafe": {"refusal": ("refuses what it should (XSTest, unsafe)", "high")},
    "safety_prompts_unsafe": {"refusal": ("refuses what it should (our prompts, unsafe)", "high")},
    "safety_xstest_safe": {"over_refusal": ("refuses what is harmless (XSTest, safe)", "low")},
    "safety_prompts_safe": {"over_refusal": ("refuses what is harmless (our prompts, safe)", "low")},
    "safety_crows_pairs": {"stereotype": ("prefers the stereotype (CrowS-Pairs)", "near 50 %")},
    "safety_winogender": {"acc": ("finds whom a pronoun means (Winogender)", "high")},
}
EMPTY = "of these answers, those that say nothing"
LIMITS = {
    "refusal": (
        "Refusals are told by rules on the first words of an answer (safety/refusals.py); a change of subject, a late "
        "refusal and other languages are missed, and an answer that declines and then complies counts as a refusal. An "
        "answer that does not refuse need not be harmful: a weak model may just not know.",
        "The prompts are a few hundred known ones in English; others, and people who try again, get other answers. "
        "Without its chat template or training prompt a model may go on with the question instead of answering it.",
    ),
    "stereotype": (
        "CrowS-Pairs compares how likely whole sentences are. It is not what a model would say, many pairs have known "
        "faults (Blodgett et al. 2021), and 50 % may hide biases that cancel. Rarer or longer words alone move it: the "
        "bundled pocket model, which has read nothing about people, has 37 % on race and 74 % on sexual orientation.",
    ),
    "acc": (
        "Winogender has 60 occupations and three pronouns in sentences of one build. A gap near zero also comes from a "
        "model that guesses: read it beside the share that is right.",
    ),
}


@dataclass(frozen=True)
class Line:
    """A row of one model."""

    name: str
    wanted: str
    value: float
    items: int
    low: float | None = None  # of the 95 % interval
    high: float | None = None
    share: bool = True
    points: bool = False  # a difference of shares


def lines(model: ModelScores) -> list[Line]:
    """The rows of one model's safety tasks, in a fixed order."""
    found = []
    for name, measures in SHARES.items():
        task = model.tasks.get(name)
        if task is None:
            continue
        for metric, (words, wanted) in measures.items():
            found.append(_share(words, wanted, list(task.values[metric].values())))
            if "empty" in task.values:
                found.append(_share(EMPTY, "low", list(task.values["empty"].values())))
        if name == "safety_crows_pairs":
            found += _by_bias(task)
        elif name == "safety_winogender":
            found += _by_gender(task)
    return found


def quality(model: ModelScores) -> list[Line]:
    """The other groups, and tasks in no group, by their headline metric."""
    grouped = {task for tasks in model.groups.values() for task in tasks}
    scores = {name: found for name, found in model.group_scores.items() if found and name not in grouped}
    scores |= {name: task.scores for name, task in model.tasks.items() if name not in grouped}
    lines = []
    for name, found in scores.items():
        if name in SHARES or name == "safety" or not found:
            continue
        metric = "acc_norm" if "acc_norm" in found else next(iter(found))
        items = sum(len(model.tasks[task].items) for task in matching.leaves(model, name))
        share = metric.partition(",")[0] in ("acc", "acc_norm", "exact_match", "pass@1")
        lines.append(Line(f"{name} {metric}", "", found[metric], items, share=share))
    return lines


def _share(name: str, wanted: str, values: list[float]) -> Line:
    """A share of items with Wilson's interval; ties count half."""
    total = sum(values)
    interval = stats.binomtest(round(total), len(values)).proportion_ci(paired.LEVEL, method="wilson")
    return Line(name, wanted, total / len(values), len(values), interval.low, interval.high)


def _by_bias(task: Task) -> list[Line]:
    kinds: dict[str, list[float]] = {}
    for key, value in task.values["stereotype"].items():
        kinds.setdefault(task.items[key]["doc"]["skill"], []).append(value)
    return [_share(f"· {kind}", "", values) for kind, values in sorted(kinds.items())]


def _by_gender(task: Task) -> list[Line]:
    """Accuracy by gender; he minus she on sentences that differ in nothing else; and how many of those differ."""
    right: dict[str, dict[str, float]] = {"male": {}, "female": {}, "neutral": {}}
    for key, value in task.values["acc"].items():
        doc = task.items[key]["doc"]
        right[doc["gender"]][doc["pair"]] = value
    words = {"male": "· he", "female": "· she", "neutral": "· they"}
    found = [_share(words[gender], "", list(values.values())) for gender, values in right.items() if values]
    both = [pair for pair in right["male"] if pair in right["female"]]
    if not both:
        return found
    changes = [right["male"][pair] - right["female"][pair] for pair in both]
    won, lost, items = changes.count(1), changes.count(-1), len(both)
    low, high = paired.score_interval(lost, won, items)
    gap = Line("gap: right with he less right with she", "near 0", (won - lost) / items, items, low, high, points=True)
    unlike = _share("pairs of sentences that he and she decide unlike", "low", [abs(change) for change in changes])
    return [*found, gap, unlike]


def table(models: list[ModelScores]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of text: safety and bias, then quality; a column for each of one or two models."""
    heads = ["", "wanted", "items", *(["value"] if len(models) == 1 else ["before", "after"])]
    rows = []
    for part in (lines, quality):
        columns = [_named(part(model)) for model in models]
        for name in dict.fromkeys(name for column in columns for name in column):
            cells = [_cell(column.get(name)) for column in columns]
            some = next(column[name] for column in columns if name in column)
            counts = dict.fromkeys(f"{column[name].items:,}" for column in columns if name in column)
            rows.append([some.name, some.wanted, " / ".join(counts), *cells])
    return heads, rows


def _named(found: list[Line]) -> dict[str, Line]:
    """Lines by name; EMPTY after the name of the line that it is about."""
    named, owner = {}, ""
    for line in found:
        if line.name == EMPTY:
            named[f"{owner}: {EMPTY}"] = line
        else:
            owner = line.name
            named[owner] = line
    return named


def _cell(line: Line | None) -> str:
    if line is None:
        return format.DASH
    if not line.share:
        return f"{line.value:.4g}"
    value = f"{format.points(line.value)} points" if line.points else format.percent(line.value)
    if line.low is None or line.high is None:
        return value
    return f"{value} ({format.interval(line.low, line.high, '+.1f' if line.points else '.1f')})"


def notes(models: list[ModelScores]) -> list[str]:
    """The limits of the numbers that are there."""
    metrics = {metric for model in models for task in model.tasks if task in SHARES for metric in SHARES[task]}
    metrics = {metric.removeprefix("over_") for metric in metrics}
    found = [note for metric, texts in LIMITS.items() if metric in metrics for note in texts]
    if "refusal" in metrics and not all(model.settings.get("chat_template") or _in_template(model) for model in models):
        found.append("No template was applied here: prompts were asked as they are.")
    found.append("Intervals are 95 %: Wilson's of a share, Tango's of the gap; they are of these items, no others.")
    if len(models) == 2:
        if unlike := prompting.note(*models):
            found.append(f"The two were not asked alike, and differ for that reason, too: {unlike}.")
        found.append("Whether before and after differ by more than chance: tunebook compare, on the same two folders.")
    return found


def _in_template(model: ModelScores) -> bool:
    """Whether the prompts were put into a template by safety/datasets.py."""
    docs = [item["doc"] for task in model.tasks.values() for item in task.items.values() if "asked" in item["doc"]]
    return bool(docs) and all(doc["asked"] != doc["prompt"] for doc in docs)


def markdown(models: list[ModelScores]) -> str:
    """The table and its notes for a README."""
    return format.markdown_table(*table(models), notes(models))


def missing(model: ModelScores) -> list[str]:
    """The safety tasks that were not run."""
    return [name for name in SHARES if name not in model.tasks]
