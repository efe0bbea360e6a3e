"""A .gguf file written once as a folder of transformers, in the user's cache."""

import glob
import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunebook.common import files
from tunebook.common.errors import UserError
from tunebook.common.local_models import gguf_tokenizer

MAGIC = b"GGUF"
VERSION = b"1"  # of what is written: another one is converted anew
HALF = 1_000_000_000  # weights above which they are written in float16 and not in float32, which holds them exactly
DAY = 86_400
PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


def folder(file: Path) -> Path:
    """The model of a .gguf file as a folder with config, float weights and tokenizer; made where it is not there yet.

    Raises:
        UserError: it is no such file or a part of one, gguf is not installed, its architecture or tokenizer is not
            known, or the cache cannot be written.
    """
    what = f"--model {file}"
    try:
        with file.open("rb") as opened:
            if opened.read(4) != MAGIC:
                raise UserError(f"{what}: it is no GGUF file")
    except OSError as error:
        raise UserError(f"{what}: {error.strerror}") from None
    if PART.search(file.name):
        raise UserError(f"{what}: it is one part of several; join them with llama.cpp's gguf-split --merge")
    place = _cache() / f"{file.stem[:60]}-{_name(file)}"
    if (place / "config.json").exists():
        return place
    metadata = read(file, what)
    gguf_tokenizer.check(metadata, what)
    _remove_left(place)
    part = place.with_name(f"{place.name}.{socket.gethostname()}.{os.getpid()}.part")
    print(f"{what}: its weights are written as floats, once, to {place}", flush=True)
    try:
        part.mkdir(parents=True)
        # In a process of its own: transformers must not be imported before Unsloth where a model is to train.
        done = subprocess.run(
            [sys.executable, "-m", "tunebook.common.local_models.gguf", str(file.absolute()), str(part)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            reason = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            raise UserError(f"{what} cannot be read by transformers: {reason[0][:300]}")
        part.rename(place)
    except OSError as error:
        if not (place / "config.json").exists():  # else another process was quicker
            raise UserError(
                f"{place} cannot be written: {error.strerror}; XDG_CACHE_HOME names another place"
            ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return place


def read(file: Path, what: str) -> Mapping[str, Any]:
    """The file's metadata, key -> value; no weight is read.

    Raises:
        UserError: gguf is not installed, or the file is damaged.
    """
    try:
        import gguf  # pyright: ignore[reportMissingImports]  an extra: gguf
    except ImportError:
        raise UserError(f'{what} needs gguf, which is not installed: pip install "gguf>=0.19,<0.20"') from None
    try:
        fields = gguf.GGUFReader(file).fields
        return {key: field.contents() for key, field in fields.items()}
    except (ValueError, IndexError, KeyError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{what} is damaged: {error}") from error


def write(file: Path, place: Path) -> None:
    """Write the model into a folder, with all weights dequantized."""
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = gguf_tokenizer.build(read(file, str(file)))
    given: Any = AutoModelForCausalLM.from_pretrained(
        str(file.parent), gguf_file=file.name, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
    )
    loaded, found = given
    if missing := sorted(found["missing_keys"]):  # they would be random
        raise SystemExit(f"it has no {missing[0]}" + (f", and {len(missing) - 1} more" if len(missing) > 1 else ""))
    values = loaded.config.to_dict()
    values.pop("quantization_config", None)  # transformers refuses to save what has one
    names = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    config = type(loaded.config).from_dict({**values, **names, "pad_token_id": tokenizer.pad_token_id})
    weights = loaded.state_dict()
    dtype = torch.float32 if sum(weight.numel() for weight in weights.values()) < HALF else torch.float16
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    model.load_state_dict({name: weight.to(dtype) for name, weight in weights.items()}, assign=True)
    model.tie_weights()
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)


def _remove_left(place: Path) -> None:
    """Remove what conversions of this machine have left that were killed, and those of any machine after a day."""
    for part in place.parent.glob(f"{glob.escape(place.name)}.*.part"):
        host, _, pid = part.name.removeprefix(f"{place.name}.").removesuffix(".part").rpartition(".")
        try:
            old = time.time() - part.stat().st_mtime > DAY
        except OSError:  # its process has finished meanwhile
            continue
        if old or (host == socket.gethostname() and pid.isdigit() and not _lives(int(pid))):
            shutil.rmtree(part, ignore_errors=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        pass
    return True


def _cache() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tunebook" / "gguf"
    except RuntimeError:
        raise UserError(
            "a .gguf file is written once as floats into the user's cache, and this user has no home folder: set HOME, "
            "or XDG_CACHE_HOME to a folder with room for the weights"
        ) from None


def _name(file: Path) -> str:
    """A hash of the size, the first mebibyte and samples: whole files of many gigabytes take too long."""
    digest = hashlib.sha256(VERSION + f" {file.stat().st_size} ".encode())
    with file.open("rb") as opened:
        digest.update(opened.read(1 << 20))
    for sample in files.samples(file):
        digest.update(sample)
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
