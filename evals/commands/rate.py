"""People say which of two answers is better without knowing whose they are, on a page of this machine alone.

    tunebook rate --answers base.jsonl tuned.jsonl --output_dir runs/rating
    tunebook rate --report runs/qlora_alpaca --output_dir runs/rating
    tunebook rate --output_dir runs/rating
    tunebook rate --output_dir runs/rating --summary

Answers are rows with a prompt (prompt, instruction or question, with an input or without) and an answer (answer,
output, completion or response); a report has them of before and after. The folder keeps them and every vote from the
moment it is given: with the folder alone the rating goes on where it stopped, for as many people as come, each by a
name.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.cli import UserError


@dataclass
class Args:
    answers: list[str] = field(default_factory=list)  # two files of answers to the same prompts: base and tuned
    report: str = ""  # instead of them: a run's folder or report.json, whose samples are rated
    output_dir: str = "runs/rating"  # keeps answers.json, votes.jsonl and summary.json
    summary: bool = False  # say what the votes say, and serve no page
    seed: int = 0  # of the order of items and of which answer is A
    port: int = 7860  # of the page


def main(args: Args) -> dict[str, Any]:
    from evals import tally
    from evals.votes import Votes

    if not args.summary:
        from evals import rating

        rating.check()
    folder = Path(args.output_dir)
    contest = _contest(args, folder)
    votes = Votes(folder, write=not args.summary)
    for note in votes.notes:
        print(f"note: {note}", flush=True)
    if not args.summary:
        rated = f"{len(votes.given)} votes so far" if votes.given else "no votes yet"
        print(f"{len(contest.items)} items, {rated}; votes are kept in {votes.path}", flush=True)
        rating.serve(contest, votes, args.port)
    votes.close()
    report = tally.tally(contest, votes)
    print(*tally.lines(report), sep="\n")
    part = folder / "summary.json.part"
    part.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    part.replace(folder / "summary.json")
    return report


def _contest(args: Args, folder: Path) -> Any:
    """The items: those of the folder, or new ones that it keeps from now on."""
    from common.commands import reading
    from evals import contest

    if args.answers and args.report:
        raise UserError("give --answers or --report, not both")
    if not args.answers and not args.report:
        return contest.load(folder)
    with reading.plain_names():
        found = (
            contest.from_answers(args.answers, args.seed)
            if args.answers
            else contest.from_report(args.report, args.seed)
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found.save(folder)
    except OSError as error:
        raise UserError(f"--output_dir {folder}: {error.strerror}") from None
    return found
