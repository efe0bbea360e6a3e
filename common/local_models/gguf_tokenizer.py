"""The tokenizer that a .gguf file describes, as a fast tokenizer of transformers.

transformers' own reading (5.17) knows nothing of `tokenizer.ggml.pre`, by which llama.cpp splits a text before it
merges: digits, contractions, line breaks. One text in twelve got other ids than it has in llama.cpp.
"""

from collections.abc import Callable, Mapping
from typing import Any

from tunebook.common.errors import UserError

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # kinds of tokens in tokenizer.ggml.token_type
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _pattern(digits: str) -> str:
    """Words with one character that is no letter before them, runs of digits, punctuation, line breaks, spaces."""
    return rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}" + REST


def _by_pattern(digits: str) -> Callable[[], Any]:
    def made() -> Any:
        from tokenizers import Regex, pre_tokenizers

        split = pre_tokenizers.Split(Regex(_pattern(digits)), "isolated")
        return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    return made


def _gpt2() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _single_digits() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


# tokenizer.ggml.pre -> how a text is split; those whose ids were held against llama.cpp's or the model's own tokenizer.
PRE_TOKENIZERS: dict[str, Callable[[], Any]] = {
    "smollm": _single_digits,
    "gpt-2": _gpt2,
    "llama-bpe": _by_pattern("{1,3}"),
    "qwen2": _by_pattern(""),
}
WHOLE_WORDS = {"llama-bpe"}  # a word that is a token is one, whatever the merges would make of it
BEGINS = {"llama-bpe"}  # a beginning token is put before every text unless tokenizer.ggml.add_bos_token says no


def check(metadata: Mapping[str, Any], what: str) -> None:
    """Raise UserError where the tokenizer would not give llama.cpp's ids."""
    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    remedy = "give --model the folder of the original model"
    if kind != "gpt2":
        raise UserError(f"{what}: its tokenizer is of the kind {kind!r}, and gpt2 (byte-level BPE) is read; {remedy}")
    if pre not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise UserError(
            f"{what}: its texts are split by tokenizer.ggml.pre = {pre!r}, which is not known here (known: {known}), "
            f"and another way would give other ids; {remedy}"
        )
    if metadata.get("tokenizer.ggml.eos_token_id") is None:
        raise UserError(f"{what}: it names no end token (tokenizer.ggml.eos_token_id); {remedy}")


def build(metadata: Mapping[str, Any]) -> Any:
    """A PreTrainedTokenizerFast with the end, padding and beginning tokens and the chat template of the file.

    Args:
        metadata: key -> value of a file that `check` accepts.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, processors
    from transformers import PreTrainedTokenizerFast

    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    pre = metadata["tokenizer.ggml.pre"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    vocab = {token: number for number, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre in WHOLE_WORDS))
    backend.pre_tokenizer, backend.decoder = PRE_TOKENIZERS[pre](), decoders.ByteLevel()
    backend.add_tokens([
        AddedToken(token, special=kind == CONTROL, normalized=False)
        for token, kind in zip(tokens, kinds, strict=True) if kind in (CONTROL, USER_DEFINED)
    ])  # fmt: skip

    def named(key: str) -> str | None:
        number = metadata.get(f"tokenizer.ggml.{key}_token_id")
        return None if number is None else tokens[number]

    begin = named("bos")
    if begin is not None and metadata.get("tokenizer.ggml.add_bos_token", pre in BEGINS):
        backend.post_processor = processors.TemplateProcessing(
            single=f"{begin}:0 $A:0", pair=f"{begin}:0 $A:0 {begin}:1 $B:1", special_tokens=[(begin, vocab[begin])]
        )
    names = {
        "eos_token": named("eos"),
        "bos_token": begin,
        "pad_token": named("padding"),
        "unk_token": named("unknown"),
    }
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        **{name: token for name, token in names.items() if token is not None},
    )
    tokenizer.chat_template = metadata.get("tokenizer.chat_template")
    return tokenizer
