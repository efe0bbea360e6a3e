"""A model to be scored: a folder or Hub model, with an adapter or without, in 4 bits or not."""

from pathlib import Path
from typing import Any

from tunebook.common import models
from tunebook.common.models import device, inference
from tunebook.common.tokens import tokenization
from tunebook.evals.compare import runs


class ScoredModel:
    """A model with its tokenizer, by transformers alone, in the dtype of the device (models/device.py).

    Args:
        model: what `models.locate` takes, a run's folder with `model/`, or "": the base that the adapter names, or
            pocket.
        adapter: a folder or Hub name of PEFT's or of bottleneck adapters, or a run's folder with one; "": none.
        four_bit: quantise to NF4 with double quantisation while loading.
        base: leave the adapter off; its template and tokenizer are those in use all the same.

    Attributes:
        place, folder: where the model and the adapter on it ("": none) come from.
        trained: the folder of the adapter that was named, or of the model: its template is the one in use.
        own_tokenizer: the adapter that was named has a tokenizer, which is in use.
        prefix, end: tokens of the base: what opens a text that is scored from its first token on, and what ends one.
        ours: the adapter is one of models/bottleneck_adapters.py, which lm_eval itself cannot load.
        why: what keeps lm_eval itself from scoring this model, after `words` has given None.

    Raises:
        UserError: something is not there, cannot be loaded, or does not fit.
    """

    def __init__(self, model: str, adapter: str, four_bit: bool = False, base: bool = False):
        from transformers.utils import logging

        logging.set_verbosity_error()  # of a prompt that is too long our own note says more
        found = inference.named([adapter] if adapter else [])
        named = next(iter(found.values()), "")
        below = inference.base_of(named) if named else ""
        name = inference._model_of(model) or below or "pocket"
        self.place, self.four_bit, self.why = models.resolve(name), four_bit, ""
        self.trained, self.folder = named or self.place, "" if base else named
        self.ours = bool(self.folder) and (Path(self.folder) / inference.BOTTLENECK).exists()
        self.own_tokenizer = bool(named) and (Path(named) / "tokenizer_config.json").exists()
        self.tokenizer, self.notes = tokenization.load(named if self.own_tokenizer else self.place)
        # What a text without a beginning is scored after, and what ends an answer besides: as for the base alone.
        own = tokenization.load(self.place)[0] if self.own_tokenizer else self.tokenizer
        self.prefix, self.end = opening(own), int(own.eos_token_id)
        if below and Path(below).resolve() != Path(self.place).resolve() and below != name:
            self.notes.append(f"the adapter was trained on {below}; here it is on {name}")
        if self.folder and runs.of(self.folder):
            from transformers import AutoConfig

            quantised = hasattr(AutoConfig.from_pretrained(self.place), "quantization_config")
            self.notes += filter(None, [runs.precision(self.folder, four_bit or quantised)])

    def positions(self) -> int:
        """Tokens that the model takes, as lm-eval will find them."""
        from lm_eval.models.utils import resolve_max_length
        from transformers import AutoConfig

        return resolve_max_length(AutoConfig.from_pretrained(self.place), self.tokenizer)

    def load(self, keep: str = "") -> Any:
        """The model with its adapter, ready to score.

        Args:
            keep: where to save the quantised base, as transformers loads it again bit for bit; "": nowhere.
        """
        model = models.load_plain(self.place, self.four_bit)
        if keep:  # now: an adapter puts itself between the base's weights and their names
            model.save_pretrained(keep)
            tokenization.load(self.place)[0].save_pretrained(keep)
        if self.ours:
            from tunebook.common.models import bottleneck_adapters

            bottleneck_adapters.load(model, self.folder)
        elif self.folder:
            model = inference.load_adapter(model, self.folder)
        tokenization.bind(self.tokenizer, model)
        self.model = model.eval()
        return self.model

    def words(self, folder: Path, kept: str = "") -> str | None:
        """The model in `lm_eval run --model_args`, once it is loaded; None: it cannot score this one.

        Args:
            folder: gets a tokenizer, where lm_eval needs another.
            kept: where the quantised model was saved; "": nowhere.
        """
        tokenizer = absolute(self.trained) if self.own_tokenizer else ""
        if self.ours:
            self.why = "lm-eval alone cannot load this kind of adapter (models/bottleneck_adapters.py)"
        elif self.four_bit and not kept:
            self.why = (
                "lm-eval alone cannot quantise a model with this transformers; --keep saves the quantised one for it"
            )
        elif self.folder:
            padded, self.why = beside_peft(self.model, self.tokenizer, folder)
            tokenizer = padded or tokenizer
        if self.why:
            return None
        dtype = str(device.current().dtype).removeprefix("torch.")
        words = f"pretrained={kept or absolute(self.place)},dtype={dtype},softmax_dtype=float32"
        if self.folder:
            words += f",peft={absolute(self.folder)}"
        if self.prefix != opening(self.tokenizer):
            words += f",prefix_token_id={self.prefix}"
        return words + (f",tokenizer={tokenizer}" if tokenizer else "")


def beside_peft(model: Any, tokenizer: Any, folder: Path) -> tuple[str, str]:
    """What lm_eval needs to score a model with an adapter of PEFT on it as it is here: the folder of another tokenizer
    ("": none), or why it can't.

    With `peft=` it resizes the embeddings to the tokenizer, which takes the rows off that a model is padded with. A
    tokenizer of as many tokens keeps them: its further tokens are no text of any task.
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

    place = (folder / "tokenizer").resolve()
    tokenizer.save_pretrained(place)
    padded = AutoTokenizer.from_pretrained(place)
    padded.add_tokens([f"<|beyond_{number}|>" for number in range(width, rows)], special_tokens=True)
    if len(padded) != rows:
        return "", f"lm-eval alone would take the model's {rows} embeddings for the tokenizer's {width} tokens"
    padded.save_pretrained(place)
    return str(place), ""


def opening(tokenizer: Any) -> int:
    """The token that lm-eval puts before a text whose first token is scored, too."""
    return int(tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id)


def absolute(place: str) -> str:
    """A folder's whole path, as a command may be run elsewhere; a Hub name as it is."""
    return str(Path(place).resolve()) if Path(place).exists() else place
