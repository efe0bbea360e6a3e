"""Models that answer, as transformers serves them: the trained one, and an exported folder."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunebook.common.errors import UserError
from tunebook.common.export import source
from tunebook.common.tokens import sandbox

BATCH = 8
NO_TOKEN = 1 << 30  # where nothing ends an answer: for None, transformers would take the model's own


class TransformersModel:
    """A folder with config.json, or an adapter's on its base. Weights are there inside `loaded`.

    Args:
        base: the model under an adapter. name: what messages call the folder.

    Attributes:
        ends: ids at which generation ends. pad: id that fills up a batch, or None.
        bits: of a weight.
    """

    def __init__(self, folder: Path, base: str = "", name: str = ""):
        from transformers import AutoTokenizer

        self.folder, self.base, self.name = folder, base, name or str(folder)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # broken files raise many kinds
            raise UserError(f"{self.name}: its tokenizer cannot be loaded: {error}") from error
        values = source.read_json(folder / "generation_config.json") or source.read_json(folder / "config.json")
        self.ends = set(source.token_ids(values.get("eos_token_id")))
        pad = values.get("pad_token_id")
        self.pad = self.tokenizer.pad_token_id if pad is None else pad
        self.bits = _bits(source.read_json((Path(base) if base else folder) / "config.json"))
        self._model: Any = None

    def prompt(self, messages: list[dict], tools: list | None, options: dict[str, Any]) -> list[int]:
        """Ids of a conversation with the header of the next answer."""
        return sandbox.apply_chat_template(
            self.tokenizer, messages, tools=tools, add_generation_prompt=True, return_dict=False, **options
        )

    def text(self, ids: list[int]) -> str:
        """What a client gets of an answer."""
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    @contextlib.contextmanager
    def loaded(self) -> Iterator[None]:
        from tunebook.common.models import inference

        model = load(self.base or str(self.folder))
        try:
            self._model = inference.load_adapter(model, str(self.folder)).eval() if self.base else model
            yield
        finally:
            self._model = None
            release()

    def logits(self, ids: list[int], start: int, stop: int) -> Any:
        """Logits in float32 that predict ids[start:stop]."""
        return logits(self._model, ids, start, stop)

    def answers(self, prompts: list[list[int]], limit: int) -> list[list[int]]:
        """The greedy answer to each prompt with its end token, as the folder's own generation config ends it."""
        return greedy(self._model, prompts, limit, self.ends)[0]


def _bits(config: dict[str, Any]) -> int:
    """Of a weight."""
    quantization = config.get("quantization_config") or {}
    for bits in (4, 8):
        if quantization.get(f"load_in_{bits}bit"):
            return bits
    return 32 if str(config.get("dtype") or config.get("torch_dtype") or "float32").endswith("32") else 16


def load(folder: str, quantized: Any = None) -> Any:
    """A model in float32, on the GPU where it has room.

    Args:
        quantized: BaseWeights with four_bit, whose linear layers become what their 4 bits stand for.
    """
    import torch

    from tunebook.common.export import base_weights

    model = base_weights.in_float32(folder)
    if quantized is not None:
        for name in quantized.quantized:
            weight = model.get_parameter(name)
            weight.data = base_weights.four_bit(weight.data, model, name)
    bytes_needed = 1.2 * sum(value.numel() * 4 for value in model.parameters())
    if torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > bytes_needed:
        model = model.to("cuda")
    return model.eval()


def release() -> None:
    """Give back the memory of a model that is no longer used."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def logits(model: Any, ids: list[int], start: int, stop: int) -> Any:
    """Logits in float32 on the CPU that predict ids[start:stop]."""
    import torch

    with torch.inference_mode():
        out = model(input_ids=torch.tensor([ids[:stop]], device=model.device), use_cache=False).logits
    return out[0, start - stop - 1 : -1].float().cpu()  # from the end: a soft prompt stands before


def level(logits: Any) -> Any:
    """Where a logit is less than a step of bfloat16 below the largest: what computes in 16 bits may take it for it."""
    import torch

    most = logits.amax(-1, keepdim=True)
    step = torch.finfo(torch.bfloat16).eps * 2.0 ** most.abs().clamp(min=1e-30).log2().floor()
    return logits > most - step


def greedy(
    model: Any, prompts: list[list[int]], limit: int, ends: set[int]
) -> tuple[list[list[int]], list[list[set[int]]]]:
    """Greedy answers, in batches of prompts of near length; each up to and with its first end token. And for each token
    of theirs the set of those that are level with it."""
    import torch
    from transformers import GenerationConfig, LogitsProcessorList

    fill = 0  # masked before a prompt, and cut off behind an answer
    config = GenerationConfig(
        max_new_tokens=limit, do_sample=False, eos_token_id=sorted(ends) or [NO_TOKEN], pad_token_id=fill
    )
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    found: list[list[int]] = [[]] * len(prompts)
    near: list[list[set[int]]] = [[] for _ in prompts]
    for at in range(0, len(order), BATCH):
        places = order[at : at + BATCH]

        def watch(_: Any, scores: Any, places: list[int] = places) -> Any:
            for place, row in zip(places, level(scores), strict=True):
                near[place].append(set(row.nonzero().flatten().tolist()))
            return scores

        width = max(len(prompts[place]) for place in places)
        rows = [[fill] * (width - len(prompts[place])) + prompts[place] for place in places]
        mask = [[0] * (width - len(prompts[place])) + [1] * len(prompts[place]) for place in places]
        with torch.inference_mode():
            out = model.generate(
                input_ids=torch.tensor(rows, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
                generation_config=config,
                logits_processor=LogitsProcessorList([watch]),
            )
        for place, row in zip(places, out[:, width:].tolist(), strict=True):
            end = next((n for n, token in enumerate(row) if token in ends), None)
            found[place] = row if end is None else row[: end + 1]
    return found, near
