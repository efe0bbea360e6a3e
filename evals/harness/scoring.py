"""Scores by lm-eval's own evaluator of the model in memory, and the command line that gives the same numbers."""

# pyright: reportCallIssue=false
# (lm-eval's decorators hide the signatures of what they wrap)

import logging
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, ClassVar

from tunebook.common import generation, models
from tunebook.common.distributed import is_main_process
from tunebook.common.process import progress
from tunebook.evals.compare import logs
from tunebook.evals.harness.catalog import TASKS, no_local_metrics
from tunebook.evals.harness.lm import in_memory
from tunebook.evals.harness.scored_model import model_args, peft_tokenizer

BATCH = 64
LOGITS = 4 << 30  # bytes for a batch's logits and their logarithms
LENGTH = 128  # tokens of a row, for that estimate


class Scores:
    """The scores of a run's model before and after training, on the same items of the same tasks."""

    def __init__(self, tasks: list[str], folder: Path):
        self.tasks, self.folder = tasks, folder
        self._scores: dict[str, dict[str, Any]] = {}
        self._batch_size = BATCH
        self._tokenizer, self.command_problem = "", ""  # for lm_eval's command

    def evaluate(self, when: str, model: Any, tokenizer: Any, save_to: Path | None = None) -> None:
        """Score the model as `before` or `after`; `save_to`: a folder for it, for a later lm_eval command."""
        batch_size = max_batch_size(model) if self.tasks else BATCH
        self._scores[when] = score(
            model, tokenizer, self.tasks, self.folder / when, save_to, Settings(batch_size=batch_size)
        )
        self._batch_size = 1 if generation.virtual_tokens(model) else batch_size  # see lm.InMemory
        if self.tasks and getattr(model, "peft_config", None) and is_main_process():
            self._tokenizer, self.command_problem = peft_tokenizer(model, tokenizer, self.folder)
            if self.command_problem:
                print(self.command_problem)

    def results(self, model: Path | str | None, adapter: Path | None) -> dict[str, Any]:
        """`before`, `after`, `comparison`, `tests`, `by_skill`, `forgetting` and `command` for the report. Plain texts,
        whose bits per byte are no share, are in `tests` and `forgetting` alone.

        Args:
            model, adapter: what a plain lm_eval command has to load for the scores after; None: it cannot.
        """
        from tunebook.evals.compare import forgetting

        before, after = (
            {
                part: {task: value for task, value in self._scores[when][part].items() if task not in forgetting.TEXTS}
                for part in ("metrics", "items")
            }
            for when in ("before", "after")
        )
        both = self._scores["before"], self._scores["after"]
        tested = forgetting.tested(*both)
        command = None
        if self.tasks and model is not None and not self.command_problem:
            command = (
                f"lm_eval run --model hf --model_args {model_args(model, adapter, self._tokenizer)} "
                f"--include_path {TASKS} --tasks {','.join(self.tasks)} --batch_size {self._batch_size}"
            )
        return {
            "before": before["metrics"],
            "after": after["metrics"],
            "comparison": compare(before, after),
            "tests": [row.as_dict() | {"general": row.task not in forgetting.TARGET_TASKS} for row in tested],
            "by_skill": by_skill(after),
            "forgetting": forgetting.verdict(*both, tested),
            "command": command,
        }


def max_batch_size(model: Any) -> int:
    """The largest power of two, BATCH at most, whose logits fit into LOGITS: a vocabulary of 150,000 takes 50 times
    pocket's."""
    row = LENGTH * model.config.get_text_config().vocab_size * 8  # logits and their logarithms in float32
    return min(BATCH, 1 << (max(1, LOGITS // row).bit_length() - 1))


@dataclass(frozen=True)
class Settings:
    """How to score, in lm-eval's own words where it has them; the defaults are those of a recipe's before and after."""

    batch_size: int = BATCH
    limit: int | None = None  # items of each task; None: all
    chat_template: bool = False  # prompts as questions in the tokenizer's own template
    seed: int | None = None  # of everything that is drawn, such as few-shot examples; None: lm-eval's own
    gen_kwargs: dict[str, Any] = field(default_factory=dict)  # over those of every task that generates
    allow_code: bool = False  # run programs that the model wrote
    bootstrap_iters: int = 0  # of standard errors that have no formula; 0: no standard errors at all
    bare: bool = False  # add_bos_token=False: the texts have their beginning token already


def score(
    model: Any,
    tokenizer: Any,
    tasks: list[Any],
    folder: Path,
    save_to: Path | None = None,
    settings: Settings | None = None,
    prefix: int | None = None,
) -> dict[str, Any]:
    """Run the tasks on a model in memory and write lm-eval's own result and sample files to `folder`.

    Nothing is cached between calls: lm-eval's cache does not know one model from another.

    Args:
        tasks: names in evals/tasks, or what lm-eval has built.
        save_to: a folder for the model.
        prefix: see lm.in_memory.

    Returns:
        {"metrics": {task: {metric: value}}, "items": {task: {doc_id: {"skill", metric: value}}}, "groups" and
        "errors" (standard errors) like metrics, "higher": {task: {metric: whether more is better}}, "counts": {task:
        {"items", "of", "cut"}}}. A metric that was taken through several filters is called metric,filter. `cut`: items
        whose prompt was truncated on the left.
    """
    if not tasks:
        return {"metrics": {}, "items": {}}
    settings = settings or Settings()
    if save_to and is_main_process():
        models.save(model, tokenizer, save_to)
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    _compile_prompts_once()
    tracker = EvaluationTracker(output_path=str(folder))
    with models.preserve_modes(model), _environment_once(), no_local_metrics(), _own_bars(), progress.start("scoring"):
        memory = in_memory(models.unwrap(model), tokenizer, settings.batch_size, settings.bare, prefix)
        results: Any = simple_evaluate(
            model=memory,
            tasks=tasks,
            task_manager=TaskManager(include_path=str(TASKS), include_defaults=False),
            evaluation_tracker=tracker,
            **_evaluator_args(settings),
        )
    assert results is not None  # only a second process gets None
    samples = results.pop("samples")
    if is_main_process():
        tracker.save_results_aggregated(results=results, samples=samples)
        for task, task_samples in samples.items():
            tracker.save_results_samples(task_name=task, samples=task_samples)
    return _scores(results, samples, memory.cut)


def _compile_prompts_once() -> None:
    """lm-eval compiles a task's prompt anew for every item: 12,737 times for `quick`, a third of the time before its
    first forward pass. A compiled template keeps nothing of what it rendered."""
    from lm_eval import utils

    env: Any = utils.env
    if not hasattr(env.from_string, "cache_info"):
        env.from_string = lru_cache(maxsize=1000)(env.from_string)


@contextmanager
def _own_bars() -> Iterator[None]:
    """lm-eval's bars become phases of the run."""
    from lm_eval.api import model, task
    from lm_eval.models import huggingface

    modules: tuple[Any, ...] = (model, task, huggingface)
    before = [module.tqdm for module in modules]
    for module in modules:
        module.tqdm = RequestBar
    try:
        yield
    finally:
        for module, bar in zip(modules, before, strict=True):
            module.tqdm = bar


class RequestBar(progress.Bar):
    names: ClassVar[dict[str, str]] = {
        "": "prompts of the tasks",
        "Tokenizing inputs": "tokenizing",
        "Running loglikelihood requests": "likelihood of answers",
        "Running generate_until requests": "answers to tasks",
    }


@contextmanager
def _environment_once() -> Iterator[None]:
    """lm-eval's results name the commit of the working directory, here without git's complaint where there is none, and
    the environment, which takes a second (pip list) and is asked for once a process."""
    from lm_eval import evaluator
    from torch.utils import collect_env

    before = evaluator.get_git_commit_hash, collect_env.get_pretty_env_info
    evaluator.get_git_commit_hash, collect_env.get_pretty_env_info = _commit, _environment
    try:
        yield
    finally:
        evaluator.get_git_commit_hash, collect_env.get_pretty_env_info = before


def _commit() -> str | None:
    try:
        git = subprocess.run(["git", "describe", "--always"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return git.stdout.strip() or None


@cache
def _environment() -> str:
    from torch.utils import collect_env

    return collect_env.pretty_str(collect_env.get_env_info())


def _evaluator_args(settings: Settings) -> dict[str, Any]:
    """The settings as simple_evaluate takes them; the batch size is the model's."""
    seeds = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    return {
        "limit": settings.limit,
        "bootstrap_iters": settings.bootstrap_iters,
        "apply_chat_template": settings.chat_template,
        "fewshot_as_multiturn": settings.chat_template,
        "gen_kwargs": dict(settings.gen_kwargs) or None,
        "confirm_run_unsafe_code": settings.allow_code,
    } | ({} if settings.seed is None else dict.fromkeys(seeds, settings.seed))


def _scores(results: dict[str, Any], samples: dict[str, list[dict]], cut: dict[str, set[int]]) -> dict[str, Any]:
    """What `score` returns, from lm-eval's results and samples."""
    of_tasks = {task: results["results"][task] for task in samples}
    of_groups = results.get("groups", {})
    metrics = {task: logs.metric_values(values) for task, values in of_tasks.items()}
    items: dict[str, dict[int, dict]] = {task: defaultdict(dict) for task in samples}
    for task, task_samples in samples.items():
        for sample in task_samples:
            item = items[task][sample["doc_id"]]
            item["skill"] = sample["doc"].get("skill")
            for metric in sample["metrics"]:
                name = metric if metric in metrics[task] else f"{metric},{sample['filter']}"
                if name in metrics[task]:
                    item[name] = sample[metric]
    return {
        "metrics": metrics,
        "items": {task: dict(values) for task, values in items.items()},
        "groups": {group: logs.metric_values(values) for group, values in of_groups.items()},
        "errors": {name: logs.metric_values(values, stderr=True) for name, values in (of_tasks | of_groups).items()},
        "counts": {
            task: {"items": count["effective"], "of": count["original"], "cut": len(cut.get(task, ()))}
            for task, count in results["n-samples"].items()
        },
        "higher": results["higher_is_better"],
    }


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
    """Each task's first metric by the `skill` of its items, as a table: columns and rows of text."""
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
