"""Whatever is damaged of an interrupted run is noticed: it ends as an undisturbed one, or is refused in one message."""

import json
import random
import shutil

import few
import forked
import killed
import pytest
from paths import ROOT

from tunebook.common.run_folder import output_dir

FLAGS = ["--eval_suite", "none", "--max_steps", "18", "--per_device_train_batch_size", "4"]
SETTINGS = {"lora_alpaca": ["--set", "save_steps=6", "eval_steps=6", "logging_steps=1"], "loop_alpaca": []}
WAYS = {
    "gone": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "noise": lambda path: path.write_bytes(random.Random(1).randbytes(path.stat().st_size)),
}
pytestmark = [pytest.mark.slow, pytest.mark.recipe]


@pytest.fixture(scope="module", params=SETTINGS)
def interrupted(request, tmp_path_factory):
    """(recipe, flags, an undisturbed run's folder, that of one that was killed with two checkpoints)."""
    place = tmp_path_factory.mktemp(request.param)
    script = ROOT / "recipes" / f"{request.param}.py"
    words = ["--dataset", few.rows(place / "rows", train=32, others=8), *FLAGS, *SETTINGS[request.param]]
    done = forked.run(script, "--output_dir", place / "whole", *words)
    assert done.returncode == 0, done.stderr[-3000:]
    assert killed.at("step", 14, place / "killed", script, *words)
    return script, words, place / "whole", place / "killed"


def moved(old, new):
    shutil.copytree(old, new)
    return new


def resumed(interrupted, folder, kills=1):
    """Start it again: refused plainly, or the same as the undisturbed run. Returns what it said."""
    script, words, whole, _ = interrupted
    done = forked.run(script, "--output_dir", folder, *words)
    assert done.returncode in (0, 2) and "Traceback" not in done.stderr, done.stderr[-3000:]
    if done.returncode == 2:
        assert len(done.stderr.strip().splitlines()) == 1 and not (folder / "report.json").exists()
    else:
        killed.same_account(whole, folder, kills)
    return done.stdout + done.stderr


@pytest.mark.parametrize("way", WAYS)
def test_files_of_the_newest_checkpoint(interrupted, tmp_path, way):
    """One by one, until the one before is used; the training of it is looked at for the first file of each kind."""
    _, newest = output_dir.checkpoints(interrupted[3])[-1]
    seen = set()
    for path in sorted(newest.iterdir()):
        if path.suffix in seen:
            continue
        seen.add(path.suffix)
        folder = moved(interrupted[3], tmp_path / path.name)
        WAYS[way](folder / newest.name / path.name)
        said = resumed(interrupted, folder)
        assert "is damaged" in said or "was not finished" in said, path
        assert f"resuming from {folder / newest.name}\n" not in said


def test_cached_tokens(interrupted, tmp_path):
    for way in ("empty", "half", "noise"):
        for kind in ("*.arrow", "*.json"):
            folder = moved(interrupted[3], tmp_path / f"{way} {kind[2:]}")
            (path,) = (folder / "tokens").glob(kind)
            WAYS[way](path)
            assert "is damaged or of an earlier version, and is made anew" in resumed(interrupted, folder)


def test_run_json_log_and_progress(interrupted, tmp_path):
    for way in ("gone", "empty", "half", "noise"):
        folder = moved(interrupted[3], tmp_path / f"run {way}")
        WAYS[way](folder / "run.json")
        assert "so what the run was is not known" in resumed(interrupted, folder)
        for name in ("run.lock", "progress.json", "tokens/key"):
            folder = moved(interrupted[3], tmp_path / f"{name.replace('/', ' ')} {way}")
            WAYS[way](folder / name)
            done = forked.run(interrupted[0], "--output_dir", folder, *interrupted[1])
            assert done.returncode == 0, done.stderr[-3000:]
            assert killed.weights(folder) == killed.weights(interrupted[2])


def test_other_checkpoints_than_its_own(interrupted, tmp_path):
    _, newest = output_dir.checkpoints(interrupted[3])[-1]
    folder = moved(interrupted[3], tmp_path / "copies")
    shutil.copytree(newest, folder / "checkpoint-99")
    (folder / "checkpoint-98").mkdir()
    (folder / "checkpoint-97").write_text("a file")
    (folder / "checkpoint-x").mkdir()
    (folder / "checkpoint-96").mkdir()
    (folder / "checkpoint-96" / "trainer_state.json").write_text("{}")
    said = resumed(interrupted, folder)
    assert "checkpoint-99 is damaged (it is a copy" in said and f"resuming from {folder / newest.name}\n" in said
    other = moved(interrupted[3], tmp_path / "other")
    record = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps(record | {"id": "another"}))
    assert "it is of another run" in resumed(interrupted, other)
