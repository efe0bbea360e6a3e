"""The small world: test rows are about nothing that training rows are about; the corpus holds words, no template."""

import json
from collections import Counter

import pytest
from transformers import AutoTokenizer

from tunebook.common.pocket import FOLDER
from tunebook.common.synthetic import corpus, skills
from tunebook.common.tokens.templates import ALPACA


def read(name):
    return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def files():
    return {name: read(f"{name}.jsonl") for name in ("train", "validation", "test", "facts", "text")}


def test_sizes_and_families(files):
    assert len(files["train"]) >= 3000 and len(files["validation"]) >= 300 and len(files["test"]) >= 600
    assert Counter(row["phrasing"] for row in files["test"])["unseen"] >= 300
    assert len({row["skill"] for row in files["train"]}) >= 24
    assert all(len(group["asks"]) >= 4 for group in skills.phrasings().values())


def test_files_are_what_the_generator_writes(files):
    assert [*corpus.rows("test", 10, seed=0), *corpus.rows("test", 10, seed=0, new_phrasings=True)] == files["test"]
    assert list(corpus.facts(300, seed=0)) == files["facts"]
    assert [row["text"] for row in files["text"]] == corpus.sentences(200, seed=777)


def test_no_prompt_stands_on_two_sides(files):
    sides = [{(row["instruction"], row["input"]) for row in files[name]} for name in ("train", "validation", "test")]
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])


def test_a_fact_has_one_side_whatever_the_family():
    import random

    rng = random.Random(0)
    for _ in range(300):  # a capital and the country of that capital are one fact
        capital, country = skills.draw("capital", rng), skills.draw("country", rng)
        if capital["x"] == country["y"]:
            assert capital["key"] == country["key"]
    plain = {f"category {word}" for word in skills.WORLD.category}
    for family in ("category", "explain", "is_kind"):
        assert {skills.draw(family, rng)["key"] for _ in range(200)} <= plain


def test_unseen_phrasings_are_unseen(files):
    for group in skills.phrasings().values():
        assert not set(group["asks"]) & set(group["asks_new"])


def test_corpus_trains_every_token_of_a_prompt_and_no_template(files):
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / "model")
    documents = list(corpus.documents(16000, seed=5))
    assert not [text for text in documents if "Below is an instruction" in text]
    assert not [text for text in documents if "### Instruction" in text and "### Response" in text]
    seen = Counter(token for e in tokenizer.backend_tokenizer.encode_batch_fast(documents) for token in e.ids)
    prompts = [ALPACA.prompt(row) + row["output"] for name in ("train", "test") for row in files[name]]
    rare = {tokenizer.decode([t]) for ids in tokenizer(prompts)["input_ids"] for t in ids if seen[t] < 3}
    assert not rare


def test_corpus_leaves_out_test_combinations(files):
    held_out = {row["input"] for row in files["test"] if row["skill"] in ("reverse", "sort_numbers") and row["input"]}
    text = "\n".join(corpus.documents(4000, seed=6))
    assert held_out and not [given for given in held_out if f"\n{given}\n" in text]
