"""Labels: exact at the boundary, one end token, text that looks like control stays text."""

from tunebook.common.tokens import encoding, lengths
from tunebook.common.tokens.templates import ALPACA
from tunebook.common.tokens.view import label_preview

ROWS = [
    {"instruction": "Reverse the words.", "input": "cat dog", "output": "dog cat"},
    {"instruction": "Say hello.", "input": "", "output": "hello"},
    {
        "instruction": "Quote <|endoftext|> twice.",
        "input": "{instruction} {input}",
        "output": "<|endoftext|> and <|im_end|>",
    },
    {"instruction": "Emoji", "input": "\u00e9\u4e2d\U0001f600", "output": "\U0001f600 fine\n"},
]


def test_only_the_answer_and_one_end_token_train(tokenizer):
    kept, counts = encoding.encode(ROWS, tokenizer, ALPACA, 512)
    assert counts.kept == len(ROWS) and not counts.dropped
    for example in kept:
        row = ROWS[example["row"] - 1]
        trained = [label for label in example["labels"] if label != lengths.IGNORE_INDEX]
        assert tokenizer.decode(trained[:-1]) == row["output"]
        assert trained[-1] == tokenizer.eos_token_id
        assert example["input_ids"].count(tokenizer.eos_token_id) == 1  # special-token text in data is not control
        assert tokenizer.decode(example["input_ids"][:-1]) == ALPACA.prompt(row) + row["output"]
        pairs = zip(example["input_ids"], example["labels"], strict=True)
        assert all(label in (lengths.IGNORE_INDEX, token) for token, label in pairs)
    assert counts.trained_tokens == sum(label != lengths.IGNORE_INDEX for e in kept for label in e["labels"])


def test_fields_are_not_scanned_again():
    row = {"instruction": "A {input} B", "input": "X {instruction} Y", "output": ""}
    assert "A {input} B" in ALPACA.prompt(row) and "X {instruction} Y" in ALPACA.prompt(row)


def test_losses_of_rows_are_counted(tokenizer):
    rows = [*ROWS, {"instruction": "x", "input": "", "output": "  "}, {"instruction": "long " * 600, "output": "y"}]
    kept, counts = encoding.encode(rows, tokenizer, ALPACA, 512)
    assert counts.dropped == {"empty_output": 1, "too_long": 1}
    assert counts.rows == len(rows) and counts.kept == len(kept) == len(ROWS)


def test_show_joins_to_the_text(tokenizer):
    kept, _ = encoding.encode(ROWS, tokenizer, ALPACA, 512)
    for example in kept:
        view = label_preview(example, tokenizer)
        assert "".join(text for text, _ in view) == tokenizer.decode(example["input_ids"])
        assert view[-1] == ("<|endoftext|>", True)
        assert not view[0][1]
