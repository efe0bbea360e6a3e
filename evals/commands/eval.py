"""Score a model, with an adapter or without, on benchmarks or on your own test rows, through lm-eval.

    tunebook eval --model pocket --suite quick --benchmark_dir benchmarks/ --limit 50 --output_dir scores/base
    tunebook eval --model my_model/ --adapter runs/qlora_alpaca --suite core --output_dir scores/tuned
    tunebook eval --adapter runs/qlora_alpaca --dataset my_test.jsonl --output_dir scores/mine
    tunebook eval --adapter runs/qlora_alpaca --base --dataset my_test.jsonl --output_dir scores/base
    tunebook eval --model my_model/ --tasks hellaswag mmlu_anatomy --four_bit --output_dir scores/four_bit

Suites:
{suites}

Data comes from the Hub, or from --benchmark_dir, a folder laid out as <org>/<name>/ with a dataset card; it is checked
before anything is scored. The output folder gets lm-eval's own results and samples (`tunebook compare` reads them) and
scores.json, which holds the plain lm_eval command that gives the same numbers.
"""

import json
import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tunebook.common import files
from tunebook.common.errors import UserError
from tunebook.common.run_folder.output_dir import prepare
from tunebook.evals.harness import suites
from tunebook.evals.stats import scales

__doc__ = str(__doc__).replace("{suites}", suites.described())
FILE = "scores.json"


@dataclass
class Args:
    model: str = ""  # Hub name, folder, or pocket; default: the base that the adapter names, or pocket
    adapter: str = ""  # a run's folder, an adapter's, or a Hub name
    base: bool = False  # score the base of --adapter alone, asked as the adapter is: what it is to be compared with
    suite: str = ""  # quick, core, code, chat or safety
    tasks: list[str] = field(default_factory=list)  # names of lm-eval's tasks, groups or tags
    dataset: list[str] = field(default_factory=list)  # your own test rows: a file, a folder with a test split, ...
    output_dir: str = ""  # where the scores go
    template: str = ""  # of --dataset and safety: alpaca, chatml, ..., a folder with one; default: as it was trained
    bert_model: str = ""  # of --dataset: an encoder for BERTScore, a folder or a Hub name; default: no BERTScore
    bert_layer: int = 0  # whose embeddings it compares; 0: the last
    benchmark_dir: str = ""  # a folder of datasets, <org>/<name>/ each; default: the Hub
    limit: int = 0  # items of each task; 0: all
    batch_size: int = 16
    four_bit: bool = False  # load the model in NF4
    keep: bool = False  # with --four_bit: save the quantized model, so that plain lm_eval can score it, too
    chat_template: bool = False  # ask in the tokenizer's own chat template; the suite chat does so by itself
    max_gen_toks: int = 0  # tokens that an answer may have; 0: as each task says
    allow_code: bool = False  # run programs that the model writes, contained
    seed: int = 1234  # of what is drawn, such as the examples before a question
    overwrite: bool = False  # replace the scores of an earlier run


def main(args: Args) -> dict[str, Any]:
    if not args.output_dir:
        raise UserError("--output_dir FOLDER: name where the scores go")
    for name, least in (("limit", 0), ("batch_size", 1), ("max_gen_toks", 0)):
        if getattr(args, name) < least:
            raise UserError(f"--{name} {getattr(args, name)}: expected a number from {least}")
    folder = prepare(args.output_dir, args.overwrite, FILE)
    if args.keep and not args.four_bit:
        raise UserError("--keep saves what --four_bit has made; without it the model lies where it lay")
    data = Path(args.benchmark_dir).expanduser().resolve() if args.benchmark_dir else None
    if data is not None and not data.is_dir():
        raise UserError(f"--benchmark_dir {args.benchmark_dir}: no such folder")

    from tunebook.common import generation
    from tunebook.evals.harness.plan import Plan

    plan = Plan(args, data)
    for note in plan.notes:
        print(f"note: {note}")
    saved = str((folder / "model").resolve()) if args.keep else ""
    model = plan.model.load(saved)
    # lm-eval alone would put padding behind virtual tokens in a batch.
    batch_size = 1 if generation.virtual_tokens(model) else args.batch_size
    for old in (*folder.glob("*/results_*.json"), *folder.glob("*/samples_*.jsonl")):
        old.unlink()  # --overwrite: tasks that are not scored again must not look as if they were

    from tunebook.evals import harness

    tokenizer, prefix = plan.model.tokenizer, plan.model.prefix
    scores = harness.score(model, tokenizer, plan.tasks, folder, settings=plan.settings, prefix=prefix)
    report = {
        "model": plan.model.base,
        "adapter": plan.model.adapter or None,
        "tasks": plan.names,
        "template": plan.metadata.get("template"),
        "trained_on": plan.seen,
        "settings": asdict(plan.settings),
        **{name: scores[name] for name in ("groups", "metrics", "errors", "counts")},
        "notes": plan.notes,
        "command": command(plan, saved, folder, data, batch_size),
    }
    files.write_json(folder / FILE, report)
    show(report, plan, folder)
    if batch_size < args.batch_size:
        print("batch size 1, as lm-eval alone needs it here, changes log-likelihoods in the sixth digit or so")
    return report


def command(plan: Any, saved: str, folder: Path, data: Path | None, batch_size: int) -> str | None:
    """The plain lm_eval command for the same scores; None: lm_eval cannot load this model."""
    model = plan.model.model_args(folder, saved)
    if model is None:
        return None
    settings = plan.settings
    model += ",add_bos_token=False" if settings.bare else ""
    words = ["lm_eval", "run", "--model", "hf", "--model_args", model, "--tasks", ",".join(plan.names)]
    words += ["--batch_size", str(batch_size), "--seed", str(settings.seed)]
    if any(map(plan.benchmarks.is_ours, plan.benchmarks.leaves)):
        from tunebook.evals.harness.catalog import TASKS

        words += ["--include_path", str(TASKS)]
    if settings.limit:
        words += ["--limit", str(settings.limit)]
    if settings.chat_template:
        words.append("--apply_chat_template")
    if settings.gen_kwargs:
        words += ["--gen_kwargs", json.dumps(settings.gen_kwargs)]
    if plan.metadata:
        words += ["--metadata", json.dumps(plan.metadata)]
    if settings.allow_code:
        words.append("--confirm_run_unsafe_code")
    words += ["--log_samples", "--output_path", f"{folder.resolve()}_lm_eval"]  # beside: one set of scores a folder
    where = f"cd {shlex.quote(str(data))} && HF_DATASETS_CACHE={shlex.quote(plan.benchmarks.cache)} " if data else ""
    return where + shlex.join(words)


def show(report: dict[str, Any], plan: Any, folder: Path) -> None:
    """The scores as a table, what was cut, and the command."""
    from rich.table import Column, Table

    from tunebook.common.process.terminal import printer

    in_groups = plan.benchmarks.in_groups() if report["groups"] else set()
    names = (Column(name, overflow="fold") for name in ("task", "items", "metric", "score", "±", "scale"))
    table = Table(*names, box=None, pad_edge=False)
    for task, metrics in (report["groups"] | report["metrics"]).items():
        if task in in_groups:
            continue
        count = report["counts"].get(task)
        for place, (metric, value) in enumerate(metrics.items()):
            error = report["errors"].get(task, {}).get(metric)
            cells = (task, str(count["items"]) if count else "") if place == 0 else ("", "")
            spread = f"{error:.4f}" if error is not None else ""
            table.add_row(*cells, metric, f"{value:.4f}", spread, scales.of(metric))
    printer().print(table)
    if cut := {name: count for name, count in report["counts"].items() if count["cut"]}:
        lost, items = (sum(count[key] for count in cut.values()) for key in ("cut", "items"))
        print(
            f"prompts too long, which lost their beginning: {lost} of {items} items of {plan.benchmarks.summary(cut)}"
        )
    same = report["metrics"].get("heldout_loss", {}).get("tokens_as_in_training")
    if same is not None:
        more = "; of the others the loss is of other tokens" if same < 1 else ""
        print(f"tokens_as_in_training: the share of rows that lm-eval makes exactly the tokens of training of{more}")
    if report["command"]:
        print(f"reproduce with lm-eval:\n  {report['command']}")
    else:
        print(plan.model.command_problem)
    print(f"written: {folder}")
