"""What SFTConfig's fields do in the trainer of the recipes: rates, decay, clipping, smoothing, dropout, noise.

Run as a script, it does all the small runs in one process and writes what was seen; the tests hold it against
arithmetic of their own.
"""

import json
import math
import sys
from pathlib import Path

import forked
import pytest

pytestmark = pytest.mark.recipe
STEPS, RATE = 20, 1e-3
SCHEDULES = [
    ("cosine", 0.03), ("cosine", 0.25), ("cosine", 4), ("linear", 0.25), ("linear", 0), ("constant_with_warmup", 5),
    ("constant_with_warmup", 0.12), ("constant", 0),
]  # fmt: skip
ALPHA = 5.0


def rows():
    """Rows of 6 to 40 tokens of which 2 to all train."""
    import torch
    from datasets import Dataset

    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(32):
        length = int(torch.randint(6, 41, (1,), generator=generator))
        ids = torch.randint(5, 1000, (length,), generator=generator).tolist()
        start = int(torch.randint(0, length - 2, (1,), generator=generator))
        found.append({"input_ids": ids, "labels": [-100] * start + ids[start:]})
    return Dataset.from_list(found)


def tiny(folder):
    """A random Llama with biases, beside the bundled tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from tunebook.common.models import resolve

    tokenizer = AutoTokenizer.from_pretrained(resolve("pocket"))
    ends = dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=1)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                    num_attention_heads=2, max_position_embeddings=128, attention_bias=True, **ends)
    )  # fmt: skip
    with torch.no_grad():  # biases begin at 0, which no decay would change
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(std=0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def trainer(place, lora=None, packed=False, callbacks=(), **changed):
    """A trainer made as the recipes make theirs; `changed` is what --sft would set."""
    from trl import SFTConfig, SFTTrainer
    from unsloth import FastLanguageModel

    from tunebook.common import models
    from tunebook.common.batching import collator, packing, samplers
    from tunebook.common.models import attention, device
    from tunebook.common.training import config_overrides

    pairs = [f"{name}={value}" for name, value in changed.items()]
    overrides = config_overrides.overrides(pairs, SFTConfig, written=set())
    model, tokenizer = models.load(place, 128, full=lora is None)
    if lora is not None:
        lora = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear", "random_state": 0} | lora
        checkpointing = device.current().gradient_checkpointing
        model = FastLanguageModel.get_peft_model(model, use_gradient_checkpointing=checkpointing, **lora)
    config = dict(
        output_dir=str(Path(place).parent / "run"),
        max_length=128,
        packing=False,
        padding_free=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        gradient_checkpointing=bool(device.current().gradient_checkpointing),
        max_steps=STEPS,
        learning_rate=RATE,
        lr_scheduler_type="cosine",
        warmup_steps=0.03,
        weight_decay=0.0,
        optim="adamw_torch_fused",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        **device.current().precision,
    )
    made = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=packing.pack_dataset(rows(), 48) if packed else rows(),
        eval_dataset=packing.pack_dataset(rows().select(range(8)), 48) if packed else rows().select(range(8)),
        data_collator=collator.PackedCollator(1) if packed else None,
        args=SFTConfig(**{**config, **overrides}),
        callbacks=list(callbacks),
    )
    models.train_in_float32(made.model)
    if packed:
        attention.use_document_attention(made.model)
    else:
        samplers.group_by_length(made)
    return made


def weights(made):
    return {name: p.detach().clone() for name, p in made.model.named_parameters() if p.requires_grad}


def logged(made, name):
    return [float(line[name]) for line in made.state.log_history if name in line]


def moved(before, after):
    return math.sqrt(sum((after[name] - before[name]).double().pow(2).sum().item() for name in before))


def seen_rates(place):
    from transformers import TrainerCallback

    class Rates(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
            applied.append([group["lr"] for group in optimizer.param_groups])

    found = []
    for kind, warmup in SCHEDULES:
        applied = []
        made = trainer(place, {}, callbacks=[Rates()], lr_scheduler_type=kind, warmup_steps=warmup)
        made.train()
        found.append({"applied": applied, "logged": logged(made, "learning_rate")})
    return found


def seen_decay(place):
    """What one step adds to each weight because of the decay, as a share of the weight's size."""
    after = {}
    for decay in (0.0, 0.5):
        made = trainer(place, weight_decay=decay, max_steps=1, lr_scheduler_type="constant", warmup_steps=0)
        before = weights(made)
        made.train()
        after[decay] = weights(made)
    norms = {name: weight.norm().item() for name, weight in before.items()}
    shares = {name: (after[0.5][name] - after[0.0][name]).norm().item() / norms[name] for name in before}
    groups = [[group["weight_decay"], sum(p.numel() for p in group["params"])] for group in made.optimizer.param_groups]
    return {"shares": shares, "groups": groups, "all": sum(w.numel() for w in before.values())}


def decayed_elsewhere():
    """Vectors (norms, biases) that would decay, in models of other makes."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, Trainer

    found = {}
    for name in ("gpt2", "gpt_neox", "opt", "qwen2", "qwen3", "gemma2", "mistral", "phi3", "olmo2"):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, num_hidden_layers=1))
        decays = set(Trainer.get_decay_parameter_names(None, model))
        found[name] = {
            "vectors": [name for name, p in model.named_parameters() if p.ndim < 2 and name in decays],
            "matrices": [name for name, p in model.named_parameters() if p.ndim > 1 and name not in decays],
        }
    return found


def seen_clipping(place):
    """Length of a step of plain descent at rate 1, and of its gradient as it is logged."""
    found = []
    for limit in (0.01, 1e9):
        plain = dict(optim="sgd", learning_rate=1, lr_scheduler_type="constant", warmup_steps=0, max_steps=1)
        made = trainer(place, max_grad_norm=limit, gradient_accumulation_steps=2, **plain)
        before = weights(made)
        made.train()
        found.append({"limit": limit, "step": moved(before, weights(made)), "norm": logged(made, "grad_norm")[0]})
    return found


def smoothed(model, batches, share):
    """(1 - e) x the label's negative log-likelihood + e x its mean over the vocabulary, a mean over trained tokens, in
    float64 (Szegedy et al. 2016, section 7)."""
    import torch

    total, count = torch.zeros((), dtype=torch.float64), 0
    for batch in batches:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        logits_NV = model(**inputs, use_cache=False).logits[:, :-1][batch["labels"][:, 1:] != -100].double()
        labels_N = batch["labels"][:, 1:][batch["labels"][:, 1:] != -100]
        logs_NV = logits_NV - logits_NV.logsumexp(-1, keepdim=True)
        total = total - (1 - share) * logs_NV.gather(-1, labels_N[:, None]).sum() - share * logs_NV.mean(-1).sum()
        count += len(labels_N)
    return total / count


def seen_smoothing(place):
    """Loss and step of the trainer, and of the formula, for two batches of unlike lengths to a step."""
    import torch

    from tunebook.common.training import callbacks

    found = {}
    plain = dict(optim="sgd", learning_rate=0.1, lr_scheduler_type="constant", warmup_steps=0, max_steps=1)
    plain |= dict(max_grad_norm=1e9, gradient_accumulation_steps=2)
    for way, share in ((way, share) for way in ("full", "lora", "packed") for share in (0.0, 0.1, 0.4)):
        lora = None if way == "full" else {}
        made = trainer(place, lora, packed=way == "packed", label_smoothing_factor=share, **plain)
        callbacks.track_metrics(made, Path(place).parent / "log.jsonl")
        fetched, fetch = [], made.get_batch_samples

        def keep(*words, fetched=fetched, fetch=fetch, **named):
            batches, items = fetch(*words, **named)
            fetched.extend({name: value.clone() for name, value in batch.items()} for batch in batches)
            return batches, items

        made.get_batch_samples = keep
        before, held_out = weights(made), made.evaluate()["eval_loss"]
        with torch.no_grad():
            wanted_held_out = smoothed(made.model, list(made.get_eval_dataloader()), 0.0).item()
        made.train()
        after, wanted = weights(made), {}
        with torch.no_grad():
            for name, weight in before.items():
                made.model.get_parameter(name).copy_(weight)
        made.model.zero_grad()
        loss = smoothed(made.model.train(), fetched, share)
        loss.backward()
        for name, weight in before.items():
            wanted[name] = weight - 0.1 * made.model.get_parameter(name).grad
        found[f"{way} {share}"] = {
            "loss": logged(made, "loss")[0], "wanted": loss.item(), "step": moved(before, wanted),
            "differs": moved(after, wanted), "held_out": held_out, "wanted_held_out": wanted_held_out,
        }  # fmt: skip
    return found


def refusal(place):
    """What is said of label smoothing behind virtual tokens."""
    from peft import PrefixTuningConfig, get_peft_model
    from trl import SFTConfig

    from tunebook.common import models
    from tunebook.common.errors import UserError
    from tunebook.common.models import device
    from tunebook.common.training import callbacks

    virtual = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = get_peft_model(models.load(place, 128, fast=False)[0], virtual)
    fields = dict(output_dir=str(Path(place).parent / "run"), gradient_checkpointing=False)
    fields |= device.current().precision
    for share in (0.0, 0.1):
        args = SFTConfig(label_smoothing_factor=share, **fields)
        try:
            callbacks.RefuseForPrompts().on_init_end(args, None, None, model=model)
        except UserError as error:
            return [share, str(error)]


def seen_dropout(place):
    """Losses of the same batch, again and again, while training and while evaluating."""
    import torch

    found = {}
    for share in (0.0, 0.5):
        made = trainer(place, {"lora_dropout": share})
        with torch.no_grad():
            for name, weight in made.model.named_parameters():
                if "lora_B" in name:  # 0 at the start, so that what goes before it does not show
                    weight.normal_(std=0.1)
        batch = next(iter(made.get_train_dataloader()))
        made.model.train()
        training = [made.compute_loss(made.model, dict(batch)).item() for _ in range(3)]
        evaluation = [made.evaluate()["eval_loss"] for _ in range(3)]
        found[str(share)] = {"training": training, "evaluation": evaluation}
    return found


def seen_noise(place):
    """What the first layer gets less the embeddings: [length, width, largest, mean, root of mean square] a batch."""
    found = {}
    for way, lora in (("full", None), ("lora", {})):
        made = trainer(place, lora, neftune_noise_alpha=ALPHA, max_steps=3)
        embedding = made.model.get_input_embeddings()
        ids, noise = [], []

        def look(module, inputs, ids=ids, noise=noise, embedding=embedding):
            noise.append(inputs[0].detach() - embedding.weight.detach()[ids[-1]])

        hooks = [embedding.register_forward_pre_hook(lambda module, inputs, ids=ids: ids.append(inputs[0].clone()))]
        layer = next(module for name, module in made.model.named_modules() if name.endswith("layers.0"))
        hooks.append(layer.register_forward_pre_hook(look))
        made.evaluate()
        evaluated = len(noise)
        made.train()
        trained = len(noise)
        made.evaluate()
        made.model.train()
        made.compute_loss(made.model, dict(next(iter(made.get_train_dataloader()))))
        for hook in hooks:
            hook.remove()
        found[way] = {
            "training": [
                [*value.shape[1:], value.abs().max().item(), value.mean().item(), value.pow(2).mean().sqrt().item()]
                for value in noise[evaluated:trained]
            ],
            "beside": [value.abs().max().item() for value in [*noise[:evaluated], *noise[trained:]]],
            "hooks": len(embedding._forward_hooks),
        }
    return found


def main(folder):
    import unsloth  # noqa: F401  first: it patches trl, transformers and peft

    folder = Path(folder)
    place = tiny(folder / "model")
    found = {
        "rates": seen_rates(place), "decay": seen_decay(place), "elsewhere": decayed_elsewhere(),
        "clipping": seen_clipping(place), "smoothing": seen_smoothing(place), "dropout": seen_dropout(place),
        "noise": seen_noise(place), "refusal": refusal(place),
    }  # fmt: skip
    (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("schedules")
    done = forked.run(__file__, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "found.json").read_text())


def wanted_rates(kind, warmup):
    """The rate of each step. A warm-up below 1 is a share of the steps; the first step of a warm-up has rate 0."""
    warm = math.ceil(warmup * STEPS) if warmup < 1 else warmup
    for step in range(STEPS):
        rest = (step - warm) / (STEPS - warm)
        shapes = {"cosine": (1 + math.cos(math.pi * rest)) / 2, "linear": 1 - rest}
        yield RATE * (step / warm if step < warm else shapes.get(kind, 1.0))


def test_rates_are_the_schedules(found):
    for (kind, warmup), seen in zip(SCHEDULES, found["rates"], strict=True):
        wanted = list(wanted_rates(kind, warmup))
        for group in zip(*seen["applied"], strict=True):
            assert list(group) == pytest.approx(wanted, abs=1e-12), (kind, warmup)
        assert seen["logged"] == pytest.approx(wanted, abs=1e-12)


def test_norms_and_biases_do_not_decay(found):
    """Decay is decoupled (Loshchilov and Hutter 2019): a step takes rate x decay of the weight from it."""
    decay = found["decay"]
    assert sum(count for _, count in decay["groups"]) == decay["all"]
    kept = {name for name, share in decay["shares"].items() if share == 0}
    assert kept == {name for name in decay["shares"] if "norm" in name or name.endswith("bias")} and len(kept) == 13
    assert all(share == pytest.approx(RATE * 0.5, rel=1e-3) for share in decay["shares"].values() if share)
    for make, wrong in found["elsewhere"].items():
        assert wrong == {"vectors": [], "matrices": []}, make


def test_gradients_are_clipped(found):
    clipped, free = found["clipping"]
    assert clipped["norm"] == pytest.approx(free["norm"]) and free["norm"] > 10 * clipped["limit"]
    assert free["step"] == pytest.approx(free["norm"], rel=1e-4)
    assert clipped["step"] == pytest.approx(clipped["limit"], rel=1e-4)


def test_label_smoothing_is_the_formula(found):
    for name, seen in found["smoothing"].items():
        assert seen["loss"] == pytest.approx(seen["wanted"], abs=1e-5), name
        assert seen["differs"] < 1e-4 * seen["step"], name
        assert seen["held_out"] == pytest.approx(seen["wanted_held_out"], abs=1e-5), name  # without smoothing
    steps = [found["smoothing"][f"full {share}"]["step"] for share in (0.0, 0.1, 0.4)]
    assert steps[0] > 1.05 * steps[1] > 1.05 * steps[2]  # it is not ignored


def test_label_smoothing_behind_virtual_tokens_is_refused(found):
    """transformers does not shift the labels there: a prefix was trained towards the tokens that it had just read."""
    share, says = found["refusal"]
    assert share == 0.1 and "does not go with virtual tokens" in says


def test_dropout_is_off_in_evaluation(found):
    without, having = found["dropout"]["0.0"], found["dropout"]["0.5"]
    assert len(set(without["training"])) == 1 and len(set(having["training"])) == 3
    assert len({*without["evaluation"], *having["evaluation"]}) == 1


def test_noise_has_the_size_of_the_paper(found):
    """Uniform in +-alpha / sqrt(L d) (Jain et al. 2023, algorithm 1), whose root of mean square is that / sqrt(3)."""
    for way, seen in found["noise"].items():
        assert len(seen["training"]) == 3, way
        for length, width, largest, mean, root in seen["training"]:
            size = ALPHA / math.sqrt(length * width)
            assert 0.98 * size < largest < 1.0001 * size and abs(mean) < 0.05 * size
            assert root == pytest.approx(size / math.sqrt(3), rel=0.05)
        assert len(seen["beside"]) == 5 and max(seen["beside"]) == 0 and seen["hooks"] == 0


if __name__ == "__main__":
    main(sys.argv[1])
