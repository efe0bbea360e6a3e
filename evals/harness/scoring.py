"""Scores through lm-eval's own evaluator, on the model in memory, and the command line that gives the same numbers."""

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
from typing import Any

from tunebook.common import generation, models
from tunebook.common.distributed import is_main_process
from tunebook.common.errors import UserError, nearest
from tunebook.common.models import device
from tunebook.evals.harness.lm import in_memory
from tunebook.evals.harness.scored_model import beside_peft

BATCH = 64
LOGITS = 4 << 30  # bytes that the logits of a batch of LENGTH tokens a row may take, and their logarithms
LENGTH = 128
SHOWN = ("metrics", "items")  # of what `score` returns, in a report
TASKS = Path(__file__).parents[1] / "tasks"
POCKET = ["pocket_seen", "pocket_unseen", "pocket_facts", "pocket_text"]
SUITES = {
    "pocket": POCKET,
    "pocket_pairs": POCKET,
    "pocket_chat": ["pocket_chat", "pocket_facts", "pocket_text"],
}


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
        self._tokenizer, self.why = "", ""  # of lm_eval's command: another tokenizer; what keeps it from these scores

    def take(self, when: str, model: Any, tokenizer: Any, keep: Path | None = None) -> None:
        """Score the model as `before` or `after`. `keep`: where to save it, for a later lm_eval command."""
        fits = rows_at_once(model) if self.tasks else BATCH
        found = score(model, tokenizer, self.tasks, self.folder / when, keep, Settings(batch_size=fits))
        self._taken[when] = found
        self._batch = 1 if generation.virtual_tokens(model) else fits  # see in_memory.InMemory
        if self.tasks and getattr(model, "peft_config", None) and is_main_process():
            self._tokenizer, self.why = beside_peft(model, tokenizer, self.folder)
            if self.why:
                print(self.why)

    def account(self, model: Path | str | None, adapter: Path | None) -> dict[str, Any]:
        """`before`, `after`, `comparison`, `by_skill`, `forgetting` and `command` for the report. Texts, whose bits per
        byte are no share, stand in `forgetting` alone.

        Args:
            model, adapter: what a plain lm_eval command has to load to get the scores after; None: it cannot.
        """
        from tunebook.evals.compare import forgetting

        lost = forgetting.verdict(self._taken["before"], self._taken["after"])
        before, after = (
            {
                part: {task: found for task, found in taken[part].items() if task not in forgetting.TEXTS}
                for part in SHOWN
            }
            for taken in (self._taken["before"], self._taken["after"])
        )
        return {
            "before": before["metrics"],
            "after": after["metrics"],
            "comparison": compare(before, after),
            "by_skill": by_skill(after),
            "forgetting": lost,
            "command": None
            if self.why
            else command(model, adapter, self.tasks, device.current().dtype, self._batch, self._tokenizer),
        }


def rows_at_once(model: Any) -> int:
    """Rows of a batch whose logits have room, a power of two, BATCH at most: those of 150,000 words take 50 times what
    pocket's take."""
    row = LENGTH * model.config.get_text_config().vocab_size * 8  # logits and their logarithms in float32
    return min(BATCH, 1 << (max(1, LOGITS // row).bit_length() - 1))


@dataclass(frozen=True)
class Settings:
    """How to score, in lm-eval's own words where it has them; the defaults are those of a recipe's before and after."""

    batch_size: int = BATCH
    limit: int | None = None  # items of each task; None: all
    chat_template: bool = False  # the prompts as questions in the tokenizer's own template
    seed: int | None = None  # of everything that is drawn, such as examples before a question; None: lm-eval's own
    gen_kwargs: dict[str, Any] = field(default_factory=dict)  # over those of every task that generates
    allow_code: bool = False  # run programs that the model wrote
    bootstrap_iters: int = 0  # of standard errors that have no formula; 0: no standard errors at all
    bare: bool = False  # lm-eval puts no token before a text (add_bos_token=False), as the texts have it


def score(
    model: Any,
    tokenizer: Any,
    tasks: list[Any],
    folder: Path,
    keep: Path | None = None,
    settings: Settings | None = None,
    prefix: int | None = None,
) -> dict[str, Any]:
    """Run the tasks on a model in memory and write lm-eval's own result and sample files to `folder`.

    Nothing is cached between calls: lm-eval's cache does not know one model from another.

    Args:
        tasks: names in evals/tasks, or what lm-eval has built. keep: where to save the model. prefix: see in_memory.

    Returns:
        {"metrics": {task: {metric: value}}, "items": {task: {doc_id: {"skill", metric: value}}}, "groups" and
        "errors" (standard errors) like metrics, "higher": {task: {metric: whether more is better}}, "counts": {task:
        {"items", "of", "cut"}}}. A metric that was taken through several filters is called metric,filter. `cut`: items
        whose prompt lost its beginning, see InMemory.
    """
    if not tasks:
        return {"metrics": {}, "items": {}}
    settings = settings or Settings()
    if keep and is_main_process():
        models.save(model, tokenizer, keep)
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    _compile_prompts_once()
    tracker = EvaluationTracker(output_path=str(folder))
    with models.preserve_modes(model), _described():
        memory = in_memory(models.unwrap(model), tokenizer, settings.batch_size, settings.bare, prefix)
        results: Any = simple_evaluate(
            model=memory,
            tasks=tasks,
            task_manager=TaskManager(include_path=str(TASKS), include_defaults=False),
            evaluation_tracker=tracker,
            **_words(settings),
        )
    assert results is not None  # only a second process gets None
    samples = results.pop("samples")
    if is_main_process():
        tracker.save_results_aggregated(results=results, samples=samples)
        for task, found in samples.items():
            tracker.save_results_samples(task_name=task, samples=found)
    return _account(results, samples, memory.cut)


def _compile_prompts_once() -> None:
    """lm-eval compiles a task's prompt anew for every item: 12,737 times for `quick`, a third of the time before its
    first forward pass. A compiled template keeps nothing of what it rendered."""
    from lm_eval import utils

    env: Any = utils.env
    if not hasattr(env.from_string, "cache_info"):
        env.from_string = lru_cache(maxsize=1000)(env.from_string)


@contextmanager
def _described() -> Iterator[None]:
    """What lm-eval's results say of where they were made: the commit of the working directory, without git's complaint
    where there is none; and the environment, which takes a second (pip list), asked for once a process."""
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
        said = subprocess.run(["git", "describe", "--always"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return said.stdout.strip() or None


@cache
def _environment() -> str:
    from torch.utils import collect_env

    return collect_env.pretty_str(collect_env.get_env_info())


def _words(settings: Settings) -> dict[str, Any]:
    """The settings as lm-eval's evaluator takes them; the batch size is the model's."""
    kinds = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    return {
        "limit": settings.limit,
        "bootstrap_iters": settings.bootstrap_iters,
        "apply_chat_template": settings.chat_template,
        "fewshot_as_multiturn": settings.chat_template,
        "gen_kwargs": dict(settings.gen_kwargs) or None,
        "confirm_run_unsafe_code": settings.allow_code,
    } | ({} if settings.seed is None else dict.fromkeys(kinds, settings.seed))


def _account(results: dict[str, Any], samples: dict[str, list[dict]], cut: dict[str, set[int]]) -> dict[str, Any]:
    """What `score` returns, from lm-eval's results and samples."""
    metrics, errors = _numbers({task: results["results"][task] for task in samples})
    groups, group_errors = _numbers(results.get("groups", {}))
    items: dict[str, dict[int, dict]] = {task: defaultdict(dict) for task in samples}
    for task, found in samples.items():
        for sample in found:
            item = items[task][sample["doc_id"]]
            item["skill"] = sample["doc"].get("skill")
            for metric in sample["metrics"]:
                name = metric if metric in metrics[task] else f"{metric},{sample['filter']}"
                if name in metrics[task]:
                    item[name] = sample[metric]
    counts = {
        task: {"items": count["effective"], "of": count["original"], "cut": len(cut.get(task, ()))}
        for task, count in results["n-samples"].items()
    }
    return {
        "metrics": metrics, "items": {task: dict(found) for task, found in items.items()},
        "groups": groups, "errors": errors | group_errors, "counts": counts, "higher": results["higher_is_better"],
    }  # fmt: skip


def _numbers(results: dict[str, dict[str, Any]]) -> tuple[dict, dict]:
    """{task: {metric: value}} of lm-eval's results, and the same of their standard errors where there are any."""
    metrics: dict[str, dict[str, float]] = {}
    errors: dict[str, dict[str, float]] = {}
    for task, found in results.items():
        metrics[task], errors[task] = {}, {}
        names = [name.partition(",") for name in found if "," in name]
        once = [metric for metric, _, _ in names]
        for metric, _, filtered in names:
            value = found[f"{metric},{filtered}"]
            plain = metric.removesuffix("_stderr")
            called = plain if once.count(metric) == 1 else f"{plain},{filtered}"
            if isinstance(value, (int, float)):
                (errors if metric.endswith("_stderr") else metrics)[task][called] = float(value)
    return metrics, errors


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
    model: Path | str | None, adapter: Path | None, tasks: list[str], dtype: Any, batch_size: int = BATCH,
    tokenizer: str = "",
) -> str | None:  # fmt: skip
    """The plain lm_eval command for the same scores; None where nothing was scored, or it cannot load the model.

    Args:
        tokenizer: a folder, where lm_eval needs another than the model's.
    """
    if not tasks or model is None:
        return None
    kinds = f"dtype={str(dtype).removeprefix('torch.')},softmax_dtype=float32"
    place = f"pretrained={model},{kinds}" + (f",peft={adapter}" if adapter else "")
    place += f",tokenizer={tokenizer}" if tokenizer else ""
    where = f"--include_path {TASKS} --tasks {','.join(tasks)}"
    return f"lm_eval run --model hf --model_args {place} {where} --batch_size {batch_size}"
