"""What holds on pocket holds on a real model: SmolLM2-135M-Instruct, from its .gguf file."""

import json
import shlex
import shutil
from pathlib import Path

import few
import forked
import pytest
import torch

from tunebook.common import local_models, models, pocket
from tunebook.common.batching.collator import PackedCollator
from tunebook.common.batching.packing import pack_dataset
from tunebook.common.errors import UserError
from tunebook.common.tokens import encoding, templates

try:
    local_models.smollm2()
    LACKING = ""
except UserError as error:
    LACKING = str(error)

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.xdist_group("smollm2"),
    pytest.mark.skipif(bool(LACKING), reason=LACKING),
]
FLAGS = ["--per_device_train_batch_size", 4, "--eval_suite", "none", "--max_length", 128, "--max_steps", 4]


@pytest.fixture(scope="module")
def smollm2():
    return models.load_plain("smollm2")


@pytest.fixture(scope="module")
def tokenizer():
    from tunebook.common.tokens import tokenization

    return tokenization.load("smollm2")[0]


@pytest.fixture(scope="module")
def rows():
    lines = (pocket.FOLDER / "chat_train.jsonl").read_text(encoding="utf-8").splitlines()[:40]
    return [json.loads(line) for line in lines]


def recipe(name, *words):
    return forked.run(f"recipes/{name}.py", *words)


def logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


def test_labels_are_the_assistants_turns_of_its_own_template(tokenizer, rows):
    template = templates.get("tokenizer", tokenizer)
    encoded, counts = encoding.encode(rows, tokenizer, template, 1024)
    assert counts.kept == len(rows)
    for row, example in zip(rows, encoded, strict=True):
        assert example["input_ids"] == tokenizer.apply_chat_template(row["messages"], return_dict=True)["input_ids"]
        text = tokenizer.decode([label for label in example["labels"] if label != -100])
        said = [turn["content"] for turn in row["messages"] if turn["role"] == "assistant"]
        assert text == "".join(f"{answer}<|im_end|>" for answer in said)


def test_packed_rows_have_the_loss_and_the_gradient_of_rows_alone(smollm2, tokenizer, rows):
    encoded, _ = encoding.encode(rows[:3], tokenizer, templates.get("tokenizer", tokenizer), 1024)
    weight = smollm2.model.layers[0].self_attn.q_proj.weight
    found = []
    for batches in ([encoded.select([place]) for place in range(len(encoded))], [pack_dataset(encoded, 384)]):
        smollm2.zero_grad()
        total = 0.0
        for batch in batches:
            if "seq_lengths" in batch.column_names:
                given = PackedCollator(0)(list(batch))
                labels = given.pop("labels")
            else:
                labels = torch.tensor(batch["labels"])
                given = {"input_ids": torch.tensor(batch["input_ids"])}
            out = smollm2(**given, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(
                out[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
            )
            loss.backward()
            total += loss.item()
        found.append((total, weight.grad.clone()))
    smollm2.zero_grad(set_to_none=True)
    (alone, one), (packed, two) = found
    assert packed == pytest.approx(alone, rel=1e-5)
    assert (one - two).norm() < 1e-4 * one.norm()


def test_merged_weights_answer_as_the_adapter(smollm2):
    import peft

    torch.manual_seed(0)
    config = peft.LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    model = peft.get_peft_model(models.load_plain("smollm2"), config).eval()
    ids = list(range(100, 140))
    base, adapted = logits(smollm2, ids), logits(model, ids)
    merged = logits(model.merge_and_unload(), ids)
    assert (adapted - base).abs().max() > 1
    assert (merged - adapted).abs().max() < 1e-3 and torch.equal(merged.argmax(-1), adapted.argmax(-1))


def test_four_bits_compute_what_they_are_saved_as(tmp_path, tokenizer):
    from transformers import AutoModelForCausalLM

    four_bit = models.load_plain("smollm2", four_bit=True)
    linear = [name for name, weight in four_bit.named_parameters() if hasattr(weight, "quant_state")]
    assert len(linear) == 30 * 7
    models.save(four_bit, tokenizer, tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    one, two = (logits(model, list(range(100, 124))) for model in (four_bit, plain))
    assert (one - two).abs().mean() < 0.05 * one.std()  # bitsandbytes computes it in bfloat16


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run of LoRA, and its flags."""
    folder = tmp_path_factory.mktemp("run")
    data = few.rows(folder / "few", train=16, others=2)
    flags = ["--model", "smollm2", "--dataset", data, *FLAGS, "--learning_rate", 1e-3]
    flags += ["--set", "save_steps=2", "eval_steps=2"]
    done = recipe("lora_alpaca", "--output_dir", folder / "whole", *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "whole", flags


@pytest.mark.recipe
def test_a_run_that_was_killed_ends_with_the_same_weights(run, tmp_path):
    from safetensors.torch import load_file

    (whole, flags), part = run, tmp_path / "part"
    report = json.loads((whole / "report.json").read_text())
    assert report["train"]["steps"] == 4 and report["train"]["all_parameters"] > 135e6
    shutil.copytree(whole, part)
    for path in ("report.json", "report.html"):
        (part / path).unlink()
    shutil.rmtree(part / "checkpoint-4")
    shutil.rmtree(part / "adapter")
    done = recipe("lora_alpaca", "--output_dir", part, *flags)
    assert done.returncode == 0 and "resuming from" in done.stdout, done.stderr[-3000:]
    one, two = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (whole, part))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.recipe
def test_what_is_exported_is_what_was_trained(run, tmp_path):
    """The proof holds for the merged weights; the base's in their place hold nothing of the training."""
    from tunebook.common.export import bounds, checks, exporting, source, weight_proof
    from tunebook.common.export.exported_weights import ExportedFolder
    from tunebook.common.export.reference import Reference

    reference, folder = Reference(source.find(str(run[0]), dataset=[str(run[1][3])])), tmp_path / "merged"
    (proof,) = exporting.export(reference, "merged", folder, exporting.Options())
    assert {check.point for check in proof.checks} == {1, 2, 3, 4, 5} and not checks.failures(proof.checks)
    assert abs(proof.figures["weights"]["found"] - 1) < 0.05
    shutil.copy(Path(models.resolve("smollm2")) / "model.safetensors", folder)
    base = ExportedFolder(folder, reference.weights)
    found, figures = weight_proof.check(reference.weights, base, bounds.of(16), "the base")
    assert checks.failures(found) and abs(figures["found"]) < 0.01


@pytest.mark.recipe
def test_lm_eval_alone_gives_the_same_scores(tmp_path):
    import forked_lm_eval

    words = ["--model", "smollm2", "--tasks", "general_knowledge", "--limit", 16, "--output_dir", tmp_path / "out"]
    done = forked.run("-m", "tunebook.common.commands", "eval", *words)
    assert done.returncode == 0, done.stderr[-3000:]
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    theirs = forked_lm_eval.run(scores["command"])
    assert theirs.returncode == 0, theirs.stderr[-3000:]
    (file,) = Path(shlex.split(scores["command"])[-1]).rglob("results_*.json")
    found = json.loads(file.read_text())["results"]["general_knowledge"]["acc,none"]
    (mine,) = (tmp_path / "out").rglob("results_*.json")
    assert found == json.loads(mine.read_text())["results"]["general_knowledge"]["acc,none"] > 0.3


@pytest.mark.recipe
def test_a_smaller_student_learns_from_it(tmp_path, tokenizer):
    """A random student of its vocabulary: the divergence from the teacher falls."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    ends = dict(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=1)
    LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                    num_attention_heads=2, max_position_embeddings=512, tie_word_embeddings=True, **ends)
    ).save_pretrained(tmp_path / "student")  # fmt: skip
    tokenizer.save_pretrained(tmp_path / "student")
    data = few.rows(tmp_path / "few", train=32, others=2)
    words = [
        "--model",
        tmp_path / "student",
        "--teacher",
        "smollm2",
        "--dataset",
        data,
        *FLAGS,
        "--learning_rate",
        0.05,
    ]
    done = recipe("distill_alpaca", "--output_dir", tmp_path / "run", *words, "--set", "logging_steps=1")
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    values = [value for _, value in report["train"]["parts"]["divergence"]]
    assert report["distillation"]["teacher"] == "smollm2" and values[-1] < values[0]
