"""Several processes of one run: the weights of one process with the same rows a step, and one account of it."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field

import few
import forked
import pytest
from paths import ROOT

CONFIGS = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))
# Plain gradient descent: Adam makes steps of weights whose gradient is rounding alone (test_accumulation.py).
FLAGS = ["--max_steps", "6", "--learning_rate", "0.3", "--eval_suite", "none"]
SFT = ["--sft", "optim=sgd", "eval_strategy='no'", "load_best_model_at_end=false", "save_strategy='no'"]
AT_ONCE = "--per_device_train_batch_size"


@dataclass
class Args:
    set: list[str] = field(default_factory=list)


def print_done(args):
    print("done")


RECIPE = ROOT / "recipes" / "qlora_alpaca.py"


def torchrun(count, *words):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    command += map(str, words)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)


@pytest.mark.recipe
@pytest.mark.parametrize("launch", [forked.launch, pytest.param(torchrun, marks=pytest.mark.slow)])
def test_two_processes_equal_one(tmp_path, launch):
    import torch
    from safetensors.torch import load_file

    rows = ["--dataset", few.rows(tmp_path / "few")]
    one = forked.run(RECIPE, "--output_dir", tmp_path / "one", AT_ONCE, "16", *rows, *FLAGS, *SFT)
    two = launch(2, RECIPE, "--output_dir", tmp_path / "two", AT_ONCE, "8", *rows, *FLAGS, *SFT)
    assert one.returncode == 0, one.stderr[-3000:]
    assert two.returncode == 0, two.stderr[-3000:]
    names = ("one", "two")
    weights = [load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in names]
    assert weights[0].keys() == weights[1].keys()
    worst = max((weights[0][name] - value).abs().max().item() for name, value in weights[1].items())
    moved = max(value.abs().max().item() for name, value in weights[0].items() if "lora_B" in name)  # from 0
    print(f"moved by {moved:.1e}, differ by {worst:.1e}")
    assert worst < 1e-6 < 1e-3 < moved

    # One account: what one process would have printed and written, once.
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in names]
    losses = [[line["loss"] for line in map(json.loads, log) if "loss" in line] for log in logs]
    assert len(losses[0]) == 6 and torch.allclose(*map(torch.tensor, losses), rtol=1e-5)
    assert two.stdout.count("step 1/6") == two.stdout.count("report:") == 1
    files = [{str(path.relative_to(tmp_path / name)) for path in (tmp_path / name).rglob("*")} for name in names]
    assert files[0] == files[1]
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in names]
    assert reports[0]["data"]["kept"] == reports[1]["data"]["kept"]
    # Two processes take some held-out rows twice, so that both have as many batches.
    assert reports[1]["eval"]["loss"] == pytest.approx(reports[0]["eval"]["loss"], rel=0.02)
    assert all(sample["after"] for sample in reports[1]["samples"])


@pytest.mark.recipe
def test_a_failure_ends_every_process(tmp_path):
    """torchrun turns any failure into 1; the message is the recipe's own."""
    done = torchrun(2, RECIPE, "--output_dir", tmp_path / "run", "--dataset", tmp_path / "nowhere.json")
    assert done.returncode == 1 and "nowhere.json: there is no such file" in done.stderr
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_launch_settings(path):
    """accelerate takes each file, knows each of its settings, and starts what the file says."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    config = load_config_from_file(str(path))
    parser = launch_command_parser()
    assert {*config.fsdp_config, *config.deepspeed_config} <= {action.dest for action in parser._actions}
    words = ["--config_file", str(path), "--num_processes", "4", "recipe.py"]
    args, _, _ = _validate_launch_command(parser.parse_args(words))
    assert args.num_processes == 4 and args.mixed_precision == "bf16"
    ways = {"ddp": args.multi_gpu, "fsdp2": args.use_fsdp, "deepspeed_zero3": args.use_deepspeed}
    assert [name for name, on in ways.items() if on] == [path.stem]
    if args.use_fsdp:
        # with sharded states Trainer.save_model writes nothing
        assert args.fsdp_version == 2 and args.fsdp_state_dict_type == "FULL_STATE_DICT"
    if args.use_deepspeed:
        assert args.zero_stage == 3 and args.offload_optimizer_device == "cpu"


def launched(path):
    """The variables that `accelerate launch` gives to a recipe."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    args = launch_command_parser().parse_args(["--config_file", str(path), "--num_processes", "4", "recipe.py"])
    args, defaults, _ = _validate_launch_command(args)
    args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)  # as launch_command does
    return prepare_deepspeed_cmd_env(args)[1] if args.use_deepspeed else prepare_multi_gpu_env(args)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_only_ddp_gets_past_the_command_line(path, monkeypatch, capsys):
    """A model in slices is refused with one sentence, whatever launches it, before anything heavy is imported."""
    from tunebook.common import cli

    for name, value in launched(path).items():
        monkeypatch.setenv(name, value)
    if path.stem == "ddp":
        cli.run(print_done, Args, [])
        assert "done" in capsys.readouterr().out
        return
    with pytest.raises(SystemExit) as ended:
        cli.run(print_done, Args, [])
    found = capsys.readouterr()
    said = found.err
    assert ended.value.code == 2 and "done" not in found.out and said.count("\n") == 1, said
    assert "is not supported yet; launch with recipes/accelerate/ddp.yaml" in said
    assert "Recipes refuse this launch" in path.read_text()


@pytest.mark.parametrize("word", ["deepspeed=zero.json", "fsdp=full_shard", "fsdp_config={}"])
def test_overrides_that_cut_the_model_are_refused(word, capsys):
    from tunebook.common import cli

    with pytest.raises(SystemExit) as ended:
        cli.run(print_done, Args, ["--sft", "warmup_steps=2", word])
    assert ended.value.code == 2 and f"--set {word.partition('=')[0]}: " in capsys.readouterr().err
    cli.run(print_done, Args, ["--sft", "warmup_steps=2"])
    assert "done" in capsys.readouterr().out


def test_every_launch_setting_is_looked_at():
    assert [path.stem for path in CONFIGS] == ["ddp", "deepspeed_zero3", "fsdp2"]
