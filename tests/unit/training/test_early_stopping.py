"""A recipe that was copied to another folder, with early stopping in one line more, stops and keeps the best model."""

import json

import few
import forked
import pytest

from tunebook.common.commands import cp

PLAIN = "callbacks=run.callbacks(evaluation.samples),"
STOPS = "callbacks=[*run.callbacks(evaluation.samples), EarlyStoppingCallback(early_stopping_patience=1)],"


@pytest.mark.slow
@pytest.mark.recipe
def test_a_copy_stops_where_the_held_out_loss_no_longer_falls(tmp_path):
    import torch
    from safetensors.torch import load_file

    copy, elsewhere = tmp_path / "mine" / "careful.py", tmp_path / "elsewhere"
    elsewhere.mkdir()
    cp.main(cp.Args("lora_alpaca", str(copy)))
    text = copy.read_text(encoding="utf-8")
    imports = "    from trl import SFTConfig, SFTTrainer\n"
    assert text.count(PLAIN) == text.count(imports) == 1
    text = text.replace(imports, "    from transformers import EarlyStoppingCallback\n" + imports)
    copy.write_text(text.replace(PLAIN, STOPS), encoding="utf-8")
    # A rate that grows to far too much: the loss soon goes up.
    flags = ["--learning_rate", "4", "--max_steps", "80", "--eval_suite", "none", "--output_dir", "out"]
    flags += ["--dataset", str(few.rows(tmp_path / "few"))]
    more = ["--sft", "lr_scheduler_type=constant_with_warmup", "warmup_steps=80", "eval_steps=4", "save_steps=4"]
    done = forked.run(copy, *flags, *more, cwd=elsewhere)
    assert done.returncode == 0, done.stderr[-3000:]

    report = json.loads((elsewhere / "out" / "report.json").read_text())
    *while_training, (_, last) = report["train"]["evaluations"][1:]  # the first is of the base, the last of the result
    steps, losses = zip(*while_training, strict=True)
    assert steps == tuple(range(4, 4 * len(steps) + 1, 4)) and steps[-1] < 80
    assert report["recipe"] == "careful" and report["train"]["steps"] == steps[-1]
    # One evaluation that is no better than the best before it, the last, ends the run.
    better = [loss < min(losses[:place], default=torch.inf) for place, loss in enumerate(losses)]
    assert better == [True] * (len(steps) - 1) + [False]
    best = elsewhere / "out" / f"checkpoint-{steps[losses.index(min(losses))]}" / "adapter_model.safetensors"
    kept, saved = load_file(best), load_file(elsewhere / "out" / "adapter" / "adapter_model.safetensors")
    assert kept.keys() == saved.keys() and all(torch.equal(kept[name], saved[name]) for name in kept)
    assert report["eval"]["loss"] == last == pytest.approx(min(losses), abs=1e-6)

    # Killed before its report was written, it does not train on.
    held = (elsewhere / "out" / "report.json").read_text()
    for name in ("report.json", "report.html", "adapter/adapter_model.safetensors"):
        (elsewhere / "out" / name).unlink()
    again = forked.run(copy, *flags, *more, cwd=elsewhere)
    assert again.returncode == 0 and f"all {steps[-1]} steps are trained" in again.stdout, again.stderr[-3000:]
    twice = load_file(elsewhere / "out" / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(twice[name], saved[name]) for name in saved)
    found = json.loads((elsewhere / "out" / "report.json").read_text())
    assert found["train"]["steps"] == steps[-1] and found["eval"] == json.loads(held)["eval"]
