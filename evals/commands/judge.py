"""LLM-as-a-judge: a model compares two models' answers in both orders; orders that disagree count as a tie.

    tunebook judge base.jsonl tuned.jsonl --judge http://localhost:8000/v1 --judge_name my-judge
    tunebook judge pocket runs/qlora_alpaca --prompts pocket --limit 60 --judge my_judge_model/
    tunebook judge my_model/ runs/lora_chat --prompts question.jsonl --references reference_answer.jsonl \\
        --judge https://api.example.com/v1 --judge_name big --max_calls 400

BASE and TUNED are models, adapters or runs, which are asked, or files of answers. Files of questions may be MT-Bench's
(every turn is judged), AlpacaEval's, or rows of yours. A key is read from OPENAI_API_KEY. Verdicts are cached as they
come: the same command resumes a run that was killed or has used up its budget.
"""

import json
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from tunebook.common.errors import CheckFailed, UserError
from tunebook.common.files import write_atomic, write_json
from tunebook.common.flags import redaction

FILE = "judge.json"
SAME = ("sides", "prompts", "judge", "judge_name")  # arguments that make a report another report


@dataclass
class Args:
    # The model before and the model after, or files of their answers.
    sides: Annotated[tyro.conf.Positional[list[str]], tyro.conf.arg(metavar="BASE TUNED", help_behavior_hint="")] = (
        field(default_factory=list)
    )
    judge: str = ""  # http://host:port/v1, or a folder, a Hub name or an adapter, run on this machine
    judge_name: str = ""  # the name under which an endpoint serves the judge
    prompts: str = ""  # a file of questions, pocket or pocket_chat; default: those of BASE's file, or pocket
    references: str = ""  # a file of right answers by question_id, as MT-Bench has them
    limit: int = 0  # judge this many questions, evenly spread; 0: all
    output_dir: str = "runs/judge"  # gets judge.json, judge.md, judge.html and the verdicts
    model: str = ""  # the base under adapters; default: what each was trained on
    template: str = ""  # of the models' prompts; default: that of TUNED's training, and BASE's own where it has one
    max_new_tokens: int = 512  # tokens of an answer
    judge_max_new_tokens: int = 1024  # tokens of a verdict with its reasons
    # NAME=VALUE fields of a request to an endpoint; null leaves one out: max_tokens=null max_completion_tokens=2000
    request: list[str] = field(default_factory=list)
    timeout: float = 120.0  # seconds that a reply may take
    retries: int = 4  # tries after the first, with growing waits, where the endpoint is busy or fails
    concurrency: int = 4  # requests at a time
    max_calls: int = 0  # stop after this many requests; 0: no limit
    max_tokens_total: int = 0  # stop before more tokens than this may be used, prompts and replies; 0: no limit
    overwrite: bool = False  # write over the report of another comparison


def main(args: Args) -> dict[str, Any]:
    from tunebook.common.generation.budget import Budget
    from tunebook.evals import judge
    from tunebook.evals.responses import generate, questions
    from tunebook.evals.responses.store import ResponseCache

    check(args)
    folder = _folder(args)
    files = [Path(side).is_file() for side in args.sides]
    prompts = args.prompts or (args.sides[files.index(True)] if any(files) else "pocket")
    asked, notes = questions.load(prompts, args.references)
    asked = questions.spread(asked, args.limit)
    judge_model = _judge(args, Budget(args.max_calls, args.max_tokens_total))  # refused before models are asked
    base, tuned = _outputs(args, asked, files, folder)
    pairs = judge.pairs(asked, base, tuned)
    if not pairs:
        why = next(iter([*base.why.values(), *tuned.why.values()]), "no questions")
        raise CheckFailed(f"there is no pair of answers to judge: {why}")
    notes += [note] if (note := generate.template_note(base, tuned)) else []
    with closing(ResponseCache(folder / "verdicts.jsonl")) as cache:
        if cache.corrupt_lines:
            notes.append(f"{cache.corrupt_lines} lines of {cache.path} cannot be read and are asked again")
        judgments = judge.collect(pairs, judge_model, cache)
    report = {"asked": _asked(args), "notes": notes}
    report |= judge.report(pairs, judgments, judge_model, base, tuned)
    report["judge"] = redaction.without_secrets(report["judge"])
    write(folder, report)
    if not report["total"]["judged"]:
        why = report["stopped"] or "; ".join([*report["unparsed"]][:3])
        raise CheckFailed(f"there is no verdict that can be read: {why}")
    if judgments.stopped and not judgments.out_of_budget:
        raise CheckFailed(f"the judge has stopped answering: {judgments.stopped}")
    return report


def check(args: Args) -> None:
    """Raise UserError for arguments that cannot work, before anything is read."""
    if len(args.sides) != 2:
        raise UserError(f"expected two, BASE and TUNED, found {len(args.sides)}: tunebook judge --help")
    if args.sides[0] == args.sides[1]:
        raise UserError(f"BASE and TUNED are both {args.sides[0]}; there is nothing to compare")
    if not args.judge:
        raise UserError("--judge says who judges: http://host:port/v1, a folder or a Hub name")
    remote = args.judge.startswith(("http://", "https://"))
    if remote and not args.judge_name:
        raise UserError("--judge_name says which model the endpoint is to use; it is missing")
    if not remote and (args.judge_name or args.request):
        raise UserError("--judge_name and --request are for an endpoint, and --judge names a model on this machine")
    for name, least in (
        ("limit", 0), ("max_new_tokens", 1), ("judge_max_new_tokens", 1), ("retries", 0), ("concurrency", 1),
        ("max_calls", 0), ("max_tokens_total", 0),
    ):  # fmt: skip
        if getattr(args, name) < least:
            raise UserError(f"--{name} {getattr(args, name)}: expected {least} or more")
    if not 0 < args.timeout < 86_400:
        raise UserError(f"--timeout {args.timeout}: expected seconds, more than 0 and less than a day")


def write(folder: Path, report: dict[str, Any]) -> None:
    """Write the three files and print the result."""
    from tunebook.evals.judge import page

    write_atomic(folder / "judge.md", page.markdown(report))
    write_atomic(folder / "judge.html", page.page(report))
    write_json(folder / FILE, report)
    print(*page.lines(report), sep="\n")
    print(f"report: {folder / 'judge.html'}")


def _folder(args: Args) -> Path:
    """The output folder; one with the report of another comparison is refused."""
    from tunebook.common.run_folder.output_dir import prepare

    folder = prepare(args.output_dir, True, FILE)
    if (folder / FILE).exists() and not args.overwrite:
        try:
            before = json.loads((folder / FILE).read_text(encoding="utf-8"))["asked"]
        except (OSError, ValueError, KeyError, TypeError):
            before = None
        if before != _asked(args):
            raise UserError(
                f"--output_dir {folder} holds the report of another comparison ({FILE}); choose another folder or add "
                "--overwrite (verdicts are kept either way)"
            )
    return folder


def _asked(args: Args) -> dict[str, Any]:
    return redaction.without_secrets({name: getattr(args, name) for name in SAME})


def _judge(args: Args, budget: Any) -> Any:
    if not args.judge.startswith(("http://", "https://")):
        from tunebook.evals.judge.local import LocalJudge

        return LocalJudge(args.judge, args.judge_max_new_tokens, budget)
    import yaml

    from tunebook.common.generation.endpoint import Endpoint

    request: dict[str, Any] = {"max_tokens": args.judge_max_new_tokens, "temperature": 0, "seed": 0}
    for word in args.request:
        name, equals, value = word.partition("=")
        if not equals or name in ("model", "messages", "stream", "n"):
            raise UserError(f"--request {word}: expected NAME=VALUE of a field that the judge does not set itself")
        try:
            request[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"--request {word}: the value cannot be read; put quotes around a text") from None
    options = {"timeout": args.timeout, "retries": args.retries, "concurrency": args.concurrency}
    return Endpoint(args.judge, args.judge_name, request, budget, **options)


def _outputs(args: Args, asked: list[Any], files: list[bool], folder: Path) -> tuple[Any, Any]:
    """Both models' answers; files are read first, so that their faults are told before a model is asked."""
    from tunebook.common.generation.decoding import Decoding
    from tunebook.evals.responses import generate
    from tunebook.evals.responses.store import ResponseCache

    flags = ("BASE", "TUNED")
    found: dict[int, Any] = {n: generate.from_file(args.sides[n], flags[n], asked) for n in range(2) if files[n]}
    for n in range(2):
        path = folder / f"{flags[n].lower()}.jsonl"
        if not files[n] and any(path.resolve() == Path(side).resolve() for side in args.sides):
            raise UserError(f"{path} is read and would be written; choose another --output_dir")
    decoding = Decoding(max_new_tokens=args.max_new_tokens)
    template = args.template or ("" if any(files) else generate.shared_template(*args.sides))
    models = {
        n: generate.AnsweringModel(args.sides[n], args.model, template, decoding) for n in range(2) if not files[n]
    }
    for n, model in models.items():
        with closing(ResponseCache(folder / "answers.jsonl")) as cache:
            found[n] = model.outputs(asked, cache)
        generate.save(folder / f"{flags[n].lower()}.jsonl", asked, found[n])
    return found[0], found[1]
