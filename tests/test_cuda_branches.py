"""Every recipe on Unsloth's CUDA branches (cuda_stack.py), on random shapes of two layers: what a GPU would run."""

import importlib.util
import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py") if path.stem != "pretrain_pocket")
SHAPES = ("llama", "qwen3", "mistral")
DTYPES = ("float32", "float16")
BY_TRANSFORMERS = {"prefix_alpaca", "soft_prompts_alpaca", "adapters_alpaca", "sft_alpaca"}  # sft: Unsloth's FastModel
# Where no more is asked for, each recipe has one shape and dtype, and every shape and dtype has several recipes.
ALL = [(recipe, shape, dtype) for recipe in RECIPES for shape in SHAPES for dtype in DTYPES]
ONE_EACH = [(recipe, SHAPES[n % 3], DTYPES[n // 3 % 2]) for n, recipe in enumerate(RECIPES)]
CASES = ALL if os.environ.get("CUDA_BRANCHES") == "all" else ONE_EACH

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
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(shape, **sizes, **extra)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder / shape)
        tokenizer.save_pretrained(folder / shape)
    return folder


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    """Folders of a few of the bundled rows by kind."""
    folder = tmp_path_factory.mktemp("rows")
    for kind in ("", "pairs_", "chat_"):
        (folder / (kind or "rows_")).mkdir()
        for side, count in (("train", 24), ("validation", 3), ("test", 2)):
            with (ROOT / "common" / "pocket" / f"{kind}{side}.jsonl").open(encoding="utf-8") as file:
                (folder / (kind or "rows_") / f"{side}.jsonl").write_text("".join(islice(file, count)))
    return folder


def words_of(recipe, model, rows, out, *more):
    kind = {"dpo_pairs": "pairs_", "chat_sharegpt": "chat_"}.get(recipe, "rows_")
    teacher = ["--teacher", model] if recipe.startswith("distill") else []
    return [
        ROOT / "recipes" / f"{recipe}.py", "--model", model, "--dataset", rows / kind, "--output_dir", out / "run",
        "--max_steps", 5, "--max_length", 160, "--eval_suite", "none", "--learning_rate", "1e-2",
        "--per_device_train_batch_size", 2, *teacher, *more,
    ]  # fmt: skip


@pytest.mark.parametrize("recipe, shape, dtype", CASES)
def test_recipe(stack, models, rows, tmp_path, recipe, shape, dtype):
    """It trains what it says, leaves the model's flags alone, and what it saves is what was in memory."""
    code, said, errors = stack.run(tmp_path, dtype, *words_of(recipe, models / shape, rows, tmp_path))
    assert code == 0, said[-1500:] + errors[-3000:]
    seen = json.loads((tmp_path / "seen.json").read_text())
    report = json.loads((tmp_path / "run" / "report.json").read_text())

    # The branches under test are those that ran.
    if recipe != "loop_alpaca":
        assert any(name.startswith("_Unsloth") for name in seen["bases"])
    assert seen["forward"].startswith("unsloth.") == (recipe not in BY_TRANSFORMERS)
    if recipe == "qlora_alpaca":
        assert "uint8" in seen["weights"]
    assert seen["dtypes"] == ["float32"]

    assert seen["still"] == [] and seen["without_gradient"] == []
    before, after = report["eval"].get("before", {}).get("loss"), report["eval"]["loss"]
    losses = [value for _, value in report["train"]["loss"]]
    assert losses[-1] < losses[0] if before is None else after < before
    assert seen["changed_flags"] == [] and seen["calls_generate"] >= 2
    assert len(set(seen["checkpointing"])) == 1 and (seen["checkpointing"][0] > 0) == (recipe != "prefix_alpaca")
    same_logits(tmp_path, models / shape, recipe, dtype)
