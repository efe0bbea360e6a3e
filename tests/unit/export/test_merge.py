"""Every kind of LoRA merges to what PEFT computes without merging; what cannot be merged is refused by name."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MixtralConfig

from tunebook.common.errors import CheckFailed, UserError
from tunebook.common.export import merge
from tunebook.common.export.base_weights import BaseWeights
from tunebook.common.export.exported_weights import ExportedFolder
from tunebook.common.export.trained_weights import AdaptedWeights, FineTunedWeights

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
IDS = torch.tensor([[3, 9, 27, 11, 60, 5]])


def llama(tied=False, **more):
    return LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=tied, **more)


def gpt2():
    return GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)


def mixtral():
    return MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2)


KINDS = {
    "lora": (llama, {}),
    "one layer": (llama, {"target_modules": ["q_proj"], "layers_to_transform": [1]}),
    "rslora": (llama, {"use_rslora": True}),
    "dora": (llama, {"use_dora": True}),
    "pissa": (llama, {"init_lora_weights": "pissa"}),
    "olora": (llama, {"init_lora_weights": "olora"}),
    "patterns": (llama, {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}}),
    "lora bias": (lambda: llama(attention_bias=True), {"lora_bias": True, "target_modules": ["q_proj"]}),
    "biases": (lambda: llama(attention_bias=True), {"bias": "lora_only", "target_modules": ["q_proj", "v_proj"]}),
    "tied": (lambda: llama(True), {}),
    "tied, embeddings": (lambda: llama(True), {"target_modules": ["embed_tokens", "q_proj"]}),
    "tied, head": (lambda: llama(True), {"target_modules": ["lm_head", "q_proj"]}),
    "embeddings and head": (llama, {"target_modules": ["embed_tokens", "lm_head"]}),
    "modules_to_save": (llama, {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "tied, modules_to_save": (lambda: llama(True), {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "tied, embeddings saved": (lambda: llama(True), {"modules_to_save": ["embed_tokens"]}),
    "norms saved": (llama, {"modules_to_save": ["norm"]}),
    "trained rows": (llama, {"trainable_token_indices": [60, 61]}),
    "tied, trained rows": (lambda: llama(True), {"trainable_token_indices": {"embed_tokens": [5, 60]}}),
    "dora on conv1d": (gpt2, {"target_modules": ["c_attn"], "fan_in_fan_out": True, "use_dora": True}),
    "conv1d": (gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "experts": (mixtral, {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.down_proj"]}),
    "resized": (llama, {"rows": 70}),
    "tied, resized": (lambda: llama(True), {"rows": 70}),
}


def adapted(folder, make, rows=None, **config):
    """A base and an adapter with something in every one of its weights, saved as training does."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(make(), dtype=torch.float32).eval()
    base.save_pretrained(folder / "base")
    if rows:
        base.resize_token_embeddings(rows)
    values = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"], **config}
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **values))
    for name, value in model.named_parameters():
        if value.requires_grad or (rows and ("embed" in name or "lm_head" in name)):
            value.data += 0.1 * torch.randn_like(value)
    model.save_pretrained(folder / "adapter", save_embedding_layers=True if rows else "auto")
    return model.eval()


def merged(folder, dtype="float32"):
    trained = AdaptedWeights(BaseWeights(folder / "base"), folder / "adapter")
    (folder / "merged").mkdir()
    merge.write(trained, folder / "merged", dtype)
    return trained


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_compute_what_the_adapter_computes_on_its_base(tmp_path, kind):
    make, config = KINDS[kind]
    model = adapted(tmp_path, make, **config)
    trained = merged(tmp_path)
    said = {}
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=False).eval()
    with torch.inference_mode():
        said["adapter"], said["merged"] = model(IDS).logits, found(IDS).logits
    assert torch.allclose(said["adapter"], said["merged"], atol=2e-5)
    assert found.config.vocab_size == said["adapter"].shape[-1]
    exported = ExportedFolder(tmp_path / "merged", trained)
    assert all(torch.allclose(exported.read(name), trained.read(name), atol=1e-6) for name in trained.shapes)


def test_embeddings_and_head_stay_one_only_where_training_kept_them_so(tmp_path):
    for name, tied in (("tied", True), ("tied, head", False), ("tied, trained rows", True), ("tied, resized", True)):
        folder = tmp_path / name
        folder.mkdir()
        make, config = KINDS[name]
        adapted(folder, make, **config)
        merged(folder)
        written = json.loads((folder / "merged" / "config.json").read_text())
        assert written["tie_word_embeddings"] is tied, name


@pytest.mark.parametrize(
    "change, message",
    [
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights=pissa_niter_4"),
        ({"init_lora_weights": "corda"}, "init_lora_weights=corda"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"alora_invocation_tokens": [1, 2]}, "invocation tokens"),
        ({"peft_type": "LOHA"}, "LOHA is not merged here"),
    ],
)
def test_what_cannot_be_merged_is_refused_by_name(tmp_path, change, message):
    adapted(tmp_path, llama)
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        AdaptedWeights(BaseWeights(tmp_path / "base"), tmp_path / "adapter")


def test_an_adapter_of_another_base_and_one_with_what_is_no_number_are_refused(tmp_path):
    adapted(tmp_path, llama)
    AutoModelForCausalLM.from_config(llama(head_dim=16)).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="does not fit"):
        trained = AdaptedWeights(BaseWeights(tmp_path / "other"), tmp_path / "adapter")
        trained.read("model.layers.0.self_attn.q_proj.weight")
    AutoModelForCausalLM.from_config(gpt2()).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(UserError, match="does not have"):
        AdaptedWeights(BaseWeights(tmp_path / "gpt2"), tmp_path / "adapter")
    from safetensors.torch import load_file, save_file

    file = tmp_path / "adapter" / "adapter_model.safetensors"
    state = load_file(file)
    next(iter(state.values()))[0, 0] = float("nan")
    save_file(state, file)
    trained = AdaptedWeights(BaseWeights(tmp_path / "base"), tmp_path / "adapter")
    with pytest.raises(CheckFailed):
        [trained.read(name) for name in trained.touched]


def test_shards_are_written_within_their_size_and_read_as_one(tmp_path, monkeypatch):
    adapted(tmp_path, llama)
    monkeypatch.setattr(merge, "SHARD", 8_000)
    trained = merged(tmp_path, "bfloat16")
    files = sorted((tmp_path / "merged").glob("model-*.safetensors"))
    assert len(files) > 3 and max(file.stat().st_size for file in files) < 10_000
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    assert found.dtype == torch.bfloat16
    assert torch.equal(found.lm_head.weight, trained.read("lm_head.weight").bfloat16())


def test_a_base_in_shards_as_a_pickle_or_in_its_inner_names_is_read(tmp_path):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(gpt2(), dtype=torch.float32)
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    (tmp_path / "pickle").mkdir()
    model.config.save_pretrained(tmp_path / "pickle")
    inner = {name.removeprefix("transformer."): value for name, value in model.state_dict().items()}
    torch.save(
        {name: value for name, value in inner.items() if name != "lm_head.weight"},
        tmp_path / "pickle" / "pytorch_model.bin",
    )
    for folder in ("shards", "pickle"):
        base = BaseWeights(tmp_path / folder)
        assert not base.whole
        assert all(torch.equal(base.read(name), value) for name, value in model.named_parameters())
    (tmp_path / "pickle" / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match="no weights"):
        BaseWeights(tmp_path / "pickle")
    next((tmp_path / "shards").glob("model-00001*")).unlink()
    with pytest.raises(UserError, match="the index names"):
        BaseWeights(tmp_path / "shards")


def test_four_bits_are_those_of_loading_and_a_saved_checkpoint_stands_for_the_same(tmp_path):
    from tunebook.common.models import loading

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "tokenizer.json").write_text("{}")
    model = loading.load_plain(str(tmp_path / "base"), four_bit=True)
    model.save_pretrained(tmp_path / "quantized")
    plain = model.dequantize(dtype=torch.float32)
    read, saved = BaseWeights(tmp_path / "base", four_bit=True), BaseWeights(tmp_path / "quantized")
    assert "lm_head.weight" not in read.quantized and len(read.quantized) == 7
    for name, value in plain.named_parameters():
        assert torch.equal(read.read(name), value.float()), name
        assert torch.equal(saved.read(name), value.float()), name


def test_float16_that_cannot_hold_a_weight_is_refused(tmp_path):
    model = AutoModelForCausalLM.from_config(llama(), dtype=torch.float32)
    model.lm_head.weight.data[0, 0] = 1e5
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="--dtype bfloat16"):
        merge.write(FineTunedWeights(None, tmp_path / "model"), tmp_path / "out", "float16")
    assert merge.dtype_for("auto", {"torch_dtype": "bfloat16"}) == "bfloat16"
    assert merge.dtype_for("auto", {"dtype": "float32"}) == "float16"
    with pytest.raises(UserError, match="--dtype int8"):
        merge.dtype_for("int8", {})
