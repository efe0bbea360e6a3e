"""Loading: what the words of --dataset mean, rows that can be read again and again, sides without leakage."""

import gzip
import json

import pytest
from paths import DATA, needs_data

from tunebook.common import data
from tunebook.common.data import loading, readers, schema, splitting
from tunebook.common.data.rows import kind as kind_of
from tunebook.common.errors import UserError

TOPICS = ["rain", "bread", "music", "trains", "glass", "otters", "maps", "winter", "paint", "rope", "salt", "kites"]


def rows(count, start=0):
    """Rows whose questions are unlike each other."""
    words = [
        TOPICS[(n * 7 + k * k) % len(TOPICS)] + str(n * 31 + k) for n in range(start, start + count) for k in (1, 2)
    ]
    return [
        {"instruction": f"{words[2 * n]} or {words[2 * n + 1]}?", "input": "", "output": f"{n}", "extra": start + n}
        for n in range(count)
    ]


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def lines(values):
    return "\n".join(json.dumps(value) for value in values) + "\n"


def asked(side):
    return [row["instruction"] for row in side]


@pytest.fixture
def small(monkeypatch):
    """Every source counts as too large for the memory."""
    monkeypatch.setattr(loading, "IN_MEMORY_BYTES", 0)


def test_pocket_has_its_own_sides():
    sides = data.load("pocket")
    assert list(sides) == ["train", "validation", "test"] and len(sides["train"]) > 3000
    first = sides["test"][0]
    assert first["row"] == 1 and first["source"] == "pocket" and kind_of(first) == "instruction"
    assert len(sides["validation"][:300]) == 300
    assert sides.weights == {"pocket": None} and sides.unit == "rows" and sides.notes == []


def test_formats_agree(tmp_path):
    wanted = rows(60)
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(lines(wanted).encode()))
    names = [
        write(tmp_path / "a.json", json.dumps(wanted, indent=1)),
        write(tmp_path / "b.jsonl", lines(wanted)),
        str(tmp_path / "c.jsonl.gz"),
    ]
    loaded = [{side: asked(found) for side, found in data.load(name).items()} for name in names]
    assert loaded[0] == loaded[1] == loaded[2]
    assert sorted(text for side in loaded[0].values() for text in side) == sorted(asked(wanted))


def test_streamed_rows_are_those_held(tmp_path, monkeypatch):
    name = write(tmp_path / "a.jsonl", lines(rows(200)))
    held = data.load(name)
    monkeypatch.setattr(loading, "IN_MEMORY_BYTES", 0)
    streamed = data.load(name)
    for side in held:
        once, again = list(streamed[side]), list(streamed[side])
        assert once == again == list(held[side]) and len(once) == len(streamed[side])
        assert streamed[side][3] == once[3] and streamed[side][-1] == once[-1]
        assert streamed[side][2:9:3] == once[2:9:3] and streamed[side][::-1] == once[::-1]
        with pytest.raises(IndexError):
            streamed[side][len(once)]
    assert sorted(row["row"] for side in streamed.values() for row in side) == list(range(1, 201))


def test_a_file_that_changes_is_noticed(tmp_path, small):
    name = write(tmp_path / "a.jsonl", lines(rows(50)))
    sides = data.load(name)
    write(tmp_path / "a.jsonl", lines(rows(40)))
    with pytest.raises(UserError, match="changed"):
        list(sides["train"])


def test_seed_decides_the_sides(tmp_path):
    name = write(tmp_path / "a.jsonl", lines(rows(300)))
    first = data.load(name, seed=3)
    assert asked(first["train"]) == asked(data.load(name, seed=3)["train"]) != asked(data.load(name, seed=4)["train"])
    assert [len(side) for side in first.values()] == [255, 30, 15]


def test_one_question_is_on_one_side_across_files(tmp_path):
    left = write(tmp_path / "a.jsonl", lines(rows(100)))
    right = write(tmp_path / "b.jsonl", lines([{**row, "output": "another"} for row in rows(100)]))
    sides = data.load([left, right])
    kinds = [set(asked(side)) for side in sides.values()]
    assert not (kinds[0] & kinds[1] or kinds[0] & kinds[2] or kinds[1] & kinds[2])
    assert {row["source"] for row in sides["test"]} == {left, right}


def test_very_many_rows_are_split_by_equal_questions(tmp_path, small, monkeypatch):
    assert data.NEAR_DUPLICATE_LIMIT == splitting.NEAR_DUPLICATE_LIMIT
    monkeypatch.setattr(loading, "NEAR_DUPLICATE_LIMIT", 50)
    wanted = [
        {"instruction": f"  Say {n % 90} ".upper() if n % 2 else f"say {n % 90}", "output": ""} for n in range(270)
    ]
    sides = data.load(write(tmp_path / "a.jsonl", lines(wanted)))
    kinds = [{text.strip().lower() for text in asked(side)} for side in sides.values()]
    assert not (kinds[0] & kinds[1] or kinds[0] & kinds[2] or kinds[1] & kinds[2])
    assert "270 rows" in sides.notes[0] and sum(map(len, sides.values())) == 270


def test_folder_of_parts_is_one_source(tmp_path):
    write(tmp_path / "b.jsonl", lines(rows(20, 20)))
    write(tmp_path / "a.jsonl", lines(rows(20)))
    write(tmp_path / "README.md", "words")
    sides = data.load(str(tmp_path))
    found = sorted((row for side in sides.values() for row in side), key=lambda row: row["row"])
    assert [row["row"] for row in found] == list(range(1, 41)) and [row["extra"] for row in found] == list(range(40))
    assert sides.weights == {str(tmp_path): None}


def test_folder_with_sides_keeps_them(tmp_path):
    for name, start in (
        ("train-00000-of-00002", 0),
        ("train-00001-of-00002", 20),
        ("dev", 40),
        ("test", 60),
        ("old", 80),
    ):
        write(tmp_path / f"{name}.jsonl", lines(rows(20, start)))
    sides = data.load(str(tmp_path))
    assert [[row["extra"] for row in side] for side in sides.values()] == [
        list(range(40)),
        list(range(40, 60)),
        list(range(60, 80)),
    ]
    assert "old.jsonl" in sides.notes[0]


def test_a_side_that_is_missing_is_taken_from_train(tmp_path):
    write(tmp_path / "train.jsonl", lines(rows(200)))
    write(tmp_path / "test.jsonl", lines(rows(7, 900)))
    sides = data.load(str(tmp_path))
    assert [len(side) for side in sides.values()] == [180, 20, 7]


def test_words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.json", json.dumps(rows(20)))
    write(tmp_path / "b.csv", "q,a\nOne apple?,yes\nTwo pears?,no\nThree figs?,maybe\n")
    write(tmp_path / "odd:name=x.jsonl", lines(rows(20)))
    sides = data.load("a.json:0.7 b.csv:5000 prompt=q completion=a shares=tokens")
    assert sides.weights == {"a.json": 0.7, "b.csv": 5000} and sides.unit == "tokens"
    kinds = {row["source"]: kind_of(row) for side in sides.values() for row in side}
    assert kinds == {"a.json": "instruction", "b.csv": "pair"}
    assert data.load(["odd:name=x.jsonl"]).weights == {"odd:name=x.jsonl": None}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("a.json:0", "above 0"),
        ("a.json:-1", "above 0"),
        ("a.json:1.5", "at most 1.0"),
        ("a.json:nan", "above 0"),
        ("a.json:half", "not 'half'"),
        ("a.json a.json:5", "named twice"),
        ([""], "empty name"),
        ("instruction=q a.json", "name the file before"),
        ("a.json answer=q", "answer is none of"),
        ("a.json shares=bytes", "rows or tokens"),
        ("a.json header=maybe", "yes or no"),
        ("a.json output=answr", "no such column; the nearest is answer"),
        ("a.json output=answer messages=m", "no such column"),
        ("a.jsn", "no such file"),
        ("./gone.jsonl", "no such file"),
        ([], "needs a file"),
    ],
)
def test_words_that_mean_nothing(tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.json", json.dumps([{"instruction": "a", "answer": "b"}] * 3))
    with pytest.raises(UserError, match=says):
        data.load(words)


def test_the_name_that_was_meant(tmp_path):
    write(tmp_path / "rows.jsonl", lines(rows(3)))
    with pytest.raises(UserError, match=r"the nearest is rows\.jsonl"):
        data.load(str(tmp_path / "rovs.jsonl"))


def test_hub_parts_become_sides(monkeypatch):
    import datasets

    from tunebook.common.data import hub

    parts = {"train": rows(40), "validation": rows(5, 100), "extra": rows(3, 200)}
    made = datasets.DatasetDict({name: datasets.Dataset.from_list(part) for name, part in parts.items()})
    monkeypatch.setattr(hub, "reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", lambda name: made)
    sides = data.load("someone/something")
    assert [len(side) for side in sides.values()] == [38, 5, 2]
    assert "extra" in sides.notes[0] and sides["validation"][0]["extra"] == 100


def test_hub_out_of_reach_is_said_at_once(monkeypatch):
    """It is asked for among the copies that are here alone; asked of the Hub, it would take minutes."""
    import datasets
    from huggingface_hub import constants

    from tunebook.common.data import hub

    asked = []

    def load(name):
        asked.append(constants.HF_HUB_OFFLINE)
        raise ConnectionError("no copy is here")

    monkeypatch.setattr(hub, "reachable", lambda: False)
    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(UserError, match="cannot be reached"):
        data.load("someone/something-that-is-not-here")
    assert asked == [True]


def test_importing_is_instant():
    import subprocess
    import sys

    code = "import sys, tunebook.common.data.loading, tunebook.common.batching.mixing; "
    code += "print({'numpy', 'pyarrow', 'datasets', 'torch'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


real_data = [
    pytest.mark.real_data,
    needs_data,
]
MADE = {
    "alpaca/alpaca_52k_en.json": ("instruction", 52002),
    "alpaca/gsm8k_train_alpaca_format.json": ("instruction", 7473),
    "alpaca/unsloth_alpaca.json": ("instruction", 257),
    "chat/fastchat_dummy_conversation.json": ("chat", 500),
    "chat/llamafactory_glaive_toolcall_en_demo.json": ("chat", 300),
    "chat/openassistant_en_100_tree.jsonl": ("chat", 100),
    "multilingual/llamafactory_alpaca_zh_demo.json": ("instruction", 1000),
    "multilingual/mgsm": ("pair", 2750),
    "multilingual/unicode_stress_rows.jsonl": ("instruction", 91),
    "preference/rasbt_instruction_data_with_preference.json": ("instruction", 1100),
    "sft/dolly_151_prompt_answer.jsonl": ("pair", 151),
    "sft/t0_train_50k_prompt_completion.jsonl.gz": ("pair", 55185),
}
REFUSED = {
    "chat/axolotl_conversation.json": "found an object",
    "chat/mt_bench_question_80.jsonl": "'turns'",
    "multilingual/mgsm/mgsm_en.tsv": "header=no",
    "preference/hh_rlhf_harmless_base_test.jsonl.gz": "preferences",
    "preference/llamafactory_dpo_en_demo.json": "the last turn is user",
    "sft/c4_demo.jsonl": "data for pretraining",
    "sft/self_instruct_seed_tasks.jsonl": "`output` is missing",
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=real_data) for name in MADE])
def test_real_files_are_read(name):
    kind, count = MADE[name]
    tabs = name.endswith("mgsm")
    source = readers.read(DATA / name, header=not tabs)
    table = schema.SchemaReader(source, name, {"prompt": "1", "completion": "2"} if tabs else None)
    kinds = [kind_of(row) for row in table]
    assert len(kinds) == count and set(kinds) == {kind}


@pytest.mark.parametrize("name", [pytest.param(name, marks=real_data) for name in REFUSED])
def test_real_files_without_an_answer_say_what_they_are(name):
    with pytest.raises(UserError) as error:
        data.load(str(DATA / name))
    assert REFUSED[name] in str(error.value)
