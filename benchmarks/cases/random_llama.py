"""Random Llamas of real shapes, and random rows of real lengths."""

import shutil
from pathlib import Path
from typing import Any

# Alpaca's 51,953 rows with an answer, Llama 3's tokenizer, Alpaca's template: tokens of prompt and of answer.
QUANTILES = (0, 5, 10, 25, 50, 75, 90, 95, 97, 99, 99.5, 99.9, 100)
PROMPT = (29, 31, 32, 35, 39, 55, 65, 74, 82, 106, 125, 165, 554)
ANSWER = (2, 4, 7, 14, 41, 84, 121, 151, 179, 250, 297, 419, 965)
WIDTH = 1024  # TRL's default max_length: tokens of a row at most, and of a packed sequence
LLAMA = dict(num_attention_heads=32, num_key_value_heads=8, head_dim=64, vocab_size=128256, tie_word_embeddings=True)
SIZES = {
    "1B": {**LLAMA, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16},
    "8B": {**LLAMA, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    | {"head_dim": 128, "tie_word_embeddings": False},
    "tiny": {**LLAMA, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    | {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 1024},
}


def make(size: str, folder: str) -> None:
    """Write a random Llama, with pocket's tokenizer, to the folder: bfloat16 where there is a GPU."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tunebook.common.pocket import FOLDER

    gpu = torch.cuda.is_available()
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES[size], max_position_embeddings=2 * WIDTH)
    with torch.device("cuda" if gpu else "cpu"):
        model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16 if gpu else torch.float32)
    model.save_pretrained(folder)
    for path in (FOLDER / "model").glob("*token*"):
        shutil.copy(path, Path(folder))


def numbers(size: str) -> tuple[int, int]:
    """Parameters of the shape, and those of them that every token is multiplied by."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**SIZES[size]))
    total = sum(parameter.numel() for parameter in model.parameters())
    looked_up = 0 if model.config.tie_word_embeddings else model.get_input_embeddings().weight.numel()
    return total, total - looked_up


def rows(size: str, count: int) -> Any:
    """Random ids with real lengths; only answers train."""
    import datasets
    import numpy
    import pyarrow

    random = numpy.random.default_rng(0)
    prompt, answer = (
        numpy.rint(numpy.interp(100 * random.random(count), QUANTILES, table)).astype(int) for table in (PROMPT, ANSWER)
    )
    answer = numpy.minimum(answer, WIDTH - prompt)
    ends = numpy.cumsum(prompt + answer)
    ids = random.integers(0, SIZES[size]["vocab_size"], ends[-1], dtype=numpy.int32)
    offsets = numpy.concatenate([[0], ends]).astype(numpy.int32)
    inside = numpy.arange(ends[-1]) - numpy.repeat(offsets[:-1], prompt + answer)
    labels = numpy.where(inside < numpy.repeat(prompt, prompt + answer), -100, ids).astype(numpy.int32)
    lists = [pyarrow.ListArray.from_arrays(pyarrow.array(offsets), pyarrow.array(values)) for values in (ids, labels)]
    return datasets.Dataset(pyarrow.table(lists, names=["input_ids", "labels"]), fingerprint=f"random-{size}-{count}")
