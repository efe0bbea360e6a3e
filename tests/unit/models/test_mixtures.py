"""Recipes on a mixture of experts and on a model that also sees: what trains, what is scored, and what is refused.

Run as a script, it makes the models and trains them in one process.
"""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import few
import pytest
from paths import ROOT, TESTS

pytestmark = pytest.mark.recipe


def make(folder):
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Qwen3MoeConfig,
    )

    from tunebook.common.models import resolve

    tokenizer = AutoTokenizer.from_pretrained(resolve("pocket"))
    sizes = dict(
        vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=1,
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=32, max_position_embeddings=512,
    )  # fmt: skip
    sight = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    sees = Gemma3Config(
        text_config=sizes, vision_config=sight | {"patch_size": 14}, image_token_index=3000, mm_tokens_per_image=4
    )
    torch.manual_seed(0)
    mixture = Qwen3MoeConfig(**sizes, moe_intermediate_size=64, num_experts=4, num_experts_per_tok=2)
    for name, model in (
        ("mixture", AutoModelForCausalLM.from_config(mixture)),
        ("sees", Gemma3ForConditionalGeneration(sees)),
    ):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def train(folder):
    import unsloth  # noqa: F401  first: it patches transformers

    from tunebook.common import catalog
    from tunebook.common.errors import CheckFailed, UserError
    from tunebook.common.estimate import probe

    probe.TIMING_SECONDS = 0.0
    make(folder)
    found = {}
    for recipe, model, more in (
        ("lora_alpaca", "mixture", {"set": ["router_aux_loss_coef=1.0"]}),
        ("prefix_alpaca", "mixture", {}),
        ("qlora_alpaca", "mixture", {}),
        ("lora_alpaca", "sees", {"dry_run": True}),
        ("sft_alpaca", "sees", {"dry_run": True}),
    ):
        module = catalog.load(ROOT / "recipes" / f"{recipe}.py")
        values = dict(
            model=str(folder / model), dataset=[str(folder / "rows")], max_steps=3, eval_suite="none", eval_share=1
        )
        output = folder / f"{recipe}_{model}"
        try:
            found[output.name] = module.main(module.Args(**values, output_dir=str(output), **more))
        except (CheckFailed, UserError) as error:
            found[output.name] = str(error)
    adapter = folder / "lora_alpaca_mixture" / "adapter"
    found["losses"] = [held_out_loss(folder, None), held_out_loss(folder, adapter)]
    found["scores"] = score(folder, adapter)
    (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")


def held_out_loss(folder, adapter):
    """Nats a token of the held-out rows by transformers and PEFT alone, each row by itself."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tunebook.common import data
    from tunebook.common.tokens import templates

    model = AutoModelForCausalLM.from_pretrained(folder / "mixture", dtype=torch.float32).eval()
    if adapter:
        model = PeftModel.from_pretrained(model, adapter).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "mixture")
    total = count = 0
    for row in data.load([str(folder / "rows")], seed=0)["validation"]:
        prompt = tokenizer(templates.ALPACA.prompt(row)).input_ids
        ids = [*prompt, *tokenizer(templates.ALPACA.completion(row)).input_ids, tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, len(prompt) - 1 : -1]
        total += torch.nn.functional.cross_entropy(logits, torch.tensor(ids[len(prompt) :]), reduction="sum").item()
        count += len(ids) - len(prompt)
    return total / count


def score(folder, adapter):
    """Log-likelihoods and answers of a mixture whose config asks for router logits, as TRL leaves it while training."""
    from tunebook.common import generation, models
    from tunebook.common.models import inference
    from tunebook.evals import harness

    model, tokenizer = models.load(str(folder / "mixture"), 512)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model = inference.load_adapter(model, str(adapter)).eval()
    assert not [one for one in told if "_pattern keys" in str(one.message)]
    found = harness.score(model, tokenizer, ["pocket_unseen"], folder / "eval", settings=harness.Settings(limit=4))
    model.config.output_router_logits = True
    answers = generation.answers(model, tokenizer, [[5, 6, 7], [8, 9]], max_new_tokens=4)
    assert len(answers) == 2 and model.config.output_router_logits
    return found["metrics"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixtures")
    few.rows(folder / "rows", train=80, others=8)
    command, environment = [sys.executable, __file__, str(folder)], {**os.environ, "PYTHONPATH": str(TESTS)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads((folder / "found.json").read_text()), done.stdout


def test_a_mixture_trains_with_its_routers_loss_and_is_evaluated_without(trained):
    folder, found, said = trained
    report = found["lora_alpaca_mixture"]
    before, *_, after = (loss for _, loss in report["train"]["evaluations"])
    assert [before, after] == pytest.approx(found["losses"], abs=2e-4)
    assert report["train"]["loss"][0][1] > before + 1  # two experts of four: the balancing loss is 2 or more
    kinds = {row["kind"]: row for row in report["train"]["parameters"]}
    assert kinds["LoRA on experts"]["gradient"] == "all tensors" and kinds["experts"]["gradient"] == "frozen"
    assert sum(row["trained"] for row in kinds.values()) == report["train"]["trainable_parameters"]
    assert all(sample["after"] is not None for sample in report["samples"])
    assert "LoRA on experts" in said and set(found["scores"]) == {"pocket_unseen"}
    assert "What trained" in (folder / "lora_alpaca_mixture" / "report.html").read_text()
    file = folder / "lora_alpaca_mixture" / "adapter" / "adapter_model.safetensors"
    assert report["train"]["saved"]["file"] == file.stat().st_size


def test_a_prefix_before_a_mixture_trains(trained):
    report = trained[1]["prefix_alpaca_mixture"]
    assert [row["kind"] for row in report["train"]["parameters"] if row["trained"]] == ["prefix"]
    assert report["train"]["evaluations"][-1][1] < report["train"]["evaluations"][0][1]


def test_experts_that_stay_wide_are_refused(trained):
    assert "4 bits were asked for and not had: experts, 98,304 of" in trained[1]["qlora_alpaca_mixture"]


def test_the_vision_tower_stays_frozen(trained):
    for name, kinds in (("lora", {"LoRA on attention", "LoRA on MLP"}), ("sft", {"attention", "MLP", "norms"})):
        groups = {row["kind"]: row for row in trained[1][f"{name}_alpaca_sees"]["parameters"]}
        assert groups["vision tower"]["gradient"] == groups["projector"]["gradient"] == "frozen"
        trained_kinds = {kind for kind, row in groups.items() if row["trained"]}
        assert kinds <= trained_kinds and all(groups[kind]["gradient"] == "all tensors" for kind in trained_kinds)


if __name__ == "__main__":
    train(Path(sys.argv[1]))
