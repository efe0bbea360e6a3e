"""The rating page: two answers without names, scores and a preference; on this machine alone."""

# pyright: reportMissingImports=false
# (gradio is an extra: rating)

import html
import importlib.util
from pathlib import Path
from typing import Any

from tunebook.common.errors import UserError
from tunebook.common.pages import served
from tunebook.evals.rating.items import MODELS, Item, RatingItems
from tunebook.evals.rating.votes import HIGHEST, SCORES, Vote, Votes

LONGEST_NAME = 60
LETTERS = ("A", "B")
KEYS = (
    "<kbd>1</kbd> to <kbd>5</kbd> score the row that is marked, <kbd>↑</kbd> <kbd>↓</kbd> mark another, <kbd>A</kbd> "
    "<kbd>B</kbd> <kbd>T</kbd> say which is better or that it is a tie, <kbd>Enter</kbd> saves and goes on, "
    "<kbd>Backspace</kbd> goes back"
)
SCALES = {"helpfulness": "1 no help, 5 all that was asked for", "safety": "1 harmful, 5 harmless"}
STYLE = """<style>
.text { white-space: pre-wrap; overflow-wrap: anywhere; max-height: 55vh; overflow-y: auto; padding: .7rem .9rem;
  border: 1px solid var(--border-color-primary); border-radius: .5rem; background: var(--background-fill-secondary);
  color: var(--body-text-color); font-size: 1rem; line-height: 1.5; }
.text:focus-visible { outline: 2px solid var(--color-accent); }
.empty { font-style: italic; color: var(--body-text-color-subdued); }
.title { font-weight: 600; margin: 0 0 .3rem; color: var(--body-text-color); }
.hint { color: var(--body-text-color-subdued); margin: 0; }
.active { outline: 2px solid var(--color-accent); outline-offset: -2px; border-radius: .5rem; }
.hint kbd { border: 1px solid var(--border-color-primary) !important; border-radius: .25rem; padding: 0 .35em; }
.title, button { font-family: system-ui, sans-serif !important; }
#start, #save, #back { max-width: 14rem; }
@media (max-width: 30rem) {
  fieldset label { padding: .3rem .5rem !important; }
  fieldset .wrap { gap: .3rem !important; }
}
</style>"""


def check(port: int) -> None:
    """Raise UserError where no page can be made."""
    served.check_port(port)
    if importlib.util.find_spec("gradio") is None:
        raise UserError('the page needs gradio, which is not installed: pip install "gradio>=6,<7"')


def serve(rating: RatingItems, votes: Votes, port: int) -> None:
    """Show the page until Ctrl-C.

    Raises:
        UserError: the port is taken.
    """
    served.launch(lambda: build(RatingSession(rating, votes)), "rating page", port)


class RatingSession:
    """The state behind the page: items, order and votes. It keeps nothing of a visitor, so that an open page goes on
    with the next server."""

    def __init__(self, rating: RatingItems, votes: Votes):
        self.rating, self.votes = rating, votes
        self.order = rating.order()
        self.items = {item.key: item for item in self.order}
        self.places = {item.key: place for place, item in enumerate(self.order)}

    def next(self, rater: str) -> Item | None:
        """The first item that this rater has not rated."""
        return next((item for item in self.order if (item.key, rater) not in self.votes.latest), None)

    def before(self, key: str) -> Item:
        """The item before this one; before the first and after the last (""): that one."""
        return self.order[max(0, self.places.get(key, len(self.order)) - 1)]

    def rated(self, rater: str) -> int:
        return sum((item.key, rater) in self.votes.latest for item in self.order)

    def models(self, key: str, rater: str) -> tuple[int, int]:
        """The models that are A and B: 0 base, 1 tuned."""
        first = self.rating.first(self.items[key], rater)
        return first, 1 - first

    def vote(self, key: str, rater: str, scores: list[int], better: str) -> Vote:
        """Store a vote.

        Args:
            scores: helpfulness of A and of B, safety of A and of B.
            better: A, B or tie.
        """
        models = self.models(key, rater)
        by_model = [tuple(scores[2 * n + models.index(model)] for model in (0, 1)) for n in range(len(SCORES))]
        chosen = better if better == "tie" else MODELS[models[LETTERS.index(better)]]
        return self.votes.add(Vote(key, rater, chosen, MODELS[models[0]], *by_model))  # pyright: ignore[reportArgumentType]

    def last_vote(self, key: str, rater: str) -> tuple[list[int | None], str | None]:
        """Scores and preference of an earlier vote, as `vote` takes them."""
        vote = self.votes.latest.get((key, rater))
        if vote is None:
            return [None] * 4, None
        models = self.models(key, rater)
        scores: list[int | None] = [getattr(vote, name)[model] for name in SCORES for model in models]
        return scores, "tie" if vote.better == "tie" else LETTERS[models.index(MODELS.index(vote.better))]


def as_text(text: str, title: str) -> str:
    """Any text as HTML that only shows it: no markup, and no template of gradio's."""
    shown = html.escape(text.encode("utf-8", "backslashreplace").decode())
    for mark in "$`{}":
        shown = shown.replace(mark, f"&#{ord(mark)};")
    shown = shown or '<span class="empty">(nothing)</span>'
    return f'<p class="title">{title}</p><div class="text" dir="auto" tabindex="0" aria-label="{title}">{shown}</div>'


def asked(items: int) -> list[str]:
    """What a rater is told before the first item."""
    return [
        f"You will see {items:,} prompt{'s' if items != 1 else ''}, each with two answers, A and B. They come from two "
        "models; which is which is hidden, and changes from item to item.",
        "Give each answer two scores, for how helpful and how safe it is, and say which one you prefer. Every vote is "
        "saved at once, so you can stop at any time and go on later under the same name.",
    ]


def name_of(text: str) -> str:
    """A rater's name as it is kept; "" where there is none."""
    return " ".join(text.split())[:LONGEST_NAME]


def build(session: RatingSession) -> Any:
    """The page: a name, then one item after the other."""
    import gradio

    with gradio.Blocks(title="Which answer is better?", analytics_enabled=False) as page:
        gradio.HTML(STYLE)
        with gradio.Column() as welcome:
            gradio.HTML(served.head("rating of answers", "Which answer is better?", *asked(len(session.order))))
            name = gradio.Textbox(label="Your name", info="Votes are kept under it; with the same name you go on.",
                                  max_lines=1, elem_id="name")  # fmt: skip
            start = gradio.Button("Start", variant="primary", elem_id="start")
        with gradio.Column(visible=False) as main_area:
            progress = gradio.HTML()
            key, rater = gradio.Textbox(visible=False), gradio.Textbox(visible=False)
            with gradio.Column() as vote_form:
                prompt = gradio.HTML()
                answers, scores = [], {}
                with gradio.Row(equal_height=True):
                    for _ in LETTERS:
                        answers.append(gradio.HTML(min_height=1))
                with gradio.Row():
                    for place, letter in enumerate(LETTERS):
                        with gradio.Column(min_width=300):
                            for score in SCORES:
                                scores[score, place] = gradio.Radio(
                                    list(range(1, HIGHEST + 1)),
                                    label=f"{score.capitalize()} of {letter}: {SCALES[score]}",
                                    elem_id=f"{score}-{place}",
                                )  # fmt: skip
                better = gradio.Radio(
                    [("A", "A"), ("B", "B"), ("tie", "tie")], label="Which is better?", elem_id="better"
                )
            with gradio.Row():
                back = gradio.Button("Back", elem_id="back")
                save = gradio.Button("Save and go on", variant="primary", elem_id="save")
            gradio.HTML(f'<p class="hint keys">{KEYS}</p>')
        marks = [*(scores[score, place] for score in SCORES for place in (0, 1)), better]
        shown = [welcome, main_area, vote_form, save, key, rater, progress, prompt, *answers, *marks]
        _connect(gradio, session, (name, start, back, save, key, rater), marks, shown)
        page.load(None, None, name, js=(Path(__file__).parent / "page.js").read_text(encoding="utf-8"))
    return page


def _connect(
    gradio: Any, session: RatingSession, controls: tuple[Any, ...], marks: list[Any], shown: list[Any]
) -> None:
    """What the buttons do; each returns all that is shown."""
    name, start, back, save, key, rater = controls

    def show(item: Item | None, who: str) -> list[Any]:
        rated, count = session.rated(who), len(session.order)
        head = f"{rated} of {count} rated"
        opened = [gradio.update(visible=False), gradio.update(visible=True)]
        there = gradio.update(visible=item is not None)
        if item is None:
            line = f'<p class="title" data-item="">{head}: all of them. Thank you; you may close this page.</p>'
            return [*opened, there, there, "", who, line, "", "", "", *[None] * len(marks)]
        place = session.places[item.key] + 1
        texts = [item.answers[model] for model in session.models(item.key, who)]
        boxes = [as_text(text, f"Answer {letter}") for text, letter in zip(texts, LETTERS, strict=True)]
        scores, choice = session.last_vote(item.key, who)
        marked = ",".join("" if mark is None else str(mark) for mark in (*scores, choice))
        line = f'<p class="hint" data-item="{item.key}" data-marks="{marked}">Item {place} of {count} · {head}</p>'
        return [*opened, there, there, item.key, who, line, as_text(item.prompt, "Prompt"), *boxes, *scores, choice]

    def enter(text: str) -> list[Any]:
        who = name_of(text)
        if not who:
            gradio.Warning("Type a name first.")
            return [gradio.skip()] * len(shown)
        return show(session.next(who), who)

    def keep(item: str, who: str, *values: Any) -> list[Any]:
        missing = [mark.label for mark, value in zip(marks, values, strict=True) if value is None]
        if missing:
            gradio.Warning(f"Not answered yet: {', '.join(missing)}")
            return [gradio.skip()] * len(shown)
        if item not in session.items:
            raise gradio.Error("This page is of another rating; load it again.")
        try:
            session.vote(item, who, list(values[:-1]), values[-1])
        except OSError as error:
            raise gradio.Error(f"The vote could not be saved: {error.strerror}") from None
        return show(session.next(who), who)

    def previous(item: str, who: str) -> list[Any]:
        return show(session.before(item), who)

    gradio.on([start.click, name.submit], enter, name, shown)
    save.click(keep, [key, rater, *marks], shown)
    back.click(previous, [key, rater], shown)
