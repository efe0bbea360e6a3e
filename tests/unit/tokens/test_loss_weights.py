"""Weights of rows and turns: read and refused with their place, and in the tokens that they are of."""

import json
import re
from types import SimpleNamespace

import numpy
import pytest
import torch

from tunebook.common import data
from tunebook.common.batching import collator, packing, weight_collator
from tunebook.common.data import readers, schema
from tunebook.common.data.rows import answer_weights, refuse_weights
from tunebook.common.data.rows import weight as weight_of
from tunebook.common.distillation.losses import DistillationLoss, Online, chunked_loss
from tunebook.common.errors import UserError
from tunebook.common.models.lm_head import LMHead
from tunebook.common.preference import pairs
from tunebook.common.report import dataset as dataset_report
from tunebook.common.tokens import encoding, lengths, templates
from tunebook.common.tokens.templates import ALPACA
from tunebook.common.training import weighted_loss

ROW = {"instruction": "Add.", "input": "1 2", "output": "3"}
TURNS = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Name a fruit."},
    {"role": "assistant", "content": "apple"},
    {"role": "user", "content": "And a tool?"},
    {"role": "assistant", "content": "hammer"},
]


def chat(first=None, last=None, **more):
    turns = [dict(turn) for turn in TURNS]
    for turn, weight in ((turns[2], first), (turns[4], last)):
        if weight is not None:
            turn["weight"] = weight
    return {"messages": turns, **more}


def stretches(row, tokenizer):
    """By transformers' own mask of the template's generation blocks: [start, end) of each assistant turn."""
    found = tokenizer.apply_chat_template(
        row["messages"], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    edges = numpy.flatnonzero(numpy.diff([0, *found["assistant_masks"], 0]))
    return found["input_ids"], list(zip(edges[::2], edges[1::2], strict=True))


@pytest.mark.parametrize(
    "row, expected",
    [
        (chat(0, 1), (0, 1)), (chat(None, 0), (1, 0)), (chat(2, 0.5), (2, 0.5)), (chat(1.0, 1), (1, 1)),
        (chat(0, 2, weight=3), (0, 6)), (chat(weight=0.25), (0.25, 0.25)), (chat(weight=None), (1, 1)),
    ],
)  # fmt: skip
def test_a_turn_trains_by_its_weight_times_its_rows(row, expected, tokenizer):
    template = templates.get("tokenizer", tokenizer)
    (example,), counts = encoding.encode([row], tokenizer, template, 512)
    ids, turns = stretches(row, tokenizer)
    weights = numpy.zeros(len(ids))
    for (start, end), weight in zip(turns, expected, strict=True):
        weights[start:end] = weight
    assert example["input_ids"] == ids
    assert example["labels"] == [token if weight else -100 for token, weight in zip(ids, weights, strict=True)]
    odd = set(expected) - {0, 1}
    assert counts.weighted == bool(odd) and (lengths.LOSS_WEIGHTS in example) == bool(odd)
    if odd:
        assert numpy.allclose(example[lengths.LOSS_WEIGHTS], weights)
    assert counts.trained_tokens == (weights > 0).sum()


def test_a_template_without_marks_has_them_in_the_same_places(tokenizer, tmp_path):
    own, (ids, turns) = tokenizer.chat_template, stretches(chat(), tokenizer)
    (tmp_path / "unmarked.jinja").write_text(re.sub(r"{%-? (end)?generation -?%}", "", own))
    template = templates.get(str(tmp_path / "unmarked.jinja"), tokenizer)
    (example,), _ = encoding.encode([chat(0.5, 2)], tokenizer, template, 512)
    weights = numpy.zeros(len(ids))
    for (start, end), weight in zip(turns, (0.5, 2), strict=True):
        weights[start:end] = weight
    assert "generation %" not in template.jinja and example[lengths.LOSS_WEIGHTS] == weights.tolist()


def test_rows_of_weight_0_are_absent(tokenizer):
    template = templates.get("tokenizer", tokenizer)
    kept, counts = encoding.encode([chat(weight=0), chat(), chat(0, 0)], tokenizer, template, 512)
    assert (
        kept["row"] == [2] and dict(counts.dropped) == {"weight_0": 2} and "2 dropped as weight_0" in counts.summary()
    )
    _, counts = encoding.encode([chat(1, 0)], tokenizer, template, 512, train_on="last_assistant")
    assert dict(counts.dropped) == {"weight_0": 1}
    _, counts = encoding.encode([{**ROW, "weight": 0}] * 99 + [ROW], tokenizer, ALPACA, 512)
    counts.require_trainable(512)  # nothing was lost that was to train


def test_weights_of_turns_with_several_stretches_and_without_a_place(tokenizer, tmp_path):
    with pytest.raises(UserError, match="row 1: single turns have a `weight`, which is lost where the prompt trains"):
        encoding.encode([chat(0, 1)], tokenizer, templates.get("tokenizer", tokenizer), 512, train_on="all")
    twice = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}"
        "{{ '|' }}{% generation %}<|im_end|>{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    )  # fmt: skip
    (tmp_path / "twice.jinja").write_text(twice)
    template = templates.get(str(tmp_path / "twice.jinja"), tokenizer)
    (example,), _ = encoding.encode([chat(0, 2)], tokenizer, template, 512)
    said = [token for token, label in zip(example["input_ids"], example["labels"], strict=True) if label != -100]
    assert tokenizer.decode(said).startswith("hammer")
    assert sum(example[lengths.LOSS_WEIGHTS]) == 2 * len(said)


def read(tmp_path, rows, name="rows.jsonl", reads=schema.SchemaReader):
    path = tmp_path / name
    text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return list(reads(readers.read(path), name))


@pytest.mark.parametrize(
    "weight, said",
    [
        (-1, "is -1, expected 0 or a number from"), (float("inf"), ""), (float("nan"), ""), (1e-9, "is 1e-09,"),
        ("heavy", "is text, expected a number from 0"), ("2", "is text"), (True, "is true or false"),
        ([1], "is a list"), (10**30, "is 10000000000000000000..., expected 0 or"),
    ],
)  # fmt: skip
def test_what_is_no_weight_is_refused_with_its_place(weight, said, tmp_path):
    if said:  # of NaN the reader of JSON says that it is none
        said = f"`weight` {said}"
    with pytest.raises(UserError, match="row 2: ") as refused:
        read(tmp_path, [ROW, {**ROW, "weight": weight}])
    assert said in str(refused.value)
    with pytest.raises(UserError, match="row 2: ") as refused:
        read(tmp_path, [chat(1, 1), chat(1, weight)])
    assert (f"`messages` turn 5: {said}" if said else "") in str(refused.value)


def test_weights_of_a_table_are_numbers_in_text(tmp_path):
    rows = read(tmp_path, "instruction,output,weight\na,b,2\nc,d,\ne,f,0.5\n", "rows.csv")
    assert [weight_of(row) for row in rows] == [2, 1, 0.5]
    with pytest.raises(UserError, match="row 1: `weight` is text, expected a number from 0; rename the column"):
        read(tmp_path, "instruction,output,weight\na,b,heavy\n", "rows.csv")
    with pytest.raises(UserError, match="row 1: `weight` is nan"):
        read(tmp_path, "instruction,output,weight\na,b,nan\n", "rows.csv")


def test_turns_that_do_not_train_have_0_or_1(tmp_path):
    turns = [{"from": "human", "value": "Hi", "weight": 0.0}, {"from": "gpt", "value": "Yes?", "weight": 2}]
    (row,) = read(tmp_path, [{"conversations": [{"from": "system", "value": "x", "weight": None}, *turns]}])
    assert answer_weights(row) == [2] and row["messages"][1]["weight"] == 0  # kept for what writes rows
    turns[0]["weight"] = 2
    with pytest.raises(UserError, match="turn 1: `weight` is 2, expected 0 or 1: a turn of the user does not train"):
        read(tmp_path, [{"conversations": turns}])


def test_losses_without_a_place_for_weights_refuse_them(tmp_path):
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    read(tmp_path, [{**pair, "weight": 1}], reads=pairs.PairReader)
    with pytest.raises(UserError, match="row 2: `weight` is not 1: preference pairs take no weights"):
        read(tmp_path, [pair, {**pair, "weight": 0.5}], reads=pairs.PairReader)
    said = [{"role": "assistant", "content": "b", "weight": 0}]
    with pytest.raises(UserError, match="row 1: `weight` is not 1: preference pairs"):
        read(tmp_path, [{"prompt": [TURNS[1]], "chosen": said, "rejected": TURNS[2:3]}], reads=pairs.PairReader)
    with pytest.raises(UserError, match="distill_on_policy takes no weights, and row 2 has `weight` 2"):
        refuse_weights([{**ROW, "row": 1}, {**ROW, "row": 2, "weight": 2}], "distill_on_policy", "Leave")


def trainer(train, head=None, **args):
    values = {"label_smoothing_factor": 0.0, "loss_type": "nll", **args}
    return SimpleNamespace(
        train_dataset=train, args=SimpleNamespace(**values), get_batch_samples=None, compute_loss=None,
        data_collator=list,
        model=SimpleNamespace(get_output_embeddings=lambda: head), _signature_columns=["input_ids"],
        _set_signature_columns_if_needed=lambda: None, is_world_process_zero=lambda: True,
    )  # fmt: skip


def test_other_losses_and_heads_are_refused(tokenizer, capsys):
    weighted, _ = encoded(tokenizer)
    for odd in (
        trainer(weighted, label_smoothing_factor=0.1), trainer(weighted, loss_type="dft"),
        trainer(weighted, head=SimpleNamespace(base_layer=None)),
    ):  # fmt: skip
        with pytest.raises(UserError, match="rows with a `weight`"):
            weighted_loss.weigh_loss(odd)
    plain = trainer(weighted.remove_columns("loss_weights"), label_smoothing_factor=0.1)
    before = dict(vars(plain))
    weighted_loss.weigh_loss(plain)
    assert vars(plain) == before  # and a run without weights is as it was
    weighted_loss.weigh_loss(found := trainer(weighted))
    assert found._signature_columns == ["input_ids", "loss_weights"] and "weights:" in capsys.readouterr().out


def encoded(tokenizer, folder=None):
    """Rows of several lengths, three of them with weights."""
    rows = [
        {**ROW, "output": "3 " * n, "weight": weight} for n, weight in ((9, 2), (1, None), (4, 0.5), (2, 1), (7, 3))
    ]
    return encoding.encode(rows, tokenizer, ALPACA, 512, folder=folder)


def test_batches_hold_the_weight_of_each_label(tokenizer):
    """However rows are put together, Σ weight is Σ over the rows of weight x labels that have something before them."""
    dataset, counts = encoded(tokenizer)
    assert counts.weighted == 3
    wanted = sum(weight * sum(label != -100 for label in row["labels"]) for row, weight in zip(
        dataset, (2, 1, 0.5, 1, 3), strict=True))  # fmt: skip

    def right_padded(rows):
        names = ("input_ids", "labels")
        padded = [[torch.tensor(row[name]) for row in rows] for name in names]
        made = [torch.nn.utils.rnn.pad_sequence(part, True, fill) for part, fill in zip(padded, (0, -100), strict=True)]
        return dict(zip(names, made, strict=True))

    bins = packing.pack_dataset(dataset, 128)
    assert 1 < len(bins) < len(dataset)
    for rows, collate in (
        (dataset, right_padded), (bins, collator.PackedCollator(0)), (bins, collator.PackedCollator(0, one_row=True)),
    ):  # fmt: skip
        made = weight_collator.collator(rows, collate)
        assert made.one_row == getattr(collate, "one_row", False)
        batch = made([rows[place] for place in range(len(rows))])
        assert batch["loss_weights"].shape == batch["labels"].shape
        assert torch.equal(batch["loss_weights"] > 0, batch["labels"] != -100)
        assert weight_collator.total_weight(batch).item() == wanted
        by_token = {(t, w) for t, w in zip(batch["labels"].flatten().tolist(), batch["loss_weights"].flatten().tolist(),
                                           strict=True) if t != -100}  # fmt: skip
        assert {weight for _, weight in by_token} == {2, 1, 0.5, 3}
    assert weight_collator.collator(dataset.remove_columns("loss_weights"), right_padded) is right_padded


def test_the_cache_keeps_weights_and_knows_them(tokenizer, tmp_path, capsys):
    first, counts = encoded(tokenizer, tmp_path)
    again, same = encoded(tokenizer, tmp_path)
    assert "tokens: read from" in capsys.readouterr().out and same.weighted == counts.weighted == 3
    assert first["loss_weights"] == again["loss_weights"] == encoded(tokenizer)[0]["loss_weights"]
    other, counts = encoding.encode([{**ROW, "output": "3 " * 9}], tokenizer, ALPACA, 512, folder=tmp_path)
    assert counts.weighted == 0 and "loss_weights" not in other.column_names


def test_labels_of_virtual_tokens_have_no_weight():
    batch = {"labels": torch.tensor([[-100, 5, 6]]), "loss_weights": torch.tensor([[0.0, 2.0, 0.5]])}
    assert weight_collator.apply_weights(torch.ones(1, 2), batch).tolist() == [[2.0, 0.5]]
    assert weight_collator.apply_weights(torch.ones(1, 4), batch).tolist() == [[0.0, 0.0, 2.0, 0.5]]
    assert weight_collator.apply_weights(torch.ones(1, 2), {"labels": batch["labels"]}).tolist() == [[1.0, 1.0]]


def test_closed_form_on_a_model_of_8_tokens():
    """Logits that are a bias alone: Σ w·(lse(z) - z_label) / Σ w, and its gradient Σ w·(p - onehot) / Σ w."""
    z = numpy.linspace(-1.5, 2.0, 8)
    labels, w = numpy.array([3, 0, 7, 3, 5]), numpy.array([2.0, 0.5, 1.0, 3.0, 0.25])
    p = numpy.exp(z) / numpy.exp(z).sum()
    value = (w * (numpy.log(numpy.exp(z).sum()) - z[labels])).sum() / w.sum()
    gradient = (w[:, None] * (p - numpy.eye(8)[labels])).sum(0) / w.sum()
    bias = torch.tensor(z, requires_grad=True)
    head = LMHead(torch.zeros(8, 4, dtype=torch.float64), bias)
    hidden, targets = torch.zeros(5, 4, dtype=torch.float64), torch.tensor(labels)
    weights = torch.tensor(w)
    total, *_ = chunked_loss(hidden, head, targets, None, DistillationLoss(alpha=0.0), 16, weights)
    (found,) = torch.autograd.grad(total / weights.sum(), bias)
    assert (total / weights.sum()).item() == pytest.approx(value, rel=1e-12)
    assert numpy.allclose(found.numpy(), gradient, rtol=1e-10)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_a_students_positions_of_weight_2_are_there_twice(beta):
    torch.manual_seed(0)
    hidden, other, weight = torch.randn(5, 6), torch.randn(5, 4), torch.randn(11, 6)
    teacher, labels, counts = LMHead(torch.randn(11, 4)), torch.randint(0, 11, (5,)), torch.tensor([1, 2, 3, 1, 2])
    found = []
    for times in (torch.ones(5, dtype=torch.long), counts):
        places = torch.arange(5).repeat_interleave(times)
        student, head = hidden[places].requires_grad_(), weight.clone().requires_grad_()
        weights = counts.float() if len(places) == 5 else None
        online = Online(other[places], teacher)
        sums = chunked_loss(
            student, LMHead(head), labels[places], online, DistillationLoss(0.4, 2.0, beta), 22, weights
        )
        found.append((*sums, *torch.autograd.grad(sums[0], head)))
    for one, two in zip(*found, strict=True):
        assert torch.allclose(one, two, rtol=1e-5, atol=1e-6)


def test_inspect_shows_them(tokenizer, tmp_path):
    from tunebook.common.commands import inspect, inspect_view

    rows = [{**chat(2, 0), "row": 1, "source": "x"}, {**chat(), "row": 2, "source": "x"}]
    report, kept = dataset_report.look(rows, tokenizer, templates.get("tokenizer", tokenizer))
    first, second = report["rows"]
    trained = {weight for (*_, trains), weight in zip(first["tokens"], first["weights"], strict=True) if trains}
    assert trained == {2.0} and "weights" not in second
    beside = {"data": "x", "tokenizer": "t", "template": "t", "too_long": "drop", "seconds": 0}
    page = dataset_report.page({**report, **beside, "warnings": [], "overlaps": []})
    assert "trains, weight 2" in page and "×2" in page
    lines = [json.loads(line) for line in inspect._lines(kept)]
    assert lines[0]["loss_weights"] == kept[0]["loss_weights"] and lines[1]["loss_weights"] == []
    from rich.console import Console

    console = Console(file=(tmp_path / "said").open("w"), width=400)
    inspect_view._tokens(console, first)
    console.file.close()
    assert "apple x2]" in (tmp_path / "said").read_text() and "1 rows have weights" in report["line"]


def test_the_split_keeps_them(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"instruction": f"Say {n}.", "output": str(n), "weight": n % 3} for n in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sides = data.load(str(path))
    found = {row["instruction"]: row["weight"] for side in sides.values() for row in side}
    assert found == {row["instruction"]: row["weight"] for row in rows}
