"""The commands of a model card, and what vLLM says that it does not serve."""

import json

import pytest

from tunebook.common.errors import UserError
from tunebook.common.export import gguf_model, serving

LORA = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}


def adapter(folder, **values):
    (folder / "adapter_config.json").write_text(json.dumps(LORA | values))
    return serving.commands("adapter", folder, "my runs/it", "org/base")


def test_an_adapter_brings_its_template_and_end_tokens(tmp_path):
    beside = "--tokenizer 'my runs/it' --generation-config 'my runs/it'"
    assert adapter(tmp_path) == [f"vllm serve org/base --enable-lora --lora-modules it='my runs/it' {beside}"]
    assert adapter(tmp_path, r=16)[0].endswith(beside)
    assert adapter(tmp_path, rank_pattern={"q_proj": 48})[0].endswith(" --max-lora-rank 64")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "biases"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa"),
        ({"trainable_token_indices": [1]}, "trained rows of embeddings"),
        ({"peft_type": "PREFIX_TUNING"}, "adapters other than LoRA"),
        ({"r": 600}, "ranks above 512"),
        ({"init_lora_weights": "gaussian", "bias": "none", "use_rslora": True}, ""),
    ],
)
def test_what_vllm_refuses_has_no_command(tmp_path, values, says):
    assert serving.not_for_vllm(LORA | values) == says
    assert bool(adapter(tmp_path, **values)) is not bool(says)


def test_files_of_llama_cpp(tmp_path):
    for name in ("model-f16.gguf", "model-q8_0.gguf"):
        (tmp_path / name).touch()
    found = serving.commands("gguf", tmp_path, "out", "")
    assert found == [f"python -m llama_cpp.server --model out/model-{kind}.gguf" for kind in ("f16", "q8_0")]
    base = tmp_path / "lora"
    base.mkdir()
    for name in ("base-f16.gguf", "adapter.gguf"):
        (base / name).touch()
    (only,) = serving.commands("gguf", base, "out", "")
    assert only == "python -m llama_cpp.server --model out/base-f16.gguf --lora_path out/adapter.gguf"


def test_a_llama_cpp_for_another_processor_is_told_and_how_to_build_it(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_model, "TRIAL", "import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    with pytest.raises(
        UserError, match=r"^model\.gguf: llama\.cpp ends with SIGILL on it: .*GGML_NATIVE=OFF.* pip install"
    ):
        gguf_model.try_out(tmp_path / "model.gguf", n_ctx=64)
