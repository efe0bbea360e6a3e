"""A GGUF file as llama.cpp serves it."""

import contextlib
import functools
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tunebook.common.errors import UserError
from tunebook.common.export.conversations import LIMIT, LONGEST


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What llama.cpp prints from C goes nowhere; what it cannot load is told by an error."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


TRIAL = """
import json, sys, llama_cpp
model = llama_cpp.Llama(sys.argv[1], verbose=False, **json.loads(sys.argv[2]))
ids = model.tokenize(b"a b " * 16)
if not json.loads(sys.argv[2]).get("vocab_only"):
    model.eval(ids[:32])
"""
REBUILD = (
    "it was built for instructions that this machine refuses; build it without them: "
    'CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON" '
    "pip install --force-reinstall --no-deps --no-cache-dir llama-cpp-python"
)


def try_out(file: Path, **settings: Any) -> None:
    """Load a file in a process of its own and compute some tokens: llama.cpp ends its process for some files that are
    broken, and where it was built for another processor, which shows only when it computes.

    Args:
        settings: of llama_cpp.Llama; with vocab_only, nothing is computed.

    Raises:
        UserError: it does.
    """
    words = [sys.executable, "-c", TRIAL, str(file), json.dumps(settings)]
    done = subprocess.run(words, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode == -signal.SIGILL:
        raise UserError(f"{file.name}: llama.cpp ends with SIGILL on it: {REBUILD}")
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        raise UserError(f"{file}: llama.cpp cannot load it: {said.strip()[:300]}")


def opened(file: Path, **settings: Any) -> Any:
    """llama_cpp.Llama of a file.

    Raises:
        UserError: it cannot be loaded.
    """
    llama_cpp = importlib.import_module("llama_cpp")
    try:
        with quiet():
            return llama_cpp.Llama(model_path=str(file), verbose=False, **settings)
    except (ValueError, RuntimeError, AssertionError) as error:
        raise UserError(f"{file}: llama.cpp cannot load it: {error}") from error


def tokenize_by(file: Path) -> Callable[[str], list[int]] | None:
    """A file's tokenizer, text to ids, with nothing put around; None where llama.cpp does not load it."""
    try:
        try_out(file, vocab_only=True)
        model = opened(file, vocab_only=True)
    except UserError:
        return None
    return lambda text: model.tokenize(text.encode(), add_bos=False, special=False) if text else []


class GgufModel:
    """As served.TransformersModel.

    Args:
        lora: a LoRA adapter in GGUF, on the file.
    """

    def __init__(self, file: Path, lora: Path | None = None):
        from tunebook.common.export.gguf_tensors import bits

        self.file, self.lora, self.name = file, lora, (lora or file).name
        self.bits = bits(file)
        try_out(file, n_ctx=64, **({"lora_path": str(lora)} if lora else {}))
        self._vocabulary = opened(file, vocab_only=True)
        llama_cpp = importlib.import_module("llama_cpp")
        vocabulary = llama_cpp.llama_model_get_vocab(self._vocabulary._model.model)
        count = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self.ends = {token for token in range(count) if llama_cpp.llama_vocab_is_eog(vocabulary, token)}
        pad = llama_cpp.llama_vocab_pad(vocabulary)
        self.pad = pad if pad >= 0 else None
        self._model: Any = None

    @functools.cached_property
    def _formatter(self) -> Any:
        """The template of the file, as llama-cpp-python's server renders it."""
        formats = importlib.import_module("llama_cpp.llama_chat_format")
        metadata = self._vocabulary.metadata
        if "tokenizer.chat_template" not in metadata:
            raise UserError(f"{self.file}: it has no chat template")
        texts = [
            self._vocabulary._model.token_get_text(token) if token != -1 else ""
            for token in (self._vocabulary.token_eos(), self._vocabulary.token_bos())
        ]
        return formats.Jinja2ChatFormatter(metadata["tokenizer.chat_template"], *texts)

    def prompt(self, messages: list[dict], tools: list | None, options: dict[str, Any]) -> list[int]:
        """Ids of a conversation with the header of the next answer."""
        found = self._formatter(messages=messages, **({"tools": tools} if tools else {}), **options)
        return self._vocabulary.tokenize(found.prompt.encode(), add_bos=not found.added_special, special=True)

    def text(self, ids: list[int]) -> str:
        """What a client gets of an answer."""
        return self._vocabulary.detokenize([token for token in ids if token not in self.ends]).decode(
            "utf-8", "replace"
        )

    @contextlib.contextmanager
    def loaded(self) -> Iterator[None]:
        lora = {"lora_path": str(self.lora)} if self.lora else {}
        limit = self._vocabulary._model.n_ctx_train() or LONGEST + LIMIT
        self._model = opened(self.file, n_ctx=min(limit, LONGEST + LIMIT), logits_all=True, seed=0, **lora)
        try:
            yield
        finally:
            self._model.close()
            self._model = None

    def logits(self, ids: list[int], start: int, stop: int) -> Any:
        """Logits in float32 that predict ids[start:stop]."""
        import torch

        self._model.reset()
        self._model.eval(ids[:stop])
        return torch.from_numpy(self._model.scores[start - 1 : stop - 1].copy())

    def answers(self, prompts: list[list[int]], limit: int) -> list[list[int]]:
        """The greedy answer to each prompt with its end token, as llama.cpp knows the ends."""
        found = []
        for prompt in prompts:
            self._model.reset()
            room = self._model.n_ctx() - len(prompt)
            ids: list[int] = []
            for token in self._model.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0):
                ids.append(token)
                if token in self.ends or len(ids) >= min(limit, room):
                    break
            found.append(ids)
        return found
