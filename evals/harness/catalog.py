"""lm-eval's tasks by name, of which only the folders that are needed are read, with their data from a local folder."""

import contextlib
import hashlib
import logging
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tunebook.common.data import hub
from tunebook.common.errors import UserError, first_names, nearest

TASKS = Path(__file__).parents[1] / "tasks"
NAMED = 8  # tasks that one line names


class Benchmarks:
    """The tasks and groups of some names.

    lm-eval reads the 14,687 tasks that it has in 16 to 23 seconds; the folders of a name alone take a tenth of one.

    Args:
        names: of tasks, groups or tags, of lm-eval or of evals/tasks.
        metadata: what tasks are told beside their own settings, as `lm_eval run --metadata`.

    Attributes:
        cache: where `build` has made `datasets` keep what it read from a folder; "": where it always does.
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

    def ours(self) -> bool:
        """Whether any of the tasks stands in evals/tasks."""
        places = [str(self.manager.task_index[name].yaml_path) for name in self.leaves]
        return any(Path(place).is_relative_to(TASKS) for place in places)

    def inside(self) -> set[str]:
        """The tasks that are parts of groups."""
        groups = [name for name in self.names if self.manager.task_index[name].kind.name == "GROUP"]
        return set(_leaves(self.manager, groups))

    def named(self, tasks: Any) -> str:
        """Tasks in few words: a group or tag that was asked for stands for its tasks where all are meant."""
        rest, words = dict.fromkeys(tasks), []
        for name in self.names:
            leaves = _leaves(self.manager, [name])
            if len(leaves) > 1 and rest.keys() >= set(leaves):
                words.append(f"{name} ({len(leaves)} tasks)")
                rest = {task: None for task in rest if task not in leaves}
        words += rest
        return first_names(words, NAMED)

    def build(self, folder: Path | None) -> tuple[list[Any], list[str]]:
        """lm-eval's tasks and groups with their data, and what kept any from being built, a line each.

        Args:
            folder: holds data sets as <org>/<name>/ with a dataset card; None: they come from the Hub or its cache.
        """
        found, problems = [], {}
        self.cache = self._cache(folder) if folder else ""
        reached = folder is not None or hub.reachable()  # the Hub's client alone takes half a minute to give up
        # lm-eval loads «org/name» from that folder of the working directory, where there is one.
        with contextlib.chdir(folder or "."), _cached(self.cache), nullcontext() if reached else hub.offline():
            for name in self.names:
                try:
                    found.append(self.manager._load_spec(name))
                except UserError:
                    raise
                except Exception as error:  # of any kind: no network, no such file, damaged rows, a missing package
                    words = str(error).strip().splitlines()
                    problems[name] = f"{type(error).__name__}: {words[0] if words else 'no message'}"
        tasks = [task for item in found for task in (item if isinstance(item, list) else [item])]  # a tag gives a list
        why = "" if reached else "the Hub cannot be reached from here (--benchmark_dir names a folder): "
        return tasks, [f"{name} cannot be loaded: {why}{problem}" for name, problem in problems.items()]

    def _cache(self, folder: Path) -> str:
        """A place of its own for the data as it lies in the folder now.

        `datasets` knows a local set by its name and card alone: another folder's set of that name, or this one before
        its files were changed, would be taken from the cache in its stead, and nothing said.
        """
        from datasets import config

        paths = {task["dataset_path"] for task in self.leaves.values() if task.get("dataset_path")}
        files = [file for path in sorted(paths) for file in sorted((folder / path).rglob("*")) if file.is_file()]
        stamps = [f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
        key = hashlib.sha256("\n".join(stamps).encode()).hexdigest()[:16]
        return str(Path(config.HF_DATASETS_CACHE) / f"tunebook-{key}")


@contextlib.contextmanager
def _cached(place: str) -> Iterator[None]:
    """`datasets` keeps what it reads there."""
    from datasets import config

    before = config.HF_DATASETS_CACHE
    config.HF_DATASETS_CACHE = Path(place or before)
    try:
        yield
    finally:
        config.HF_DATASETS_CACHE = before


def flat(built: list[Any]) -> list[Any]:
    """The tasks alone, of tasks and groups that lm-eval has built."""
    return [task for item in built for task in (item.get_all_tasks() if hasattr(item, "get_all_tasks") else [item])]


def _folders(names: list[str]) -> list[Path]:
    """The folders of lm-eval's tasks whose name a task's name begins with: the longest of them for each."""
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent
    have = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith("_")]
    found = []
    for name in names:
        fitting = [path for path in have if name == path.name or name.startswith((f"{path.name}_", f"{path.name}-"))]
        found += sorted(fitting, key=lambda path: len(path.name))[-1:]
    return list(dict.fromkeys(found))


def _missing(manager: Any, names: list[str]) -> list[str]:
    """Names, and members of the groups among them, that the manager does not know."""
    return [name for name in _walk(manager, names) if name not in manager.task_index]


def _leaves(manager: Any, names: list[str]) -> list[str]:
    return [name for name in _walk(manager, names) if manager.task_index[name].kind.name in ("TASK", "PY_TASK")]


def _walk(manager: Any, names: list[str]) -> list[str]:
    """The names, and what groups and tags among them stand for, each once."""
    found: dict[str, None] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop(0)
        if name in found:
            continue
        found[name] = None
        entry = manager.task_index.get(name)
        if entry is not None and entry.kind.name == "TAG":
            waiting += sorted(entry.tags)
        elif entry is not None and entry.kind.name == "GROUP":
            members = (entry.cfg or {}).get("task") or []
            waiting += [item if isinstance(item, str) else item.get("task") or item.get("group") for item in members]
    return list(found)
