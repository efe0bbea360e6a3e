"""Cuts: encoding by parts gives the ids of the whole, for the bundled tokenizer and for small ones made here."""

import random

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tunebook.common.pocket import FOLDER
from tunebook.common.tokens import rendering
from tunebook.common.tokens.boundaries import SafeBoundaries
from tunebook.common.tokens.templates import ALPACA
from tunebook.common.tokens.tokenization import encoder

# Letters with the sign before them, digits in threes, signs with the newlines after them, white space by look-ahead.
WORDS = r"'\p{L}{1,2}|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEXTS = [
    "What is it?\n\n### Response:\nIt isn't 12345 things!\n",
    "Say: one, two\n### Input:\nred  blue\n\n\tgreen caf\u00e9",
    "Below is an instruction that describes a task.\n\n",
]


def wrap(backend):
    backend.add_special_tokens(["<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def bytewise(pattern, normalizer=None):
    backend = Tokenizer(models.BPE(ignore_merges=True))
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    backend.pre_tokenizer = pre_tokenizers.Sequence(splits)
    backend.normalizer = normalizer
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(TEXTS * 5, trainer)
    return wrap(backend)


def sentencepiece(prefix):
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    plain = sorted({char for text in TEXTS for char in text.replace(" ", "\u2581") if char != "\n"} | {"\u2581"})
    pieces += [*plain, "\u2581i", "\u2581is", "it", "on", "\u2581\u2581", "##", "###", "\u2581t"]
    merges = [("\u2581", "i"), ("\u2581i", "s"), ("i", "t"), ("o", "n"), ("\u2581", "\u2581"), ("#", "#"), ("##", "#")]
    merges += [("\u2581", "t")]
    vocab = {piece: place for place, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if prefix == "normalizer":
        steps = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        backend.normalizer = normalizers.Sequence(steps)
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(["<s>"])
    single = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))])
    backend.post_processor = single
    return wrap(backend)


TOKENIZERS = {
    "pocket": lambda: AutoTokenizer.from_pretrained(FOLDER / "model"),
    "words": lambda: bytewise(WORDS),
    "words_nfc": lambda: bytewise(WORDS, normalizers.NFC()),
    "prepend": lambda: sentencepiece("normalizer"),
    "metaspace": lambda: sentencepiece("first"),
}


def rows(count, seed):
    """Rows whose texts begin and end with anything."""
    rng = random.Random(seed)
    pieces = [
        "it",
        " is",
        "on",
        "?",
        "!",
        "\n",
        "\n\n",
        "  ",
        "\t",
        "1",
        "2345",
        "caf\u00e9",
        "e\u0301",
        "\u0301",
        "'s",
    ]
    pieces += ["</s>", "\u4e2d", "\U0001f600", "### Response:", "<s>", "<|im_end|>", "\r\n", "\u200d", "#", "_", "^"]
    for _ in range(count):
        texts = ("".join(rng.choices(pieces, k=rng.randint(1, 6))) for _ in range(3))
        yield dict(zip(("instruction", "input", "output"), texts, strict=True)) | (
            {"input": ""} if rng.random() < 0.4 else {}
        )


@pytest.mark.parametrize("name", TOKENIZERS)
def test_parts_equal_the_whole(name):
    render = rendering.TextRenderer(encoder(TOKENIZERS[name]()), ALPACA, "assistant")
    sample = list(rows(3000, seed=1))
    found, bad, special = render(sample)
    assert not bad and special > 100
    assert found == render._whole(sample)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_most_ordinary_rows_are_cut(name):
    render = rendering.TextRenderer(encoder(TOKENIZERS[name]()), ALPACA, "assistant")
    row = {"instruction": "What is on it?", "input": "It isn't.", "output": "Two."}
    assert render._plan(ALPACA.parts(row)[0], [*ALPACA.parts(row)[1], row["output"]], 0) is not None


@pytest.mark.parametrize("pattern", [r"(?<=a)b|.", r"\bword|.", r"^a|.", r"a$|."])
def test_patterns_that_look_back_are_not_cut(pattern):
    assert not SafeBoundaries(bytewise(pattern).backend_tokenizer).by_regex
    assert SafeBoundaries(bytewise(r"[$^\[]+|\$|\p{L}+|.").backend_tokenizer).by_regex
