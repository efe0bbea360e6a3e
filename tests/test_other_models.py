"""Recipes on models whose layers are called and shaped in other ways than Llama's: GPT-2 and OPT, random and small.

Run as a script, it makes them in a folder; or, with `quantise`, says how a 4-bit GPT-2 and its saved base compute.
"""

import json
import sys
from pathlib import Path

import few
import forked
import pytest
from paths import ROOT

pytestmark = pytest.mark.recipe


def make(folder):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, OPTConfig

    from tunebook.common.models import resolve

    tokenizer = AutoTokenizer.from_pretrained(resolve("pocket"))
    shared = dict(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=tokenizer.eos_token_id, pad_token_id=1)
    sizes = dict(hidden_size=64, word_embed_proj_dim=64, ffn_dim=128, num_hidden_layers=2, num_attention_heads=2)
    for name, config in (
        ("gpt2", GPT2Config(n_positions=256, n_embd=64, n_layer=2, n_head=2, **shared)),
        ("opt", OPTConfig(max_position_embeddings=256, **sizes, **shared)),
    ):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def quantise(folder):
    import torch
    import unsloth  # noqa: F401  first: it patches transformers
    from transformers import AutoModelForCausalLM

    from tunebook.common import models

    quantised, tokenizer = models.load(str(folder / "gpt2"), 128, four_bit=True)
    models.save(quantised, tokenizer, folder / "base")
    ids_BT = torch.randint(5, 3000, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        mine_BTV = quantised.eval()(ids_BT).logits
        whole_BTV, saved_BTV = (
            AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32).eval()(ids_BT).logits
            for name in ("gpt2", "base")
        )
    found = {
        "likeness": torch.corrcoef(torch.stack([mine_BTV.flatten(), whole_BTV.flatten()]))[0, 1].item(),
        "saved": (mine_BTV - saved_BTV).abs().max().item(),
        "layer": type(quantised.transformer.h[0].attn.c_attn).__name__,
    }
    (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")


def script(*words):
    done = forked.run(__file__, *words)
    assert done.returncode == 0, done.stderr[-3000:]


def recipe(name, model, folder, *flags):
    words = ["--model", model, "--output_dir", folder, "--dataset", few.rows(folder.parent / "few")]
    words += ["--max_steps", 3, "--eval_suite", "none"]
    return forked.run(ROOT / "recipes" / f"{name}.py", *words, *flags)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    script("make", folder)
    return folder


def test_four_bits_of_layers_that_lie_the_other_way_round(models):
    """GPT-2's Conv1D holds its weight transposed; its quantised form does not, and the kept base does again."""
    script("quantise", models)
    found = json.loads((models / "found.json").read_text())
    assert found["layer"] == "Linear4bit" and 0.95 < found["likeness"] < 0.9999 and found["saved"] < 1e-5


def test_packed_rows_follow_learnt_positions(models, tmp_path):
    done = recipe("packed_alpaca", models / "gpt2", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "documents of the first batch are apart" in done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    losses = [loss for _, loss in report["train"]["evaluations"]]
    assert report["train"]["steps"] == 3 and losses[-1] < losses[0] - 0.02


@pytest.mark.parametrize(
    ("name", "model", "flags", "code", "says"),
    [
        ("prompt_tuning_alpaca", "gpt2", ["--max_length", "240"], 2, "256 learnt positions leave 236"),
        ("prefix_alpaca", "gpt2", ["--max_length", "200", "--sft", "neftune_noise_alpha=5"], 2, "of a GPT2LMHeadModel"),
        ("bottleneck_adapters_alpaca", "opt", ["--max_length", "256"], 2, 'Say which it is: mlp="NAME"'),
        ("packed_alpaca", "opt", [], 1, "packed rows see each other"),
    ],
)
def test_what_does_not_go_is_one_message(models, tmp_path, name, model, flags, code, says):
    done = recipe(name, models / model, tmp_path, *flags)
    assert done.returncode == code, done.stderr[-3000:]
    assert says in done.stderr and "Traceback" not in done.stderr


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    {"make": make, "quantise": quantise}[sys.argv[1]](Path(sys.argv[2]))
