"""Runs that stopped: damaged checkpoints, changed data, and a run that was killed after its last step."""

import json
import shutil
from pathlib import Path

import few
import forked
import pytest
from paths import ROOT

from tunebook.common.errors import UserError
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


def killed(finished, folder):
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
    folder = killed(run, tmp_path / "run")
    done = forked.run(RECIPE, "--dataset", rows, "--output_dir", folder, *FLAGS, *MORE)
    assert done.returncode == 0 and "all 6 steps are trained" in done.stdout, done.stderr[-3000:]
    before, after = (load_file(place / "adapter" / "adapter_model.safetensors") for place in (run, folder))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    reports = [json.loads((place / "report.json").read_text()) for place in (run, folder)]
    assert reports[0]["train"]["steps"] == reports[1]["train"]["steps"] == 6
    assert reports[0]["eval"] == reports[1]["eval"]
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == sorted(p.name for p in run.glob("checkpoint-*"))


@pytest.mark.recipe
def test_other_data_is_refused(finished, tmp_path):
    run, rows = finished
    folder = killed(run, tmp_path / "run")
    changed = tmp_path / "rows"
    shutil.copytree(rows, changed)
    with (changed / "train.jsonl").open("a") as file:
        file.write(json.dumps({"instruction": "Say yes.", "input": "", "output": "yes"}) + "\n")
    settings = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(settings | {"dataset": [str(changed)]}))
    done = forked.run(RECIPE, "--dataset", changed, "--output_dir", folder, *FLAGS, *MORE)
    assert done.returncode == 2 and "have changed since" in done.stderr and "Traceback" not in done.stderr, done.stderr


def cut(path):
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.recipe
@pytest.mark.parametrize(
    ("name", "harm", "says"),
    [
        ("adapter_model.safetensors", Path.unlink, "no weights"),
        ("adapter_model.safetensors", cut, "adapter_model.safetensors is cut off"),
        ("optimizer.pt", cut, "optimizer.pt is cut off"),
        ("optimizer.pt", Path.unlink, "optimizer.pt is not there"),
        ("scheduler.pt", Path.unlink, "scheduler.pt is not there"),
        (
            "adapter_model.safetensors",
            lambda path: path.write_bytes((2).to_bytes(8, "little") + b"[]"),
            "adapter_model.safetensors is cut off",
        ),
        (
            "model.safetensors.index.json",
            lambda path: path.write_text("["),
            "model.safetensors.index.json is not what lists",
        ),
        ("trainer_state.json", lambda path: path.write_text("{"), "trainer_state.json is no JSON"),
    ],
)
def test_a_damaged_checkpoint_is_set_aside(finished, tmp_path, capsys, name, harm, says):
    folder = killed(finished[0], tmp_path / "run")
    older, newer = sorted(folder.glob("checkpoint-*"), key=lambda place: int(place.name.rpartition("-")[2]))[-2:]
    assert resuming.newest(folder) == newer
    harm(newer / name)
    assert resuming.newest(folder) == older
    said = capsys.readouterr().out
    assert f"{newer} is damaged" in said and says in said
    assert not newer.exists() and (folder / f"damaged-{newer.name}").exists()
    harm(older / name)
    for other in set(folder.glob("checkpoint-*")) - {older}:
        shutil.rmtree(other)
    with pytest.raises(UserError, match=f"no checkpoint of .* is whole: {older.name}: {says}"):
        resuming.newest(folder)
