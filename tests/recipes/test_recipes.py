"""The recipes for a few real steps: what they write, resume, reload with plain PEFT, and what they refuse."""

import json
import subprocess
import sys

import browser
import few
import forked
import golden
import plain
import pytest
from paths import ROOT
from transformers import AutoTokenizer

from tunebook.common import generation
from tunebook.common.generation.chat import Conversation
from tunebook.common.generation.decoding import Decoding
from tunebook.common.models.inference import InferenceModel
from tunebook.common.tokens import templates

RECIPES = sorted(path.name for path in (ROOT / "recipes").glob("*.py"))
# Resumed as another recipe is; they are where time does not matter.
AS_OTHERS = ("chat_sharegpt.py", "distill_alpaca.py", "lora_alpaca.py", "packed_alpaca.py", "prompt_tuning_alpaca.py")
OTHERS = [name for name in RECIPES if name not in ("pretrain_pocket.py", "qlora_alpaca.py", *AS_OTHERS)]
TRAINED = [
    pytest.param("qlora_alpaca.py", True, marks=pytest.mark.golden),  # its report's keys are kept
    *((name, True) for name in OTHERS),
    *((name, False) for name in AS_OTHERS),
    *(pytest.param(name, True, marks=pytest.mark.slow) for name in AS_OTHERS),
]


def run(*words, recipe="qlora_alpaca.py", cwd=ROOT):
    command = [sys.executable, str(ROOT / "recipes" / recipe), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=600, check=False)


def fork(*words, recipe="qlora_alpaca.py", cwd=None):
    return forked.run(ROOT / "recipes" / recipe, *words, cwd=cwd)


def bad_inputs(folder):
    (folder / "broken.jsonl").write_text('{"instruction": "a", "output": "b"}\n{"instruction": \n')
    (folder / "no_instruction.json").write_text('[{"input": "a", "output": "b"}]')
    (folder / "null.json").write_text('[{"instruction": "a", "output": null}]')
    (folder / "empty").mkdir()
    (folder / "finished").mkdir()
    (folder / "finished" / "report.json").write_text("{}")
    (folder / "run.yaml").write_text("learning_rat: 1\n")
    return [
        (["--dataset", "nowhere.json"], "nowhere.json: there is no such file"),
        (["--dataset", "broken.jsonl"], "line 2: not JSON"),
        (["--dataset", "no_instruction.json"], "row 1: `instruction` is missing"),
        (["--dataset", "null.json"], "row 1: `output` is null"),
        (["--learning_rte", "1"], "learning"),
        (["--config", "run.yaml"], "the nearest is learning_rate"),
        (["--model", "empty"], "has no config.json"),
        (["--model", "./gone"], "no such folder"),
        (["--eval_suite", "pockt"], "nearest is pocket"),
        (["--output_dir", "finished"], "holds a finished run"),
    ]


@pytest.mark.recipe
def test_bad_input_is_one_message_and_exit_2(tmp_path):
    for number, (words, says) in enumerate(bad_inputs(tmp_path)):
        done = (fork if number else run)("--output_dir", "out", *words, cwd=tmp_path)
        assert done.returncode == 2, (words, done.stderr)
        assert says in done.stderr.replace("\n", " ") and "Traceback" not in done.stderr, (words, done.stderr)
        assert not (tmp_path / "out" / "run.json").exists()
    assert (tmp_path / "finished" / "report.json").read_text() == "{}"


@pytest.mark.recipe
def test_unknown_sft_name_and_finished_runs(tmp_path):
    done = fork("--output_dir", tmp_path, "--sft", "warmup_step=2")
    assert done.returncode == 2 and "the nearest is warmup_steps" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.recipe
def test_nothing_to_train_ends_with_1(tmp_path):
    done = fork("--output_dir", tmp_path / "run", "--max_length", "8")
    assert done.returncode == 1 and "nothing would train" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.recipe
@pytest.mark.parametrize(("recipe", "resumes"), TRAINED)
def test_train_stop_resume_reload(tmp_path, recipe, resumes):
    """What a run writes, that it goes on where it was killed, and that plain PEFT reads it."""
    kind = {"dpo_pairs.py": "pairs", "chat_sharegpt.py": "chat"}.get(recipe, "")
    data = few.rows(tmp_path / "rows_in_a_folder_whose_name_is_wider_than_a_phone", kind, 40, 8)
    flags = ["--max_steps", "4", "--per_device_train_batch_size", "4", "--eval_suite", "none", "--dataset", data]
    if recipe != "loop_alpaca.py":  # it has no --sft
        flags += ["--sft", "save_steps=2", *(["eval_steps=2"] if recipe != "distill_on_policy.py" else [])]
    whole = fork("--output_dir", tmp_path / "whole", *flags, recipe=recipe)
    assert whole.returncode == 0, whole.stderr[-3000:]
    report = json.loads((tmp_path / "whole" / "report.json").read_text())
    for key in ("recipe", "args", "versions", "commit", "device", "data", "forecast", "measured", "train", "eval"):
        assert key in report
    assert report["train"]["steps"] == 4 and report["data"]["kept"] == 40
    assert report["forecast"]["seconds"] > 0 and report["measured"]["peak_bytes"] > 2**28
    assert all(sample["after"] is not None for sample in report["samples"])
    page = (tmp_path / "whole" / "report.html").read_text()
    assert "http" not in browser.own(page) and "<mark>" in page

    result = "model" if recipe == "sft_alpaca.py" else "adapter"
    if "distillation" in report:
        taught = report["distillation"]
        assert taught["teacher"] == "pocket_teacher" and report["train"]["parts"]["divergence"]
        assert all(words in page for words in ("pocket_teacher", f"{taught['divergence']} at T", taught["loss"]))
    assert fork("--output_dir", tmp_path / "whole", *flags, recipe=recipe).returncode == 2  # finished now
    if resumes:
        goes_on(tmp_path / "whole", tmp_path / "part", recipe, result, flags)
    travels(tmp_path / "whole", result)
    if recipe == "dpo_pairs.py":
        browser.look(tmp_path / "whole" / "report.html")
    if recipe == "qlora_alpaca.py":
        golden.check("report_keys.txt", "\n".join(golden.keys(report)))
    if recipe in ("packed_alpaca.py", "qlora_alpaca.py"):
        same_logits_with_plain_peft(tmp_path / "whole")


def goes_on(whole, part, recipe, result, flags):
    """A run killed after its checkpoint goes on to the weights, and the account, of the run that was left alone."""
    import torch
    from safetensors.torch import load_file

    subprocess.run(["cp", "-r", whole, part], check=True)
    for path in [part / "report.json", part / "report.html"]:
        path.unlink()
    last = max(part.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    subprocess.run(["rm", "-r", last, part / result], check=True)  # as if it had been killed before the last one
    again = run if recipe == "qlora_alpaca.py" else fork  # one in a process, with other seeds of str hashes
    resumed = again("--output_dir", part, *flags, recipe=recipe)
    assert resumed.returncode == 0 and "resuming from" in resumed.stdout, resumed.stderr[-3000:]
    (file,) = (path.name for path in (whole / result).glob("*.safetensors"))
    one, two = (load_file(folder / result / file) for folder in (whole, part))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    report, of_both = (json.loads((folder / "report.json").read_text()) for folder in (whole, part))
    for place, key in (("measured", "trained_tokens"), ("train", "loss"), ("train", "parts"), ("train", "evaluations")):
        assert of_both[place][key] == report[place][key], key


def travels(folder, result):
    """The template of the training lies in the result and in every checkpoint, and transformers and PEFT alone answer
    with it as tunebook chat does, from the result and the last checkpoint. PEFT cannot load a bottleneck adapter: of
    that, the prompts are looked at."""
    talk = [{"role": "user", "content": "What is the capital of Arvania?"}]
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    places = [folder / result, *reversed(checkpoints)]
    for place in places:
        template, tokenizer = templates.load(place), AutoTokenizer.from_pretrained(place)
        prompt = Conversation(tokenizer, template).prompt(talk[0]["content"])[0]
        assert plain.ids(place, talk) == prompt
        assert tokenizer.eos_token_id == generation.end_of_turn(tokenizer, template)
        assert tokenizer.eos_token_id in plain.ends(place)
        if (place / "bottleneck.json").exists():
            assert InferenceModel(adapters=[str(place)]).template == template
            continue
        if place in checkpoints[:-1]:
            continue
        whole = (place / "config.json").exists()
        mine = InferenceModel(str(place) if whole else "", [] if whole else [str(place)])
        stop = generation.stop_conditions(mine.tokenizer, mine.template, mine.model)
        (answer,) = generation.generate(mine.model, mine.tokenizer, [prompt], Decoding(12), stop)
        assert mine.template == template
        for said in plain.answers(place, [talk], 12)[0]:
            assert plain.bare(said) == plain.bare(answer.text)
    assert len(places) > 1


def same_logits_with_plain_peft(folder):
    """Unsloth, and transformers and PEFT alone in a process of their own, give the same logits."""
    code = """
import sys, torch
folder, how = sys.argv[1:]
from tunebook.common import data, models
from tunebook.common.tokens import templates
if how == "unsloth":
    base, tokenizer = models.load("pocket", 512)
else:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    base = AutoModelForCausalLM.from_pretrained(models.resolve("pocket"), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder + "/adapter")
from peft import PeftModel
model = PeftModel.from_pretrained(base, folder + "/adapter").eval()
text = templates.load(folder + "/adapter").prompt(data.load("pocket")["test"][0])
with torch.no_grad():
    torch.save(model(**tokenizer(text, return_tensors="pt")).logits, f"{folder}/{how}.pt")
assert ("unsloth" in sys.modules) == (how == "unsloth")
"""
    import torch

    done = forked.run("-c", code, folder, "unsloth")
    assert done.returncode == 0, done.stderr[-3000:]
    subprocess.run([sys.executable, "-c", code, str(folder), "plain"], check=True, timeout=300, cwd=ROOT)
    logits = [torch.load(folder / f"{how}.pt") for how in ("unsloth", "plain")]
    assert torch.allclose(*logits, atol=1e-5, rtol=0)


@pytest.mark.recipe
def test_the_loop_equals_the_trainer(tmp_path):
    losses = {}
    for name, more in (("lora_alpaca", ["--sft", "logging_steps=1"]), ("loop_alpaca", [])):
        flags = ["--max_steps", "12", "--gradient_accumulation_steps", "2", "--per_device_train_batch_size", "8"]
        flags += ["--eval_suite", "none", "--dataset", few.rows(tmp_path / "few")]
        done = fork("--output_dir", tmp_path / name, *flags, *more, recipe=f"{name}.py")
        assert done.returncode == 0, done.stderr[-3000:]
        lines = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        losses[name] = [line["loss"] for line in lines if "loss" in line]
    assert len(losses["loop_alpaca"]) == 12
    assert losses["loop_alpaca"] == pytest.approx(losses["lora_alpaca"], abs=1e-5)
    held_out = [json.loads((tmp_path / name / "report.json").read_text())["eval"]["loss"] for name in losses]
    assert held_out[0] == pytest.approx(held_out[1], abs=1e-4)  # both are means over tokens


@pytest.mark.recipe
def test_pretraining_learns_and_records(tmp_path):
    flags = [
        "--max_steps",
        "4",
        "--per_device_train_batch_size",
        "4",
        "--hidden_size",
        "64",
        "--num_attention_heads",
        "2",
    ]
    done = run("--output_dir", tmp_path, *flags, recipe="pretrain_pocket.py")
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((tmp_path / "pretraining.json").read_text())
    assert record["loss"][-1][1] < record["loss"][0][1] and record["tokens"] == 4 * 4 * 256
    assert fork("--output_dir", tmp_path, *flags, recipe="pretrain_pocket.py").returncode == 2
