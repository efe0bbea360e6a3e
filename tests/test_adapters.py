"""Bottleneck adapters: against a plain calculation, on the shapes of ten families, and what they leave behind."""

import copy
import json

import forked
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments

from tunebook.common import models
from tunebook.common.errors import UserError
from tunebook.common.models import bottleneck_adapters

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 60,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PLAIN = {name: value for name, value in SIZES.items() if name not in ("num_key_value_heads", "head_dim")}
GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 60, "n_positions": 64, "bos_token_id": 1}
FAMILIES = {
    "llama": SIZES,
    "mistral": SIZES,
    "qwen2": SIZES,
    "qwen3": SIZES,
    "gemma": SIZES,
    "gemma2": SIZES,
    "gemma3_text": SIZES,
    "phi3": SIZES,
    "gpt2": GPT2 | {"eos_token_id": 2, "pad_token_id": 0},
    "gpt_neox": PLAIN,  # attention and MLP side by side
    "mixtral": SIZES | {"num_local_experts": 4},
    "qwen3_moe": SIZES | {"num_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2},
}
COUNT = 3 * 2 * (32 * 8 + 8 + 8 * 32 + 32)  # layers, places, and the weights of one with a bottleneck of 8


def small(family="llama", **more):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**FAMILIES[family], **more})).eval()


def logits(model):
    ids = torch.arange(3, 33).view(2, 15)
    with torch.no_grad():
        return model(input_ids=ids).logits


def trained(model, name, seed=1, **more):
    """The model with an adapter that changes what it computes."""
    torch.manual_seed(seed)
    for weight in bottleneck_adapters.attach(model, name, bottleneck=8, **more):
        weight.data += 0.2 * torch.randn_like(weight)
    return model


def everything(model):
    return {name: weight.clone() for name, weight in model.state_dict().items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family, tmp_path):
    """Nothing changes at first, much after training, with a cache as without; taken off, it leaves nothing."""
    model = small(family)
    before, weights, kind = logits(model), everything(model), type(model)
    assert sum(weight.numel() for weight in bottleneck_adapters.attach(model, "fresh", bottleneck=8)) == COUNT
    assert models.parameters(model)[0] == COUNT
    assert torch.equal(logits(model), before)
    bottleneck_adapters.remove(model)

    after = logits(trained(model, "one"))
    assert (after - before).abs().max() > 0.02
    ids = torch.arange(3, 23).view(2, 10)
    cached, whole = (model.generate(ids, max_new_tokens=8, do_sample=False, use_cache=use) for use in (True, False))
    assert torch.equal(cached, whole)
    bottleneck_adapters.save(model, tmp_path, "one")
    bottleneck_adapters.remove(model)
    nothing_left(model, before, weights, kind)
    bottleneck_adapters.load(model, tmp_path)
    assert torch.equal(logits(model), after)


def nothing_left(model, before, weights, kind):
    assert type(model) is kind and torch.equal(logits(model), before)
    assert list(model.state_dict()) == list(weights)
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    for module in model.modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._load_state_dict_post_hooks)
        assert not any(hooks) and "bottlenecks" not in vars(module) | module._modules
    assert all(weight.requires_grad for weight in model.parameters())
    assert not model._keys_to_ignore_on_save


@pytest.mark.parametrize("activation", ["gelu", "relu", "silu"])
def test_a_layer_by_hand(activation):
    """The second of two Llama layers recomputed from its parts: norm, attention, adapter, residual, and so the MLP."""
    model = trained(small(num_hidden_layers=2), "one", activation=activation)
    layer, kept = model.model.layers[1], {}
    layer.register_forward_pre_hook(lambda _m, args, kwargs: kept.update(into=args[0], kwargs=kwargs), with_kwargs=True)
    layer.register_forward_hook(lambda _m, _args, output: kept.update(out=output))
    logits(model)

    def adapted(part, hidden):
        found = part.bottlenecks.adapter_one
        inner = hidden @ found.down.weight.T + found.down.bias
        inner = {"gelu": inner * (1 + (inner / 2**0.5).erf()) / 2, "relu": inner.clamp(min=0)}.get(
            activation, inner / (1 + (-inner).exp())
        )
        return hidden + inner @ found.up.weight.T + found.up.bias

    bottleneck_adapters.use(model, None)
    with torch.no_grad():
        attended = layer.self_attn(hidden_states=layer.input_layernorm(kept["into"]), **kept["kwargs"])[0]
        hidden = kept["into"] + adapted(layer.self_attn, attended)
        hidden = hidden + adapted(layer.mlp, layer.mlp(layer.post_attention_layernorm(hidden)))
    assert torch.allclose(hidden, kept["out"], atol=1e-6)


def test_gradients_reach_every_adapter_and_no_base_weight():
    model = trained(small(), "one")
    ids = torch.arange(3, 18).view(1, 15)
    model(input_ids=ids, labels=ids).loss.backward()
    assert all((weight.grad is not None) == ("bottlenecks" in name) for name, weight in model.named_parameters())
    assert all(weight.grad.any() for weight in model.parameters() if weight.requires_grad)


def test_switching_between_several(tmp_path):
    model = small()
    before = logits(model)
    one = logits(trained(model, "one", seed=1))
    two = logits(trained(model, "two", seed=2, layers=[1, 2]))  # its third alone has other places
    assert bottleneck_adapters.names(model) == ["one", "two"] and not torch.equal(one, two)
    for name, expected in (("one", one), (None, before), ("two", two), ("one", one)):
        bottleneck_adapters.use(model, name)
        assert torch.equal(logits(model), expected)
    assert models.parameters(model)[0] == COUNT * 2 // 3  # «two» trains still, though «one» computes
    bottleneck_adapters.train(model, "one")
    assert models.parameters(model)[0] == COUNT
    with pytest.raises(UserError, match="no three; on the model: one, two"):
        bottleneck_adapters.use(model, "three")

    for name in ("one", "two"):
        bottleneck_adapters.save(model, tmp_path / name, name)
    twin = copy.deepcopy(model)
    bottleneck_adapters.use(twin, "two")
    assert torch.equal(logits(twin), two) and torch.equal(logits(model), one)
    bottleneck_adapters.remove(twin)
    assert torch.equal(logits(twin), before) and torch.equal(logits(model), one)
    assert bottleneck_adapters.load(twin, tmp_path / "two") == "two"
    assert bottleneck_adapters.load(twin, tmp_path / "one", name="other") == "other"
    assert models.parameters(twin)[0] == 0  # what is loaded is frozen
    for name, expected in (("two", two), ("other", one)):
        bottleneck_adapters.use(twin, name)
        assert torch.equal(logits(twin), expected)


def test_same_seed_same_start_and_no_random_number_is_taken():
    states, starts = [], []
    for seed in (3, 3, 4):
        model = small()
        torch.manual_seed(0)
        starts.append([weight.clone() for weight in bottleneck_adapters.attach(model, "one", seed=seed)])
        states.append(torch.get_rng_state())
    torch.manual_seed(0)
    assert all(torch.equal(state, torch.get_rng_state()) for state in states)
    assert all(torch.equal(*pair) for pair in zip(*starts[:2], strict=True))
    assert not torch.equal(starts[0][0], starts[2][0])


def test_bfloat16_base_float32_adapter():
    model = small().to(torch.bfloat16)
    before = logits(model)
    assert {weight.dtype for weight in bottleneck_adapters.attach(model, "one", bottleneck=8)} == {torch.float32}
    assert torch.equal(logits(model), before) and before.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(logits(model), before)


def test_dropout_acts_in_training_alone():
    model = trained(small(), "one", dropout=0.5)
    assert torch.equal(logits(model), logits(model))
    model.train()
    assert not torch.equal(logits(model), logits(model))


BAD = [
    ({"name": "a.b"}, "name 'a.b': letters, digits"),
    ({"name": "one"}, "name one: there is one already"),
    ({"bottleneck": 0}, "bottleneck 0: 1 or more"),
    ({"activation": "gellu"}, "activation gellu: gelu, relu, silu; the nearest is gelu"),
    ({"dropout": 1.0}, "dropout 1.0: from 0 to less than 1"),
    ({"layers": [0, 3]}, r"layers \[0, 3\]: numbers from 0 to 2"),
    ({"layers": []}, r"layers \[\]: numbers from 0 to 2"),
    ({"mlp": "ffn"}, 'no mlp under the names ffn; its parts are self_attn, mlp.*Say which it is: mlp="NAME"'),
]


@pytest.mark.parametrize(("arguments", "says"), BAD)
def test_bad_arguments(arguments, says):
    model = trained(small(), "one")
    before = logits(model)
    with pytest.raises(UserError, match=says):
        bottleneck_adapters.attach(model, **{"name": "two", **arguments})
    assert bottleneck_adapters.names(model) == ["one"] and torch.equal(logits(model), before)


def test_names_of_parts_can_be_given():
    """OPT has its MLP as two layers beside the attention: the last of them is named. Bloom's parts cannot serve."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 60}
    opt = AutoModelForCausalLM.from_config(AutoConfig.for_model("opt", **sizes, word_embed_proj_dim=32)).eval()
    with pytest.raises(UserError, match="OPTDecoderLayer, has no mlp under the names mlp, feed_forward; its parts are"):
        bottleneck_adapters.attach(opt, "one")
    before = logits(opt)
    bottleneck_adapters.attach(opt, "one", bottleneck=8, mlp="fc2")
    assert torch.equal(logits(opt), before) and models.parameters(opt)[0] == COUNT
    bloom = AutoModelForCausalLM.from_config(AutoConfig.for_model("bloom", hidden_size=32, n_layer=3, n_head=4))
    with pytest.raises(UserError, match="BloomAttention adds the residual itself"):
        bottleneck_adapters.attach(bloom, "one")


def spoil(folder, **changes):
    config = json.loads((folder / "bottleneck.json").read_text())
    (folder / "bottleneck.json").write_text(json.dumps({**config, **changes}))


def test_wrong_base_and_broken_files(tmp_path, capsys):
    model = trained(small(), "one")
    bottleneck_adapters.save(model, tmp_path, "one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bottleneck.json", "bottleneck.safetensors"]
    stored = load_file(tmp_path / "bottleneck.safetensors")
    assert sum(weight.numel() for weight in stored.values()) == COUNT and "2.mlp.up.bias" in stored

    def refused(base, says, folder=tmp_path):
        weights, before = everything(base), logits(base)
        with pytest.raises(UserError, match=says):
            bottleneck_adapters.load(base, folder)
        nothing_left(base, before, weights, type(base))

    refused(small(num_hidden_layers=2), r"another base, .*: layers 3 \(here 2\)")
    refused(small(hidden_size=64), r"width 32 \(here 64\)")
    refused(small("qwen3", num_hidden_layers=4), r"model_type llama \(here qwen3\), layers 3 \(here 4\)")
    refused(small(), "no bottleneck.json is there, so it is no bottleneck adapter$", tmp_path / "nowhere")
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "adapter_config.json").write_text("{}")
    refused(small(), "it holds an adapter of PEFT", tmp_path / "peft")

    whole = (tmp_path / "bottleneck.safetensors").read_bytes()
    (tmp_path / "bottleneck.safetensors").write_bytes(whole[:-4])
    refused(small(), "is not the file that bottleneck.json was written for")
    (tmp_path / "bottleneck.safetensors").write_bytes(whole)
    spoil(tmp_path, bottleneck=4)
    refused(small(), "have not the shapes")
    spoil(tmp_path, bottleneck=8, version=2)
    refused(small(), "is of version 2, not 1")
    spoil(tmp_path, version=1, base={"name": "elsewhere", "model_type": "llama", "layers": 3, "width": 32})
    capsys.readouterr()
    assert bottleneck_adapters.load(small(), tmp_path) == "one"
    assert "trained on elsewhere" in capsys.readouterr().out
    (tmp_path / "bottleneck.json").write_text("{")
    refused(small(), "cannot be read")


def test_a_save_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    model = trained(small(), "one")
    bottleneck_adapters.save(model, tmp_path, "one")
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    model.model.layers[0].mlp.bottlenecks.adapter_one.up.bias.data += 1

    def full(path, data):
        path.open("wb").close()
        raise OSError("no space left")

    monkeypatch.setattr(type(tmp_path), "write_bytes", full)
    with pytest.raises(OSError, match="no space left"):
        bottleneck_adapters.save(model, tmp_path, "one")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept


def test_a_model_that_passes_its_parts_by_is_not_scored_as_if_adapted():
    model = trained(small(), "one")
    layer = model.model.layers[1]
    layer.mlp.forward, called = layer.mlp.forward, layer.mlp
    layer._modules["mlp"] = torch.nn.Identity()
    layer._modules["mlp"].forward = called.forward  # computes the same without calling the module
    with pytest.raises(UserError, match="1 adapters were passed by"):
        logits(model)
    bottleneck_adapters.use(model, None)
    logits(model)


def rows():
    torch.manual_seed(0)
    return [{"input_ids": ids, "labels": ids} for ids in torch.randint(3, 60, (40, 12))]


def run(folder, resume=None, **arguments):
    """Ten steps of a Trainer over a small model with two layers; its adapter's weights as text, and the model."""
    model = trained(small(num_hidden_layers=2), "one")
    weights = everything(model)
    settings = dict(max_steps=10, save_steps=5, per_device_train_batch_size=4, learning_rate=1e-2, seed=0)
    settings |= dict(report_to="none", use_cpu=True, disable_tqdm=True, logging_strategy="no", **arguments)
    trainer = Trainer(model, TrainingArguments(str(folder), **settings), train_dataset=rows())
    trainer.train(resume_from_checkpoint=resume)
    moved = {name for name, weight in model.state_dict().items() if not torch.equal(weight, weights[name])}
    assert moved and all("bottlenecks" in name for name in moved)
    assert len(moved) == sum(weight.requires_grad for weight in model.parameters())
    bottleneck_adapters.save(model, folder / "adapter", "one")
    return (folder / "adapter" / "bottleneck.safetensors").read_bytes()


def test_trainer_checkpoints_hold_adapters_alone_and_resume_to_the_bit(tmp_path):
    whole = run(tmp_path / "whole")
    stored = load_file(tmp_path / "whole" / "checkpoint-5" / "model.safetensors")
    assert stored and all("bottlenecks.adapter_one" in name for name in stored)
    assert sum(weight.numel() for weight in stored.values()) == COUNT * 2 // 3
    assert run(tmp_path / "again", resume=tmp_path / "whole" / "checkpoint-5") == whole
    model = trained(small(num_hidden_layers=2), "one")
    model.load_state_dict(stored)  # nothing is missing, so that a Trainer prints no list of the base's weights


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_changes_no_bit(tmp_path, reentrant):
    settings = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    assert run(tmp_path / "checkpointed", **settings) == run(tmp_path / "plain")


UNDER_UNSLOTH = """
import sys
from tunebook.common import cli
cli._environment()
import unsloth
from trl import SFTConfig, SFTTrainer
from tunebook.common import data, models
from tunebook.common.models import bottleneck_adapters, device
from tunebook.common.tokens import encoding, templates
folder, resume = sys.argv[1], sys.argv[2:]
model, tokenizer = models.load("pocket", 512, four_bit=False)
train, _ = encoding.encode(data.load(["pocket"], seed=0)["train"][:80], tokenizer, templates.ALPACA, 512)
bottleneck_adapters.attach(model, "one")
config = SFTConfig(
    output_dir=folder, max_steps=4, save_steps=2, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True,
    dataset_kwargs={"skip_prepare_dataset": True}, packing=False, padding_free=False, learning_rate=2e-3,
    gradient_checkpointing=True, report_to="none", seed=0, **device.current().precision,
)
held_out = train.select(range(8))
trainer = SFTTrainer(model, config, train_dataset=train, eval_dataset=held_out, processing_class=tokenizer)
models.train_in_float32(trainer.model)
trainer.train(resume_from_checkpoint=resume[0] if resume else None)
bottleneck_adapters.save(model, folder + "/adapter", "one")
"""


@pytest.mark.recipe
def test_under_sft_trainer_and_unsloth(tmp_path):
    found = []
    for more in ([], [str(tmp_path / "checkpoint-2")]):
        done = forked.run("-c", UNDER_UNSLOTH, tmp_path, *more)
        assert done.returncode == 0, done.stderr[-3000:]
        found.append((tmp_path / "adapter" / "bottleneck.safetensors").read_bytes())
    assert found[0] == found[1]
    assert all(weight.abs().max() > 0 for weight in load_file(tmp_path / "adapter" / "bottleneck.safetensors").values())
