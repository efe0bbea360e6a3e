"""tunebook new on files as people have them: what it proposes, and that what it writes trains."""

import json

import forked
import pytest
from called import call
from paths import DATA, SHARED, WHOLE, needs_data

from tunebook.common import catalog

pytestmark = [pytest.mark.real_data, needs_data]
# file, words after it -> kind, recipe, template, max_length, rows a step.
PROPOSED = [
    ("data/alpaca/rasbt_instruction_data.json", (), "instruction", "lora_alpaca", "alpaca", 192, 8),
    ("data/alpaca/torchtune_alpaca_tiny.json", (), "instruction", "lora_alpaca", "alpaca", 512, 4),
    ("data/sft/dolly_151_prompt_answer.jsonl", (), "pair", "lora_alpaca", "alpaca", 512, 4),
    ("data/multilingual/mgsm/mgsm_de.tsv", ("header=no", "instruction=1", "output=2"),
     "instruction", "lora_alpaca", "alpaca", 448, 4),
    ("data/chat/fastchat_dummy_conversation.json", (), "chat", "chat_sharegpt", "tokenizer", 192, 8),
    ("data/chat/openassistant_en_100_tree.jsonl", (), "chat", "chat_sharegpt", "tokenizer", 512, 4),
    ("data/chat/llamafactory_glaive_toolcall_en_demo.json", (), "chat", "chat_sharegpt", "chatml", 512, 4),
    ("data/preference/llamafactory_dpo_en_demo.json", (), "preference", "dpo_pairs", "tokenizer", 512, 4),
    ("cases/data/23-save-to-disk/saved", (), "instruction", "lora_alpaca", "alpaca", 128, 4),
    ("cases/data/30-empty-rejected/d.jsonl", (), "preference", "dpo_pairs", "tokenizer", 128, 4),
]  # fmt: skip
TRAINED = PROPOSED if WHOLE else PROPOSED[1:2]


def proposed(tmp_path, file, words):
    output, report = tmp_path / "mine.py", tmp_path / "mine.json"
    data = SHARED / file
    assert call("new", data, *words, "--model", "pocket", "--no-plan", "--output", output, "--json", report) == 0
    return output, json.loads(report.read_text())


@pytest.mark.parametrize("file, words, kind, recipe, template, length, step", PROPOSED, ids=[x[0] for x in PROPOSED])
def test_proposal(tmp_path, file, words, kind, recipe, template, length, step):
    output, report = proposed(tmp_path, file, words)
    made = report["proposed"]
    assert (report["found"]["kind"], made["recipe"], made["template"]["value"]) == (kind, recipe, template)
    args = catalog.load(output).Args()
    assert (args.max_length, args.per_device_train_batch_size) == (length, step)
    assert all(one["because"] for one in made["choices"].values())


@pytest.mark.parametrize("file, says", [
    ("data/sft/c4_demo.jsonl", "data for pretraining"),
    ("data/chat/mt_bench_question_80.jsonl", "no known columns"),
    ("data/chat/axolotl_conversation.json", "put [ and ] around a single row"),
    ("data/sft/self_instruct_seed_tasks.jsonl", "`output` is missing"),
    ("cases/data/19-images-beside-text/d.jsonl", "what a text model does not see"),
    ("cases/walk.md", "plain text has no prompt and answer"),
])  # fmt: skip
def test_refusal(tmp_path, capsys, file, says):
    assert call("new", SHARED / file, "--model", "pocket", "--no-plan", "--output", tmp_path / "a.py") == 2
    assert says in capsys.readouterr().err and not (tmp_path / "a.py").exists()


@pytest.mark.recipe
@pytest.mark.parametrize("file, words", [one[:2] for one in TRAINED], ids=[one[0] for one in TRAINED])
def test_it_trains(tmp_path, file, words):
    output, _ = proposed(tmp_path, file, words)
    done = forked.run(output, "--max_steps", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "runs" / "mine" / "report.json").read_text())["train"]["steps"] == 2


def test_the_data_are_there():
    assert all((SHARED / one[0]).exists() for one in PROPOSED) and DATA.exists()
