"""Statistics: what a set holds, counted on rows whose answers are known."""

import numpy as np
import pytest

from tunebook.common.data import categories, statistics
from tunebook.common.tokens import lengths


def row(number, instruction="Name a river.", output="The Elbe.", given=""):
    return {"instruction": instruction, "input": given, "output": output, "row": number, "source": "a.json"}


def test_counts():
    rows = [
        row(1),
        row(2, given="in Europe"),
        row(3),  # row 1 again
        row(4, "Write a poem about rain.", "  \n"),
        row(5, "What is 2 + 2?", "4"),
    ]
    found = statistics.survey(rows, lambda one: ["short"] if len(one["output"]) < 2 else [])
    assert (found["rows"], found["unique_instructions"], found["with_input"]) == (5, 3, 1)
    assert (found["empty_outputs"], found["exact_duplicates"]) == (1, 1)
    assert found["categories"] == {"write": 1, "answer": 1, "list": 3}
    assert found["problems"]["repeated_row"] == {"rows": 1, "first": [{"row": 3, "source": "a.json"}]}
    assert found["problems"]["empty_output"]["first"] == [{"row": 4, "source": "a.json"}]
    assert found["problems"]["short"]["first"] == [{"row": 5, "source": "a.json"}]
    assert found["characters"]["instruction"]["longest"] == len("Write a poem about rain.")
    assert found["characters"]["input"]["mean"] == len("in Europe")
    assert not found["looks_like_alpaca"]


def test_a_field_border_is_not_lost():
    one = {"prompt": "ab", "completion": "c", "row": 1, "source": "x"}
    other = {"prompt": "a", "completion": "bc", "row": 2, "source": "x"}
    assert statistics.survey([one, other])["exact_duplicates"] == 0


def test_chats():
    talk = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Explain tides."},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look_up"}}]},
        {"role": "tool", "content": "moon"},
        {"role": "assistant", "content": "The moon pulls."},
    ]
    silent = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": " "}]
    rows = [{"messages": turns, "row": n, "source": "c"} for n, turns in enumerate([talk, silent, talk], 1)]
    found = statistics.survey(rows)
    assert found["kinds"] == {"chat": 3}
    assert (found["exact_duplicates"], found["empty_outputs"], found["unique_instructions"]) == (1, 1, 2)
    assert found["turns"]["longest"] == 5 and found["turns"]["shortest"] == 2
    assert found["categories"] == {"explain": 2, "other": 1}


def test_many_problem_rows_are_counted_and_the_first_listed():
    found = statistics.survey(row(n, output="") for n in range(1, 31))["problems"]["empty_output"]
    assert found["rows"] == 30
    assert [at["row"] for at in found["first"]] == list(range(1, 11))


def test_spread():
    found = statistics.spread([1, 2, 3, 4, 100])
    assert (found["mean"], found["median"], found["longest"], found["shortest"], found["sum"]) == (22, 3, 100, 1, 110)
    assert found["p95"] == pytest.approx(np.percentile([1, 2, 3, 4, 100], 95))
    assert set(statistics.spread([]).values()) == {0}


def test_tokens_and_what_a_length_costs():
    found = lengths.token_statistics(np.array([100, 300, 600]), np.array([50, 100, 150]))
    assert (found["tokens"], found["trained_tokens"], found["trained_share"]) == (1000, 300, 0.3)
    cuts = {cut["max_length"]: cut for cut in found["cuts"]}
    assert cuts[256]["rows_over"] == 2 and cuts[256]["rows_share"] == pytest.approx(2 / 3)
    assert cuts[256]["dropped_share"] == pytest.approx(0.9)
    assert cuts[256]["cut_share"] == pytest.approx((44 + 344) / 1000)
    assert cuts[1024]["rows_over"] == 0 and cuts[1024]["cut_share"] == 0


def test_lengths_of_an_encoded_set_also_after_rows_were_taken_out():
    import datasets

    labels = [[-100, 5, 6], [-100, -100], [7], []]
    encoded = datasets.Dataset.from_dict({"labels": labels})
    total, trained = lengths.token_counts(encoded)
    assert total.tolist() == [3, 2, 1, 0] and trained.tolist() == [2, 0, 1, 0]
    total, trained = lengths.token_counts(encoded.select([2, 0]))
    assert total.tolist() == [1, 3] and trained.tolist() == [1, 2]
    assert lengths.token_counts(encoded.select([]))[0].tolist() == []


def test_histogram_counts_every_value_once():
    values = [1] * 500 + [50] * 490 + [10_000] * 3
    found = lengths.histogram(values, bins=10)
    assert sum(found["counts"]) == len(values) and len(found["counts"]) == 10
    assert found["beyond"] == 3
    assert lengths.histogram([])["counts"] == []
    assert sum(lengths.histogram([7, 7, 7])["counts"]) == 3


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Write a haiku about moss.", "write"),
        ("Given the recipe below, please summarize it.", "summarize"),
        ("Could you explain how a lock works?", "explain"),
        ("Read the letter and classify its tone", "classify"),
        ("why do leaves fall?", "answer"),
        ("What's the tallest tree?", "answer"),
        ("Translate into Dutch: good morning", "rewrite"),
        ("Compute 17 * 3", "calculate"),
        ("Name two moons.", "list"),
        ("写一首诗", "other"),
        ("", "other"),
        ("...", "other"),
    ],
)
def test_categories(text, name):
    assert categories.of(text) == name
    assert name in categories.NAMES


def test_no_word_is_in_two_categories_but_for_the_first_that_has_it():
    for name, words in categories.WORDS.items():
        assert len(words.split()) == len(set(words.split())), name
