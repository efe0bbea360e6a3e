"""Every chat template that TRL brings, the project's own, and the shared tokenizers', with every shape of conversation.

Ids are compared with transformers' apply_chat_template, what trains with TRL's training templates. The outcome of each
pair is written down in docs/templates.md; `TEMPLATE_TABLE=write pytest tests/test_template_matrix.py` writes it anew.
"""

import json
import os
import re

import pytest
from paths import ROOT, TOKENIZERS, needs_data
from turns import ASK, SHAPES, encoded, made, sources, theirs

from tunebook.common.tokens import lengths, templates
from tunebook.common.tokens.jinja_templates import JINJA

TABLE = ROOT / "docs" / "templates.md"


@pytest.fixture(scope="module")
def cells():
    """(template, shape) -> (tokenizer, template object, sequences or None, why not)."""
    found = {}
    for name, source in sources().items():
        own = source in JINJA
        tokenizer = made(JINJA[source] if own else source)
        template = templates.get(source if own else "tokenizer", tokenizer)
        for shape, turns in SHAPES.items():
            found[name, shape] = (tokenizer, template, *encoded(tokenizer, template, turns))
    return found


def test_ids_are_those_of_apply_chat_template(cells):
    checked = 0
    for (name, shape), (tokenizer, template, sequences, _) in cells.items():
        for example in sequences or ():
            ids = example["input_ids"]
            counts = {len(SHAPES[shape]), *(n for n, t in enumerate(SHAPES[shape], 1) if t["role"] == "assistant")}
            options = template.tokens if name.startswith("own ") else {}
            known = (
                one["input_ids"]
                for count in sorted(counts)
                for one in theirs(tokenizer, template.jinja, SHAPES[shape][:count], **options)
            )
            # Where the template writes no end after the last answer, one token is added.
            assert any(one in (ids, ids[:-1]) for one in known), (name, shape, tokenizer.decode(ids))
            checked += 1
    assert checked > 200


def stretches(mask):
    """[start, end) of each run of ones."""
    edges = [0, *mask, 0]
    starts = [place for place in range(len(edges) - 1) if edges[place] < edges[place + 1]]
    return list(zip(starts, (place for place in range(len(edges) - 1) if edges[place] > edges[place + 1]), strict=True))


def test_what_trains_is_what_trls_training_templates_mark(cells):
    """But for three things: what the generation prompt writes, an empty block of thinking, and what follows the end."""
    from trl.chat_template_utils import get_training_chat_template

    checked = set()
    for (name, shape), (tokenizer, _, sequences, _) in cells.items():
        try:
            jinja = get_training_chat_template(tokenizer)
        except ValueError:  # it knows no training template for this one
            continue
        if jinja is None or not sequences:  # the template has its own markers
            continue
        counts = [n for n, turn in enumerate(SHAPES[shape], 1) if turn["role"] == "assistant"]
        asked = ([ASK], *(SHAPES[shape][: n - 1] for n in counts if SHAPES[shape][n - 2]["role"] == "tool"))
        openings = [
            "".join(tokenizer.decode(one["input_ids"]).split())[-60:]
            for turns in asked
            for one in theirs(tokenizer, tokenizer.chat_template, turns, add_generation_prompt=True)
        ]
        masks = {}
        for count in counts:
            for one in theirs(tokenizer, jinja, SHAPES[shape][:count], return_assistant_tokens_mask=True):
                masks[tuple(one["input_ids"])] = one["assistant_masks"]
        for example in sequences:
            ids = example["input_ids"]
            marked = stretches(masks.get(tuple(ids), ()))
            ours = stretches([int(label != lengths.IGNORE_INDEX) for label in example["labels"]])
            if not marked:  # it renders the conversation in another way
                continue
            for start, end in ours:
                around = [(a, b) for a, b in marked if a <= start and end <= b]
                assert around, (name, shape, tokenizer.decode(ids[start:end]))
                before = "".join(tokenizer.decode(ids[around[0][0] : start]).split()).replace("<think></think>", "")
                after = tokenizer.decode(ids[end : around[0][1]]).strip()
                assert any(before in opening for opening in openings), (name, shape, before)
                assert after in ("", tokenizer.eos_token), (name, shape, after)
            assert len(ours) == len(marked) or len(sequences) > 1, (name, shape)
            checked.add((name, shape))
    assert len(checked) > 100 and len({name for name, _ in checked}) > 15, len(checked)


def outcome(sequences, why, reasons):
    if sequences is None:
        why = re.sub(r"turn \d", "a turn", why)
        return f"no ({reasons.setdefault(why, len(reasons) + 1)})"
    return "by turn" if len(sequences) > 1 else "yes"


def test_the_table_says_what_happens(cells):
    reasons: dict[str, int] = {}
    names = list(dict.fromkeys(name for name, _ in cells))
    rows = [[name, *(outcome(*cells[name, shape][2:], reasons) for shape in SHAPES)] for name in names]
    lines = [
        "# Chat templates and conversations",
        "",
        "What becomes of a row of each shape under each chat template: `yes`: ids as `apply_chat_template` gives them,",
        "every answer and its end train; `by turn`: the same, in a sequence for each turn that the template writes in",
        "another way once the conversation goes on; `no`: refused, for the reason below. Written by",
        "`TEMPLATE_TABLE=write pytest tests/test_template_matrix.py`; templates are those of the pinned TRL.",
        "",
        "| template | " + " | ".join(SHAPES) + " |",
        "|---" * (len(SHAPES) + 1) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        *(f"{number}. {why}" for why, number in reasons.items()),
    ]
    text = "\n".join(lines) + "\n"
    if os.environ.get("TEMPLATE_TABLE") == "write":
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(text, encoding="utf-8")
    assert TABLE.read_text(encoding="utf-8") == text


@pytest.mark.real_data
@needs_data
@pytest.mark.parametrize("name", ["deepseek", "llama3", "mistral-v3", "phi-3-mini", "qwen2.5", "qwen3"])
def test_own_templates_of_real_tokenizers(name):
    file = TOKENIZERS / name / "chat_template.jinja"
    config = json.loads((TOKENIZERS / name / "tokenizer_config.json").read_text(encoding="utf-8"))
    jinja = file.read_text(encoding="utf-8") if file.exists() else config.get("chat_template")
    if jinja is None:
        pytest.skip(f"{name} has no chat template")
    tokenizer = made(jinja)
    template = templates.get("tokenizer", tokenizer)
    for shape, turns in SHAPES.items():
        sequences, why = encoded(tokenizer, template, turns)
        assert sequences is not None or why
        for example in sequences or ():
            ids = example["input_ids"]
            known = [
                one["input_ids"]
                for count in range(2, len(turns) + 1)
                for one in theirs(tokenizer, jinja, turns[:count])
            ]
            assert ids in known or ids[:-1] in known, (shape, tokenizer.decode(ids))
