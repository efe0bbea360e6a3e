"""Blind A/B rating: people say which of two answers is better, on a page of this machine alone.

    tunebook rate --answers base.jsonl tuned.jsonl --output_dir runs/rating
    tunebook rate --report runs/qlora_alpaca --output_dir runs/rating
    tunebook rate --models pocket runs/qlora_alpaca --prompts my_questions.jsonl --limit 40 --output_dir runs/rating
    tunebook rate --output_dir runs/rating
    tunebook rate --output_dir runs/rating --summary

Answers are rows with a prompt (prompt, instruction or question, and an optional input) and an answer (answer, output,
completion or response); a report has them of before and after, and models are asked. The folder keeps them and every
vote as it is given: with the folder alone the rating resumes, for any number of people, each under a name.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunebook.common import files
from tunebook.common.errors import UserError


@dataclass
class Args:
    answers: list[str] = field(default_factory=list)  # two files of answers to the same prompts: base and tuned
    report: str = ""  # instead of them: a run's folder or report.json, whose samples are rated
    models: list[str] = field(default_factory=list)  # instead: two models, adapters or runs that answer, base and tuned
    prompts: str = "pocket"  # what --models are asked: a file of questions, or pocket
    limit: int = 0  # how many of them, evenly spread; 0: all
    max_new_tokens: int = 256  # that an answer of --models may have
    output_dir: str = "runs/rating"  # keeps answers.json, votes.jsonl and summary.json
    summary: bool = False  # say what the votes say, and serve no page
    seed: int = 0  # of the order of items and of which answer is A
    port: int = 7860  # of the page


def main(args: Args) -> dict[str, Any]:
    from tunebook.evals.rating import summary
    from tunebook.evals.rating.votes import Votes

    if not args.summary:
        from tunebook.evals import rating

        rating.check(args.port)
    folder = Path(args.output_dir)
    found = _items(args, folder)
    votes = Votes(folder, write=not args.summary)
    for note in votes.notes:
        print(f"note: {note}", flush=True)
    if not args.summary:
        rated = f"{len(votes.latest)} votes so far" if votes.latest else "no votes yet"
        print(f"{len(found.items)} items, {rated}; votes are kept in {votes.path}", flush=True)
        rating.serve(found, votes, args.port)
    votes.close()
    report = summary.summarize(found, votes)
    print(*summary.lines(report), sep="\n")
    files.write_json(folder / "summary.json", report)
    return report


def _items(args: Args, folder: Path) -> Any:
    """The items: those of the folder, or new ones that it keeps from now on."""
    from tunebook.common.commands import inputs
    from tunebook.evals.rating import items

    sources = [name for name in ("answers", "report", "models") if getattr(args, name)]
    if len(sources) > 1:
        raise UserError(f"give one of {', '.join(f'--{name}' for name in sources)}")
    if not sources:
        return items.load(folder)
    if args.limit < 0 or args.max_new_tokens < 1:
        raise UserError("--limit is 0 or more, --max_new_tokens 1 or more")
    with inputs.plain_names():
        if args.models:
            found = items.from_models(args.models, args.prompts, args.limit, args.max_new_tokens, folder, args.seed)
        elif args.answers:
            found = items.from_answers(args.answers, args.seed)
        else:
            found = items.from_report(args.report, args.seed)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found.save(folder)
    except OSError as error:
        raise UserError(f"--output_dir {folder}: {error.strerror}") from None
    return found
