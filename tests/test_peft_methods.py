"""PEFT's methods against arithmetic done here: how many weights train, what merging gives, what taking off leaves."""

import math

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig, LlamaForCausalLM

from tunebook.common import models
from tunebook.common.errors import UserError
from tunebook.common.models import bottleneck_adapters, inference

ALL_SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KINDS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "dora": {"use_dora": True},
}
LAYERS, WIDTH, INNER = 32, 4096, 11008  # of Llama-2-7B


@pytest.fixture(scope="module")
def llama_2_7b():
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=32,
        num_key_value_heads=32,
        vocab_size=32000,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    assert models.parameters(model)[1] == 6_738_415_616  # what the model card calls 7B
    return model


def low_rank(rank, targets, **more):
    return peft.LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules=targets, **more)


def soft(kind, **more):
    return kind(task_type="CAUSAL_LM", num_virtual_tokens=20, **more)


# inputs + outputs of the seven projections of a layer: q, k, v, o; gate, up; down
ENDS = 4 * (WIDTH + WIDTH) + 3 * (WIDTH + INNER)
COUNTS = {
    "lora r=8 on q, v": (low_rank(8, ["q_proj", "v_proj"]), 4_194_304, LAYERS * 2 * 8 * (WIDTH + WIDTH)),
    "lora r=16 on all seven": (low_rank(16, ALL_SEVEN), 39_976_960, LAYERS * 16 * ENDS),
    # a magnitude for every output
    "dora r=16 on all seven": (
        low_rank(16, ALL_SEVEN, use_dora=True),
        39_976_960 + 1_359_872,
        LAYERS * (16 * ENDS + 4 * WIDTH + 2 * INNER + WIDTH),
    ),
    "prompt, 20 tokens": (soft(peft.PromptTuningConfig), 81_920, 20 * WIDTH),
    # a key and a value for every layer
    "prefix, 20 tokens": (soft(peft.PrefixTuningConfig), 5_242_880, 20 * LAYERS * 2 * WIDTH),
    # an embedding and three layers of the same width
    "p-tuning, 20 tokens": (
        soft(peft.PromptEncoderConfig, encoder_hidden_size=WIDTH),
        50_425_856,
        20 * WIDTH + 3 * (WIDTH * WIDTH + WIDTH),
    ),
}


@pytest.mark.parametrize("name", COUNTS)
def test_trainable_counts_of_a_7b(llama_2_7b, name):
    config, written, arithmetic = COUNTS[name]
    with torch.device("meta"):
        model = peft.get_peft_model(llama_2_7b, config, low_cpu_mem_usage=True)
    assert models.parameters(model)[0] == written == arithmetic
    if isinstance(config, peft.LoraConfig):
        model.unload()


def test_trainable_count_of_bottlenecks_on_a_7b(llama_2_7b):
    trained = bottleneck_adapters.attach(llama_2_7b, "one", bottleneck=64)
    assert sum(weight.numel() for weight in trained) == models.parameters(llama_2_7b)[0] == 33_820_672
    assert LAYERS * 2 * (WIDTH * 64 + 64 + 64 * WIDTH + WIDTH) == 33_820_672
    bottleneck_adapters.remove(llama_2_7b)


def bases(which):
    torch.manual_seed(0)
    if which == "pocket":
        return AutoModelForCausalLM.from_pretrained(models.resolve("pocket"), dtype=torch.float32).eval()
    if which == "gpt2":  # its layers keep the transposed weight
        config = GPT2Config(
            n_embd=32, n_layer=2, n_head=4, vocab_size=60, n_positions=64, bos_token_id=0, eos_token_id=0
        )
    else:
        config = LlamaConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=60
        )
    return AutoModelForCausalLM.from_config(config).eval()


def logits(model):
    ids = torch.arange(3, 51).view(3, 16)
    with torch.no_grad():
        return model(input_ids=ids).logits


def trained(model):
    """The model with its adapters as training might leave them: every weight moved, and the merged ones much."""
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            spread = 0.1 * weight.data.abs().mean() if "magnitude" in name else 0.05
            weight.data += spread * torch.randn_like(weight)
    return model


def by_hand(layer, kind, rank, alpha):
    """The merged weight (outputs, inputs) in float64 from the layer's parts."""
    weight = layer.base_layer.weight.detach().double()
    if layer.fan_in_fan_out:
        weight = weight.T
    down, up = (part["default"].weight.detach().double() for part in (layer.lora_A, layer.lora_B))
    scale = alpha / math.sqrt(rank) if kind == "rslora" else alpha / rank
    merged = weight + scale * up @ down
    if kind == "dora":  # Liu et al. 2024, arXiv 2402.09353, equation 5: one magnitude an output
        magnitude = layer.lora_magnitude_vector["default"].weight.detach().double()
        merged = magnitude[:, None] * merged / merged.norm(dim=1, keepdim=True)
    return merged.T if layer.fan_in_fan_out else merged


@pytest.mark.parametrize("which", ["random", "pocket", "gpt2"])
@pytest.mark.parametrize("kind", KINDS)
def test_merged_weight_is_the_formula_and_merged_equals_adapter(kind, which):
    rank, alpha = 4, 12
    base = bases(which)
    before = logits(base)
    original = {name: weight.clone() for name, weight in base.state_dict().items()}
    model = peft.get_peft_model(base, low_rank(rank, "all-linear", lora_alpha=alpha, **KINDS[kind])).eval()
    # A fresh adapter changes nothing; PiSSA takes from the base what it puts into the adapter.
    assert torch.allclose(logits(model), before, atol=1e-4, rtol=0)

    trained(model)
    with_adapter = logits(model)
    assert (with_adapter - before).abs().max() > 0.05  # there is something to merge
    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A") and layer.lora_A}
    assert len(layers) == {"random": 14, "pocket": 28, "gpt2": 8}[which]
    expected = {name: by_hand(layer, kind, rank, alpha) for name, layer in layers.items()}
    merged = model.merge_and_unload()
    assert type(merged) is type(base)
    for name, weight in expected.items():
        found = merged.get_submodule(name.removeprefix("base_model.model.")).weight
        scale = weight.abs().max()
        assert (found.double() - weight).abs().max() < 1e-6 * scale, name
        assert (original[name.removeprefix("base_model.model.") + ".weight"].double() - weight).abs().max() > 1e-3
    assert torch.allclose(logits(merged), with_adapter, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora", "prompt", "prefix", "p-tuning"])
def test_switched_off_and_taken_off_leave_the_base(kind):
    base = bases("pocket")
    before, original = logits(base), {name: weight.clone() for name, weight in base.state_dict().items()}
    prompts = {"prompt": peft.PromptTuningConfig, "prefix": peft.PrefixTuningConfig}
    if kind in KINDS:
        config = low_rank(4, "all-linear", **KINDS[kind])
    elif kind == "p-tuning":
        config = soft(peft.PromptEncoderConfig, encoder_hidden_size=16)
    else:
        config = soft(prompts[kind])
    model = trained(peft.get_peft_model(base, config).eval())
    assert not torch.equal(logits(model)[:, -16:], before)
    with model.disable_adapter():
        assert torch.equal(logits(model), before)
    off = model.unload() if kind in KINDS else model.get_base_model()
    assert torch.equal(logits(off), before)
    assert original.keys() == off.state_dict().keys()
    assert all(torch.equal(weight, original[name]) for name, weight in off.state_dict().items())


def test_pissa_leaves_another_base():
    """PiSSA moves the base's main directions into the adapter: the base must be scored before it is put on."""
    base = bases("pocket")
    before = logits(base)
    model = peft.get_peft_model(base, low_rank(4, "all-linear", **KINDS["pissa"])).eval()
    with model.disable_adapter():
        assert (logits(model) - before).abs().max() > 0.05


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_soft_prompts_behind_padding(kind):
    """A padded batch gives a prefix's own answers. Virtual tokens at the input lie before the padding, where PEFT puts
    them with the positions that it ignores: such prompts have to be answered alone, or with others of their length."""
    base, tokenizer = bases("pocket"), AutoTokenizer.from_pretrained(models.resolve("pocket"))
    config = soft({"prompt": peft.PromptTuningConfig, "prefix": peft.PrefixTuningConfig}[kind])
    model = trained(peft.get_peft_model(base, config).eval())
    ids = tokenizer("The word at the end").input_ids
    padded = torch.tensor([[1] * 9 + ids])
    found = []
    for inputs, mask in ((torch.tensor([ids]), [1] * len(ids)), (padded, [0] * 9 + [1] * len(ids))):
        out = model.generate(
            input_ids=inputs,
            attention_mask=torch.tensor([mask]),
            max_new_tokens=3,
            min_new_tokens=3,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=1,
        )
        found.append(torch.stack(out.logits))
    same = torch.allclose(*found, atol=1e-4, rtol=0)
    assert same if kind == "prefix" else not same


@pytest.mark.parametrize(("layers", "says"), [(1, "has 4 weights for what is not"), (3, "nothing for 4 weights")])
def test_an_adapter_for_more_or_fewer_layers_is_refused(layers, says, tmp_path):
    """PEFT's own from_pretrained takes both with a warning or none, and leaves layers as they are."""

    def made(count):
        torch.manual_seed(0)
        shape = dict(hidden_size=32, intermediate_size=64, num_attention_heads=2, vocab_size=64)
        return LlamaForCausalLM(LlamaConfig(num_hidden_layers=count, **shape)).eval()

    tuned = peft.get_peft_model(made(2), low_rank(2, ["q_proj", "v_proj"], init_lora_weights=False)).eval()
    tuned.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=says):
        inference.load_adapter(made(layers), str(tmp_path))
    ids = torch.arange(8)[None]
    for trains in (False, True):
        found = inference.load_adapter(made(2), str(tmp_path), trains)
        assert torch.equal(found.eval()(input_ids=ids).logits, tuned(input_ids=ids).logits)
        assert models.parameters(found)[0] == (models.parameters(tuned)[0] if trains else 0)
