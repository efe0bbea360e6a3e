"""Every template of ours on fixed rows: the text that trains between « and », the rest as it is given.

Templates of others are held against their own rendering (test_template_matrix.py); their texts are not ours to keep.
"""

from itertools import groupby

import golden
import pytest
from turns import SHAPES, encoded, made

from tunebook.common.tokens import encoding, jinja_templates, lengths, templates

pytestmark = pytest.mark.golden
ROWS = [
    {"instruction": "Name a colour.", "input": "", "output": "Red."},
    {"instruction": "Sort the words.", "input": "pear apple", "output": "apple pear"},
    {"instruction": "Greet.", "input": "", "output": "Hello!", "system": "Be brief."},
    {"instruction": "  Keep\n\nmy spaces. ", "input": "\ta\n", "output": " b\n"},
    {"instruction": "Repeat: ### Response:\n<|im_end|></s>[INST]", "input": "", "output": "{{ x }} é 🤷"},
]
TALKS = ("system", "several turns", "thinking, a key", "parallel calls", "tool answer")


def shown(tokenizer, example):
    """The text of a sequence, with what trains between marks."""
    pairs = zip(example["labels"], example["input_ids"], strict=True)
    parts = groupby(pairs, key=lambda pair: pair[0] != lengths.IGNORE_INDEX)
    texts = [(trains, tokenizer.decode([token for _, token in part])) for trains, part in parts]
    return "".join(f"«{text}»" if trains else text for trains, text in texts)


def page(blocks):
    return "\n".join(f"===== {name}\n{text}" for name, text in blocks)


@pytest.mark.parametrize("name", templates.TEXT)
def test_of_instructions(tokenizer, name):
    template = templates.get(name, tokenizer)
    blocks = []
    for number, row in enumerate(ROWS, 1):
        (example,) = encoding.encode([row | {"row": number, "source": ""}], tokenizer, template, 10_000)[0]
        blocks.append((f"row {number}", shown(tokenizer, example)))
    golden.check(f"templates/{name}.txt", page(blocks))


@pytest.mark.parametrize("name", jinja_templates.JINJA)
def test_of_conversations(name):
    tokenizer = made(jinja_templates.JINJA[name])
    template = templates.get(name, tokenizer)
    blocks = []
    for talk in TALKS:
        examples, why = encoded(tokenizer, template, SHAPES[talk])
        text = f"refused: {why}" if examples is None else "\n-----\n".join(shown(tokenizer, one) for one in examples)
        blocks.append((talk, text))
    golden.check(f"templates/own_{name}.txt", page(blocks))
