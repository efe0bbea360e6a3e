"""A model whose files are not what its config describes is refused, by transformers' loader and by Unsloth's."""

import json
import shutil

import forked
import pytest
import torch
from safetensors.torch import load_file, save_file

from tunebook.common import local_models, models
from tunebook.common.errors import UserError
from tunebook.common.models import loading

WEIGHTS = "model.safetensors"
LAYER = "model.layers.1.mlp.up_proj.weight"
# changes of the config, names that the file loses, names that it gains -> what is said
CASES = {
    "layers more": ({"num_hidden_layers": 5}, [], [], "9 weights, such as model.layers.4.input_layernorm.weight, are"),
    "layers fewer": ({"num_hidden_layers": 3}, [], [], "9 weights, such as model.layers.3.input_layernorm.weight, are"),
    "biases": ({"attention_bias": True}, [], [], "16 weights, such as model.layers.0.self_attn.k_proj.bias, are in no"),
    "wider": ({"intermediate_size": 640}, [], [], "is 192 x 512 in them, and 192 x 640 by the config (and 11 more)"),
    "more tokens": ({"vocab_size": 4224}, [], [], "embed_tokens.weight is 3072 x 192 in them, and 4224 x 192"),
    "untied": ({"tie_word_embeddings": False}, [], [], "lm_head.weight is in none of them, and would be random"),
    "one gone": ({}, [LAYER], [], f"{LAYER} is in none of them, and would be random"),
    "a bias": ({}, [], [LAYER.replace("weight", "bias")], "up_proj.bias is in them, and without a place"),
}


def changed(folder, config, lost, gained):
    shutil.copytree(local_models.folder("pocket"), folder)
    values = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(values))
    weights = load_file(folder / WEIGHTS)
    for name in lost:
        del weights[name]
    save_file(weights | {name: torch.zeros(512) for name in gained}, folder / WEIGHTS, {"format": "pt"})
    return str(folder)


@pytest.mark.parametrize("case", CASES)
def test_what_the_config_does_not_describe_is_refused(tmp_path, case):
    *changes, says = CASES[case]
    name = changed(tmp_path / "model", *changes)
    with pytest.raises(UserError, match="do not belong together") as error:
        models.load_plain(name)
    assert str(error.value).startswith(f"--model {name}: ") and says in str(error.value)


@pytest.mark.parametrize("case", ["wider", "more tokens"])
def test_shapes_in_four_bits(tmp_path, case):
    name = changed(tmp_path / "model", *CASES[case][:3])
    with pytest.raises(UserError, match="do not belong together"):
        models.load_plain(name, four_bit=True)


def test_weights_beside_a_language_model_are_named(tmp_path, capsys):
    name = changed(tmp_path / "model", {}, [], ["score.weight", "mtp.0.weight"])
    models.load_plain(name)
    assert f"--model {name}: 2 weights, such as mtp.0.weight, of its files are not used" in capsys.readouterr().out


def test_other_names_of_the_same_weights_are_taken(tmp_path):
    """As in files of the bare model, without its language model's head."""
    name = changed(tmp_path / "model", {}, [], [])
    weights = load_file(f"{name}/{WEIGHTS}")
    bare = {key.removeprefix("model."): value for key, value in weights.items()}
    save_file(bare, f"{name}/{WEIGHTS}", {"format": "pt"})
    found = loading.load_plain(name).state_dict()
    assert torch.equal(found[LAYER], weights[LAYER])


@pytest.mark.recipe
def test_unsloth_refuses_the_same(tmp_path):
    names = {case: changed(tmp_path / case, *CASES[case][:3]) for case in ("layers more", "wider", "untied")}
    done = forked.run("-c", UNSLOTH, json.dumps(names))
    assert done.returncode == 0, done.stderr[-3000:]
    for case in names:
        for four_bit in (False, True):
            (said,) = [line for line in done.stdout.splitlines() if line.startswith(f"{case} {four_bit}:")]
            assert "do not belong together" in said


UNSLOTH = """
import json, sys
from tunebook.common import models
from tunebook.common.errors import UserError
for case, name in json.loads(sys.argv[1]).items():
    for four_bit in (False, True):
        try:
            models.load(name, 64, four_bit=four_bit)
        except UserError as error:
            print(f"{case} {four_bit}: {error}")
"""
