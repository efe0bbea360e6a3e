"""What a run is: its folder is gone on with by the same run alone, and its differences are named."""

import dataclasses
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tunebook.common.errors import UserError
from tunebook.common.run import Run, TrainerOptions
from tunebook.common.run_folder import checkpoint_files, lock, output_dir, run_record

ROWS = {"train": [{"instruction": "a", "output": "b"}] * 3, "validation": [{"instruction": "c", "output": "d"}]}


@dataclass
class Args(TrainerOptions):
    model: str = "pocket"
    dataset: list[str] = field(default_factory=lambda: ["pocket"])
    learning_rate: float = 0.1
    per_device_train_batch_size: int = 16


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "recipe.py").write_text("rank = 16\n")
    yield tmp_path
    lock.release()


def begin(folder, rows=ROWS, recipe="recipe.py", **flags):
    """A run up to its training: Run, load_data without a file of rows, start."""
    run = Run(str(folder / recipe), Args(output_dir=str(folder / "out"), **flags))
    run.checkpoint = run.record.resume_from(folder / recipe, run.args, rows)
    run.start()
    if not run.args.dry_run:
        run.record.commit()
    return run


def checkpoint(run, step):
    place = run.dir / f"checkpoint-{step}"
    place.mkdir()
    (place / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    save_file({"weight": torch.full((2,), float(step))}, place / "adapter_model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"step": step}, place / name)
    checkpoint_files.seal(place, step, run.record.id)
    return place


def test_the_newest_checkpoint_is_gone_on_with(folder, capsys):
    run = begin(folder)
    assert run.checkpoint is None
    for step in (9, 100):
        checkpoint(run, step)
    (run.dir / "checkpoint-200").mkdir()  # killed while it was written
    again = begin(folder, debug_batches=2, eval_suite="none")  # these may differ
    assert again.checkpoint == str(run.dir / "checkpoint-100") and again.record.id == run.record.id
    assert "checkpoint-200 was not finished" in capsys.readouterr().out and not (run.dir / "checkpoint-200").exists()
    with pytest.raises(UserError, match="contains an interrupted run"):
        begin(folder, resume=False)


OTHERS = {
    "flag": ({"learning_rate": 0.2}, "learning_rate 0.1 -> 0.2"),
    "setting": ({"set": ["warmup_steps=2"]}, r"set \[\] -> \['warmup_steps=2'\]"),
    "batch": ({"per_device_train_batch_size": 8}, "rows a step 16 -> 8"),
    "one row more": ({"rows": {**ROWS, "train": ROWS["train"] * 2}}, "train rows 3 -> 6"),
    "another row": (
        {"rows": {**ROWS, "validation": [{"instruction": "c", "output": "e"}]}},
        "validation rows: as many",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_run_is_refused_by_name_unless_it_is_allowed(folder, name, capsys, monkeypatch):
    checkpoint(begin(folder), 9)
    before = (folder / "out" / "run.json").read_text()
    changed, says = OTHERS[name]
    with pytest.raises(UserError, match=f"is not this one: {says}"):
        begin(folder, **changed)
    assert (folder / "out" / "run.json").read_text() == before
    monkeypatch.setattr(run_record.RunRecord, "commit", lambda self: None)
    begin(folder, **changed, allow_changes=True)
    assert (folder / "out" / "run.json").read_text() == before  # until the checkpoint has been loaded
    monkeypatch.undo()
    run = begin(folder, **changed, allow_changes=True)
    assert run.checkpoint and "in spite of a change" in capsys.readouterr().out
    assert run.record.parts[-1]["changes"] and begin(folder, **changed).checkpoint


def test_recipes_models_code_and_versions_are_part_of_a_run(folder, monkeypatch):
    model = folder / "base"
    model.mkdir()
    (model / "config.json").write_text("{}")
    save_file({"weight": torch.zeros(2)}, model / "model.safetensors")
    checkpoint(begin(folder, model=str(model)), 9)
    save_file({"weight": torch.ones(2)}, model / "model.safetensors")
    with pytest.raises(UserError, match=f"the files of --model {model} have changed"):
        begin(folder, model=str(model))
    save_file({"weight": torch.zeros(2)}, model / "model.safetensors")
    shutil.copy(folder / "recipe.py", folder / "other.py")
    with pytest.raises(UserError, match="recipe recipe -> other"):
        begin(folder, recipe="other.py", model=str(model))
    (folder / "recipe.py").write_text("rank = 8\n")
    with pytest.raises(UserError, match="the text of the recipe recipe has changed"):
        begin(folder, model=str(model))
    (folder / "recipe.py").write_text("rank = 16\n")
    monkeypatch.setattr(run_record.fingerprints, "code", lambda: "other")
    with pytest.raises(UserError, match="the code of tunebook has changed"):
        begin(folder, model=str(model))
    monkeypatch.undo()
    monkeypatch.setattr(run_record.provenance, "version", lambda name: "0.0.1" if name == "torch" else None)
    with pytest.raises(UserError, match=r"torch [\d.]+\S* -> 0.0.1"):
        begin(folder, model=str(model))


def test_processes_may_differ_where_a_step_has_as_many_rows(folder, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    checkpoint(begin(folder, per_device_train_batch_size=8), 9)
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(UserError, match=r"rows a step 16 -> 8, as 2 -> 1 processes run; --gradient_accumulation_steps"):
        begin(folder, per_device_train_batch_size=8)
    assert begin(folder, per_device_train_batch_size=8, gradient_accumulation_steps=2).checkpoint
    assert "processes: 2 -> 1; 16 rows a step as before" in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, "", "{", '{"id": 5}', "[]"])
def test_a_damaged_run_json_is_refused_unless_it_is_allowed(folder, content):
    run = begin(folder)
    checkpoint(run, 9)
    if content is None:
        (run.dir / "run.json").unlink()
    else:
        (run.dir / "run.json").write_text(content)
    with pytest.raises(UserError, match=r"run.json is (missing|damaged), so what the run was is not known"):
        begin(folder)
    assert begin(folder, allow_changes=True).checkpoint  # whose checkpoint is still known as of this run


def test_a_run_of_an_earlier_version_goes_on(folder, capsys):
    run = begin(folder)
    (checkpoint(run, 9) / "manifest.json").unlink()
    flags = {name: value for name, value in dataclasses.asdict(run.args).items() if name not in run_record.FREE}
    (run.dir / "run.json").write_text(json.dumps({**flags, "learning_rate": 0.2}))
    with pytest.raises(UserError, match=r"learning_rate 0.2 -> 0.1"):
        begin(folder)
    (run.dir / "run.json").write_text(json.dumps(flags))
    again = begin(folder)
    said = capsys.readouterr().out
    assert again.checkpoint and "recipe, data, models, code and versions cannot be compared" in said
    checkpoint(again, 18)
    assert begin(folder).checkpoint == str(run.dir / "checkpoint-18")  # with what is compared from now on
    with pytest.raises(UserError, match="train rows 3 -> 6"):
        begin(folder, rows={**ROWS, "train": ROWS["train"] * 2})


def test_overwrite_removes_what_runs_write_and_nothing_else(folder):
    run = begin(folder)
    checkpoint(run, 9)
    (run.dir / "damaged-checkpoint-8").mkdir()
    (run.dir / "checkpoint-10.part").mkdir()
    (run.dir / "adapter").mkdir()
    (run.dir / "mine.txt").write_text("kept")
    (run.dir / "checkpoint-notes.txt").write_text("kept")
    begin(folder, overwrite=True, dry_run=True)
    assert (run.dir / "checkpoint-9").exists()  # which a dry run leaves alone
    again = begin(folder, overwrite=True)
    assert again.checkpoint is None and again.record.id != run.record.id and len(again.record.parts) == 1
    names = sorted(path.name for path in run.dir.iterdir())
    assert names == ["checkpoint-notes.txt", "mine.txt", "run.json", "run.lock"]


def test_a_folder_without_checkpoints_is_free(folder):
    run = begin(folder)
    (run.dir / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    again = begin(folder, learning_rate=0.2)
    assert again.record.id != run.record.id and len(again.record.parts) == 1
    assert not (run.dir / "log.jsonl").exists()
    assert len(begin(folder, learning_rate=0.2).record.parts) == 2  # the same one, begun a second time


def test_each_stop_is_in_the_account(folder):
    run = begin(folder)
    checkpoint(run, 6)
    end = {"ended": "2026-01-01T00:00:00+00:00", "to_step": 9, "seconds": 9.0, "trained_tokens": 90, "peak_bytes": 5}
    (run.dir / output_dir.PROGRESS).write_text(json.dumps(end))
    run.record = run_record.RunRecord(run.dir, killed=True)
    run.checkpoint = run.record.resume_from(folder / "recipe.py", run.args, ROWS)
    run.start()
    run.record.commit()
    (run.dir / output_dir.PROGRESS).write_text(json.dumps({**end, "to_step": 12, "seconds": 6.5, "trained_tokens": 60}))
    run.record.finish()
    account = run.record.summary(steps=12, seconds=12.0, trained_tokens=120)
    assert [(part["from_step"], part["to_step"], part["how"]) for part in account["parts"]] == [
        (0, 9, "killed"),
        (6, 12, "finished"),
    ]
    assert account["parts"][0] | end == account["parts"][0]
    assert account["repeated"] == {"steps": 3, "seconds": 3.5, "trained_tokens": 30}


def test_a_run_that_was_killed_in_its_first_save_begins_anew(folder, capsys):
    run = begin(folder)
    (checkpoint(run, 9) / "manifest.json").unlink()
    checkpoint_files.begin(run.dir / "checkpoint-9")
    (run.dir / "checkpoint-18.part").mkdir()
    assert begin(folder, learning_rate=0.2).checkpoint is None  # with other flags, too: nothing is lost
    said = capsys.readouterr().out
    assert "checkpoint-9 was not finished" in said and "checkpoint-18.part was not finished" in said
    assert sorted(path.name for path in run.dir.iterdir()) == ["run.json", "run.lock"]


def test_the_code_of_every_package_that_shapes_training_counts(monkeypatch):
    seen = set()
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: seen.add(self.parent.name) or read(self))
    run_record.fingerprints.code()
    assert seen >= set(run_record.fingerprints.TRAINING_CODE)
