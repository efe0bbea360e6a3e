"""Plans without weights: known counts and bytes, arithmetic as with weights, and the command itself."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import few
import forked
import pytest
import torch
from paths import ROOT
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tunebook.common import catalog, cli
from tunebook.common.commands import plan
from tunebook.common.errors import UserError
from tunebook.common.estimate import activations, arithmetic, gpus, meta_model, planning
from tunebook.common.models import device, model_bytes, resolve

LLAMA_2_7B = dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32)
LLAMA_3_8B = dict(vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
                  num_attention_heads=32, num_key_value_heads=8)  # fmt: skip
SMALL = dict(vocab_size=1024, hidden_size=128, intermediate_size=320, num_hidden_layers=3, num_attention_heads=4)
SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def folder_of(place, sizes, weights=False):
    """A folder with a config and pocket's tokenizer, and weights where they are asked for."""
    config = LlamaConfig(**sizes)
    if weights:
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(place)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(place)
    AutoTokenizer.from_pretrained(resolve("pocket")).save_pretrained(place)
    return place


# Shapes


@pytest.mark.parametrize("rank, targets, count", [(8, ["q_proj", "v_proj"], 4_194_304), (16, SEVEN, 39_976_960)])
def test_what_is_quoted_for_llama_2_7b(tmp_path, rank, targets, count):
    from peft import LoraConfig, get_peft_model

    for four_bit in (False, True):
        model, _ = meta_model.meta_model(str(folder_of(tmp_path, LLAMA_2_7B)), torch.bfloat16, four_bit, full=False)
        assert sum(parameter.numel() for parameter in model.parameters()) == 6_738_415_616
        # 2 bytes a parameter, or 0.516 bytes of what is in 4 bits; the embeddings and the head stay at 2.
        linear = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
        rest = 6_738_415_616 - linear
        expected = 2 * rest + linear * (0.5 + 1 / 64 + 4 / 64 / 256) if four_bit else 2 * 6_738_415_616
        assert model_bytes.weights(model) == pytest.approx(expected, rel=1e-4)
        model = get_peft_model(model, LoraConfig(r=rank, target_modules=targets))
        assert sum(parameter.numel() for parameter in model_bytes.trainable(model)) == count
        assert model_bytes.gradients(model) == count * model_bytes.trainable(model)[0].element_size()


def adapted(model):
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=8, target_modules=SEVEN, lora_dropout=0.0)).train()


def real(place, four_bit):
    from transformers import BitsAndBytesConfig

    if not four_bit:
        return LlamaForCausalLM.from_pretrained(place)
    settings = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    config = BitsAndBytesConfig(**settings, bnb_4bit_compute_dtype=torch.float32, llm_int8_skip_modules=["lm_head"])
    return LlamaForCausalLM.from_pretrained(place, quantization_config=config, device_map="cpu")


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_a_model_without_weights_holds_what_the_model_holds(tmp_path, method, recompute):
    """Weights, gradients and every moment of a step, from a config, equal those of real weights."""
    place, four_bit = str(folder_of(tmp_path, SMALL, weights=True)), method == "qlora"
    without, _ = meta_model.meta_model(place, torch.float32, four_bit, full=method == "full")
    found = real(place, four_bit)
    if method != "full":
        without, found = adapted(without), adapted(found)
    for model in (without, found):
        model.train()
        if recompute:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    tables = 3 * 7 * (16 + 256 + 1) * 4 if four_bit else 0  # codes and an offset, of every quantised weight
    assert model_bytes.weights(without) == pytest.approx(model_bytes.weights(found), abs=tables + 4096)
    assert model_bytes.gradients(without) == model_bytes.gradients(found)

    def step(width, few):
        given = {"input_ids": torch.ones((2, width), dtype=torch.long)}
        given["attention_mask"] = torch.ones((2, 1, width, width), dtype=torch.bool)
        found(**given, use_cache=False, logits_to_keep=activations.LABELS).logits.float().sum().backward()

    expected = activations.profile(found, step, 2, label_bytes=4 * 1024)
    planned = meta_model.profile(without, padded=True)
    for rows, width in ((2, 16), (8, 64), (16, 512)):
        mine, theirs = (sum(one.peak(rows, width, 1, False).values()) for one in (planned, expected))
        assert mine == pytest.approx(theirs, rel=0.01, abs=2**15), (rows, width)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_gpu_without_bfloat16_trains_all_weights_in_float32(tmp_path, dtype):
    """16 bytes a weight: itself, its gradient, two states of AdamW. With bfloat16 it is 2 + 2 + 8."""
    target = device.make(gpu=True, bf16=dtype == torch.bfloat16)
    assert target.dtype == dtype
    place = str(folder_of(tmp_path, SMALL))
    model, _ = meta_model.meta_model(place, target.weights_dtype(full=True), four_bit=False, full=True)
    weights = sum(parameter.numel() for parameter in model.parameters())
    states = arithmetic.optimizer_states(model, "paged_adamw_32bit")
    bytes_each = (model_bytes.weights(model) + model_bytes.gradients(model) + states) / weights
    assert bytes_each == pytest.approx(12 if dtype == torch.bfloat16 else 16, rel=1e-3)  # with some buffers
    profile = meta_model.profile(model, padded=True, autocast=target.dtype)
    assert profile.peak(2, 512, 1, False)["activations"] > 0
    adapters, _ = meta_model.meta_model(place, target.weights_dtype(full=False), four_bit=False, full=False)
    assert next(adapters.parameters()).dtype == dtype


def test_adapters_in_float32_get_their_inputs_as_autocast_makes_them(tmp_path):
    """Beside it: the same step with real weights under torch's own autocast, which alone casts, as in Unsloth."""
    from peft.helpers import disable_input_dtype_casting

    place = str(folder_of(tmp_path, SMALL, weights=True))
    without = adapted(meta_model.meta_model(place, torch.bfloat16, False, full=False)[0])
    found = adapted(LlamaForCausalLM.from_pretrained(place, dtype=torch.bfloat16))
    for model in (without, found):
        for parameter in model_bytes.trainable(model):
            parameter.data = parameter.data.float()

    def step(width, few):
        given = {"input_ids": torch.ones((2, width), dtype=torch.long)}
        with torch.autocast("cpu", torch.bfloat16), disable_input_dtype_casting(found):
            logits = found(**given, use_cache=False, logits_to_keep=activations.LABELS).logits
        logits.float().sum().backward()

    expected = activations.profile(found, step, 2, label_bytes=8 * 1024)
    planned = meta_model.profile(without, padded=False, autocast=torch.bfloat16)
    for rows, width in ((2, 64), (8, 256)):
        mine, theirs = (sum(one.peak(rows, width, 1, False).values()) for one in (planned, expected))
        assert mine == pytest.approx(theirs, rel=0.03, abs=2**17), (rows, width)


def test_truncated_copies(tmp_path):
    config = LlamaConfig(**SMALL)
    config.layer_types = ["full_attention"] * 3
    config.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(resolve("pocket")).save_pretrained(tmp_path)
    meta_model.truncated_copy(str(tmp_path), 1, tmp_path / "copy")
    assert len(LlamaForCausalLM.from_pretrained(tmp_path / "copy").model.layers) == 1
    assert planning._extrapolate([5.0, 9.0], 10) == 5 + 9 * 2
    assert planning._extrapolate([5.0], 4) == planning._extrapolate([5.0, 4.0], 10) == 5.0


# Words


@pytest.mark.parametrize("words, size", [("16 GB", 16), ("24gib", 24), (" 80 ", 80), ("7.5 G", 7.5)])
def test_gpu_words(words, size):
    assert gpus.named(words) == gpus.Card(f"a GPU of {size} GiB", size * 2**30)
    assert gpus.named(f"{words} fp16") == gpus.Card(f"a GPU of {size} GiB", size * 2**30, bf16=False)


@pytest.mark.parametrize("words", ["big", "16 MB", "0 GB", "-4", "A100", "16 GB x 2", "fp16", "16 GB bf16"])
def test_other_gpu_words(words):
    with pytest.raises(UserError, match="expected the memory of the GPU, like"):
        gpus.named(words)


def test_which_recipe(tmp_path, monkeypatch):
    bundled = catalog.recipes()["lora_alpaca"]
    assert catalog.find("lora_alpaca", "x") == catalog.find("lora_alpaca.py", "x") == bundled
    with pytest.raises(UserError, match=r"tunebook plan lora_alpac: no such .*nearest is lora_alpaca"):
        catalog.find("lora_alpac", "tunebook plan")
    with pytest.raises(UserError, match="name a recipe first"):
        plan.main(cli.parse(plan.Args, ["--model", "x"]))
    copy = tmp_path / "lora_alpaca.py"
    copy.write_text("")
    assert catalog.find(str(copy), "x") == copy
    monkeypatch.chdir(tmp_path)
    assert catalog.find("lora_alpaca.py", "x") == copy and catalog.find("lora_alpaca", "x") == bundled


def test_an_earlier_name_of_a_recipe(tmp_path, monkeypatch):
    monkeypatch.setattr(catalog, "folder", lambda: tmp_path)
    (tmp_path / "prompt_tuning_alpaca.py").write_text("")
    assert catalog.find("soft_prompts_alpaca", "x") == tmp_path / "prompt_tuning_alpaca.py"
    (tmp_path / "soft_prompts_alpaca.py").write_text("")
    assert catalog.find("soft_prompts_alpaca", "x") == tmp_path / "soft_prompts_alpaca.py"


def test_a_plan_needs_no_weights(tmp_path):
    place = str(folder_of(tmp_path, SMALL))
    with pytest.raises(UserError, match="weights"):
        resolve(place)
    with meta_model.plan_mode(device.make(gpu=True, bf16=True)):
        assert resolve(place) == place and device.current().dtype == torch.bfloat16
        assert device.current().precision == {"bf16": False, "fp16": False}  # there is nothing to compute
    assert device.planned() is None and device.current() == device.here()


CARDS = """0, GPU-1f0c, 81000, 9.0, NVIDIA H100 80GB HBM3
1, GPU-1f7a, 500, 9.0, NVIDIA H100 80GB HBM3
2, GPU-90aa, 15000, 7.5, Tesla T4
3, GPU-77bb, [N/A], 12.1, NVIDIA GB10
"""


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """A machine with those cards; gives how to make its nvidia-smi say something else."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def say(text, code=0):
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\ncat <<EOF\n{text}EOF\nexit {code}\n")
        tool.chmod(0o755)

    say(CARDS)
    return say


H100, H100_BUSY, T4, CPU = (
    gpus.Card("this device (NVIDIA H100 80GB HBM3)", 81000 * 2**20),
    gpus.Card("this device (NVIDIA H100 80GB HBM3)", 500 * 2**20),
    gpus.Card("this device (Tesla T4)", 15000 * 2**20, bf16=False),
    gpus.Card("this device (CPU)"),
)


@pytest.mark.parametrize("visible, card", [
    (None, H100), ("0", H100), ("1,0", H100_BUSY), (" 2 , 0", T4), ("GPU-90aa", T4), ("GPU-1f7", H100_BUSY),
    ("", CPU), ("-1", CPU),
])  # fmt: skip
def test_this_device(smi, monkeypatch, visible, card):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus.here() == card


@pytest.mark.parametrize("visible, says", [
    ("7", "CUDA_VISIBLE_DEVICES=7: nvidia-smi tells of no such card, only of 0 (NVIDIA H100 80GB HBM3), 1 "),
    ("GPU-1f", "tells of no such card"),  # of two cards
    ("MIG-2a", "tells of no such card"),
    ("3", "does not tell the free memory of NVIDIA GB10 ([N/A]); give its memory: --gpu"),
])  # fmt: skip
def test_cards_that_cannot_be_planned_for(smi, monkeypatch, visible, says):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(UserError, match=re.escape(says)):
        gpus.here()


def test_no_card(smi, monkeypatch, tmp_path):
    smi("No devices were found\n", 6)
    assert gpus.here() == CPU
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert gpus.here() == CPU


def test_truncated_copies_run_on_the_card_that_was_planned(monkeypatch, tmp_path):
    """GPUs are hidden only while models without weights are made; what the user set is there when time is measured."""
    seen = []
    monkeypatch.setattr(planning, "_plan", lambda *_: {"saw": os.environ["CUDA_VISIBLE_DEVICES"]})
    monkeypatch.setattr(planning, "truncated_copy", lambda place, layers, folder: folder.mkdir())
    monkeypatch.setattr(subprocess, "run", lambda command, env, **_: seen.append(env) or subprocess.CompletedProcess(
        command, 0, '{"seconds": 1.0, "peak_bytes": 1}', ""))  # fmt: skip
    for visible in ("2", None):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        assert planning.plan(Path("a.py"), [], tmp_path, H100)["saw"] == ""
        planning.time(Path("a.py"), [], tmp_path, {"here": True, "fits": True, "layers": 1, "model": "pocket"})
        assert seen.pop().get("CUDA_VISIBLE_DEVICES") == visible


# The command


PLAN = ("-m", "tunebook.common.commands", "plan")


def test_what_it_says_of_bad_words_is_quick(tmp_path):
    for words, says in ((["lora_alpaca", "--gpu", "huge"], "expected the memory of the GPU"), (["nothing"], "no such")):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, *PLAN, *words]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=600, check=False
        )
        assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr, done.stderr


# What the weights below are compared of, and preference pairs, which are other rows.
KINDS = ["lora_alpaca", "dpo_pairs", "distill_alpaca", "distill_cached_alpaca"]
EVERY = [name for name in catalog.recipes() if name != "pretrain_pocket"]


@pytest.mark.recipe
@pytest.mark.parametrize("names", [KINDS, pytest.param(EVERY, marks=pytest.mark.slow)], ids=["kinds", "every"])
def test_recipes_are_planned(tmp_path, names):
    """In one process, which loads Unsloth once."""
    kinds = {"dpo_pairs": "pairs", "chat_sharegpt": "chat"}
    data = {kind: str(few.rows(tmp_path / f"few{kind}", kind)) for kind in ("", "pairs", "chat")}
    (tmp_path / "out").mkdir()
    code = "import sys; from tunebook.common.commands import main"
    code += "\nfor word in sys.argv[1:]:\n    name, data = word.split('=')\n    print(name, file=sys.stderr)"
    code += "\n    words = ['--dataset', data, '--no-time', '--json', name + '.json', '--max_steps', '50']"
    code += "\n    main(['plan', name, *words])"
    given = [f"{name}={data[kinds.get(name, '')]}" for name in names]
    done = forked.run("-c", code, *given, cwd=tmp_path / "out")
    assert done.returncode == 0, done.stderr[-3000:]
    plans = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "out").iterdir()}  # nothing else
    assert plans.keys() == set(names)
    for found in plans.values():
        assert found["fits"] and found["steps"] == 50 and found["peak_bytes"] == sum(found["parts"].values())
        assert {"full", "LoRA", "QLoRA"} <= {row["method"] for row in found["table"]}
        assert sum(row["own"] for row in found["table"]) == 1
        for row in found["table"]:
            enough = row["rows"] >= found["longest"]["rows"]
            assert enough if row["fits"] else not enough
    weights = {name: found["parts"]["weights"] for name, found in plans.items()}
    stored = (Path(resolve("pocket_teacher")) / "model.safetensors").stat().st_size  # in bfloat16
    assert weights["distill_alpaca"] - weights["lora_alpaca"] == pytest.approx(2 * stored, rel=0.01)
    assert weights["distill_cached_alpaca"] == weights["lora_alpaca"]  # its teacher is gone when training begins


@pytest.mark.recipe
def test_the_plan_is_what_the_rehearsal_finds(tmp_path):
    """Arithmetic with and without weights agrees, and the time that truncated copies promise is that of the model."""
    data = ["--max_steps", "50", "--dataset", few.rows(tmp_path / "few")]
    done = forked.run(*PLAN, "qlora_alpaca", "--json", "plan.json", *data, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    planned = json.loads((tmp_path / "plan.json").read_text())
    words = [*data, "--dry_run", "--eval_suite", "none", "--output_dir", tmp_path / "run"]
    code = "import json, runpy, sys; sys.argv[0] = 'qlora_alpaca.py'; "
    code += "from tunebook.common import catalog, cli; cli._environment();"
    code += "from pathlib import Path; module = catalog.load(Path(sys.argv.pop(1)));"
    code += "print('\\n' + json.dumps(module.main(cli.parse(module.Args, sys.argv[1:]))))"
    real = forked.run("-c", code, ROOT / "recipes" / "qlora_alpaca.py", *words)
    assert real.returncode == 0, real.stderr[-3000:]
    rehearsed = json.loads(real.stdout.splitlines()[-1])
    assert rehearsed["longest"] == planned["longest"]
    for part in ("weights", "optimizer", "activations"):
        assert planned["parts"][part] == pytest.approx(rehearsed["parts"][part], rel=0.05, abs=2**20), part
    assert planned["time"]["seconds"] > 0 and planned["time"]["peak_bytes"] > 2**28


@pytest.mark.slow
@pytest.mark.recipe
def test_eight_billion_from_a_config_alone(tmp_path):
    """A copy with its own rank and targets; a card that is too small ends with 1 and says what would fit."""
    place = folder_of(tmp_path / "llama", LLAMA_3_8B)
    text = (ROOT / "recipes" / "lora_alpaca.py").read_text()
    text = text.replace('target_modules="all-linear"', 'target_modules=["q_proj", "v_proj"]')
    (tmp_path / "mine.py").write_text(text)
    words = ["mine.py", "--model", place, "--json", "plan.json", "--lora_r", 8, "--dataset", few.rows(tmp_path / "few")]
    done = forked.run(*PLAN, *words, "--gpu", "12 GB", cwd=tmp_path)
    assert done.returncode == 1 and "does not fit into a GPU of 12 GiB" in done.stderr, done.stderr[-3000:]
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["trainable"] == 32 * 8 * (4096 + 4096 + 4096 + 1024) and found["parameters"] > 8.03e9
    assert found["parts"]["weights"] == pytest.approx(2 * 8.03e9, rel=0.01)
    assert "no such GPU here" in found["time"]["unknown"] and "time: not known" in done.stdout
    fitting = {row["method"] for row in found["table"] if row["fits"]}
    assert fitting == {"QLoRA"} and "QLoRA" in done.stdout
    full = max(row["peak_bytes"] for row in found["table"] if row["method"] == "full")
    assert full > (2 + 2 + 4) * 8.03e9  # weights, gradients and the states of adamw_torch_fused, in bfloat16
