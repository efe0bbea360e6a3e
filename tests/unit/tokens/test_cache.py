"""The token cache: equal input is read back, changed input never is."""

import pytest

from tunebook.common.tokens import encoding
from tunebook.common.tokens.templates import ALPACA, PLAIN

ROWS = [{"instruction": f"Say {n}.", "input": "", "output": str(n), "row": n, "source": "mine"} for n in range(1, 40)]


def encode(folder, tokenizer, rows=ROWS, template=ALPACA, **options):
    return encoding.encode(rows, tokenizer, template, options.pop("max_length", 64), folder=folder, **options)


def test_read_back_equal(tmp_path, tokenizer, capsys):
    first, counts = encode(tmp_path, tokenizer)
    again, counts_again = encode(tmp_path, tokenizer)
    assert "tokens: read from" in capsys.readouterr().out
    plain, plain_counts = encoding.encode(ROWS, tokenizer, ALPACA, 64)
    assert first.to_dict() == again.to_dict() == plain.to_dict()
    assert counts == counts_again == plain_counts
    assert {path.suffix for path in tmp_path.iterdir()} == {".arrow", ".json", ""}  # and the name of what is in use


def test_anything_else_is_made_anew(tmp_path, tokenizer, capsys):
    encode(tmp_path, tokenizer)
    encode(tmp_path, tokenizer, rows=[*ROWS[:-1], {**ROWS[-1], "output": "x"}])
    encode(tmp_path, tokenizer, rows=ROWS[::-1])
    encode(tmp_path, tokenizer, template=PLAIN)
    encode(tmp_path, tokenizer, max_length=63)
    encode(tmp_path, tokenizer, train_on="all")
    encode(tmp_path, tokenizer, too_long="truncate")
    tokenizer.add_tokens(["Say"])
    encode(tmp_path, tokenizer)
    assert "read from" not in capsys.readouterr().out
    assert len(list(tmp_path.glob("*.arrow"))) == 8


def test_a_run_that_breaks_leaves_nothing(tmp_path, tokenizer):
    def broken():
        yield from ROWS
        raise RuntimeError("disk")

    with pytest.raises(RuntimeError):
        encode(tmp_path, tokenizer, rows=broken())
    assert not list(tmp_path.glob("*"))


@pytest.mark.parametrize("kind", ["arrow", "json"])
@pytest.mark.parametrize("harm", [lambda _: b"", lambda data: data[: len(data) // 2], lambda data: flipped(data)])
def test_a_damaged_one_is_made_anew(tmp_path, tokenizer, capsys, kind, harm):
    first, counts = encode(tmp_path, tokenizer)
    (path,) = tmp_path.glob(f"*.{kind}")
    whole = path.read_bytes()
    harm_done = harm(whole)
    path.unlink()  # `first` is mapped to it
    path.write_bytes(harm_done)
    again, counts_again = encode(tmp_path, tokenizer)
    said = capsys.readouterr().out
    assert "is damaged or of an earlier version, and is made anew" in said and "read from" not in said
    assert again.to_dict() == first.to_dict() and counts == counts_again
    assert path.read_bytes() == whole


def flipped(data):
    """One digit or bit in the middle is another."""
    at = len(data) // 2
    while data[at : at + 1].isalpha() or data[at] in b' \n":,{}_':
        at += 1
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
