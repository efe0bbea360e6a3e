"""lm-eval's tasks by name, of which only the folders that are needed are read, with their data from a local folder."""

import contextlib
import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tunebook.common.data import hub
from tunebook.common.errors import UserError, first_names, nearest

TASKS = Path(__file__).parents[1] / "tasks"


class Benchmarks:
    """Tasks, groups and tags of lm-eval and of evals/tasks.

    lm-eval reads the 14,687 tasks that it has in 16 to 23 seconds; the folders of a name alone take a tenth of one.

    Args:
        metadata: what tasks are told beside their own settings, as `lm_eval run --metadata`.

    Attributes:
        cache: where `build` has made `datasets` keep what it read from a folder; "": in its usual place.
        leaves: {task: its settings, functions as names}, of all tasks that the names stand for.

    Raises:
        UserError: there is no such task.
    """

    def __init__(self, names: list[str], metadata: dict[str, Any] | None = None):
        from lm_eval.tasks import TaskManager

        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        self.names = names
        paths: list[str | Path] = [*map(str, _folders(names)), str(TASKS)]
        manager = TaskManager(include_path=paths, include_defaults=False, metadata=metadata)
        if _missing(manager, names):
            print("looking through all of lm-eval's tasks; this takes a while", flush=True)
            manager = TaskManager(include_path=[str(TASKS)], metadata=metadata)
        if missing := _missing(manager, names):
            close = "".join(f"\n  {name}{nearest(name, manager.all_tasks)}" for name in missing)
            raise UserError(f"--tasks: lm-eval has no such task:{close}")
        self.manager = manager
        self.leaves = {name: manager.task_index[name].cfg or {} for name in _leaves(manager, names)}

    def is_ours(self, name: str) -> bool:
        """Whether a task is one of evals/tasks."""
        return Path(str(self.manager.task_index[name].yaml_path)).is_relative_to(TASKS)

    def in_groups(self) -> set[str]:
        """The tasks that are parts of groups."""
        groups = [name for name in self.names if self.manager.task_index[name].kind.name == "GROUP"]
        return set(_leaves(self.manager, groups))

    def summary(self, tasks: Any) -> str:
        """Names of tasks; a group or tag that was asked for stands for its tasks where all are meant."""
        rest, names = dict.fromkeys(tasks), []
        for name in self.names:
            leaves = _leaves(self.manager, [name])
            if len(leaves) > 1 and rest.keys() >= set(leaves):
                names.append(f"{name} ({len(leaves)} tasks)")
                rest = {task: None for task in rest if task not in leaves}
        return first_names([*names, *rest], 8)

    def build(self, folder: Path | None) -> tuple[list[Any], list[str]]:
        """lm-eval's tasks and groups with their data, and what kept any from being built, a line each.

        Args:
            folder: holds datasets as <org>/<name>/ with a dataset card; None: they come from the Hub or its cache.
        """
        tasks, problems = [], []
        self.cache = self._cache(folder) if folder else ""
        online = folder is not None or hub.reachable()  # the Hub's client alone takes half a minute to give up
        why = "" if online else "the Hub cannot be reached from here (--benchmark_dir names a folder): "
        # lm-eval loads «org/name» from that folder of the working directory, where there is one.
        with (
            no_local_metrics(),
            contextlib.chdir(folder or "."),
            _datasets_cache(self.cache),
            contextlib.nullcontext() if online else hub.offline(),
        ):
            for name in self.names:
                try:
                    built = self.manager._load_spec(name)
                except UserError:
                    raise
                except Exception as error:  # of any kind: no network, no such file, damaged rows, a missing package
                    lines = str(error).strip().splitlines() or ["no message"]
                    problems.append(f"{name} cannot be loaded: {why}{type(error).__name__}: {lines[0]}")
                else:
                    tasks += built if isinstance(built, list) else [built]  # a tag gives a list
        return tasks, problems

    def _cache(self, folder: Path) -> str:
        """A cache for the data as it lies in the folder now: `datasets` knows a local dataset by its name and card
        alone, and would take another folder's, or an older state of this one, for it."""
        from datasets import config

        paths = {task["dataset_path"] for task in self.leaves.values() if task.get("dataset_path")}
        files = [file for path in sorted(paths) for file in sorted((folder / path).rglob("*")) if file.is_file()]
        stamps = [f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
        key = hashlib.sha256("\n".join(stamps).encode()).hexdigest()[:16]
        return str(Path(config.HF_DATASETS_CACHE) / f"tunebook-{key}")


@contextlib.contextmanager
def no_local_metrics() -> Iterator[None]:
    """Inside, a metric that a task names is not loaded from the working directory, where the `evaluate` library would
    run NAME/NAME.py before it looks elsewhere: that folder may be one of data."""
    from evaluate.loading import LocalEvaluationModuleFactory

    def get_module(self: Any) -> Any:
        raise UserError(f"{Path(self.path).resolve()} is code under the name of a metric, and is not run; remove it")

    with patch.object(LocalEvaluationModuleFactory, "get_module", get_module):
        yield


@contextlib.contextmanager
def _datasets_cache(folder: str) -> Iterator[None]:
    """Let `datasets` keep its cache there; "": where it does."""
    from datasets import config

    before = config.HF_DATASETS_CACHE
    config.HF_DATASETS_CACHE = Path(folder or before)
    try:
        yield
    finally:
        config.HF_DATASETS_CACHE = before


def flat(built: list[Any]) -> list[Any]:
    """The tasks alone, of tasks and groups that lm-eval has built."""
    return [task for item in built for task in (item.get_all_tasks() if hasattr(item, "get_all_tasks") else [item])]


def _folders(names: list[str]) -> list[Path]:
    """For each name the folder of lm-eval's tasks with the longest name that it begins with."""
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent
    folders = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith("_")]
    found: dict[Path, None] = {}
    for name in names:
        fitting = [path for path in folders if name == path.name or name.startswith((f"{path.name}_", f"{path.name}-"))]
        if fitting:
            found[max(fitting, key=lambda path: len(path.name))] = None
    return list(found)


def _missing(manager: Any, names: list[str]) -> list[str]:
    """Names, and members of the groups among them, that the manager does not know."""
    return [name for name in _walk(manager, names) if name not in manager.task_index]


def _leaves(manager: Any, names: list[str]) -> list[str]:
    return [name for name in _walk(manager, names) if manager.task_index[name].kind.name in ("TASK", "PY_TASK")]


def _walk(manager: Any, names: list[str]) -> list[str]:
    """The names, and what groups and tags among them stand for, each once."""
    found: dict[str, None] = {}
    queue = list(names)
    while queue:
        name = queue.pop(0)
        if name in found:
            continue
        found[name] = None
        entry = manager.task_index.get(name)
        if entry is not None and entry.kind.name == "TAG":
            queue += sorted(entry.tags)
        elif entry is not None and entry.kind.name == "GROUP":
            members = (entry.cfg or {}).get("task") or []
            queue += [item if isinstance(item, str) else item.get("task") or item.get("group") for item in members]
    return list(found)
