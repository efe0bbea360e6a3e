"""Long rows and chats: done in a time that grows as they do, or refused by their row."""

import json
import random
import time

import pytest

from tunebook.common.tokens import rendering, templates, trained_spans


def chat(turns):
    said = [{"role": ("user", "assistant")[place % 2], "content": f"turn {place}"} for place in range(turns)]
    return {"messages": said}


def test_a_chat_of_too_many_turns_is_refused_by_its_row(tunebook, tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(chat(turns)) + "\n" for turns in (2, 40_000)))
    start = time.process_time()
    code, _, err = tunebook("inspect", tmp_path / "rows.jsonl", "--template", "chatml")
    assert code == 2 and "row 2: it has 40,000 turns, and the most is 2,000; cut it into several rows" in err, err
    assert time.process_time() - start < 20


def test_the_longest_chat_is_encoded(tokenizer, monkeypatch):
    monkeypatch.setattr(trained_spans, "MOST_TURNS", 60)
    render = rendering.renderer(tokenizer, templates.get("chatml", tokenizer), "assistant")
    encoded, bad, _ = render([chat(60), chat(62)])
    assert list(bad) == [1] and len(encoded[0][1]) == 30
    assert render.sequences(chat(60)) == [chat(60)] and render.sequences(chat(62)) == [chat(62)]


def slow(offsets, start, end):
    """The same token by token, from the first one on."""
    first = next((place for place, (_, stop) in enumerate(offsets) if stop > start), len(offsets))
    after = first
    while after < len(offsets) and (offsets[after][0] < end or offsets[after][1] <= end):
        after += 1
    return first, after


@pytest.mark.parametrize("seed", range(20))
def test_tokens_of_spans(seed):
    draw = random.Random(seed)
    offsets, at = [], 0
    for _ in range(80):
        begin = at + draw.choice((0, 0, 0, 1))
        at = begin + draw.choice((0, 1, 2, 5))  # white space alone may be empty
        offsets.append((begin, at))
    spans = [tuple(sorted(draw.choices(range(at + 1), k=2))) for _ in range(30)]
    assert rendering._tokens_in(offsets, spans) == [slow(offsets, *span) for span in spans]


@pytest.mark.slow
@pytest.mark.parametrize("text", ["word and other things, 12 of them. " * 300_000, "x" * 3_000_000, " " * 3_000_000])
def test_a_field_of_megabytes(text, tunebook, tmp_path):
    rows = [{"instruction": "big", "input": text, "output": "yes"}, {"instruction": "a", "input": "", "output": "b"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    start = time.process_time()
    code, out, err = tunebook("inspect", tmp_path / "rows.jsonl", "--max_length", "512")
    assert code == 0 and "too long" in out, err
    assert time.process_time() - start < 60
