"""A model to be scored: a folder or Hub model, with an adapter or without, in 4 bits or not."""

from pathlib import Path
from typing import Any

from tunebook.common import models
from tunebook.common.models import device, inference
from tunebook.common.tokens import tokenization
from tunebook.evals.compare import runs


class ScoredModel:
    """A model with its tokenizer, loaded by transformers alone in the dtype of the device.

    Args:
        model: as for InferenceModel; "": the base that the adapter names, or pocket.
        adapter: a folder or Hub name of PEFT's or of bottleneck adapters, or a run's folder with one; "": none.
        four_bit: quantize to NF4 with double quantization while loading.
        base: score the base alone, with the adapter's template and tokenizer.

    Attributes:
        base, adapter: where the base and the adapter on it ("": none) come from.
        trained: the folder of the adapter that was named, or of the model: its template is the one in use.
        own_tokenizer: whether the tokenizer is that of `trained`, not the base's.
        prefix, end: tokens of the base: before a text that is scored from its first token on, and at a text's end.
        command_problem: why lm_eval itself cannot score this model, after `model_args` has returned None.

    Raises:
        UserError: something is missing, cannot be loaded, or does not fit.
    """

    def __init__(self, model: str, adapter: str, four_bit: bool = False, base: bool = False):
        from transformers.utils import logging

        logging.set_verbosity_error()  # our own note on prompts that are too long says more
        folder = next(iter(inference.named([adapter] if adapter else []).values()), "")
        trained_on = inference.base_of(folder) if folder else ""
        name = inference.model_folder(model) or trained_on or "pocket"
        self.base, self.four_bit, self.command_problem = models.resolve(name), four_bit, ""
        self.trained, self.adapter = folder or self.base, "" if base else folder
        self.own_tokenizer = bool(folder) and (Path(folder) / "tokenizer_config.json").exists()
        self.tokenizer, self.notes = tokenization.load(folder if self.own_tokenizer else self.base)
        base_tokenizer = tokenization.load(self.base)[0] if self.own_tokenizer else self.tokenizer
        self.prefix, self.end = prefix_token(base_tokenizer), int(base_tokenizer.eos_token_id)
        if trained_on and Path(trained_on).resolve() != Path(self.base).resolve() and trained_on != name:
            self.notes.append(f"the adapter was trained on {trained_on}; here it is on {name}")
        if self.adapter and runs.of(self.adapter):
            from transformers import AutoConfig

            quantized = hasattr(AutoConfig.from_pretrained(self.base, trust_remote_code=False), "quantization_config")
            self.notes += filter(None, [runs.precision(self.adapter, four_bit or quantized)])

    def positions(self) -> int:
        """The context length, as lm-eval will find it."""
        from lm_eval.models.utils import resolve_max_length
        from transformers import AutoConfig

        return resolve_max_length(AutoConfig.from_pretrained(self.base, trust_remote_code=False), self.tokenizer)

    def load(self, save_to: str = "") -> Any:
        """The model with its adapter, ready to score.

        Args:
            save_to: a folder for the quantized base, which transformers loads again bit for bit; "": it is not saved.
        """
        model = models.load_plain(self.base, self.four_bit)
        if save_to:  # now: an adapter puts itself between the base's weights and their names
            model.save_pretrained(save_to)
            tokenization.load(self.base)[0].save_pretrained(save_to)
        if self.adapter:
            model = inference.attach_adapter(model, self.adapter)
        tokenization.bind(self.tokenizer, model)
        self.model = model.eval()
        return self.model

    def model_args(self, folder: Path, saved: str = "") -> str | None:
        """`lm_eval run --model_args` of the loaded model; None: lm_eval cannot score it.

        Args:
            folder: gets a tokenizer, where lm_eval needs another.
            saved: the folder of the quantized base; "": it was not saved.
        """
        tokenizer = absolute(self.trained) if self.own_tokenizer else ""
        if self.adapter and inference.is_bottleneck(self.adapter):
            self.command_problem = "lm-eval alone cannot load this kind of adapter (models/bottleneck_adapters.py)"
        elif self.four_bit and not saved:
            self.command_problem = (
                "lm-eval alone cannot quantize a model with this transformers; --keep saves the quantized one for it"
            )
        elif self.adapter:
            padded, self.command_problem = peft_tokenizer(self.model, self.tokenizer, folder)
            tokenizer = padded or tokenizer
        if self.command_problem:
            return None
        prefix = None if self.prefix == prefix_token(self.tokenizer) else self.prefix
        adapter = absolute(self.adapter) if self.adapter else ""
        return model_args(saved or absolute(self.base), adapter, tokenizer, prefix)


def model_args(model: Any, adapter: Any, tokenizer: str, prefix: int | None = None) -> str:
    """`--model_args` of lm_eval; what is None or "" is left out."""
    dtype = str(device.current().dtype).removeprefix("torch.")
    words = f"pretrained={model},dtype={dtype},softmax_dtype=float32"
    words += f",peft={adapter}" if adapter else ""
    words += "" if prefix is None else f",prefix_token_id={prefix}"
    return words + (f",tokenizer={tokenizer}" if tokenizer else "")


def peft_tokenizer(model: Any, tokenizer: Any, folder: Path) -> tuple[str, str]:
    """The folder of a tokenizer that lm_eval needs instead of the model's ("": none), or why no tokenizer helps.

    With `peft=` lm_eval resizes the embeddings to the tokenizer, which drops the rows that a model is padded with. A
    tokenizer with as many tokens as rows keeps them; its further tokens are in no task's text.
    """
    rows, width = model.config.get_text_config().vocab_size, len(tokenizer)
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    of_peft = type(head).__module__.startswith("peft") or type(embeddings).__module__.startswith("peft.utils")
    if tied and of_peft:
        return "", (
            "lm-eval alone ties embeddings and head again, which this adapter has trained apart: it fails, or scores "
            "another model"
        )
    if rows < width:
        return "", (
            f"lm-eval alone would put {width - rows} untrained rows on the model's {rows}, as its tokenizer has "
            f"{width} tokens"
        )
    if rows == width:
        return "", ""
    from transformers import AutoTokenizer

    path = (folder / "tokenizer").resolve()
    tokenizer.save_pretrained(path)
    padded = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    padded.add_tokens([f"<|beyond_{number}|>" for number in range(width, rows)], special_tokens=True)
    if len(padded) != rows:
        return "", f"lm-eval alone would take the model's {rows} embeddings for the tokenizer's {width} tokens"
    padded.save_pretrained(path)
    return str(path), ""


def prefix_token(tokenizer: Any) -> int:
    """The token that lm-eval puts before a text whose first token is scored."""
    return int(tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id)


def absolute(place: str) -> str:
    """A folder's absolute path, as a command may be run elsewhere; a Hub name as it is."""
    return str(Path(place).resolve()) if Path(place).exists() else place
