"""Benchmark items in training rows: planted ones are found by name, chance overlaps are not."""

import json
import random

import pytest
from paths import BENCHMARKS, DATA, WHOLE, needs_data

from tunebook.common.data import contamination
from tunebook.common.data.contamination import Item
from tunebook.common.errors import UserError

WORDS = [
    f"{start}{end}" for start in ("ba", "ke", "lo", "mi", "su", "ta") for end in ("rin", "dol", "fex", "gar", "pum")
]


def _text(count, seed):
    chance = random.Random(seed)
    return " ".join(chance.choice(WORDS) + str(chance.randrange(9)) * chance.randrange(2) for _ in range(count))


def _row(number, instruction, output="An answer.", text=""):
    return {"instruction": instruction, "input": text, "output": output, "row": number, "source": "x"}


ITEMS = [Item(f"bench.jsonl:{place + 1}", (_text(20, place), _text(12, 100 + place))) for place in range(40)]


def test_planted_items_are_found():
    rows = [_row(place, _text(30, 1000 + place), _text(30, 2000 + place)) for place in range(1, 301)]
    run = " ".join(ITEMS[3].texts[0].split()[5:13])
    rows[9]["input"] = f"It was said: {run.upper().replace(' ', ', ')}! And more."
    rows[20]["output"] = ITEMS[7].texts[1]
    rows[250]["instruction"] += "\n" + ITEMS[39].texts[0]
    found = contamination.find(iter(rows), iter(ITEMS))
    assert (found.rows, found.items, found.incomparable) == (300, 40, 0)
    assert [(one.row, one.field, one.item) for one in found.overlaps] == [
        (10, "input", "bench.jsonl:4"),
        (21, "output", "bench.jsonl:8"),
        (251, "instruction", "bench.jsonl:40"),
    ]
    assert found.overlaps[0].words == run
    assert found.row_numbers == [10, 21, 251]


def test_a_run_ends_at_the_field():
    text = ITEMS[0].texts[0].split()
    rows = [_row(1, " ".join(text[:7]), text=" ".join(text[7:14])), _row(2, " ".join(text[:8]))]
    assert contamination.find(rows, ITEMS).row_numbers == [2]
    assert contamination.find(rows, ITEMS, n=7).row_numbers == [1, 2]
    assert contamination.find(rows, ITEMS, n=9).row_numbers == []


def test_long_items_need_thirteen_words():
    item = _text(60, 5)
    said = item.split()
    rows = [_row(1, " ".join(said[10:22])), _row(2, " ".join(said[10:23]))]
    assert contamination.find(rows, [item]).row_numbers == [2]


def test_short_items_count_as_a_whole():
    items = ["Who painted the old harbour wall?", "Name the capital.", "Why?"]
    rows = [
        _row(1, "Please say: who painted the old harbour wall? Thank you."),
        _row(2, "Who painted the old harbour?"),
        _row(3, "Name the capital of the north."),
        _row(4, "name the CAPITAL"),
        _row(5, "Why not?"),
    ]
    found = contamination.find(rows, items)
    assert [(one.row, one.item, one.whole) for one in found.overlaps] == [(1, "item 1", True), (4, "item 2", True)]


def test_template_text_and_numbers_are_no_overlap():
    opening = "Choose the one answer below that fits the sentence best:"
    items = [f"{opening} {_text(9, place)}" for place in range(20)] + ["Go on 1 2 3 4 5 6 7 8 9 10 from there then"]
    rows = [_row(1, opening), _row(2, "Count: 1 2 3 4 5 6 7 8 9 10."), _row(3, items[4])]
    found = contamination.find(rows, items)
    assert found.template_runs > 0
    assert found.row_numbers == [3]
    assert "item 5" in {one.item for one in found.overlaps}


def test_chinese_runs_are_twice_as_long():
    item = "小明家里有三只红色的猫和五只白色的狗一共有多少只动物呢"
    rows = [_row(1, item[3:18]), _row(2, "问题：" + item[3:19]), _row(3, "小明有一只狗")]
    assert contamination.find(rows, [item]).row_numbers == [2]


def test_chats_and_pairs():
    run = ITEMS[5].texts[0]
    turns = [("system", run), ("user", "Hi"), ("assistant", "Yes")]
    chat = {"messages": [{"role": role, "content": content} for role, content in turns], "row": 1}
    assert contamination.find([chat], ITEMS).row_numbers == []  # a system text asks nothing and answers nothing
    chat["messages"] += [{"role": "user", "content": run}, {"role": "assistant", "content": "No"}]
    pair = {"prompt": "Hi", "completion": run, "row": 2}
    found = contamination.find([chat, pair], ITEMS)
    assert [(one.row, one.field) for one in found.overlaps] == [(1, "turn 4"), (2, "completion")]


def test_nothing_to_compare():
    found = contamination.find([], [])
    assert (found.rows, found.items, found.overlaps) == (0, 0, [])
    assert contamination.find([_row(1, "...")], ["?!", "..."]).incomparable == 2


def test_read_a_hub_folder(tmp_path):
    folder = tmp_path / "someone" / "riddles"
    (folder / "test").mkdir(parents=True)
    (folder / "README.md").write_text("about")
    choices = {"text": ["it is a tall lamp that stands by the old door", "a stone"], "label": ["A", "B"]}
    (folder / "test" / "a.jsonl").write_text(json.dumps({"question": "What shines?", "choices": choices}) + "\n")
    (folder / "b.json").write_text(json.dumps([{"id": 7, "input": "What runs?", "target": "a river"}]))
    (folder / "c.csv").write_text("kind,prompt\nx,What burns?\n")
    items = list(contamination.read(tmp_path))
    assert items == [
        Item("someone/riddles/b.json:1", ("What runs?",)),
        Item("someone/riddles/c.csv:1", ("What burns?",)),
        Item("someone/riddles/test/a.jsonl:1", ("What shines?", choices["text"][0])),
    ]
    assert [item.name for item in contamination.read(folder / "c.csv")] == ["c.csv:1"]
    rows = [_row(1, "what burns"), _row(2, "Say it.", "Oh, it is a tall lamp that stands by the old door.")]
    assert contamination.find(rows, items).row_numbers == [1, 2]


def test_read_parquet(tmp_path):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"goal": ["Open the jar."], "n": [1]}), tmp_path / "test.parquet")
    assert list(contamination.read(tmp_path)) == [Item("test.parquet:1", ("Open the jar.",))]


def test_read_what_is_not_there(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        list(contamination.read(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match="holds no"):
        list(contamination.read(tmp_path))


@pytest.mark.real_data
@needs_data
def test_benchmark_items_planted_among_real_rows():
    rows = json.loads((DATA / "alpaca" / "alpaca_52k_en.json").read_text(encoding="utf-8"))[:1000]
    rows = [{**row, "row": place} for place, row in enumerate(rows, 1)]
    items = list(contamination.read(BENCHMARKS / "hub"))
    assert len(items) > 30_000
    items = items if WHOLE else items[::6]
    clean = set(contamination.find(rows, items).row_numbers)
    assert len(clean) < 100
    long = [item for item in items if len(contamination.words(item.texts[0])) >= contamination.LONG_WORDS]
    planted = long[:: len(long) // 50]
    for place, item in enumerate(planted):
        rows[place * 19]["input"] = f"Here it is. {item.texts[0]} Answer it."
    found = contamination.find(rows, items)
    missed = {place * 19 + 1 for place in range(len(planted))} - set(found.row_numbers)
    assert len(missed) <= 0.05 * len(planted)  # those made of template text alone
