"""A model to be scored: a folder or Hub model, with an adapter or without, in 4 bits or not."""

from pathlib import Path
from typing import Any

from common import adapted, models, tokenizers


class Loaded:
    """A model with its tokenizer, by transformers alone, in the dtype of the device (common/models.py).

    Args:
        model: what `models.locate` takes, a run's folder with `model/`, or "": the base that the adapter names, or
            pocket.
        adapter: a folder or Hub name of PEFT's or of common/adapters.py, or a run's folder with one; "": none.
        four_bit: quantise to NF4 with double quantisation while loading.

    Attributes:
        place, folder, own_tokenizer: where model and adapter ("": none) come from; whether the adapter has a tokenizer.
        prefix, end: tokens of the base: what opens a text that is scored from its first token on, and what ends one.
        ours: the adapter is one of common/adapters.py, which lm_eval itself cannot load.

    Raises:
        UserError: something is not there, cannot be loaded, or does not fit.
    """

    def __init__(self, model: str, adapter: str, four_bit: bool = False):
        from transformers.utils import logging

        logging.set_verbosity_error()  # of a prompt that is too long our own note says more
        found = adapted.named([adapter] if adapter else [])
        self.folder = next(iter(found.values()), "")
        name = adapted._model_of(model) or (adapted.base_of(self.folder) if self.folder else "") or "pocket"
        self.place, self.four_bit = models.locate(name), four_bit
        self.ours = bool(self.folder) and (Path(self.folder) / adapted.OURS).exists()
        self.own_tokenizer = bool(self.folder) and (Path(self.folder) / "tokenizer_config.json").exists()
        self.tokenizer, self.notes = tokenizers.load(self.folder if self.own_tokenizer else self.place)
        # What a text without a beginning is scored after, and what ends an answer besides: as for the base alone.
        own = tokenizers.load(self.place)[0] if self.own_tokenizer else self.tokenizer
        self.prefix, self.end = opening(own), int(own.eos_token_id)
        base = adapted.base_of(self.folder) if self.folder else ""
        if base and Path(base).resolve() != Path(self.place).resolve() and base != name:
            self.notes.append(f"the adapter was trained on {base}; here it is on {name}")

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
            tokenizers.load(self.place)[0].save_pretrained(keep)
        if self.ours:
            from common import adapters

            adapters.load(model, self.folder)
        elif self.folder:
            model = adapted.put_on(model, self.folder)
        tokenizers.bind(self.tokenizer, model)
        return model.eval()

    def words(self, model_folder: str = "") -> str | None:
        """The model in `lm_eval run --model_args`; None: it cannot load this one.

        Args:
            model_folder: where the quantised model was saved; "": nowhere.
        """
        if self.ours or (self.four_bit and not model_folder):
            return None
        dtype = str(models.dtype()).removeprefix("torch.")
        words = f"pretrained={model_folder or _absolute(self.place)},dtype={dtype},softmax_dtype=float32"
        if self.folder:
            words += f",peft={_absolute(self.folder)}"
        if self.prefix != opening(self.tokenizer):
            words += f",prefix_token_id={self.prefix}"
        return words + (f",tokenizer={_absolute(self.folder)}" if self.own_tokenizer else "")


def opening(tokenizer: Any) -> int:
    """The token that lm-eval puts before a text whose first token is scored, too."""
    return int(tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id)


def _absolute(place: str) -> str:
    """A folder's whole path, as a command may be run elsewhere; a Hub name as it is."""
    return str(Path(place).resolve()) if Path(place).exists() else place
