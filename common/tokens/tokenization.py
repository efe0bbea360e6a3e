"""Tokenizers: loaded as training loads them, checked, and text encoded as text."""

import json
import re
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from tunebook.common import local_models
from tunebook.common.data import hub
from tunebook.common.errors import UserError, cannot_load
from tunebook.common.tokens import word_cache
from tunebook.common.tokens.boundaries import state

PROBES = (
    "Hello, world! It's 12345 o'clock.",
    "def f(x):\n    return x  # two  spaces",
    "na\u00efve caf\u00e9, \u00fcber, \u4e2d\u6587, \u0440\u0443\u0441\u0441\u043a\u0438\u0439",
)


def load(name: str) -> tuple[Any, list[str]]:
    """The tokenizer of a folder, a Hub model or `pocket`, and what is odd about it (`problems`).

    Raises:
        UserError: there is none, it cannot be loaded, it has no fast version, or it has no end token.
    """
    from transformers import AutoTokenizer

    place = str(local_models.folder(name) or name)
    if not (place and Path(place).is_dir()) and (place.count("/") != 1 or place.startswith((".", "/", "~"))):
        raise UserError(
            f"--tokenizer {name}: no such folder; name a folder, a Hub model like org/name, a .gguf file, smollm2 or "
            "pocket"
        )
    if not Path(place).is_dir():
        hub.require(place, "--tokenizer", "tokenizer_config.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except Exception as error:  # broken files raise many kinds; the name and the reason are what helps
        raise cannot_load(f"--tokenizer {name}", error) from error
    check(tokenizer, f"--tokenizer {name}")
    return tokenizer, problems(tokenizer, Path(place))


def check(tokenizer: Any, what: str) -> None:
    """Raise UserError where exact labels cannot be made: a slow tokenizer, an empty one, or one without an end."""
    if not tokenizer.is_fast:
        raise UserError(f"{what}: only a slow tokenizer could be loaded; exact labels need its tokenizer.json")
    if not tokenizer.backend_tokenizer.encode("a", add_special_tokens=False).ids:
        raise UserError(f"{what}: it loads with no vocabulary ({len(tokenizer)} tokens); is its tokenizer.json there?")
    if tokenizer.eos_token_id is None:
        raise UserError(f"{what}: it has no end token (eos_token); set one in its tokenizer_config.json")


def problems(tokenizer: Any, folder: Path) -> list[str]:
    """What a user should know of a tokenizer before training with it, a sentence each."""
    warnings = []
    file = folder / "tokenizer.json"
    backend = tokenizer.backend_tokenizer
    if file.exists():
        from tokenizers import Tokenizer

        from_file = Tokenizer.from_file(str(file))
        if any(from_file.encode(text).ids != backend.encode(text).ids for text in PROBES):
            warnings.append(
                "it does not load as its tokenizer.json says: the tokenizer_class in tokenizer_config.json "
                f"({type(tokenizer).__name__}) rebuilds it; set tokenizer_class to PreTrainedTokenizerFast"
            )
    changed = [
        text for text in PROBES[:2] if backend.decode(backend.encode(text, add_special_tokens=False).ids) != text
    ]
    if changed and backend.decode(backend.encode("a b", add_special_tokens=False).ids).strip() != "a b":
        warnings.append(f"text does not survive it: {changed[0]!r} comes back changed")
    if tokenizer.pad_token_id is None:
        warnings.append("it has no padding token; the end token pads, which is safe here: padding is masked by place")
    elif tokenizer.pad_token_id == tokenizer.eos_token_id:
        warnings.append("its padding token is its end token; the end still trains here: padding is masked by place")
    begin, end = bos_eos_ids(tokenizer)
    if end:
        warnings.append("it closes every text with its end token by itself; here the end is added once")
    chat_template = tokenizer.chat_template or ""
    template = chat_template if isinstance(chat_template, str) else "".join(chat_template.values())
    if begin and tokenizer.bos_token and ("bos_token" in template or tokenizer.bos_token in template):
        warnings.append("both it and its chat template write the beginning token; here one is kept")
    return warnings


def bind(tokenizer: Any, model: Any) -> list[str]:
    """Let encoding refuse ids past the model's embeddings, on which the model itself would crash.

    Returns:
        What is odd about the two, a sentence each.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    tokenizer.rows_of_model = rows
    over = {number: token for token, number in tokenizer.get_vocab().items() if number >= rows}
    if not over:
        return []
    first = over[min(over)]
    return [f"{len(over)} of its tokens, such as {first}, lie past the model's {rows} rows; text with them is refused"]


def beyond_model(tokenizer: Any, ids: list[int]) -> str:
    """Why the model that the tokenizer is bound to cannot take these ids; "" where it can, or where there is none."""
    rows = getattr(tokenizer, "rows_of_model", None)
    if rows is None or max(ids, default=0) < rows:
        return ""
    number = max(ids)
    return (
        f"it holds {tokenizer.convert_ids_to_tokens(number)} (token {number}), and the model has {rows} rows of "
        "embeddings; take the model's own tokenizer, or resize the embeddings and save the model anew"
    )


def bos_eos_ids(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before and after every text by itself."""
    backend = tokenizer.backend_tokenizer
    bare = backend.encode("a", add_special_tokens=False).ids
    full = backend.encode("a", add_special_tokens=True).ids
    start = next((at for at in range(len(full)) if full[at : at + len(bare)] == bare), 0)
    return full[:start], full[start + len(bare) :]


class Encoder:
    """Text to ids in batches. What looks like a special token is text here, unless `control` is asked for.

    Args:
        control: further added tokens that are control here though the tokenizer does not call them special.

    Attributes:
        begin: ids that open a sequence (the beginning token, where the tokenizer has one).
        special: matches the text of any special token; `added`: that of any added token, special or not.
    """

    def __init__(self, tokenizer: Any, control: frozenset[str] = frozenset()):
        check(tokenizer, "the tokenizer")
        self.tokenizer, self.backend = tokenizer, _control_special(tokenizer.backend_tokenizer, control)
        self.begin = bos_eos_ids(tokenizer)[0]
        self.end = int(tokenizer.eos_token_id)
        added = self.backend.get_added_tokens_decoder().values()
        self.strips = {token.content for token in added if token.rstrip}
        self.special = _any_of([token.content for token in added if token.special])
        self.added = _any_of([token.content for token in added])

    def text(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text with nothing put before or after it; special-token text stays text."""
        return _as_text(self.backend, texts)

    def control(self, texts: list[str]) -> list[Any]:
        """Encodings (ids and character offsets) of rendered texts whose special tokens are control."""
        return self.backend.encode_batch(texts, add_special_tokens=False)

    def inside(self, texts: list[str]) -> list[list[int]]:
        """Ids of texts that go on from an earlier one: as `text`, but with no space put before the first word."""
        return _as_text(self._inside, texts)

    def pieces(self, texts: list[str]) -> list[list[int]]:
        """What `inside` gives for texts that hold no added token, by words where that is quicker."""
        if self._words is None:
            return self.inside(texts)
        encoded = [self._words.encode(text) for text in texts]
        missing = [place for place, ids in enumerate(encoded) if ids is None]
        for place, ids in zip(missing, self.inside([texts[place] for place in missing]), strict=True):
            encoded[place] = ids
        return encoded  # pyright: ignore[reportReturnType]

    @cached_property
    def _words(self) -> word_cache.PretokenCache | None:
        return word_cache.of(self.backend)

    @cached_property
    def _inside(self) -> Any:
        return without_space_prefix(self.backend)

    def offsets(self, text: str, first: bool) -> Any:
        """Encoding of one text whose special-token text is text; `first`: it opens the sequence."""
        backend = self.backend if first or self._prefixes_all else self._inside
        return _encode_as_text(backend, lambda: backend.encode(text, add_special_tokens=False))

    @cached_property
    def _prefixes_all(self) -> bool:
        """Whether text after a special token is given the same leading space as the first text."""
        end = self.backend.encode(self.tokenizer.eos_token + "a b", add_special_tokens=False).ids
        return end[1:] == self.backend.encode("a b", add_special_tokens=False).ids


def _any_of(texts: list[str]) -> re.Pattern[str] | None:
    longest_first = sorted(filter(None, texts), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _encode_as_text(backend: Any, encode: Any) -> Any:
    before, backend.encode_special_tokens = backend.encode_special_tokens, True
    try:
        return encode()
    finally:
        backend.encode_special_tokens = before


def _as_text(backend: Any, texts: list[str]) -> list[list[int]]:
    batch = _encode_as_text(backend, lambda: backend.encode_batch_fast(texts, add_special_tokens=False))
    return [encoding.ids for encoding in batch]


def encoder(tokenizer: Any, control: frozenset[str] = frozenset()) -> "Encoder":
    """The tokenizer's Encoder; made once, and again when tokens have been added to it."""
    return _encoder(tokenizer, control, len(tokenizer))


@lru_cache(maxsize=4)
def _encoder(tokenizer: Any, control: frozenset[str], _: int) -> "Encoder":
    return Encoder(tokenizer, control)


def _control_special(backend: Any, control: frozenset[str]) -> Any:
    """The tokenizer with `control` and every added token that swallows white space flagged as special."""
    from tokenizers import Tokenizer

    flagged = [t for t in backend.get_added_tokens_decoder().values() if t.rstrip or t.lstrip or t.content in control]
    if all(token.special for token in flagged):
        return backend
    names = {token.content for token in flagged}
    data = json.loads(backend.to_str())
    for token in data["added_tokens"]:
        token["special"] = token["special"] or token["content"] in names
    return Tokenizer.from_str(json.dumps(data))


def without_space_prefix(backend: Any) -> Any:
    """The same tokenizer without the space that SentencePiece puts before a text; itself where there is none."""
    from tokenizers import Tokenizer

    normalizer, pre = state(backend.normalizer), state(backend.pre_tokenizer)
    parts = normalizer.get("normalizers", [normalizer] if normalizer else [])
    normalizers = [part for part in parts if part["type"] != "Prepend"]
    changed = len(normalizers) < len(parts)
    for part in pre.get("pretokenizers", [pre]):
        if part.get("type") == "Metaspace" and part["prepend_scheme"] != "never":
            part["prepend_scheme"], changed = "never", True
        if part.get("type") == "ByteLevel" and part["add_prefix_space"]:
            part["add_prefix_space"], changed = False, True
    if not changed:
        return backend
    data = json.loads(backend.to_str())  # slow for a large vocabulary
    data["normalizer"] = {"type": "Sequence", "normalizers": normalizers} if normalizers else None
    data["pre_tokenizer"] = pre or None
    return Tokenizer.from_str(json.dumps(data))
