"""run.json: what a run is, and the parts in which it was trained.

A run is a recipe and its text, arguments, data, models, code, versions, and how many rows make a step. A run that
stopped is resumed by the same one; a difference is named, and refused unless --allow_changes is given.
"""

import dataclasses
import json
import os
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tunebook.common import files, local_models, provenance
from tunebook.common.distributed import is_main_process
from tunebook.common.errors import UserError
from tunebook.common.run_folder import checkpoint_files, fingerprints, output_dir

# Arguments that may differ when a run is resumed.
FREE = {
    "output_dir", "overwrite", "resume", "allow_changes", "report_to", "dry_run", "eval_suite", "debug_batches",
}  # fmt: skip
# They may differ, too, as long as a step has as many rows.
OF_A_STEP = ("per_device_train_batch_size", "gradient_accumulation_steps")
MODELS = ("model", "teacher", "adapter")  # arguments that name one
VERSIONS = ("torch", "transformers", "trl", "peft", "accelerate", "unsloth", "bitsandbytes")
# Of a part that has ended; where its process was killed before it could say, nothing is known of it.
END = {"ended": None, "to_step": 0, "seconds": 0.0, "trained_tokens": 0, "peak_bytes": 0}


def identity(recipe: Path, args: Any, splits: Any = None) -> dict[str, Any]:
    """What a run is, as JSON values.

    Args:
        splits: split -> rows; None: they are not known.
    """
    flags = json.loads(json.dumps({name: value for name, value in vars(args).items() if name not in FREE}))
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    rows = processes
    for name in OF_A_STEP:
        rows *= flags.get(name, 1)
    return {
        "recipe": {"name": recipe.stem, "sha256": fingerprints.file(recipe)},
        "args": flags,
        "data": fingerprints.rows(splits or {}),
        "models": models(flags),
        "code": fingerprints.code(),
        "versions": {"tunebook": provenance.version("tunebook")}
        | {name: provenance.version(name) for name in VERSIONS},
        "world": {"processes": processes, "global_batch": rows},
    }


def models(flags: dict[str, Any]) -> dict[str, str | None]:
    """Fingerprints of the models that arguments name; None for one on the Hub that has not been fetched."""
    names = {name: flags[name] for name in MODELS if flags.get(name)}
    return {flag: fingerprints.model(str(local_models.folder(name) or name)) for flag, name in names.items()}


def differences(old: dict[str, Any], new: dict[str, Any], defaults: dict[str, Any]) -> list[str]:
    """How two runs differ, a text for each difference; what one of them does not know is not compared.

    Args:
        defaults: of the arguments; an older run has none of those that came later.
    """
    found, before = [], old["args"]
    if old["recipe"]["name"] != new["recipe"]["name"]:
        found.append(f"recipe {old['recipe']['name']} -> {new['recipe']['name']}")
        before = {name: value for name, value in before.items() if name in new["args"]}  # each has flags of its own
    elif old["recipe"]["sha256"] != new["recipe"]["sha256"]:
        found.append(f"the text of the recipe {new['recipe']['name']} has changed")
    found += _arguments(before, new["args"], defaults)
    for split, rows in new["data"].items():
        before = old["data"].get(split, rows)
        if before["rows"] != rows["rows"]:
            found.append(f"{split} rows {before['rows']} -> {rows['rows']}")
        elif before["sha256"] != rows["sha256"]:
            found.append(f"{split} rows: as many, but others or in another order")
    for name, model in new["models"].items():
        if None not in (before := old["models"].get(name, model), model) and before != model:
            found.append(f"the files of --{name} {new['args'].get(name)} have changed")
    for name, version in new["versions"].items():
        if (before := old["versions"].get(name, version)) != version:
            found.append(f"{name} {before} -> {version}")
    if old["code"] != new["code"] and old["versions"].get("tunebook") == new["versions"]["tunebook"]:
        found.append("the code of tunebook has changed")
    return found + _steps(old["world"], new["world"])


def _arguments(old: dict[str, Any], new: dict[str, Any], defaults: dict[str, Any]) -> list[str]:
    names = [name for name in {**old, **new} if name not in OF_A_STEP and name not in FREE]
    pairs = [(name, old.get(name, defaults.get(name)), new.get(name, defaults.get(name))) for name in names]
    pairs = [(name, *(sorted(value or []) if name == "set" else value for value in two)) for name, *two in pairs]
    return [f"{name} {before!r} -> {after!r}" for name, before, after in pairs if before != after]


def _steps(old: dict[str, int], new: dict[str, int]) -> list[str]:
    before, after = old["global_batch"], new["global_batch"]
    if before == after:
        return []
    processes = (
        f", as {old['processes']} -> {new['processes']} processes run" if old["processes"] != new["processes"] else ""
    )
    return [f"rows a step {before} -> {after}{processes}; --gradient_accumulation_steps can make them {before} again"]


class RunRecord:
    """run.json of a folder, as the run before left it and as this one goes on with it.

    Attributes:
        id: of the run, through all its parts; checkpoints name it.
        parts: from a start to its end: begun, ended, from_step, to_step, how, processes, seconds, trained_tokens,
            peak_bytes, changes.
        unsealed: checkpoints up to this step were written by a version that made no manifests.

    Args:
        killed: the run before has left its lock.
    """

    def __init__(self, folder: Path, killed: bool = False):
        self.folder, self.path, self.killed = folder, folder / output_dir.RUN_FILE, killed
        self.old, self.problem = _read(self.path)
        self.id: str = (self.old or {}).get("id") or secrets.token_hex(8)
        self.parts: list[dict[str, Any]] = (self.old or {}).get("parts", [])
        self.unsealed: int = (self.old or {}).get("unsealed", 0)
        checkpoints = output_dir.checkpoints(folder)
        if not (self.old or {}).get("id") and not any(checkpoint_files.run_of(path) for _, path in checkpoints):
            self.unsealed = max((step for step, _ in checkpoints), default=0)  # of an earlier version
        self.identity: dict[str, Any] = {}
        self.changes: list[str] = []

    def resume_from(self, recipe: Path, args: Any, splits: Any = None) -> str | None:
        """The checkpoint to resume from; None to begin anew, and in a dry run.

        Args:
            splits: split -> rows; None: they are not known.

        Raises:
            UserError: the folder has checkpoints of another run, and args.allow_changes is off; or none that is whole;
                or args.resume is off.
        """
        self.identity = identity(recipe, args, splits)
        if args.overwrite:
            return None
        if checkpoint_files.any_finished(self.folder, self.unsealed):
            self._compare(args)
        if vars(args).get("dry_run"):
            return None
        checkpoint = checkpoint_files.newest(self.folder, self.id, self.unsealed)
        if checkpoint is not None and not args.resume:
            raise UserError(
                f"--output_dir {self.folder} contains an interrupted run; resume it, choose another, or --overwrite"
            )
        return str(checkpoint) if checkpoint else None

    def _compare(self, args: Any) -> None:
        """Refuse another run than the folder's, unless changes are allowed."""
        if self.old is None:
            self.changes = [self.problem]
            owners = (checkpoint_files.run_of(path) for _, path in reversed(output_dir.checkpoints(self.folder)))
            self.id = next((owner for owner in owners if owner), self.id)
        elif "args" not in self.old:  # an earlier version wrote arguments alone
            print(f"{self.path} is of an earlier version: recipe, data, models, code and versions cannot be compared")
            self.changes = _arguments(self.old, self.identity["args"], _defaults(args))
        else:
            self.changes = differences(self.old, self.identity, _defaults(args))
        if self.changes and not args.allow_changes:
            raise UserError(
                f"--output_dir {self.folder} holds an interrupted run that is not this one: {'; '.join(self.changes)}. "
                "Undo that, choose another folder, add --allow_changes to go on all the same, or --overwrite to begin "
                "again"
            )
        for change in self.changes:
            print(f"resuming in spite of a change: {change}")
        world = self.identity["world"]
        before, rows = (self.old or {}).get("world", world), world["global_batch"]
        if before["processes"] != world["processes"] and before["global_batch"] == rows:
            print(f"processes: {before['processes']} -> {world['processes']}; {rows} rows a step as before")

    def begin(self, checkpoint: str | None, overwrite: bool) -> None:
        """A part will begin, from a checkpoint where there is one. The part before is completed: its process may not
        have been able to. Nothing is written before `commit`."""
        step = 0 if checkpoint is None else int(checkpoint.rpartition("-")[2])
        same = self.old is not None and "args" in self.old and not differences(self.old, self.identity, {})
        if checkpoint is None and (overwrite or not same):  # what was there never came to a checkpoint, or is gone
            self.id, self.parts, self.unsealed = secrets.token_hex(8), [], 0
        self._complete("killed" if self.killed else "stopped", at_least=step)
        if checkpoint is None and is_main_process():
            (self.folder / output_dir.LOG).unlink(missing_ok=True)
        processes = self.identity["world"]["processes"]
        self.parts.append({"begun": now(), "from_step": step, "processes": processes, "changes": self.changes})

    def commit(self) -> None:
        """The part begins: the checkpoint, if there is one, has been loaded and fits what the run is now."""
        if None in self.identity["models"].values():  # of the Hub: known now that they have been fetched
            self.identity["models"] = models(self.identity["args"])
        if is_main_process():
            (self.folder / output_dir.PROGRESS).unlink(missing_ok=True)
        self._write()

    def finish(self) -> None:
        """The last part has ended as it should."""
        self._complete("finished")
        self.parts[-1]["ended"] = now()
        if is_main_process():
            (self.folder / output_dir.PROGRESS).unlink(missing_ok=True)
        self._write()

    def summary(self, steps: int, seconds: float, trained_tokens: int) -> dict[str, Any]:
        """`run` of report.json.

        Args:
            steps, seconds, trained_tokens: of the run, each step counted once.
        """
        spent = {
            "steps": sum(part["to_step"] - part["from_step"] for part in self.parts) - steps,
            "seconds": sum(part["seconds"] for part in self.parts) - seconds,
            "trained_tokens": sum(part["trained_tokens"] for part in self.parts) - trained_tokens,
        }
        repeated = {name: max(0, value) for name, value in spent.items()}
        return {"id": self.id, **self.identity["world"], "parts": self.parts, "repeated": repeated}

    def _complete(self, how: str, at_least: int = 0) -> None:
        """Give the last part its end, which the metrics have kept beside the log (training/metrics.py)."""
        if self.parts and "how" not in self.parts[-1]:
            try:
                reached = json.loads((self.folder / output_dir.PROGRESS).read_text(encoding="utf-8"))
            except (OSError, ValueError):
                reached = {}
            part = self.parts[-1]
            part |= {name: reached.get(name, value) for name, value in END.items()} | {"how": how}
            part["to_step"] = max(part["to_step"], part["from_step"], at_least)

    def _write(self) -> None:
        if is_main_process():
            content = {"id": self.id, **self.identity, "unsealed": self.unsealed, "parts": self.parts}
            files.write_json(self.path, content)


def id_of(folder: Path) -> str | None:
    """Which run a folder is of."""
    found, _ = _read(folder / output_dir.RUN_FILE)
    return (found or {}).get("id")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _read(path: Path) -> tuple[dict[str, Any] | None, str]:
    """run.json, or None and why."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None, f"{path.name} is missing, so what the run was is not known"
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or not _whole(found):
        return None, f"{path.name} is damaged, so what the run was is not known"
    return found, ""


def _whole(found: dict[str, Any]) -> bool:
    """Whether all is there that is read of a run.json; an earlier version's has arguments alone."""
    if "dataset" in found:
        return True
    objects = ("recipe", "args", "data", "models", "versions", "world")
    kinds = {"id": str, "code": str, "unsealed": int, "parts": list} | dict.fromkeys(objects, dict)
    if not all(isinstance(found.get(name), kind) for name, kind in kinds.items()):
        return False
    needed = {"recipe": {"name", "sha256"}, "world": {"processes", "global_batch"}}
    return (
        all(found[name].keys() >= keys for name, keys in needed.items())
        and all(
            isinstance(of_split, dict) and of_split.keys() >= {"rows", "sha256"} for of_split in found["data"].values()
        )
        and all(isinstance(part, dict) and "from_step" in part for part in found["parts"])
        and all("how" not in part or part.keys() >= END.keys() for part in found["parts"])
    )


def _defaults(args: Any) -> dict[str, Any]:
    fields: Iterable[dataclasses.Field] = dataclasses.fields(args)
    return {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}
