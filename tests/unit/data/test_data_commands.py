"""inspect, split and augment on data that is not as it should be, and as recipes train it."""

import json
import re
import subprocess
import sys

import pytest
from called import ROWS, call, read, write
from paths import ROOT

from tunebook.common import catalog
from tunebook.common.commands import trained
from tunebook.common.errors import UserError
from tunebook.common.tokens import encoding, templates, tokenization

TALK = [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]


def test_inspect_shows_what_a_recipe_trains(tmp_path, capsys):
    """Ids and labels of --recipe are those of masking.encode called as in the recipe's text."""
    rows = [{"question": row["instruction"], "answer": row["output"], "id": n} for n, row in enumerate(ROWS[:6])]
    rows[2]["answer"] = "word " * 600
    data, out = write(tmp_path / "rows.jsonl", rows), tmp_path / "a.jsonl"
    assert call("inspect", data, "--recipe", "lora_alpaca", "--tokens", out, "--json", tmp_path / "a.json") == 0
    said = capsys.readouterr().out
    assert "template alpaca (of lora_alpaca)" in said and "WARNING: 17 % of the rows (1 of 6) are dropped" in said
    assert "columns prompt=question, completion=answer; not used: id" in said
    source = (ROOT / "recipes" / "lora_alpaca.py").read_text(encoding="utf-8")
    limit = int(re.search(r"max_length: int = (\d+)", source)[1])
    assert "template = templates.ALPACA" in source
    pairs = [{"prompt": row["question"], "completion": row["answer"]} for row in rows]
    wanted, _ = encoding.encode(pairs, tokenization.load("pocket")[0], templates.ALPACA, limit)
    lines = read(out)
    assert [line["input_ids"] for line in lines] == wanted["input_ids"]
    assert [line["labels"] for line in lines] == wanted["labels"] and len(lines) == 5
    report = json.loads((tmp_path / "a.json").read_text())
    assert (report["recipe"], report["max_length"]) == ("lora_alpaca", limit)


@pytest.mark.parametrize("name", catalog.recipes())
def test_what_a_recipe_does_is_read_from_its_text(name):
    text = catalog.recipes()[name].read_text(encoding="utf-8")
    if name in ("dpo_pairs", "pretrain_pocket"):
        with pytest.raises(UserError, match="--dry_run"):
            trained.by(name)
        return
    found = trained.by(name)
    assert found.template == ("tokenizer" if 'templates.get("tokenizer"' in text else "alpaca")
    assert f"max_length: int = {found.max_length} " in text and found.train_on == "assistant"


def test_a_copy_of_a_recipe_and_flags_that_win(tmp_path, capsys):
    text = (ROOT / "recipes" / "chat_sharegpt.py").read_text(encoding="utf-8")
    mine = tmp_path / "mine.py"
    mine.write_text(
        text.replace('train_on="assistant"', 'train_on="last_assistant"').replace('"tokenizer"', '"chatml"')
    )
    assert (trained.by(str(mine)).template, trained.by(str(mine)).train_on) == ("chatml", "last_assistant")
    data = write(tmp_path / "rows.jsonl", [{"conversations": TALK * 2}])
    assert call("inspect", data, "--recipe", mine, "--template", "llama3", "--json", tmp_path / "a.json") == 0
    report = json.loads((tmp_path / "a.json").read_text())
    assert (report["template"], report["train_on"], report["max_length"]) == ("llama3", "last_assistant", 512)
    assert call("inspect", data, "--recipe", "lora_alpca") == 2
    assert "the nearest is lora_alpaca" in capsys.readouterr().err


def test_the_default_template_is_that_of_recipes(tmp_path, capsys):
    pairs = write(tmp_path / "pairs.jsonl", [{"question": "a?", "answer": "b"}] * 3)
    chats = write(tmp_path / "chats.jsonl", [{"conversations": TALK}] * 3)
    for data, recipe in ((pairs, "lora_alpaca"), (chats, "chat_sharegpt")):
        made = [tmp_path / name for name in ("default.jsonl", "recipe.jsonl")]
        assert call("inspect", data, "--tokens", made[0]) == 0
        assert call("inspect", data, "--tokens", made[1], "--recipe", recipe) == 0
        assert read(made[0]) == read(made[1])
        assert f"{recipe.replace('lora', '*')}" in capsys.readouterr().out


def test_bad_rows_are_dropped_by_every_command(tmp_path, capsys):
    bad = {"conversations": TALK[1:] + TALK}
    data = write(tmp_path / "rows.jsonl", [{"conversations": TALK}] * 5 + [bad])
    for words in (("inspect", data), ("split", data, "--output_dir", tmp_path / "s"),
                  ("augment", data, "--output", tmp_path / "m.jsonl")):  # fmt: skip
        assert call(*words) == 2
        assert "--bad_rows drop" in capsys.readouterr().err
        assert call(*words, "--bad_rows", "drop") == 0
        assert "1 row dropped: 1 as turn_order" in capsys.readouterr().out
    assert call("inspect", data, "--bad_rows", "drop", "--json", tmp_path / "a.json") == 0
    counts = json.loads((tmp_path / "a.json").read_text())["counts"]
    assert counts["dropped"] == {"turn_order": 1} and (counts["rows"], counts["kept"]) == (6, 5)


def test_split_says_why_a_side_is_empty_and_keeps_names_of_earlier_files(tmp_path, capsys):
    data = write(tmp_path / "rows.jsonl", [{**ROWS[0], "output": str(n)} for n in range(20)])
    assert call("split", data, "--output_dir", tmp_path / "one") == 0
    said = capsys.readouterr().out
    assert "no rows for validation and test: 20 of 20 rows ask nearly the same" in said and "--near no" in said
    assert call("split", tmp_path / "one" / "train.jsonl", "--output_dir", tmp_path / "two") == 0
    assert call("split", tmp_path / "two" / "train.jsonl", "--output_dir", tmp_path / "three") == 0
    row = read(tmp_path / "three" / "train.jsonl")[0]
    assert row["their_source"] == str(data) and row["their_their_source"].endswith("one/train.jsonl")


def test_augment_into_a_folder(tmp_path, capsys):
    data = write(tmp_path / "rows.jsonl", ROWS[:20])
    assert call("augment", data, "--output_dir", tmp_path / "more") == 0
    assert [path.name for path in (tmp_path / "more").iterdir()] == ["train.jsonl"]
    assert call("augment", data, "--output", tmp_path / "more.jsonl") == 0
    assert read(tmp_path / "more" / "train.jsonl") == read(tmp_path / "more.jsonl")
    for words, says in (
        ([data, "--output_dir", tmp_path / "more"], "--overwrite"),
        ([data, "--output_dir", tmp_path / "x", "--output", tmp_path / "y.jsonl"], "one of them"),
        ([data, "--output_dir", tmp_path / "x.jsonl"], f"--output {tmp_path / 'x.jsonl'}"),
        ([tmp_path / "more", "--output_dir", tmp_path / "more", "--overwrite"], "is the data itself"),
    ):
        assert call("augment", *words) == 2
        assert says in capsys.readouterr().err
    assert call("inspect", tmp_path / "more") == 0


def test_what_cannot_be_read_is_told_before_anything_heavy_is_imported(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    code = "import sys; from tunebook.common.commands import main\n"
    code += "try: main(['inspect', sys.argv[1]])\nexcept SystemExit: pass\n"
    code += "print({'torch', 'transformers', 'datasets', 'tokenizers'} & set(sys.modules))"
    words = [sys.executable, "-c", code, str(tmp_path / "empty.jsonl")]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert "has no rows" in done.stderr and done.stdout.strip() == "set()"
