"""The inspection: figures agree with the encoder's own, the page opens with nothing else, odd rows break nothing."""

import html.parser
import json
import re

import browser
import pytest
import real
from paths import DATA, needs_data

from tunebook.common.data import quality, statistics
from tunebook.common.report import dataset
from tunebook.common.tokens import encoding, templates


def rows(count=6):
    kinds = ["Name a colour.", "Write one word.", "What is a pond?"]
    return [
        {"instruction": f"{kinds[n % 3]} ({n})", "input": "", "output": "word " * (n + 1), "row": n, "source": "a.json"}
        for n in range(1, count + 1)
    ]


ALPACA = templates.get("alpaca")


def test_figures_are_those_of_the_encoder(tokenizer):
    report, kept = dataset.look(rows(), tokenizer, ALPACA)
    encoded, counts = encoding.encode(rows(), tokenizer, ALPACA, dataset.NO_LIMIT)
    assert report["counts"] == counts.as_dict()
    assert report["tokens"]["tokens"] == counts.tokens == sum(map(len, encoded["input_ids"]))
    assert report["tokens"]["trained_tokens"] == counts.trained_tokens
    assert kept["input_ids"] == encoded["input_ids"]
    assert [view["row"] for view in report["rows"]] == [1, 2, 3]
    for view, example in zip(report["rows"], encoded, strict=False):
        assert [token for token, _, _ in view["tokens"]] == example["input_ids"]
        assert [trains for _, _, trains in view["tokens"]] == [label != -100 for label in example["labels"]]
    assert report["refused"] is None and json.dumps(report)


@pytest.mark.parametrize("too_long", ["drop", "truncate"])
def test_a_limit_gives_what_the_encoder_gives(tokenizer, too_long):
    lengths = sorted(map(len, encoding.encode(rows(), tokenizer, ALPACA, 10_000)[0]["input_ids"]))
    limit = lengths[2]
    report, kept = dataset.look(rows(), tokenizer, ALPACA, limit, too_long)
    encoded, counts = encoding.encode(rows(), tokenizer, ALPACA, limit, too_long=too_long)
    assert report["counts"] == counts.as_dict()
    assert kept["labels"] == encoded["labels"] and kept["row"] == encoded["row"]
    assert report["tokens"]["rows"] == 6  # statistics are over rows of every length


def test_rows_that_are_asked_for(tokenizer):
    mixed = [*rows(3), {**rows(1)[0], "row": 2, "source": "b.json"}]
    report, _ = dataset.look(mixed, tokenizer, ALPACA, chosen=[2, 3])
    assert [(view["source"], view["row"]) for view in report["rows"]] == [("a.json", 2), ("b.json", 2), ("a.json", 3)]
    assert report["absent"] == ["row 3 of b.json is not among the rows that are kept"]
    empty = [*rows(2), {**rows(1)[0], "row": 3, "output": ""}]
    report, _ = dataset.look(empty, tokenizer, ALPACA, chosen=[3])
    assert report["absent"] == ["row 3 of a.json was dropped as empty_output"]


def test_a_set_whose_labels_all_vanish_is_refused(tokenizer):
    silent = [{**row, "output": " "} for row in rows()]
    report, kept = dataset.look(silent, tokenizer, ALPACA)
    assert "nothing would train" in report["refused"] and str(dataset.NO_LIMIT) not in report["refused"]
    assert len(kept) == 0
    report, _ = dataset.look(rows(), tokenizer, ALPACA, 3)
    assert "Raise --max_length (now 3)" in report["refused"]
    Page().feed(browser.own(page(report)))


class Page(html.parser.HTMLParser):
    """Checks that tags close, and gathers what the page would fetch."""

    VOID = ("meta", "link", "br", "rect", "text")

    def __init__(self):
        super().__init__()
        self.open, self.fetched, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        links = [value for name, value in attrs if name in ("src", "href")]
        self.fetched += [value for value in links if not value.startswith(("data:", "#"))]
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def page(report):
    words = {
        "data": "a.json",
        "tokenizer": "pocket",
        "template": "alpaca",
        "too_long": "drop",
        "warnings": ["odd"],
        "overlaps": [],
    }
    return dataset.page({**words, **report})


def test_the_page_needs_nothing_else_and_escapes_what_rows_say(tokenizer):
    # Tokens cut a tag into pieces, so the names of files carry it, too.
    tag = "<script>alert(1)</script>"
    wild = [{**row, "output": f'{tag} & "quotes" {{{{ 7 * 7 }}}}', "source": f"{tag}{row['row']}"} for row in rows(2)]
    whole = page({**dataset.look(wild, tokenizer, ALPACA)[0], "data": tag})
    text = browser.own(whole)
    parsed = Page()
    parsed.feed(text)
    assert parsed.open == [] and parsed.fetched == []
    assert "<script" not in text and "49" not in re.findall(r"<b>(.*?)</b>", text)
    style = whole[whole.index("<style>") : whole.index("</style>")]
    assert "url(" not in style and "@import" not in style and "light-dark(" in style and 'name="viewport"' in text


def test_every_token_is_on_the_page_with_its_id(tokenizer):
    report, _ = dataset.look(rows(1), tokenizer, ALPACA)
    text = page(report)
    shown = re.findall(r'<span class="t( y)?" title="token \d+: id (\d+),', text)
    assert [(int(number), bool(trains)) for trains, number in shown] == [
        (number, trains) for number, _, trains in report["rows"][0]["tokens"]
    ]


def test_packed(tokenizer):
    from tunebook.common.errors import UserError

    with pytest.raises(UserError, match="--max_length"):
        dataset.look(rows(), tokenizer, ALPACA, packed=True)
    report, kept = dataset.look(rows(), tokenizer, ALPACA, 200, packed=True)
    packed = report["packed"]
    assert packed["rows"] == len(kept) == 6 and 1 <= packed["packs"] < 6
    assert sum(len(view["tokens"]) for view in packed["shown"]) <= 200
    assert 0 < packed["fill_share"] <= 1 and 0 <= packed["padded_share"] < 1
    assert "Packed" in page(report)
    report, _ = dataset.look(rows(), tokenizer, ALPACA, 200, packed=True, chosen=[5])
    assert 5 in [view["row"] for view in report["packed"]["shown"]]


def test_chats_and_short_names(tokenizer):
    talk = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi there"}]
    chats = [{"messages": talk, "row": 1, "source": "x/a.json"}, {"messages": talk, "row": 1, "source": "y/a.json"}]
    report, _ = dataset.look(chats, tokenizer, templates.get("chatml", tokenizer))
    assert report["statistics"]["exact_duplicates"] == 1
    assert statistics.short_names(["x/a.json", "y/a.json", "y/b.json"])["x/a.json"] == "x/a.json"
    assert statistics.short_names(["x/a.json", "y/b.json"]) == {"x/a.json": "a.json", "y/b.json": "b.json"}
    Page().feed(browser.own(page(report)))


def test_what_is_looked_for_on_request(tokenizer, tmp_path):
    item = "How many apples does Nina have after she gives seven of them to her brother?"
    (tmp_path / "bench.jsonl").write_text(json.dumps({"question": item, "answer": "3"}) + "\n", encoding="utf-8")
    texts = [
        "Describe in one long sentence how a water mill turns grain into flour.",
        "Describe in one long sentence how a water mill turns grains into flour.",
        "Erkläre bitte ausführlich, wie eine alte Wassermühle am Fluss das Getreide zu Mehl mahlt.",
        f"Solve this. {item}",
    ]
    asked = [{**rows(1)[0], "instruction": text, "row": n} for n, text in enumerate(texts, 1)]
    more, overlaps = quality.search(asked, True, "en", [str(tmp_path / "bench.jsonl")])
    assert {name: [at["row"] for at in problem["first"]] for name, problem in more.items()} == {
        "not_en": [3], "near_duplicate": [2], "benchmark_overlap": [4]
    }  # fmt: skip
    assert overlaps[0]["item"] == "bench.jsonl:1" and overlaps[0]["row"] == "4 of a.json"
    report, _ = dataset.look(asked, tokenizer, ALPACA, more=more)
    text = page({**report, "overlaps": overlaps})
    assert "Not en" in text and "bench.jsonl:1" in text
    assert quality.search(asked) == ({}, [])


@pytest.mark.slow
@pytest.mark.real_data
@needs_data
def test_alpaca_in_full():
    from tunebook.common.commands import inputs

    found = inputs.rows([str(DATA / "alpaca" / "alpaca_52k_en.json")], "inspect")
    llama = real.tokenizer("llama3")
    report, _ = dataset.look(found, llama, ALPACA, 512)
    # The figures count a beginning and an end token; this tokenizer leaves the first to whoever uses it.
    counted, tokens = report["statistics"], report["tokens_with_begin"] or report["tokens"]
    spread = tokens["spread"]
    assert (counted["rows"], counted["unique_instructions"], counted["with_input"]) == (52_002, 52_002, 20_074)
    assert (counted["empty_outputs"], counted["exact_duplicates"]) == (49, 0)
    assert counted["alpaca"] and counted["characters"]["instruction"]["mean"] == pytest.approx(59.8, abs=0.05)
    assert round(spread["mean"], 1) == 103.7
    assert [spread[name] for name in ("median", "p95", "longest")] == [90, 199, 1022]
    assert next(cut["rows_over"] for cut in tokens["cuts"] if cut["max_length"] == 512) == 41
    assert round(100 * tokens["trained_share"]) == 54
    assert report["counts"]["dropped"]["too_long"] == 41
