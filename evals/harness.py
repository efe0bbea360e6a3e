"""Scores through lm-eval's own evaluator, on the model in memory, and the command line that gives the same numbers."""

# pyright: reportCallIssue=false, reportArgumentType=false, reportTypedDictNotRequiredAccess=false
# (lm-eval's decorators hide the signatures of what they wrap)

import logging
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from common import generation, models
from common.cli import UserError, first_process, nearest

BATCH = 64
TASKS = Path(__file__).parent / "tasks"
SUITES = {"pocket": ["pocket_seen", "pocket_unseen", "pocket_facts"], "pocket_chat": ["pocket_chat", "pocket_facts"]}


def suite_for(name: str, dataset: list[str]) -> list[str]:
    """The tasks of `--eval_suite`: `auto` is pocket's own suite for pocket's own rows, and nothing for other data.

    Raises:
        UserError: there is no such suite.
    """
    if name == "auto":
        name = dataset[0] if len(dataset) == 1 and dataset[0] in SUITES else "none"
    if name == "none":
        return []
    if name not in SUITES:
        raise UserError(f"--eval_suite {name}: there is {', '.join(SUITES)}, auto and none{nearest(name, SUITES)}")
    return SUITES[name]


class Scores:
    """What the model of a run scores before and after, on the same items of the same tasks."""

    def __init__(self, tasks: list[str], folder: Path):
        self.tasks, self.folder = tasks, folder
        self._taken: dict[str, dict[str, Any]] = {}
        self._batch = BATCH

    def take(self, when: str, model: Any, tokenizer: Any, keep: Path | None = None) -> None:
        """Score the model as `before` or `after`. `keep`: where to save it, for a later lm_eval command."""
        self._batch = 1 if generation.virtual_tokens(model) else BATCH  # see InMemory.generate_until
        self._taken[when] = score(model, tokenizer, self.tasks, self.folder / when, keep)

    def account(self, model: Path | str | None, adapter: Path | None) -> dict[str, Any]:
        """`before`, `after`, `comparison`, `by_skill` and `command` for the report.

        Args:
            model, adapter: what a plain lm_eval command has to load to get the scores after; None: it cannot.
        """
        before, after = self._taken["before"], self._taken["after"]
        return {
            "before": before["metrics"],
            "after": after["metrics"],
            "comparison": compare(before, after),
            "by_skill": by_skill(after),
            "command": command(model, adapter, self.tasks, models.dtype(), self._batch),
        }


def score(model: Any, tokenizer: Any, tasks: list[str], folder: Path, keep: Path | None = None) -> dict[str, Any]:
    """Run the tasks on a model in memory and write lm-eval's own result and sample files to `folder`.

    Nothing is cached between calls: lm-eval's cache does not know one model from another.

    Args:
        keep: where to save the model, so that a later lm_eval command can score the very same weights.

    Returns:
        {"metrics": {task: {metric: value}}, "items": {task: {doc_id: {"skill", metric: value}}}}
    """
    if not tasks:
        return {"metrics": {}, "items": {}}
    if keep and first_process():
        models.save(model, tokenizer, keep)
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    was_training = model.training
    tracker = EvaluationTracker(output_path=str(folder))
    results = simple_evaluate(
        model=_in_memory(model, tokenizer),
        tasks=tasks,
        task_manager=TaskManager(include_path=str(TASKS), include_defaults=False),
        evaluation_tracker=tracker,
        bootstrap_iters=0,
        verbosity="ERROR",
    )
    model.train(was_training)
    assert results is not None  # only a second process gets None
    samples = results.pop("samples")
    if first_process():
        tracker.save_results_aggregated(results=results, samples=samples)
        for task in tasks:
            tracker.save_results_samples(task_name=task, samples=samples[task])
    metrics: dict[str, dict[str, float]] = defaultdict(dict)
    items: dict[str, dict[int, dict]] = defaultdict(dict)
    for task in tasks:
        for name, value in results["results"][task].items():
            metric, _, filtered = name.partition(",")
            if filtered and isinstance(value, (int, float)) and not metric.endswith("_stderr"):
                metrics[task][metric] = float(value)
        for sample in samples[task]:
            values = {metric: sample[metric] for metric in metrics[task]}
            items[task][sample["doc_id"]] = {"skill": sample["doc"].get("skill"), **values}
    return {"metrics": dict(metrics), "items": dict(items)}


def _in_memory(model: Any, tokenizer: Any) -> Any:
    """lm-eval's own model class over a loaded model; its bars are drawn on a terminal only."""
    from lm_eval.models.huggingface import HFLM

    soft = generation.virtual_tokens(model)

    class InMemory(HFLM):
        def loglikelihood(self, requests, disable_tqdm=False):
            return super().loglikelihood(requests, disable_tqdm or not sys.stderr.isatty())

        def generate_until(self, requests, disable_tqdm=False):
            groups = defaultdict(list)  # PEFT puts virtual tokens before the padding: no row may have any
            for place, request in enumerate(requests):
                groups[len(tokenizer(request.args[0]).input_ids) if soft else 0].append(place)
            answers = [""] * len(requests)
            for places in groups.values():
                found = super().generate_until([requests[place] for place in places], not sys.stderr.isatty())
                for place, answer in zip(places, found, strict=True):
                    answers[place] = answer
            return answers

    return InMemory(  # pyright: ignore[reportAbstractUsage]
        pretrained=model, tokenizer=tokenizer, batch_size=BATCH
    )


def compare(before: dict[str, Any], after: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """{task: {metric: {before, after, items}}} of two scorings of the same tasks."""
    return {
        task: {
            metric: {"before": value, "after": after["metrics"][task][metric], "items": len(before["items"][task])}
            for metric, value in metrics.items()
        }
        for task, metrics in before["metrics"].items()
    }


def by_skill(scores: dict[str, Any]) -> dict[str, Any]:
    """Mean of each task's first metric by the `skill` field of its items, as a table: columns and rows of text."""
    columns = [task for task, items in scores["items"].items() if items]
    table: dict[str, list[str]] = {}
    for column, task in enumerate(columns):
        metric = next(iter(scores["metrics"][task]))
        groups: dict[str, list[float]] = defaultdict(list)
        for item in scores["items"][task].values():
            if item["skill"]:
                groups[item["skill"]].append(float(item[metric]))
        for skill, values in groups.items():
            cells = table.setdefault(skill, ["–"] * len(columns))
            cells[column] = f"{sum(values):.0f} of {len(values)}"
    return {"columns": columns, "rows": dict(sorted(table.items()))}


def command(
    model: Path | str | None, adapter: Path | None, tasks: list[str], dtype: Any, batch_size: int = BATCH
) -> str | None:
    """The plain lm_eval command for the same scores; None where nothing was scored, or it cannot load the model."""
    if not tasks or model is None:
        return None
    place = f"pretrained={model},dtype={str(dtype).removeprefix('torch.')}" + (f",peft={adapter}" if adapter else "")
    where = f"--include_path {TASKS} --tasks {','.join(tasks)}"
    return f"lm_eval run --model hf --model_args {place} {where} --batch_size {batch_size}"
