"""Every recipe on Unsloth's CUDA branches (cuda_stack.py), on random shapes of two layers: what a GPU would run."""

import importlib.util
import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
from paths import ROOT, WHOLE

RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py") if path.stem != "pretrain_pocket")
SHAPES = ("llama", "qwen3", "mistral")
DTYPES = ("float32", "float16")
BY_TRANSFORMERS = {
    "prefix_alpaca",
    "prompt_tuning_alpaca",
    "bottleneck_adapters_alpaca",
    "sft_alpaca",
}  # sft: Unsloth's FastModel
# Where no more is asked for, each recipe has one shape and dtype, and every shape and dtype has several recipes.
ALL = [(recipe, shape, dtype) for recipe in RECIPES for shape in SHAPES for dtype in DTYPES]
HALF = (
    "bottleneck_adapters_alpaca",
    "loop_alpaca",
    "prefix_alpaca",
    "qlora_alpaca",
    "sft_alpaca",
)  # a CPU is slow at float16
ONE_EACH = [(recipe, SHAPES[n % 3], DTYPES[recipe in HALF]) for n, recipe in enumerate(RECIPES)]
RESUMED = ("lora_alpaca", "packed_alpaca", "loop_alpaca", "prefix_alpaca")  # the ways a checkpoint is written
CASES = ALL if WHOLE or os.environ.get("CUDA_BRANCHES") == "all" else ONE_EACH

pytestmark = [
    pytest.mark.cuda_branches,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("unsloth", "triton", "trl")),
        reason="needs unsloth, trl and triton",
    ),
]


class Stack:
    """A process with the CUDA branches loaded, which forks a child for each script."""

    def __init__(self, folder):
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "UNSLOTH_COMPILE_LOCATION": str(folder / "compiled"),
        }
        self.log = (folder / "stack.log").open("w")
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "cuda_stack.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment, cwd=folder,
        )  # fmt: skip
        self.ask()

    def ask(self, job=None):
        if job is not None:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, Path(self.log.name).read_text()[-3000:]
        return json.loads(line)

    def run(self, out, dtype, script, *words):
        """A script's exit status, what it printed and what it said on stderr."""
        done = self.ask({"argv": [str(script), *map(str, words)], "dtype": dtype, "out": str(out)})
        return done["rc"], (out / "stdout").read_text(), (out / "stderr").read_text()

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.log.close()


@pytest.fixture(scope="session")
def stack(tmp_path_factory):
    made = Stack(tmp_path_factory.mktemp("cuda_branches"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Folders of random models by shape: two layers, pocket's tokenizer."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("models")
    tokenizer = transformers.AutoTokenizer.from_pretrained(ROOT / "common" / "pocket" / "model")
    sizes = dict(
        vocab_size=3072, hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=64, max_position_embeddings=512, tie_word_embeddings=False, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    for shape in SHAPES:
        extra = {"sliding_window": None} if shape == "mistral" else {}
        config = transformers.AutoConfig.for_model(shape, **sizes, **extra)
        for seed, place in enumerate((folder / shape, folder / f"{shape}_teacher")):
            torch.manual_seed(seed)
            transformers.AutoModelForCausalLM.from_config(config).save_pretrained(place)
            tokenizer.save_pretrained(place)
    return folder


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    """Folders of a few of the bundled rows by kind."""
    folder = tmp_path_factory.mktemp("rows")
    for kind in ("", "pairs_", "chat_"):
        (folder / (kind or "rows_")).mkdir()
        for side, count in (("train", 24), ("validation", 3), ("test", 2)):
            # Held-out pairs are those that train: five steps teach a random model nothing of others.
            source = "train" if kind == "pairs_" and side == "validation" else side
            with (ROOT / "common" / "pocket" / f"{kind}{source}.jsonl").open(encoding="utf-8") as file:
                (folder / (kind or "rows_") / f"{side}.jsonl").write_text("".join(islice(file, count)))
    return folder


def words_of(recipe, model, rows, out, *more):
    kind = {"dpo_pairs": "pairs_", "chat_sharegpt": "chat_"}.get(recipe, "rows_")
    teacher = ["--teacher", f"{model}_teacher"] if recipe.startswith("distill") else []
    return [
        ROOT / "recipes" / f"{recipe}.py", "--model", model, "--dataset", rows / kind, "--output_dir", out / "run",
        "--max_steps", 5, "--max_length", 160, "--eval_suite", "none", "--learning_rate", "1e-2",
        "--per_device_train_batch_size", 2, *teacher, *more,
    ]  # fmt: skip


@pytest.mark.parametrize("recipe, shape, dtype", CASES)
def test_recipe(stack, models, rows, tmp_path, recipe, shape, dtype):
    """It trains what it says, leaves the model's flags alone, saves what was in memory, and can be gone on with."""
    words = words_of(recipe, models / shape, rows, tmp_path)
    code, said, errors = stack.run(tmp_path, dtype, *words)
    assert code == 0, said[-1500:] + errors[-3000:]
    seen = json.loads((tmp_path / "seen.json").read_text())
    report = json.loads((tmp_path / "run" / "report.json").read_text())

    # The branches under test are those that ran.
    if recipe != "loop_alpaca":
        assert any(name.startswith("_Unsloth") for name in seen["bases"])
    assert seen["forward"].startswith("unsloth.") == (recipe not in BY_TRANSFORMERS)
    if recipe not in BY_TRANSFORMERS:
        launches = json.loads((tmp_path / "launches.json").read_text())
        assert all(launches.get(name, 0) > 10 for name in ("_rms_forward", "_rms_backward", "_rope_launch"))
        # Its fused LoRA kernels are for 16 bits alone.
        assert seen["projections"] == ("apply_lora_qkv" if dtype == "float16" else "original_apply_qkv")
    if recipe == "qlora_alpaca":
        assert "uint8" in seen["weights"]
    assert seen["dtypes"] == ["float32"]

    assert seen["still"] == [] and seen["without_gradient"] == []
    evaluations, losses = report["train"]["evaluations"], [value for _, value in report["train"]["loss"]]
    assert evaluations[-1][1] < evaluations[0][1] if evaluations else min(losses[1:]) < losses[0]
    print(f"| {recipe} | {shape} | {dtype} | {(evaluations or [[0, losses[0]]])[0][1]:.4f} | "
          f"{(evaluations or [[0, min(losses[1:])]])[-1][1]:.4f} |")  # fmt: skip
    assert seen["changed_flags"] == [] and seen["calls_generate"] >= 2
    assert len(set(seen["checkpointing"])) == 1 and (seen["checkpointing"][0] > 0) == (recipe != "prefix_alpaca")
    same_logits(tmp_path, models / shape, recipe, dtype)
    if recipe in RESUMED or CASES is ALL:
        resumed(stack, tmp_path, dtype, words)


def same_logits(out, base, recipe, dtype):
    """What plain transformers and PEFT make of the saved folder is what the model in memory gave.

    The bound is rounding: of float32, of float16, or of the bfloat16 in which bitsandbytes computes on a CPU.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from tunebook.common import models
    from tunebook.common.models import bottleneck_adapters

    ids, kind = torch.arange(5, 45)[None], getattr(torch, dtype)
    if (out / "run" / "model").exists():
        model = AutoModelForCausalLM.from_pretrained(out / "run" / "model", dtype=kind)
    elif recipe == "qlora_alpaca":
        model = PeftModel.from_pretrained(models.load_plain(str(base), four_bit=True), out / "run" / "adapter")
    else:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=kind)
        if recipe == "bottleneck_adapters_alpaca":
            bottleneck_adapters.load(model, out / "run" / "adapter")
        else:
            model = PeftModel.from_pretrained(model, out / "run" / "adapter")
    with torch.no_grad():
        plain = model.eval()(input_ids=ids, use_cache=False).logits.float()
    memory = torch.load(out / "seen.logits", weights_only=True)
    bound = 0.1 if recipe == "qlora_alpaca" else 1e-4 if dtype == "float32" else 0.02
    difference, spread = (plain - memory).abs().max().item(), plain.std().item()
    assert difference <= bound * spread, (difference, spread)


def resumed(stack, out, dtype, words):
    """A run that lost its last checkpoint and its result ends with the weights of the run that was left alone.

    On CPU tensors every sum has one order, so that the bound is 0; on a GPU, where sums of attention's backward pass
    have none, it is rounding (benchmarks/results/gpu.json).
    """
    import torch
    from safetensors.torch import load_file

    run = out / "run"
    result = run / ("model" if (run / "model").exists() else "adapter")
    (file,) = result.glob("*.safetensors")
    whole = load_file(file)
    last = max(run.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    subprocess.run(["rm", "-r", last, result, run / "report.json", run / "report.html"], check=True)
    code, said, errors = stack.run(out, dtype, *words)
    assert code == 0 and "resuming from" in said, errors[-3000:]
    again = load_file(file)
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)


LONG_INPUT = """
import sys, torch, unsloth
from tunebook.common import models
model, tokenizer = models.load(sys.argv[1], 64)
assert type(model.model).forward.__module__.startswith("unsloth.")
with torch.no_grad():
    print(tuple(model.eval()(input_ids=torch.arange(5, 205)[None]).logits.shape))
"""

LONG_ROWS = """
import sys, unsloth
from tunebook.common import models
from tunebook.common.errors import UserError
try:
    model, _ = models.load(sys.argv[1], 1024)
    print("loaded", model.config.rope_scaling, model.config.max_position_embeddings)
except UserError as error:
    print(error)
"""

TWO_ROWS = """
import sys, torch, unsloth
from tunebook.common import models
from tunebook.common.batching import collator
from tunebook.common.models import attention
model, tokenizer = models.load(sys.argv[1], 64)
assert attention.one_row(model) and attention.use_document_attention(model)
rows = [{"input_ids": [5 + n for n in range(40)], "labels": [5] * 40, "seq_lengths": [17, 23]},
        {"input_ids": [90 + n for n in range(30)], "labels": [5] * 30, "seq_lengths": [30]}]
batch = attention.collator(model, tokenizer)(rows)
assert batch["input_ids"].shape == (1, 70)
with torch.no_grad():
    logits = model.eval()(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits[0]
    parts = [batch["input_ids"][:, place] for place in collator.documents(batch, 0)]
    alone = torch.cat([model(input_ids=part, use_cache=False).logits[0] for part in parts])
print((logits - alone).abs().max().item() / alone.std().item())
"""

KERNELS = """
import torch
import cuda_stack
from cuda_stack import ORIGINAL
from unsloth.kernels import rms_layernorm, rope_embedding

def difference(one, two):
    return max((a.float() - b.float()).abs().max().item() for a, b in zip(one, two, strict=True))

torch.manual_seed(0)
for dtype, bound in ((torch.float32, 1e-5), (torch.float16, 5e-3)):
    x, dy, w = torch.randn(3, 128, dtype=dtype), torch.randn(3, 128, dtype=dtype), torch.rand(128, dtype=dtype) + 0.5
    for gemma in (False, True):
        kernel = ORIGINAL["_rms_forward"](x, w, 1e-6, gemma, rms_layernorm._eager_kernel, multirow=False)
        stand_in = cuda_stack.normalized(torch)(x, w, 1e-6, gemma)
        assert difference(kernel, stand_in) < bound, ("forward", dtype, gemma)
        grads = []
        for function in (ORIGINAL["_rms_backward"], cuda_stack.normalized_backward(torch)):
            dx = torch.empty_like(x)
            given = (dy, dx, x, w, kernel[1], 1e-6, gemma, rms_layernorm._eager_kernel)
            dw = function(*given, multirow=False, train_w=True)
            grads.append((dx, dw))
        assert difference(*grads) < 4 * bound, ("backward", dtype, gemma)
    q, k, cos, sin = torch.randn(1, 2, 3, 64), torch.randn(1, 1, 3, 64), torch.randn(8, 64), torch.randn(8, 64)
    q, k, places = q.to(dtype), k.to(dtype), torch.tensor([0, 1, 5], dtype=torch.int32)
    for backward in (False, True):
        turned = []
        for function in (ORIGINAL["_rope_launch"], cuda_stack.rotated(torch)):
            outs = torch.empty_like(q), torch.empty_like(k)
            function(q, outs[0], k, outs[1], cos, sin, places, True, backward, False, rms_layernorm._eager_kernel)
            turned.append(outs)
        assert difference(*turned) < bound, ("rope", dtype, backward)
print("equal")
"""


@pytest.mark.parametrize(
    "script, says",
    [
        pytest.param(LONG_INPUT, "(1, 200, 3072)", id="inputs over max_length are not cut"),
        pytest.param(LONG_ROWS, "takes 512 tokens at most", id="more positions than the model has are refused"),
        pytest.param(KERNELS, "equal", id="kernels"),
    ],
)
def test_scripts(stack, models, tmp_path, script, says):
    (tmp_path / "script.py").write_text(script)
    code, said, errors = stack.run(tmp_path, "float32", tmp_path / "script.py", models / "llama")
    assert code == 0, errors[-3000:]
    assert says in said.strip().splitlines()[-1]


@pytest.mark.parametrize("shape", SHAPES)
def test_packed_is_unpacked(stack, models, tmp_path, shape):
    (tmp_path / "script.py").write_text(TWO_ROWS)
    code, said, errors = stack.run(tmp_path, "float32", tmp_path / "script.py", models / shape)
    assert code == 0, errors[-3000:]
    assert float(said.strip().splitlines()[-1]) < 1e-4
