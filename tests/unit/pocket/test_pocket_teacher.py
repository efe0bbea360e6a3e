"""Pocket's teacher: it begins as pocket, sees nothing of the test rows, reads pocket's tokens, and is small."""

import json

import pytest
import torch

from tunebook.common.distillation import vocabulary
from tunebook.common.pocket import FOLDER
from tunebook.common.synthetic import corpus, skills, teacher


@pytest.fixture(scope="module")
def pocket():
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(FOLDER / "model", dtype=torch.float32).eval()


def test_new_layers_change_nothing_and_learn(pocket):
    deeper, ids = teacher.deepened(pocket).eval(), torch.arange(10, 50)[None]
    assert deeper.config.num_hidden_layers == 2 * pocket.config.num_hidden_layers
    assert torch.equal(deeper(input_ids=ids).logits, pocket(input_ids=ids).logits)
    deeper(input_ids=ids, labels=ids).loss.backward()
    assert deeper.model.layers[1].mlp.down_proj.weight.grad.abs().max() > 0
    assert deeper.lm_head.weight is deeper.model.embed_tokens.weight


def test_rows_hold_nothing_of_the_test_rows():
    rows = [*corpus.rows("train", 40, 1), *teacher.more_rows(40, 1)]
    assert len(rows) > 1500
    new = {phrase for group in skills.phrasings().values() for phrase in group["asks_new"]}
    plain = {phrase for phrase in new if "{" not in phrase}
    assert not [row for row in rows if row["instruction"] in plain]
    lines = (FOLDER / "test.jsonl").read_text(encoding="utf-8").splitlines()
    tested = {(row["instruction"], row["input"]) for row in map(json.loads, lines)}
    assert not [row for row in rows if (row["instruction"], row["input"]) in tested]


@pytest.mark.parametrize(
    "line, found",
    [
        ("question: what is {x} backwards? answer: {y}", "what is {x} backwards?"),
        ("in rising order:|{x}|{y}", "in rising order:|{x}"),
        ("{x} backwards is {y}", None),
        ("the word {a} written {n} times:|{y}", None),
    ],
)
def test_what_a_line_of_the_corpus_asks(line, found):
    assert teacher.asked(line) == found


def test_the_committed_teacher(pocket):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = FOLDER / "teacher"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 24 * 2**20
    made = AutoModelForCausalLM.from_pretrained(folder)
    record = json.loads((folder / teacher.FILE).read_text(encoding="utf-8"))
    assert made.dtype == torch.bfloat16
    assert made.num_parameters() == record["parameters"] > 1.5 * pocket.num_parameters()
    one, other = (AutoTokenizer.from_pretrained(place) for place in (FOLDER / "model", folder))
    assert vocabulary.difference(one, other) is None
