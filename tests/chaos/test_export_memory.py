"""Merging a model of the shape of Llama 3 8B takes the memory of one shard, not of the model."""

import json
import shutil
import subprocess
import sys

import pytest
from paths import WHOLE

pytestmark = pytest.mark.slow
LAYERS = 32 if WHOLE else 6  # what is held at a time does not depend on them; the disk it takes does
GIB = 1 << 30

MAKE = """
import sys, json, torch
from pathlib import Path
from safetensors.torch import save_file
from transformers import LlamaConfig
folder, layers = Path(sys.argv[1]), int(sys.argv[2])
config = LlamaConfig(vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=layers,
                     num_attention_heads=32, num_key_value_heads=8, dtype="bfloat16")
config.save_pretrained(folder / "base")
def noise(*shape):
    block = torch.randn(1 << 20, dtype=torch.float32).mul_(0.02).bfloat16()
    count = torch.Size(shape).numel()
    return block.repeat(-(-count // len(block)))[:count].reshape(shape)
weights, adapter, index = {}, {}, {}
def shard(number):
    name = f"model-{number}.safetensors"
    save_file(weights, folder / "base" / name, {"format": "pt"})
    index.update(dict.fromkeys(weights, name)); weights.clear()
weights["model.embed_tokens.weight"] = noise(128256, 4096)
weights["lm_head.weight"] = noise(128256, 4096)
shard(0)
wide = {"self_attn.q_proj": (4096, 4096), "self_attn.k_proj": (1024, 4096), "self_attn.v_proj": (1024, 4096),
        "self_attn.o_proj": (4096, 4096), "mlp.gate_proj": (14336, 4096), "mlp.up_proj": (14336, 4096),
        "mlp.down_proj": (4096, 14336)}
for layer in range(layers):
    for name, shape in wide.items():
        whole = f"model.layers.{layer}.{name}"
        weights[f"{whole}.weight"] = noise(*shape)
        adapter[f"base_model.model.{whole}.lora_A.weight"] = noise(16, shape[1]).float()
        adapter[f"base_model.model.{whole}.lora_B.weight"] = noise(shape[0], 16).float()
    for name in ("input_layernorm", "post_attention_layernorm"):
        weights[f"model.layers.{layer}.{name}.weight"] = torch.ones(4096, dtype=torch.bfloat16)
    if layer % 4 == 3:
        shard(1 + layer // 4)
weights["model.norm.weight"] = torch.ones(4096, dtype=torch.bfloat16)
shard(1 + layers)
(folder / "base" / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
(folder / "adapter").mkdir()
save_file(adapter, folder / "adapter" / "adapter_model.safetensors")
names = sorted({name.split(".")[-1] for name in wide})
(folder / "adapter" / "adapter_config.json").write_text(json.dumps(
    {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "target_modules": names, "task_type": "CAUSAL_LM"}))
"""

MERGE = """
import sys, json, resource
from pathlib import Path
import torch, peft
from tunebook.common.export import merge
from tunebook.common.export.base_weights import BaseWeights
from tunebook.common.export.trained_weights import AdaptedWeights
folder = Path(sys.argv[1])
from peft import LoraModel
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
bare = peak()
(folder / "merged").mkdir()
merge.write(AdaptedWeights(BaseWeights(folder / "base"), folder / "adapter"), folder / "merged", "bfloat16")
print(json.dumps({"bare": bare, "peak": peak()}))
"""


def test_merging_an_8b_shape_takes_one_shard_and_a_gibibyte(tmp_path):
    needed = (8 + LAYERS) * GIB  # base and merged model
    if shutil.disk_usage(tmp_path).free < needed:
        pytest.skip(f"needs {needed // GIB} GiB of disk")
    for code, words in ((MAKE, [str(LAYERS)]), (MERGE, [])):
        done = subprocess.run([sys.executable, "-c", code, tmp_path, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    largest = max(path.stat().st_size for path in (tmp_path / "base").glob("*.safetensors"))
    above = found["peak"] - found["bare"]
    print(f"peak {above / GIB:.2f} GiB above bare, largest shard {largest / GIB:.2f} GiB")
    shutil.rmtree(tmp_path / "merged")
    shutil.rmtree(tmp_path / "base")
    assert above < largest + GIB
