"""Exact labels on every real tokenizer: ordinary rows, chats, Unicode and hostile text, against independent oracles."""

import gzip
import json
import random
import unicodedata

import pytest
import real
from paths import DATA, TOKENIZERS, WHOLE, needs_data

from tunebook.common.errors import UserError
from tunebook.common.tokens import encoding, rendering, templates, tokenization
from tunebook.common.tokens.templates import ALPACA
from tunebook.common.tokens.tokenization import encoder

pytestmark = [
    pytest.mark.real_data,
    needs_data,
]
LOADING = ["deepseek", "gpt-neox-20b", "gpt2", "llama2", "llama3", "mistral-v3", "phi-3-mini", "qwen2.5", "qwen3"]
ROWS = 3000 if WHOLE else 500
PART = 1 if WHOLE else 6  # of chats, each sixth
ROLES = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool"}
PIECES = ["the", " cat", "don't", "12345", "3.14", " ", "\n", "\n\n\n", "\t", "\u00e9", "e\u0301", "\u4e2d\u6587",
          "\U0001f600",
          "\u200d", "{}", "[/]", "```", "</x>", "### Response:", "\r\n", "<|im_end|>", "<|eot_id|>", "</s>", "[INST]",
          "<<SYS>>"]  # fmt: skip


@pytest.fixture(scope="module", params=LOADING)
def tokenizer(request):
    return real.tokenizer(request.param)


def alpaca():
    rows = json.loads((DATA / "alpaca" / "alpaca_52k_en.json").read_text(encoding="utf-8"))
    rows = [row for row in rows if row["output"].strip()]
    return rows[:: len(rows) // ROWS][:ROWS]


def unicode():
    lines = (DATA / "multilingual" / "unicode_stress_rows.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["output"].strip()]


def hostile(tokenizer, count=ROWS):
    """Rows that spell the tokenizer's special tokens and begin and end with anything."""
    rng = random.Random(0)
    special = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special][:40]

    def text():
        while True:
            found = "".join(rng.choice(PIECES if rng.random() < 0.7 else special) for _ in range(rng.randint(1, 12)))
            if found.strip():
                return found

    for _ in range(count):
        yield {"instruction": text(), "input": text() if rng.random() < 0.6 else "", "output": text()}


def chats():
    rows = json.loads((DATA / "chat" / "fastchat_dummy_conversation.json").read_text(encoding="utf-8"))
    calls = json.loads((DATA / "chat" / "llamafactory_glaive_toolcall_en_demo.json").read_text(encoding="utf-8"))
    found = []
    for row in rows + calls:
        turns = [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in row["conversations"]]
        while turns and turns[-1]["role"] != "assistant":
            turns.pop()
        if turns:
            found.append({"messages": turns, "tools": json.loads(row["tools"]) if row.get("tools") else None})
    return found[::PART]


def plain(text):
    """As it can come back from a tokenizer that normalises."""
    return unicodedata.normalize("NFC", text)


def recovered(trained, row):
    """The answer, whole, but for one leading space; before it at most the prompt's newline, in a token of both."""
    text, answer = plain(trained), plain(row["output"])
    extra = len(text) - len(answer)
    if extra < 0:
        return answer == " " + text
    return text.endswith(answer) and extra <= 2 and ALPACA.prompt(row).endswith(text[:extra])


@pytest.mark.parametrize("kind", ["alpaca", "unicode", "hostile"])
def test_instruction_rows(tokenizer, kind):
    rows = {"alpaca": alpaca, "unicode": unicode, "hostile": lambda: list(hostile(tokenizer))}[kind]()
    encoded, counts = encoding.encode(rows, tokenizer, ALPACA, 100_000)
    whole = rendering.TextRenderer(encoder(tokenizer), ALPACA, "assistant")._whole(rows)
    begin = len(encoder(tokenizer).begin)
    special = {place for place, token in tokenizer.added_tokens_decoder.items() if token.special}
    wrong = []
    for row, example, (ids, spans) in zip(rows, encoded, whole, strict=True):
        labels = example["labels"]
        start, end, _ = spans[0]
        trained = tokenizer.decode(ids[start : end - 1], clean_up_tokenization_spaces=False)
        if (
            example["input_ids"] != ids
            or labels != [-100] * start + ids[start:]
            or ids[-1] != tokenizer.eos_token_id
            or special & set(ids[begin:-1])
            or not recovered(trained, row)
        ):
            wrong.append((row, trained))
    assert counts.kept == len(rows) and not wrong, f"{len(wrong)} rows, first {wrong[:1]}"
    assert kind != "hostile" or counts.special_text > ROWS / 30


@pytest.mark.parametrize("name", ["chatml", "llama2", "llama3", "tokenizer"])
def test_chats_equal_generation_markers(tokenizer, name):
    if name == "tokenizer" and not tokenizer.chat_template:
        pytest.skip("this tokenizer has no chat template")
    template = templates.get(name, tokenizer)
    rows = chats()
    if "tool" not in template.jinja:  # it would leave out tools and what they answer, and is refused for that
        rows = [row for row in rows if not row["tools"] and all(turn["role"] != "tool" for turn in row["messages"])]
    encoded, counts = encoding.encode(rows, tokenizer, template, 1_000_000)
    assert rows and counts.kept == len(rows)
    marked = "endgeneration" in template.jinja
    for row, example in zip(rows, encoded, strict=True):
        theirs = tokenizer.apply_chat_template(
            row["messages"], tools=row["tools"] or None, chat_template=template.jinja, return_dict=True,
            return_assistant_tokens_mask=marked, **{k: v for k, v in template.tokens.items() if name != "tokenizer"},
        )  # fmt: skip
        assert example["input_ids"] == theirs["input_ids"]
        ours = [int(label != -100) for label in example["labels"]]
        if marked:
            assert ours == theirs["assistant_masks"]
        said = [turn["content"].strip() for turn in row["messages"] if turn["role"] == "assistant"]
        text = tokenizer.decode([t for t, trains in zip(example["input_ids"], ours, strict=True) if trains])
        at = 0
        for answer in said:
            at = plain(text).index(plain(answer), at) + len(answer)


@pytest.mark.parametrize("name", ["chatml", "tokenizer"])
def test_hostile_chats_hold_no_control_but_the_templates(tokenizer, name):
    if name == "tokenizer" and not tokenizer.chat_template:
        pytest.skip("this tokenizer has no chat template")
    template = templates.get(name, tokenizer)
    pair = [({"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]})
            for row in hostile(tokenizer, 1000 // PART * 2)]  # fmt: skip
    rows = [{"messages": [*one, *two]} for one, two in zip(pair[::2], pair[1::2], strict=True)]
    benign = [{"messages": [{**turn, "content": "x"} for turn in rows[0]["messages"]]}]
    special = {place for place, token in tokenizer.added_tokens_decoder.items() if token.special}
    want = [t for t in encoding.encode(benign, tokenizer, template, 10_000)[0][0]["input_ids"] if t in special]
    encoded, counts = encoding.encode(rows, tokenizer, template, 100_000)
    assert counts.kept == len(rows) and counts.special_text > 50 / PART
    for row, example in zip(rows, encoded, strict=True):
        assert [token for token in example["input_ids"] if token in special] == want
        trained = [t for t, label in zip(example["input_ids"], example["labels"], strict=True) if label != -100]
        text = plain(tokenizer.decode(trained, clean_up_tokenization_spaces=False))
        assert all(plain(turn["content"]).strip() in text for turn in row["messages"][1::2])


def test_broken_files_are_refused_and_wrong_classes_said(tmp_path):
    broken = TOKENIZERS / "llama2-broken-merges"
    with pytest.raises(UserError, match="no vocabulary"):
        tokenization.load(str(broken))  # its tokenizer.json is compressed, which transformers overlooks
    (tmp_path / "tokenizer.json").write_bytes(gzip.decompress((broken / "tokenizer.json.gz").read_bytes()))
    (tmp_path / "tokenizer_config.json").write_bytes((broken / "tokenizer_config.json").read_bytes())
    with pytest.raises(UserError, match="cannot be loaded"):
        tokenization.load(str(tmp_path))
    source = TOKENIZERS / "deepseek"
    (tmp_path / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_bytes((source / "tokenizer_config.original.json").read_bytes())
    _, found = tokenization.load(str(tmp_path))
    assert any("does not load as its tokenizer.json says" in line for line in found)
    assert any("padding token is its end token" in line for line in found)
