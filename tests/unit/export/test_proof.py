"""The proof holds of an export as it was trained; each planted fault is told in a sentence, with exit code 1."""

import json
import shutil

import pytest
import torch
import trained_runs
from safetensors.torch import load_file, save_file

from tunebook.common.errors import CheckFailed
from tunebook.common.export import conversations, exporting, merge, output_proof, proof, source, weight_proof
from tunebook.common.export.base_weights import BaseWeights
from tunebook.common.export.bounds import BOUNDS
from tunebook.common.export.exported_weights import ExportedFolder
from tunebook.common.export.reference import Reference
from tunebook.common.export.served import level
from tunebook.common.export.trained_weights import AdaptedWeights
from tunebook.common.pocket import FOLDER


@pytest.fixture(scope="module")
def few():
    """A proof of 5 conversations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversations, "COUNT", 5)
        patch.setattr(conversations, "TOKENS", 0)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory, few):
    return trained_runs.lora_run(tmp_path_factory.mktemp("runs") / "rslora", use_rslora=True, steps=12)


@pytest.fixture(scope="module")
def reference(run):
    return Reference(source.find(str(run)))


@pytest.fixture(scope="module")
def served(reference, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "merged"
    finish = lambda proofs, part: proof.write(proofs, {}, part / proof.FILE)  # noqa: E731
    return folder, exporting.export(reference, "merged", folder, exporting.Options(), finish)


@pytest.fixture
def copy(served, tmp_path):
    """The export, to be damaged."""
    return shutil.copytree(served[0], tmp_path / "copy")


def said(reference, folder):
    """What the proof of a folder says where it fails."""
    with pytest.raises(CheckFailed) as failed:
        proof.conclude(exporting.prove_folder(reference, folder), None)
    return str(failed.value)


def test_a_merged_run_is_what_was_trained(served, run):
    folder, proofs = served
    proof.conclude(proofs, folder / proof.FILE)
    result = json.loads((folder / proof.FILE).read_text())
    (found,) = result["exports"]
    assert result["holds"] and found["holds"]
    assert {check["point"] for check in found["checks"]} == {1, 2, 3, 4, 5}
    assert found["outputs"]["equal_answers"] == 1 and found["weights"]["found"] == pytest.approx(1, abs=1e-3)
    for name in ("chat_template.jinja", "tokenizer.json", "template.json"):
        assert (folder / name).read_bytes() == (run / "adapter" / name).read_bytes()
    written = json.loads((folder / "generation_config.json").read_text())
    assert written == {"eos_token_id": 0, "pad_token_id": 1}
    assert str(FOLDER) not in "".join(path.read_text() for path in folder.glob("*.json"))


def test_an_end_token_that_is_lost_is_found(reference, copy):
    path = copy / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": 2, "pad_token_id": 1}))
    assert "answers end with <|endoftext|> in training" in said(reference, copy)


def test_a_padding_token_that_ends_answers_is_found(reference, copy):
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [0], "pad_token_id": 0}))
    assert "is <|endoftext|>, an end token" in said(reference, copy)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"pad_token_id": 1}, "its end tokens are none"),
        ({"eos_token_id": 99_999}, "its end tokens are id 99999"),
        ({"eos_token_id": "</s>"}, "its end tokens are none"),
        ({"eos_token_id": [0], "pad_token_id": 99_999}, "pads with id 99999, which is no token"),
    ],
)
def test_end_and_padding_tokens_that_are_none_are_found(reference, copy, values, message):
    (copy / "generation_config.json").write_text(json.dumps(values))
    assert message in said(reference, copy)


def test_a_template_with_another_system_text_is_found(reference, copy):
    path = copy / "chat_template.jinja"
    path.write_text("{{ 'You are a helpful assistant.\\n\\n' }}" + path.read_text())
    text = said(reference, copy)
    assert "prompt 1 is another than in training" in text and "helpful" in text


def test_a_scale_that_was_ignored_is_found(reference, copy, run, tmp_path):
    adapter = shutil.copytree(run / "adapter", tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"use_rslora": False}))
    merge.write(AdaptedWeights(BaseWeights(FOLDER / "model"), adapter), copy, "float16")
    assert "0.35 of what training changed is in the merged weights, not 1: the adapter was scaled" in said(
        reference, copy
    )


def test_an_adapter_that_was_merged_twice_is_found(reference, copy, served, run):
    merge.write(AdaptedWeights(BaseWeights(served[0]), run / "adapter"), copy, "float16")
    assert "2.00 of what training changed is in the merged weights, not 1: the adapter is merged twice" in said(
        reference, copy
    )


def test_the_base_instead_of_the_merged_weights_is_found(reference, copy):
    shutil.copyfile(FOLDER / "model" / "model.safetensors", copy / "model.safetensors")
    text = said(reference, copy)
    assert "0.00 of what training changed" in text and "it is the base" in text and "the tuning is lost" in text


def test_an_adapter_on_another_base_is_found(reference, copy, run, tmp_path):
    base = shutil.copytree(FOLDER / "model", tmp_path / "base")
    state = load_file(base / "model.safetensors")
    torch.manual_seed(0)
    save_file(
        {name: value + 0.05 * torch.randn_like(value) for name, value in state.items()}, base / "model.safetensors"
    )
    merge.write(AdaptedWeights(BaseWeights(base), run / "adapter"), copy, "float16")
    assert "this is another base, or it was trained on another one" in said(reference, copy)


def test_an_output_layer_that_was_dropped_is_found(reference, copy):
    state = load_file(copy / "model.safetensors")
    del state["model.layers.0.mlp.down_proj.weight"]
    save_file(state, copy / "model.safetensors", {"format": "pt"})
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    text = said(reference, copy)
    assert "missing: model.layers.0.mlp.down_proj.weight, lm_head.weight" in text


def damaged(copy, change):
    """Replace weights of an export: name -> value."""
    file = copy / "model.safetensors"
    save_file(load_file(file) | change, file, {"format": "pt"})


def test_a_weight_that_is_no_number_is_found_wherever_it_stands(reference, copy):
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.norm.weight"):
        value = reference.weights.read(name).half()
        value.view(-1)[0] = float("nan")
        damaged(copy, {name: value})
        found = ExportedFolder(copy, reference.weights)
        checks, _ = weight_proof.check(reference.weights, found, BOUNDS[16], "the file")
        assert f"{name} holds values that are no numbers" in [check.failure for check in checks]
        damaged(copy, {name: reference.weights.read(name).half()})


def test_one_module_that_was_merged_twice_is_found(reference, copy):
    name = "model.layers.2.mlp.up_proj.weight"
    trained, base = reference.weights.read(name), reference.base.read(name)
    damaged(copy, {name: (2 * trained - base).half()})
    found = ExportedFolder(copy, reference.weights)
    checks, _ = weight_proof.check(reference.weights, found, BOUNDS[4], "the file")  # so wide that this alone tells
    assert f"what training changed is in 1 of 28 weights more than once: {name}" in [check.failure for check in checks]


def test_an_adapter_without_a_layer_is_found(reference, run, tmp_path):
    """Though it says itself that it has none there, so that PEFT loads it."""
    adapter = shutil.copytree(run / "adapter", tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    save_file({name: value for name, value in load_file(file).items() if ".layers.0." not in name}, file)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"layers_to_transform": [1, 2, 3]}))
    assert "not 1: it is lost in 7 weights, such as model.layers.0." in said(reference, adapter)


def test_an_adapter_that_changes_nothing_is_found(run, tmp_path, tunebook, few):
    empty = shutil.copytree(run, tmp_path / "empty")
    state = load_file(empty / "adapter" / "adapter_model.safetensors")
    save_file({name: 0 * value for name, value in state.items()}, empty / "adapter" / "adapter_model.safetensors")
    code, out, err = tunebook("export", empty, "--to", "merged", "--output_dir", tmp_path / "out")
    assert code == 1 and "FAILED" in out
    assert "training has changed nothing: the adapter's weights are zero" in err


def test_a_change_that_rounding_swallows_is_named(run, tmp_path):
    base = shutil.copytree(FOLDER / "model", tmp_path / "base")
    state = {name: value.bfloat16() for name, value in load_file(base / "model.safetensors").items()}
    save_file(state, base / "model.safetensors", {"format": "pt"})
    adapter = shutil.copytree(run / "adapter", tmp_path / "adapter")
    small = {
        name: value * (1e-4 if "lora_B" in name else 1)
        for name, value in load_file(adapter / "adapter_model.safetensors").items()
    }
    save_file(small, adapter / "adapter_model.safetensors")
    trained = AdaptedWeights(BaseWeights(base), adapter)
    (tmp_path / "out").mkdir()
    merge.write(trained, tmp_path / "out", "bfloat16")
    checks, figures = weight_proof.check(trained, ExportedFolder(tmp_path / "out", trained), BOUNDS[16], "the file")
    assert figures["found"] < 0.1 and "model.layers.0.self_attn.q_proj.weight" in figures["swallowed"]
    assert "rounding has swallowed the change" in " ".join(check.failure for check in checks)


@pytest.mark.parametrize(
    "found, lost, word",
    [
        (0.35, 0.65, "scaled in another way"),
        (0.39, 0.84, "rounding has swallowed part of it"),  # 12 steps of DPO on a base in bfloat16
        (2.0, 1.0, "merged twice"),
        (0.0, 1.0, "it is the base"),
        (float("nan"), 1.0, "no number"),
    ],
)
def test_the_sentence_names_the_likely_cause(found, lost, word):
    assert word in weight_proof._why(found, lost)


def test_a_run_in_four_bits_is_merged_into_what_it_was_trained_on(tmp_path, few):
    run = trained_runs.lora_run(tmp_path / "qlora", quantized=True, steps=5)
    found = Reference(source.find(str(run)))
    assert found.source.four_bit
    (proved,) = exporting.export(found, "merged", tmp_path / "out", exporting.Options())
    assert not [check for check in proved.checks if check.failure]
    other = Reference(source.find(str(run)), into="original")
    found.weights.read("model.layers.0.self_attn.q_proj.weight")
    near = ExportedFolder(tmp_path / "out", other.weights)
    checks, _ = weight_proof.check(other.weights, near, BOUNDS[16], "the merged weights")
    assert "more than rounding can" in " ".join(check.failure for check in checks)  # as 4 bits of the base are


def test_chats_are_proved_in_their_own_template_over_three_turns(tmp_path, few):
    from tunebook.common.tokens import templates, tokenization

    tokenizer = tokenization.load("pocket")[0]
    template = templates.get("chatml", tokenizer)
    run = trained_runs.lora_run(tmp_path / "chat", template=template, dataset="pocket_chat", steps=5)
    found = Reference(source.find(str(run)))
    (proved,) = exporting.export(found, "merged", tmp_path / "out", exporting.Options())
    assert not [check.failure for check in proved.checks if check.failure]
    turns = next(check for check in proved.checks if check.name == "three turns equal training's")
    assert turns.value == "3 of 3; each extends the last"
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"][0] == 3


def test_short_answers_are_compared_in_more_conversations(reference, monkeypatch):
    monkeypatch.setattr(conversations, "TOKENS", 40)
    found = conversations.held_out(reference.source, reference.tokenizer, reference.template)
    tokens = [stop - start for start, stop in (one.stretch for one in found)]
    assert 40 <= sum(tokens) < 40 + tokens[-1] + 1 and len(found) > conversations.COUNT
    assert [one.ids for one in found[:5]] == [one.ids for one in reference.conversations]
    few = conversations.held_out(reference.source, reference.tokenizer, reference.template, positions=130)
    assert few and all(one.start + conversations.LIMIT <= 130 for one in few)


def test_a_control_token_is_found_in_any_text_of_a_row():
    row = {"messages": [{"role": "user", "content": [{"text": '<|"|>'}]}], "k": 1}
    assert '<|"|>' in list(conversations._texts(row))


def test_a_token_level_with_the_likeliest_is_no_fault():
    near = level(torch.tensor([[10.0, 9.95, 9.9], [-10.0, -10.05, -10.1], [0.0, 0.0, 1.0]]))
    assert near.tolist() == [[True, True, False]] * 2 + [[False, False, True]]  # from 8 to 16 a step is 1/16
    trained = output_proof.Outputs([torch.tensor([[10.0, 9.95, 9.0]])], [[0, 2]], [[{0, 1}, {2}]])

    def holds(logits, answer, bits=16):
        served = output_proof.Outputs([torch.tensor([logits])], [answer])
        found, figures = output_proof.check(trained, None, served, [2], BOUNDS[bits], str)
        by_name = {check.name.split(" (")[0]: check.holds for check in found}
        return by_name["likeliest token equal"], by_name["greedy answers equal"], figures["top1"]

    assert holds([10.0, 9.95, 9.0], [0, 2]) == (True, True, 1.0)
    assert holds([9.95, 10.0, 9.0], [1, 0, 2]) == (True, True, 0.0)  # another way from where both are as good
    assert holds([9.95, 10.0, 9.0], [1, 0, 2], 32) == (False, False, 0.0)
    assert holds([9.0, 9.95, 10.0], [2]) == (False, False, 0.0)
    assert holds([10.0, 9.95, 9.0], [0, 1, 2]) == (True, False, 1.0)
    assert holds([10.0, 9.95, 9.0], [0]) == (True, False, 1.0)  # its end is lost
