"""Runs that stopped: damaged checkpoints, changed data, and a run that was killed after its last step."""

import json
import random
import shutil
from pathlib import Path

import few
import forked
import killed
import pytest
import torch
from paths import ROOT

from tunebook.common.errors import UserError
from tunebook.common.run_folder import checkpoint_files, output_dir, run_record
from tunebook.common.training import resuming

RECIPE = ROOT / "recipes" / "lora_alpaca.py"
# A constant rate: one step too many would move the weights.
FLAGS = ["--max_steps", "6", "--eval_suite", "none", "--per_device_train_batch_size", "8"]
MORE = ["--sft", "lr_scheduler_type=constant"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resuming")
    rows = few.rows(folder / "rows", train=100, others=12)
    done = forked.run(RECIPE, "--dataset", rows, "--output_dir", folder / "run", *FLAGS, *MORE)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run", rows


def before_its_scores(finished, folder):
    """The run as it was while its scores after training were taken."""
    shutil.copytree(finished, folder)
    for name in ("report.json", "report.html"):
        (folder / name).unlink()
    shutil.rmtree(folder / "adapter")
    return folder


@pytest.mark.recipe
def test_nothing_is_trained_after_the_last_step(finished, tmp_path):
    import torch
    from safetensors.torch import load_file

    run, rows = finished
    folder = before_its_scores(run, tmp_path / "run")
    done = forked.run(RECIPE, "--dataset", rows, "--output_dir", folder, *FLAGS, *MORE)
    assert done.returncode == 0 and "all 6 steps are trained" in done.stdout, done.stderr[-3000:]
    before, after = (load_file(place / "adapter" / "adapter_model.safetensors") for place in (run, folder))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    reports = [json.loads((place / "report.json").read_text()) for place in (run, folder)]
    assert reports[0]["train"]["steps"] == reports[1]["train"]["steps"] == 6
    assert reports[0]["eval"] == reports[1]["eval"]
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == sorted(p.name for p in run.glob("checkpoint-*"))


@pytest.mark.recipe
def test_a_killed_run_is_the_same_run_in_the_end(finished, tmp_path):
    run, rows = finished
    folder = tmp_path / "run"
    words = ["--dataset", rows, *FLAGS, *MORE]
    assert killed.at("step", 4, folder, RECIPE, *words)
    done = forked.run(RECIPE, "--output_dir", folder, *words)
    assert done.returncode == 0 and "resuming from" in done.stdout, done.stderr[-3000:]
    killed.same_account(run, folder, kills=1)
    found = json.loads((folder / "report.json").read_text())["eval"]
    assert (found["curve_rows"], found["held_out_rows"]) == (8, 12)  # the same 8 in both parts
    assert ">Stops</h2>" in (folder / "report.html").read_text()
    assert ">Stops</h2>" not in (run / "report.html").read_text()


@pytest.mark.recipe
def test_other_data_is_refused(finished, tmp_path):
    run, rows = finished
    folder = before_its_scores(run, tmp_path / "run")
    changed = tmp_path / "rows"
    shutil.copytree(rows, changed)
    with (changed / "train.jsonl").open("a") as file:
        file.write(json.dumps({"instruction": "Say yes.", "input": "", "output": "yes"}) + "\n")
    record = json.loads((folder / "run.json").read_text())
    record["args"]["dataset"] = [str(changed)]
    (folder / "run.json").write_text(json.dumps(record))
    done = forked.run(RECIPE, "--dataset", changed, "--output_dir", folder, *FLAGS, *MORE)
    assert done.returncode == 2 and "train rows 100 -> 101" in done.stderr and "Traceback" not in done.stderr, (
        done.stderr
    )


def cut(path):
    path.write_bytes(path.read_bytes()[:5000])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 4
    path.write_bytes(content)


WEIGHTS = "adapter_model.safetensors"
HARMS = {
    "weights gone": (WEIGHTS, Path.unlink, f"{WEIGHTS} is not there"),
    "weights cut off": (WEIGHTS, cut, f"{WEIGHTS} is cut off"),
    "a bit of the weights": (WEIGHTS, flip, f"{WEIGHTS} is not what was written"),
    "a bit of the optimizer": ("optimizer.pt", flip, "optimizer.pt is not what was written"),
    "schedule gone": ("scheduler.pt", Path.unlink, "scheduler.pt is not there"),
    "random state gone": ("rng_state.pth", Path.unlink, "rng_state.pth is not there"),
    "state is longer": ("trainer_state.json", lambda path: path.open("a").write(" "), "trainer_state.json is longer"),
    "other weights beside": (
        "other.safetensors",
        lambda path: path.write_bytes(b""),
        "other.safetensors was not written with it",
    ),
    "manifest gone": ("manifest.json", Path.unlink, "manifest.json is not there"),
    "manifest of words": (
        "manifest.json",
        lambda path: path.write_text(path.read_text().replace('"bytes": ', '"bytes": "x", "was": ')),
        "manifest.json cannot be read",
    ),
    "manifest cut off": ("manifest.json", lambda path: path.write_text("{"), "manifest.json cannot be read"),
    "of another run": (
        "manifest.json",
        lambda path: path.write_text(path.read_text().replace('"run": "', '"run": "0')),
        "it is of another run",
    ),
}
# As far as files show it by themselves, in checkpoints of an earlier version.
SHOWN = {
    "weights gone": (WEIGHTS, Path.unlink, "no weights"),
    "optimizer cut off": ("optimizer.pt", cut, "optimizer.pt is cut off"),
    "optimizer gone": ("optimizer.pt", Path.unlink, "optimizer.pt is not there, without which"),
    "random state gone": ("rng_state.pth", Path.unlink, "rng_state.pth is not there, without which"),
    "no header": (WEIGHTS, lambda path: path.write_bytes((2).to_bytes(8, "little") + b"[]"), f"{WEIGHTS} is cut off"),
    "an index": (
        "model.safetensors.index.json",
        lambda path: path.write_text("["),
        "model.safetensors.index.json is not what lists",
    ),
    "no JSON": ("trainer_state.json", lambda path: path.write_text("{"), "trainer_state.json is no JSON"),
}
ALL_HARMS = [(True, name) for name in HARMS] + [(False, name) for name in SHOWN]


@pytest.mark.recipe
@pytest.mark.parametrize(("sealed", "name"), ALL_HARMS)
def test_a_damaged_checkpoint_is_set_aside(finished, tmp_path, capsys, sealed, name):
    folder = before_its_scores(finished[0], tmp_path / "run")
    name, harm, says = (HARMS if sealed else SHOWN)[name]
    run = run_record.id_of(folder)
    places = dict(output_dir.checkpoints(folder)[-2:])
    if not sealed:
        for place in places.values():
            (place / "manifest.json").unlink()
    (_, older), (step, newer) = places.items()
    unsealed = 0 if sealed else step
    assert checkpoint_files.newest(folder, run, unsealed) == newer
    harm(newer / name)
    (folder / f"damaged-{newer.name}" / "of an earlier start").mkdir(parents=True)
    assert checkpoint_files.newest(folder, run, unsealed) == older
    said = capsys.readouterr().out
    assert f"{newer} is damaged" in said and says in said
    assert not newer.exists() and (folder / f"damaged-{newer.name}" / "README.md").exists()
    harm(older / name)
    for other in set(folder.glob("checkpoint-*")) - {older}:
        shutil.rmtree(other)
    with pytest.raises(UserError, match=f"no checkpoint of .* is whole: {older.name}: {says}"):
        checkpoint_files.newest(folder, run, unsealed)


def test_tensors_are_read_onto_the_cpu_of_several_processes(tmp_path):
    """accelerate numbers it, and the Trainer reads the optimizer's state onto it."""
    resuming._know_numbered_cpus()
    torch.save({"exp_avg": torch.ones(3)}, tmp_path / "optimizer.pt")
    found = torch.load(tmp_path / "optimizer.pt", map_location=torch.device("cpu", 0), weights_only=True)
    assert torch.equal(found["exp_avg"], torch.ones(3))


@pytest.mark.recipe
def test_copies_files_and_lost_best_weights_are_no_checkpoints(finished, tmp_path, capsys):
    folder = before_its_scores(finished[0], tmp_path / "run")
    run = run_record.id_of(folder)
    (_, older), (_, newer) = output_dir.checkpoints(folder)[-2:]
    shutil.copytree(newer, folder / "checkpoint-99")
    (folder / "checkpoint-98").write_text("a file")
    (folder / "checkpoint-97").mkdir()
    shutil.copytree(newer, folder / "checkpoint-x")  # of no step: nobody's
    shutil.copytree(newer, folder / "checkpoint-96")  # killed between its last file and its manifest
    (folder / "checkpoint-96" / "manifest.json").unlink()
    checkpoint_files.begin(folder / "checkpoint-96")
    assert checkpoint_files.newest(folder, run) == newer
    said = capsys.readouterr().out
    assert "checkpoint-99 is damaged (it is a copy: its manifest.json is of step 6)" in said
    assert "checkpoint-98 is damaged (it is no folder)" in said
    assert all(f"checkpoint-{step} was not finished" in said for step in (96, 97))
    assert not list(folder.glob("checkpoint-*.part"))
    state = json.loads((newer / "trainer_state.json").read_text())
    state["best_model_checkpoint"] = f"/where/it/began/{older.name}"  # found beside it, wherever the folder is now
    (newer / "trainer_state.json").write_text(json.dumps(state))
    checkpoint_files.seal(newer, 6, run)
    assert checkpoint_files.newest(folder, run) == newer
    flip(older / WEIGHTS)
    with pytest.raises(UserError, match=f"{newer.name}: the best weights so far, {older.name}: {WEIGHTS} is not what"):
        checkpoint_files.newest(folder, run)


@pytest.mark.recipe
def test_any_damage_to_any_file_of_a_checkpoint_is_noticed(finished, tmp_path):
    """Five ways for each file, and single bits anywhere."""
    folder = before_its_scores(finished[0], tmp_path / "run")
    run, (step, place) = run_record.id_of(folder), output_dir.checkpoints(folder)[-1]
    assert not checkpoint_files.damage(place, step, run)
    draw, tried = random.Random(5), 0
    paths = sorted(path for path in place.iterdir() if path.name != "manifest.json")
    for path in paths:
        whole = path.read_bytes()
        bits = draw.sample(range(8 * len(whole)), 8)
        harmed = [None, b"", whole[: len(whole) // 2], whole + b" ", draw.randbytes(len(whole))]
        harmed += [
            whole[: bit // 8] + bytes([whole[bit // 8] ^ (1 << bit % 8)]) + whole[bit // 8 + 1 :] for bit in bits
        ]
        for content in harmed:
            path.unlink()
            if content is not None:
                path.write_bytes(content)
            assert path.name in checkpoint_files.damage(place, step, run)
            path.write_bytes(whole)
            tried += 1
    assert tried == 13 * len(paths) and len(paths) > 10 and not checkpoint_files.damage(place, step, run)
