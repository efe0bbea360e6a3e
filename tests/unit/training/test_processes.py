"""Several processes of one run: the weights of one process with the same rows a step, and one account of it."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from types import SimpleNamespace

import few
import forked
import pytest
from paths import ROOT

from tunebook.common import catalog, distributed
from tunebook.common.errors import UserError

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
    assert two.stdout.count("before training") == two.stdout.count("report:") == 1
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


ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no"}
ADDRESS = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
TORCHRUN = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "x", **ADDRESS}


@pytest.fixture
def launch_environment(monkeypatch):
    """Sets the variables of a launch, and no others."""
    names = {*distributed.STARTED, *distributed.LAUNCHED, *TORCHRUN, *ACCELERATE, "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS"}

    def put(variables):
        for name in names:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return put


REFUSED = {
    "accelerate launch --cpu --num_processes 2": (ACCELERATE | ADDRESS, "has started one"),
    "srun": ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"}, "4 processes were started"),
    "mpirun": ({"OMPI_COMM_WORLD_SIZE": "2"}, "2 processes were started"),
    "another launcher": ({"WORLD_SIZE": "2", "RANK": "0"}, "LOCAL_RANK is not"),
}


@pytest.mark.parametrize("launch", REFUSED)
def test_processes_that_cannot_join_are_refused(launch_environment, capsys, launch):
    from tunebook.common import cli
    from tunebook.common.run import RunOptions

    variables, said = REFUSED[launch]
    launch_environment(variables)
    with pytest.raises(SystemExit) as ended:
        cli.run(print_done, RunOptions, [])
    found = capsys.readouterr()
    assert ended.value.code == 2 and said in found.err and "torchrun --nproc_per_node" in found.err
    assert found.err.count("\n") == 1 and "done" not in found.out


@pytest.mark.parametrize(
    "variables",
    [{}, ACCELERATE, ADDRESS, TORCHRUN, TORCHRUN | ACCELERATE, TORCHRUN | {"SLURM_STEP_NUM_TASKS": "2"},
     {"SLURM_STEP_NUM_TASKS": "1"}, {**TORCHRUN, "WORLD_SIZE": "1"}],
)  # fmt: skip
def test_other_launches_are_not(launch_environment, variables):
    launch_environment(variables)
    distributed.check_launch(several=True)


def test_a_command_of_one_process_refuses_two(launch_environment, capsys):
    from tunebook.common import cli

    @dataclass
    class Table(Args):  # of a command that has the flag of a recipe
        eval_suite: str = ""

    launch_environment(TORCHRUN | {"RANK": "0"})
    for args in (Args, Table):
        with pytest.raises(SystemExit) as ended:
            cli.run(print_done, args, [])
        assert ended.value.code == 2 and "this command runs in one process" in capsys.readouterr().err
    assert not hasattr(catalog.load(ROOT / "recipes" / "pretrain_pocket.py").Args, "SEVERAL_PROCESSES")
    assert catalog.load(ROOT / "recipes" / "dpo_pairs.py").Args.SEVERAL_PROCESSES


@pytest.mark.parametrize("joined", [{"torch": 1, "accelerate": 2}, {"torch": 2, "accelerate": 1}])
def test_a_library_that_has_joined_fewer_is_named(launch_environment, monkeypatch, joined):
    import torch
    from accelerate import state

    launch_environment(TORCHRUN)
    fake = type("PartialState", (), {"_shared_state": {"x": 1}, "num_processes": joined["accelerate"]})
    monkeypatch.setattr(state, "PartialState", fake)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: joined["torch"])
    named = next(name for name, count in joined.items() if count == 1)
    with pytest.raises(UserError, match=rf"2 processes were asked for, and {named}.* has joined 1"):
        distributed.world_size()
    joined[named] = fake.num_processes = 2
    assert distributed.world_size() == 2


# what the launcher was given, its words, what it set -> threads on 8 cores
THREADS = {
    "no launcher": ({}, [], {"OMP_NUM_THREADS": "3"}, None),
    "set by the user": ({"OMP_NUM_THREADS": "1"}, [], ACCELERATE | {"OMP_NUM_THREADS": "1"}, 1),
    "set by the user to more": ({"OMP_NUM_THREADS": "5"}, [], ACCELERATE | {"OMP_NUM_THREADS": "5"}, 5),
    "set by a flag": ({}, ["--num-cpu-threads-per-process", "2"], ACCELERATE | {"OMP_NUM_THREADS": "2"}, 2),
    "not set": ({}, [], ACCELERATE | {"OMP_NUM_THREADS": "1"}, 8),
    "not set, torchrun": ({}, [], TORCHRUN | {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "2"}, 4),
    "set, torchrun": ({"OMP_NUM_THREADS": "2"}, [], TORCHRUN | {"OMP_NUM_THREADS": "2", "LOCAL_WORLD_SIZE": "2"}, 2),
    "a script between": (ACCELERATE | {"OMP_NUM_THREADS": "1"}, [], ACCELERATE | {"OMP_NUM_THREADS": "1"}, 6),
}


@pytest.mark.parametrize("case", THREADS)
def test_threads_are_those_that_the_user_set(launch_environment, monkeypatch, case):
    import psutil

    given, words, own, expected = THREADS[case]
    launch_environment(own)

    def process(environment, words=()):
        return SimpleNamespace(cmdline=lambda: ["accelerate", "launch", *words], environ=lambda: environment)

    parents = [process(given, words), process({"OMP_NUM_THREADS": "6"})]
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(parents=lambda: parents))
    monkeypatch.setattr(distributed, "cores", lambda: 8)
    assert distributed.threads() == expected


def test_a_rehearsal_of_the_loop_waits_for_no_other_process():
    """Processes need not rehearse as many steps: in DistributedDataParallel they would wait for each other."""
    import torch

    from tunebook.common.estimate import trainer_steps

    alone = torch.nn.Linear(1, 1)
    wrapped = torch.nn.Sequential(alone)
    wrapped.register_forward_pre_hook(lambda *_: pytest.fail("a step of all processes"))
    accelerator = SimpleNamespace(unwrap_model=lambda _: alone, backward=lambda loss: loss.backward())
    batch = {"x": torch.ones(1, 1), "labels": torch.tensor([[-100, 1]])}
    steps = trainer_steps.loop_step_functions(accelerator, wrapped, None, lambda model, b: model(b["x"]).sum(), 1)
    steps.step(batch)
    steps.evaluate(batch)
    assert alone.weight.grad is not None


def test_processes_that_have_not_the_same_checkpoint_are_refused(monkeypatch):
    import torch

    def gather(values, value):
        values[:] = [value, "checkpoint-8"]

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    distributed.require_same("checkpoint", "checkpoint-8")
    with pytest.raises(UserError, match="process 0: None, process 1: checkpoint-8"):
        distributed.require_same("checkpoint", None)


def test_data_are_encoded_once(tmp_path, tokenizer, monkeypatch):
    """Beside another process, this one waits for the rows and reads them."""
    import threading

    from tunebook.common.tokens import encoding, templates

    rows = [{"instruction": f"Say {n}.", "input": "", "output": str(n), "row": n, "source": "mine"} for n in range(9)]
    expected, counts = encoding.encode(rows, tokenizer, templates.ALPACA, 64, folder=tmp_path / "one")
    monkeypatch.setenv("LOCAL_RANK", "1")
    found = []

    def second():
        found.append(encoding.encode(rows, tokenizer, templates.ALPACA, 64, folder=tmp_path / "two"))

    waiting = threading.Thread(target=second, daemon=True)
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive() and not list((tmp_path / "two").glob("*.arrow"))
    for path in sorted((tmp_path / "one").iterdir(), key=lambda path: path.suffix == ".arrow"):
        (tmp_path / "two").mkdir(exist_ok=True)
        path.rename(tmp_path / "two" / path.name)
    waiting.join(20)
    assert found[0][0].to_dict() == expected.to_dict() and found[0][1] == counts


@pytest.mark.parametrize("load,own,expected", [(0.2, None, None), (3.5, None, "PASSIVE"), (3.5, "ACTIVE", "ACTIVE")])
def test_waiting_threads_leave_busy_cores(monkeypatch, load, own, expected):
    from tunebook.common import cli

    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(distributed, "cores", lambda: 4)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if own:
        monkeypatch.setenv("OMP_WAIT_POLICY", own)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    cli._environment()
    assert os.environ.get("OMP_WAIT_POLICY") == expected
