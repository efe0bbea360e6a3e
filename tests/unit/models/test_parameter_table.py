"""The account of what trains against counts by safetensors, against steps that move weights and finite differences;
and planted faults, which are refused by name."""

import json
import re
from collections import Counter

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tunebook.common.errors import CheckFailed
from tunebook.common.estimate import probe, saved_files
from tunebook.common.models import bottleneck_adapters, lora, module_kinds, moe, parameter_table
from tunebook.common.models.parameter_table import Table

SIZES = dict(
    vocab_size=96, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
EXPERTS = dict(num_experts=4, num_experts_per_tok=2)
LOCAL = dict(num_local_experts=4, num_experts_per_tok=2)
GPT_OSS = dict(
    **LOCAL, head_dim=32, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, layer_types=None
)  # fmt: skip
CONFIGS = {
    "Llama": {},
    "Qwen3": dict(head_dim=32),
    "Phi3": {},
    "Qwen3Moe": dict(**EXPERTS, head_dim=32, moe_intermediate_size=32),
    "Mixtral": LOCAL,
    "Olmoe": EXPERTS,
    "GptOss": GPT_OSS,
}
MIXTURES = ("Qwen3Moe", "Mixtral", "Olmoe", "GptOss")
MODELS = [*CONFIGS, "Gemma3", "Gemma3 with vision", "GPT2"]
# What a name in a file says of it: the tests' own rules.
OF_NAME = {
    "vision tower": r"vision_tower", "projector": r"projector", "norms": r"norm|ln_",
    "attention": r"self_attn|attn\.", "experts": r"experts", "router": r"\.gate\.|router", "lm_head": r"lm_head",
    "embeddings": r"embed_tokens|wte|wpe", "MLP": r"mlp",
}  # fmt: skip


def made(name, **more):
    torch.manual_seed(0)
    if name == "GPT2":
        config = transformers.GPT2Config(vocab_size=96, n_embd=64, n_layer=2, n_head=2, n_positions=64)
    elif name.startswith("Gemma3"):
        text = dict(**SIZES, head_dim=32, sliding_window=8, layer_types=["sliding_attention", "full_attention"])
        config = transformers.Gemma3TextConfig(**text, **more)
        if name.endswith("vision"):
            sight = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
            sight |= dict(image_size=28, patch_size=14)
            config = transformers.Gemma3Config(
                text_config=text, vision_config=sight, image_token_index=90, mm_tokens_per_image=4
            )
            return transformers.Gemma3ForConditionalGeneration(config)
    else:
        config = getattr(transformers, f"{name}Config")(**{**SIZES, **CONFIGS[name], **more})
    return AutoModelForCausalLM.from_config(config)


def low_rank(model, **more):
    """Adapters as lora.add makes them, by PEFT alone; the second matrices are not zero."""
    values = dict(r=3, lora_alpha=6, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    return peft.get_peft_model(model, peft.LoraConfig(**lora.of_text(model, values | more)))


def batch(rows=2, width=24):
    ids = torch.randint(3, 88, (rows, width), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}


def account(model, **given):
    table = Table(model)
    model.train()(**(given or batch())).loss.backward()
    table.see()
    table.check()
    return table


def by_name(tensors):
    """Kind -> values and bytes, by the names in a file."""
    values, size = Counter(), Counter()
    for name, tensor in tensors.items():
        kind = next(kind for kind, words in OF_NAME.items() if re.search(words, name))
        values[kind] += tensor.numel()
        size[kind] += tensor.nbytes
    return values, size


@pytest.mark.filterwarnings("ignore:.*_pattern keys did not match")
@pytest.mark.parametrize("name", MODELS)
def test_the_account_is_what_safetensors_counts_and_what_a_step_moves(name, tmp_path):
    model = made(name)
    model.save_pretrained(tmp_path / "base")
    values, size = by_name(load_file(tmp_path / "base" / "model.safetensors"))
    model = low_rank(model)
    table = account(model)
    model.save_pretrained(tmp_path / "adapter")
    trained, trained_size = by_name(load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    found = {kind.removesuffix(", tied head"): group for kind, group in table.groups.items()}
    own = {kind: group for kind, group in found.items() if not kind.startswith("LoRA on ")}
    assert {kind: group.parameters for kind, group in own.items()} == dict(values)
    assert {kind: group.bytes for kind, group in own.items()} == dict(size)
    assert {k.removeprefix("LoRA on "): g.trained for k, g in found.items() if k not in own} == dict(trained)
    assert {k.removeprefix("LoRA on "): g.bytes for k, g in found.items() if k not in own} == dict(trained_size)
    assert all(group.trained == 0 and group.gradient == "frozen" and group.bits == [32] for group in own.values())
    assert ("experts" in own) == ("LoRA on experts" in found) == (name in MIXTURES)
    assert ("vision tower" in own) == name.endswith("vision")

    kinds, before = module_kinds.of(model), {key: p.detach().clone() for key, p in model.named_parameters()}
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    moved = {kinds[key] for key, p in model.named_parameters() if not torch.equal(p, before[key])}
    assert moved == {kind for kind, group in table.groups.items() if group.trained}


@pytest.mark.filterwarnings("ignore:.*_pattern keys did not match")
@pytest.mark.parametrize("name", MODELS)
def test_a_group_with_a_gradient_changes_the_loss_and_one_without_does_not(name):
    """Central differences along each group's gradient; the vision tower changes no loss of text. In float64, but for
    the norms and routers that transformers computes in float32."""
    model, step = low_rank(made(name)).double().eval(), 1e-4
    if name in MIXTURES:
        model.get_base_model().set_experts_implementation("eager")
    ids = batch()["input_ids"]

    def loss_of():
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]).double(), ids[:, 1:].reshape(-1))

    table = Table(model)
    loss_of().backward()
    table.see()
    table.check()
    kinds = module_kinds.of(model)

    def along(kind, directions):
        losses = []
        for sign in (step, -step):
            with torch.no_grad():
                for key, p in model.named_parameters():
                    if kinds[key] == kind:
                        p += sign * directions[key]
                losses.append(loss_of().item())
                for key, p in model.named_parameters():
                    if kinds[key] == kind:
                        p -= sign * directions[key]
        return (losses[0] - losses[1]) / (2 * step)

    for kind, group in table.groups.items():
        if group.trained:
            gradients = {key: p.grad for key, p in model.named_parameters() if kinds[key] == kind}
            norm = sum((g**2).sum() for g in gradients.values()).sqrt().item()
            assert norm > 1e-6
            slope = along(kind, {key: gradient / norm for key, gradient in gradients.items()})
            assert slope == pytest.approx(norm, rel=2e-3)
    ones = {key: torch.ones_like(p) for key, p in model.named_parameters()}
    for kind in {"vision tower", "projector"} & {*table.groups}:
        assert along(kind, ones) == 0.0


def test_four_bits_are_counted_as_they_are_held_and_missed_by_name(tmp_path):
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    for name in ("Llama", "Qwen3Moe"):
        made(name).save_pretrained(tmp_path / name)
    llama = AutoModelForCausalLM.from_pretrained(tmp_path / "Llama", quantization_config=four, dtype=torch.float32)
    parameter_table.check_four_bit(llama, "llama")
    groups = parameter_table.groups(llama)
    llama.save_pretrained(tmp_path / "four")
    parts = load_file(tmp_path / "four" / "model.safetensors")
    whole, _ = by_name(load_file(tmp_path / "Llama" / "model.safetensors"))
    for kind in ("attention", "MLP"):
        assert groups[kind].bits == [4] and groups[kind].parameters == whole[kind]
        # The file has the offset of the nested scales in JSON, one float32 for each weight.
        held = sum(t.nbytes for key, t in parts.items() if re.search(OF_NAME[kind], key) and "bitsandbytes" not in key)
        weights = sum("bitsandbytes" in key for key in parts if re.search(OF_NAME[kind], key))
        assert groups[kind].bytes == held + 4 * weights
    assert groups["norms"].bits == groups["lm_head"].bits == [32]

    experts = AutoModelForCausalLM.from_pretrained(tmp_path / "Qwen3Moe", quantization_config=four, dtype=torch.float32)
    with pytest.raises(
        CheckFailed, match=r"--model moe: 4 bits .* had: experts, 49,152 of 86,976 parameters, in 32 bits"
    ):
        parameter_table.check_four_bit(experts, "moe")
    with pytest.raises(CheckFailed, match=r"not had: attention, .* MLP, "):  # as where a loader falls back
        parameter_table.check_four_bit(made("Llama"), "llama")


FAULTS = {
    "a target of several": (dict(target_modules=["q_proj", "v_porj"]), "target_modules: v_porj matches nothing"),
    "experts by name": (
        dict(target_modules=["q_proj", "down_proj"]),
        "target_modules: down_proj matches nothing in this GptOss",
    ),
    "experts by parameter": (
        dict(target_modules=["q_proj"], target_parameters=["experts.up_proj"]),
        "target_parameters: experts.up_proj matches nothing",
    ),
    "a module to save": (dict(target_modules=["q_proj"], modules_to_save=["head"]), "modules_to_save: head matches"),
}


@pytest.mark.filterwarnings("ignore:.*target_parameters.*")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_target_that_matches_nothing_is_refused(fault):
    values, says = FAULTS[fault]
    with pytest.raises(CheckFailed, match=says):
        Table(low_rank(made("GptOss"), **values))


def test_adapters_without_a_gradient_are_refused_by_name():
    model = low_rank(made("Gemma3 with vision"), exclude_modules=["lm_head"])  # not the towers
    with pytest.raises(
        CheckFailed, match=r"18 of the 46 tensors .* no gradient \(LoRA on vision tower\): .*vision_tower"
    ):
        account(model)


def test_frozen_and_passed_by_is_refused(monkeypatch):
    with pytest.raises(CheckFailed, match="nothing would train: all 21 tensors of the model are frozen"):
        Table(made("Llama").requires_grad_(False))
    model = peft.get_peft_model(made("Llama"), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    # As Unsloth's forward for all PEFT models has it, with activation checkpointing on the inputs and without.
    monkeypatch.setattr(type(model), "forward", lambda self, **given: self.base_model(**given))
    with pytest.raises(CheckFailed, match=r"the loss depends on none of the 1 tensors .* \(prompt_encoder"):
        probe.catch_oom(model, lambda: model(**batch()).loss.backward())
    model.enable_input_require_grads()
    with pytest.raises(CheckFailed, match="the loss depends on none of the 1 tensors"):
        account(model)


class Unfused(torch.nn.Module):
    """Experts as modules of their own, of which each token goes through the first."""

    def __init__(self, count=3):
        super().__init__()
        self.experts = torch.nn.ModuleList(torch.nn.Linear(64, 64, bias=False) for _ in range(count))

    def forward(self, hidden):
        return self.experts[0](hidden)


def test_experts_without_a_token_are_counted_and_not_refused():
    # One token has a loss, and goes to one of the four experts of each of the two layers.
    one = dict(input_ids=torch.tensor([[5, 6]]), labels=torch.tensor([[-100, 6]]), use_cache=False)
    for kind, adapted in (("experts", False), ("LoRA on experts", True)):
        model = made("Mixtral", num_experts_per_tok=1)
        found = account(low_rank(model, init_lora_weights=True) if adapted else model, **one).groups[kind]
        assert found.unrouted == 2 * 3 and found.reached == found.tensors > 0
        assert found.gradient == "all tensors, 6 experts without a token"
    model = made("Llama")
    for layer in model.model.layers:
        layer.mlp = Unfused()
    found = account(model).groups["experts"]
    assert (found.tensors, found.reached, found.unrouted) == (6, 2, 4)
    for layer in model.model.layers:
        layer.mlp.forward = lambda hidden: hidden
    model.zero_grad()
    with pytest.raises(CheckFailed, match=r"6 of the \d+ tensors that are to train get no gradient \(experts\)"):
        account(model)


def test_the_lines_for_a_terminal_are_twelve_at_most_and_add_up():
    groups = [parameter_table.Group(f"kind {n}", n, 0, [16], 2 * n) for n in range(1, 20)]
    groups += [parameter_table.Group(f"LoRA on {n}", n, n, [32], 4 * n, 2, 2, 2) for n in range(1, 8)]
    lines = parameter_table.text(groups).splitlines()
    assert len(lines) == 12 and max(map(len, lines)) < 100
    assert lines[-1].split() == ["all", "218", "28", "16/32", "492", "B", "all", "tensors"]
    assert sum(int(re.findall(r"  (\d+)", line)[0]) for line in lines[1:-1]) == 218
    assert any(line.startswith("others") and line.endswith("frozen") for line in lines)
    few = parameter_table.text(groups[-2:]).splitlines()
    assert len(few) == 4 and few[1].startswith("LoRA on 6")


PROMPTS = {"soft prompt": peft.PromptTuningConfig, "prefix": peft.PrefixTuningConfig}
SAVED = {
    "LoRA on MLP": dict(),
    "LoRA on experts": dict(),
    "DoRA": dict(use_dora=True),
    "trained copy of lm_head": dict(modules_to_save=["lm_head"]),
    "soft prompt": None,
    "prefix": None,
    "bottleneck adapters on MLP": None,
    "attention": None,
}


@pytest.mark.filterwarnings("ignore:.*_pattern keys did not match")
@pytest.mark.parametrize("kind", SAVED)
def test_the_size_of_what_is_saved_is_predicted_to_the_byte(kind, tmp_path):
    model = made("GptOss" if kind == "LoRA on experts" else "Llama")
    if kind in PROMPTS:
        model = peft.get_peft_model(model, PROMPTS[kind](task_type="CAUSAL_LM", num_virtual_tokens=4))
    elif kind.startswith("bottleneck"):
        bottleneck_adapters.attach(model, "one", bottleneck=8)
    elif SAVED[kind] is not None:
        model = low_rank(model, **SAVED[kind])
    table = account(model)
    if kind == "attention":
        model.lm_head.half()  # narrower tensors lie behind wider ones
    size = saved_files.size(model)
    assert (kind in table.groups or kind == "DoRA") and size is not None
    bottleneck_adapters.save(model, tmp_path, "one") if kind.startswith("bottleneck") else model.save_pretrained(
        tmp_path
    )
    (file,) = tmp_path.glob("*.safetensors")
    assert size["file"] == file.stat().st_size and saved_files.difference(model, tmp_path, size["bytes"]) == ""
    if kind != "attention":  # not the whole model
        assert size["bytes"] == sum(4 * group.trained for group in table.groups.values())

    tensors = load_file(file)
    lost = sorted(tensors)[0]
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, file)
    if len(tensors) > 1:
        assert f"1 missing, such as {lost}" in saved_files.difference(model, tmp_path, size["bytes"])
    save_file({**tensors, lost: tensors[lost].double()}, file)
    assert f"1 of another size, such as {lost}" in saved_files.difference(model, tmp_path, size["bytes"])
    save_file({**tensors, "odd": torch.zeros(3)}, file)
    assert "1 more than what trains, such as odd" in saved_files.difference(model, tmp_path, size["bytes"])
    file.write_bytes(file.read_bytes()[:-4])
    assert "not written to its end" in saved_files.difference(model, tmp_path, size["bytes"])
    file.unlink()
    assert "holds 0 bytes of weights" in saved_files.difference(model, tmp_path, size["bytes"])


def test_a_mixture_answers_without_router_logits_and_keeps_its_wish():
    model, ids = made("Mixtral").eval(), torch.arange(3, 15).view(2, 6)
    model.config.output_router_logits = True
    given = dict(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False)
    with pytest.raises(RuntimeError):  # what it is for
        model.generate(**given)
    with moe.without_router_logits(model):
        assert model.generate(**given).shape == (2, 9)
    assert model.config.output_router_logits is True
    with moe.without_router_logits(dense := made("Llama")):
        assert "output_router_logits" not in vars(dense.config)
    assert json.loads(dense.config.to_json_string()).get("output_router_logits") is None
