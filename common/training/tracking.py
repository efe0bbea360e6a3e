"""What a run tells its tracker: TensorBoard, W&B and trackio get the same scalars, arguments and report, as one run.

Scalars have the names that TRL's have there: train/loss, eval/loss, train/learning_rate. Beside them:
train/trained_tokens_per_second and train/peak_bytes, and at the end scores_before/TASK/METRIC and scores_after/....
"""

import contextlib
import io
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tunebook.common.distributed import is_main_process
from tunebook.common.training.trackers import FOLDERS

PROJECT = "tunebook"
FILES = ("report.json", "report.html")


class Tracker:
    """Tells nothing; the others derive from it."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Scalars, by their whole names."""

    def finish(self, step: int, report: dict[str, Any], files: list[Path]) -> None:
        """The report as an artifact; the run has ended."""

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """What a training loop logs: numbers, by TRL's names."""
        numbers = {named(name): float(value) for name, value in values.items() if isinstance(value, (int, float))}
        self.write(step, numbers)

    def end(self, step: int, report: dict[str, Any], folder: Path) -> None:
        """Scores before and after, and the report."""
        self.write(step, scores_of(report))
        self.finish(step, report, [file for name in FILES if (file := folder / name).exists()])


def named(name: str) -> str:
    """As transformers renames what it logs: eval_loss -> eval/loss, loss -> train/loss."""
    return f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"


def scores_of(report: dict[str, Any]) -> dict[str, float]:
    """Scores of tasks and the held-out loss, before and after."""
    found: dict[str, float] = {}
    for task, metrics in report["scores"].get("comparison", {}).items():
        for metric, row in metrics.items():
            found[f"scores_before/{task}/{metric}"] = float(row["before"])
            found[f"scores_after/{task}/{metric}"] = float(row["after"])
    curve, after = report["train"]["evaluations"], report["eval"]["loss"]
    if curve and after is not None:
        found["scores_before/held_out/loss"], found["scores_after/held_out/loss"] = float(curve[0][1]), float(after)
    return found


class TensorBoard(Tracker):
    """Event files in a folder of the run; what an interrupted part wrote after its last checkpoint is passed over."""

    def __init__(self, folder: Path, name: str, run_id: str, step: int, config: dict[str, Any], **_: Any):
        from torch.utils.tensorboard import SummaryWriter

        place = folder / FOLDERS["tensorboard"]
        self._writer = SummaryWriter(str(place), purge_step=step + 1 if step else None)
        if not step:
            self._writer.add_text("arguments", _code(config))

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self, step: int, report: dict[str, Any], files: list[Path]) -> None:
        for file in files:
            if file.suffix == ".json":  # it shows no pages
                self._writer.add_text(file.name, _code(json.loads(file.read_text(encoding="utf-8"))), step)
        self._writer.close()


class WandB(Tracker):
    """A run of W&B, with its folder in the run's; the same run where it is resumed. Nothing of this machine but
    requirements is kept: the command line may hold a secret."""

    def __init__(self, folder: Path, name: str, run_id: str, step: int, config: dict[str, Any], project: str):
        os.environ.setdefault("WANDB_DATA_DIR", str(folder / FOLDERS["wandb"]))  # artifacts of an offline run
        import wandb

        online = os.environ.get("WANDB_MODE", "online") == "online"
        settings = wandb.Settings(
            console="off", silent=True, disable_git=True, disable_code=True, x_disable_meta=True, x_disable_stats=True
        )
        self._wandb, self._id = wandb, run_id
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", project),
            name=name,
            id=run_id,
            resume="allow" if online else None,
            dir=str(folder),
            config=config,
            settings=settings,
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def finish(self, step: int, report: dict[str, Any], files: list[Path]) -> None:
        artifact = self._wandb.Artifact(f"report-{self._id}", type="report")
        for file in files:
            artifact.add_file(str(file))
        self._run.log_artifact(artifact)
        self._run.finish()


class Trackio(Tracker):
    """A run in trackio's own database, in a folder of the run unless TRACKIO_DIR names another; nothing leaves this
    machine but where TRACKIO_SPACE_ID or TRACKIO_SERVER_URL asks for it."""

    def __init__(self, folder: Path, name: str, run_id: str, step: int, config: dict[str, Any], project: str):
        os.environ.setdefault("TRACKIO_DIR", str((folder / FOLDERS["trackio"]).resolve()))  # read when it is imported
        place = Path(os.environ["TRACKIO_DIR"])
        place.mkdir(parents=True, exist_ok=True)
        _forget_after(place / f"{project}.db", name, step)
        with _quiet():
            import trackio

            self._trackio = trackio
            trackio.init(
                project=project,
                name=name,
                config={key: value for key, value in config.items() if not key.startswith("_")},
                resume="allow",
                auto_log_cpu=False,
                auto_log_gpu=False,
                embed=False,
            )
        print(f"trackio: TRACKIO_DIR={place} trackio show --project {project}")

    def write(self, step: int, values: dict[str, float]) -> None:
        if values:
            self._trackio.log(values, step=step)

    def finish(self, step: int, report: dict[str, Any], files: list[Path]) -> None:
        with _quiet():
            for file in files:
                self._trackio.log_artifact(str(file), name=file.name, type="report")
            self._trackio.finish()


def _forget_after(database: Path, name: str, step: int) -> None:
    """Leave out of a run what it logged after its checkpoint, which is logged again."""
    if database.exists():
        with contextlib.closing(sqlite3.connect(database)) as opened, opened:
            opened.execute("DELETE FROM metrics WHERE run_name = ? AND step > ?", (name, step))


def _code(values: dict[str, Any]) -> str:
    """As a block of code in Markdown."""
    return "".join(f"    {line}\n" for line in json.dumps(values, indent=2, ensure_ascii=False).splitlines())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()):
        yield


KINDS: dict[str, type[Any]] = {"tensorboard": TensorBoard, "wandb": WandB, "trackio": Trackio}


def start(kind: str, folder: Path, run_id: str, step: int, config: dict[str, Any], chosen: dict[str, Any]) -> Tracker:
    """The tracker of `--report_to`, in the process that writes.

    Args:
        step: that of the checkpoint which the run goes on from; 0: it begins.
        config: its arguments, without secrets.
        chosen: `run_name` and `project`, where --set gives them; by default the folder's name, and PROJECT.
    """
    if kind not in KINDS or not is_main_process():
        return Tracker()
    name, project = chosen.get("run_name") or folder.resolve().name, chosen.get("project") or PROJECT
    return KINDS[kind](folder, name, run_id, step, config, project=project)
