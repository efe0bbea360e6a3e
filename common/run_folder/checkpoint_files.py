"""Checkpoints as files: a manifest that says what is in one and whose it is, and the newest of a run that is whole."""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunebook.common import files
from tunebook.common.distributed import is_main_process
from tunebook.common.errors import UserError
from tunebook.common.run_folder import fingerprints, output_dir

MANIFEST = "manifest.json"  # written last
STATE = "trainer_state.json"
TORCH = (".pt", ".pth", ".bin")
# Without these training would go on in another way, silently: names of the Trainer's checkpoints and of the loop's.
OF_TRAINER = ("optimizer.pt", "scheduler.pt", "rng_state*.pth")
OF_LOOP = ("optimizer.bin", "random_states_*")


def begin(checkpoint: Path) -> None:
    """A checkpoint will be written at its place: until it is sealed, a file beside it says so. One that has neither a
    manifest nor that file has lost its manifest."""
    _mark(checkpoint).touch()


def seal(checkpoint: Path, step: int, run: str | None) -> None:
    """Write the manifest of a checkpoint: each file with its size and hash, its step, and the run's id."""
    content = {
        name: {"bytes": path.stat().st_size, "sha256": fingerprints.file(path)} for name, path in _files(checkpoint)
    }
    files.write_json(checkpoint / MANIFEST, {"run": run, "step": step, "files": content})
    if (mark := _mark(checkpoint)).is_file():
        mark.unlink()


def _mark(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"{checkpoint.name}.part")


def run_of(checkpoint: Path) -> str | None:
    """The id of the run that wrote a checkpoint; None where it does not say."""
    try:
        run = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["run"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return run if isinstance(run, str) else None


def any_finished(folder: Path, unsealed: int = 0) -> bool:
    """Whether a run has come to a checkpoint, which may be damaged by now."""
    return any(_finished(path, step, unsealed) for step, path in output_dir.checkpoints(folder))


def newest(folder: Path, run: str | None = None, unsealed: int = 0) -> Path | None:
    """The newest whole checkpoint of a run's folder. Newer damaged ones are renamed, with a line; what was being
    written when the run stopped is removed.

    Args:
        run: whose checkpoints they must be; None: it is not known.
        unsealed: up to this step, checkpoints of an earlier version have no manifest.

    Raises:
        UserError: there are checkpoints, and none is whole.
    """
    damaged: dict[Path, str] = {}
    unfinished = [path for path in output_dir.matching(folder, output_dir.UNFINISHED) if path.is_dir()]
    marks = [path for path in output_dir.matching(folder, output_dir.UNFINISHED) if not path.is_dir()]
    found = None
    for step, path in reversed(output_dir.checkpoints(folder)):
        if path.is_dir() and not _finished(path, step, unsealed):
            unfinished.append(path)
        elif problem := damage(path, step, run, unsealed):
            damaged[path] = problem
        else:
            found = path
            break
    if damaged and found is None:
        problems = "; ".join(f"{path.name}: {problem}" for path, problem in damaged.items())
        remedy = "Begin again with --overwrite, or in another --output_dir"
        raise UserError(f"no checkpoint of {folder} is whole: {problems}. {remedy}")
    for path in unfinished:
        print(f"{path} was not finished when the run stopped, and is removed")
    if is_main_process():
        for path in [*unfinished, *marks]:
            output_dir.remove(path)
    for path, problem in damaged.items():
        aside = path.with_name(f"{output_dir.DAMAGED}{path.name}")
        print(f"{path} is damaged ({problem}) and set aside as {aside.name}")
        if is_main_process():
            output_dir.remove(aside)  # one of an earlier start
            path.rename(aside)
    return found


def _finished(checkpoint: Path, step: int, unsealed: int) -> bool:
    if (checkpoint / MANIFEST).exists():
        return True
    if step <= unsealed:
        return (checkpoint / STATE).exists()
    return not _mark(checkpoint).is_file() and (not checkpoint.is_dir() or any(checkpoint.iterdir()))


def damage(checkpoint: Path, step: int, run: str | None = None, unsealed: int = 0) -> str:
    """What is wrong with a checkpoint, or with the best one of its run, from which the weights are taken at the end; ""
    where nothing is. Args as in `newest`."""
    if problem := _damage(checkpoint, step, run, step > unsealed):
        return problem
    try:
        best = json.loads((checkpoint / STATE).read_text(encoding="utf-8")).get("best_model_checkpoint")
    except (OSError, ValueError, AttributeError):
        return f"{STATE} is no JSON"
    if not isinstance(best, str) or (name := Path(best).name) == checkpoint.name:
        return ""
    place = checkpoint.with_name(name)
    if not (match := output_dir.CHECKPOINT.fullmatch(name)) or not place.is_dir():
        return f"the best weights so far, {name}, are not there"
    problem = _damage(place, int(match[1]), run, int(match[1]) > unsealed)
    return f"the best weights so far, {name}: {problem}" if problem else ""


def _damage(checkpoint: Path, step: int, run: str | None, sealed: bool) -> str:
    if not checkpoint.is_dir():
        return "it is no folder"
    path = checkpoint / MANIFEST
    if not path.exists():
        return f"{MANIFEST} is not there" if sealed else structure(checkpoint)
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        listed = {name: (int(entry["bytes"]), entry["sha256"]) for name, entry in manifest["files"].items()}
        owner, of_step = manifest["run"], manifest["step"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"
    if of_step != step:
        return f"it is a copy: its {MANIFEST} is of step {of_step}"
    if run is not None and owner != run:
        return "it is of another run"
    present = dict(_files(checkpoint))
    loaded = (name for name in present if name.endswith((".safetensors", ".index.json", *TORCH)))
    if stray := next((name for name in loaded if name not in listed), None):
        return f"{stray} was not written with it"  # it would be taken for the weights
    for name, (size, _) in listed.items():
        if name not in present:
            return f"{name} is not there"
        if (length := present[name].stat().st_size) != size:
            return f"{name} is cut off" if length < size else f"{name} is longer than it was"
    for name, (_, digest) in listed.items():
        if fingerprints.file(present[name]) != digest:
            return f"{name} is not what was written"
    return ""


def structure(checkpoint: Path) -> str:
    """The same of a checkpoint without a manifest, as far as its files show it."""
    for index in checkpoint.glob("*.index.json"):
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return f"{index.name} is not what lists the files of weights"
        if lost := sorted(names - {path.name for path in checkpoint.rglob("*.safetensors")}):
            return f"{lost[0]} is not there"
    if problem := _incomplete(checkpoint):
        return problem
    for path in checkpoint.rglob("*.safetensors"):
        if not _is_safetensors(path):
            return f"{path.name} is cut off or no safetensors file"
    for path in (path for path in checkpoint.iterdir() if path.suffix in TORCH):
        try:
            zipfile.ZipFile(path).close()
        except (OSError, zipfile.BadZipFile):
            return f"{path.name} is cut off or no file of torch's"
    return ""


def _incomplete(checkpoint: Path) -> str:
    """What every checkpoint has and this one lacks."""
    if not any(checkpoint.rglob("*.safetensors")):
        return "no weights (.safetensors) are in it"
    by_loop = any(checkpoint.glob(OF_LOOP[1])) or (checkpoint / OF_LOOP[0]).exists()
    for name in OF_LOOP if by_loop else OF_TRAINER:
        if not any(checkpoint.glob(name)):
            return f"{name.replace('*', '')} is not there, without which training would go on in another way"
    return ""


def _is_safetensors(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np"):
            return True  # it has compared the length with the header
    except (OSError, SafetensorError):
        return False


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST:
            yield name, path
