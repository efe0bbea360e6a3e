"""Models that answer prompts for the data tools: an OpenAI-compatible endpoint, or a model in a local folder."""

import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any, Protocol

from common.cli import UserError

KEY = "OPENAI_API_KEY"  # the environment variable that holds the key; no flag, so that it is in no shell history
AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)  # answers of a server that may be different the next time
LONGEST_WAIT = 30.0  # seconds between two tries
GIVE_UP = 20  # prompts in a row without a reply; what was answered before is kept
log = logging.getLogger(__name__)


class TextModel(Protocol):
    """Anything that answers prompts."""

    name: str

    def answers(self, prompts: Sequence[str], temperature: float = 0.0, seed: int = 0) -> list[str | None]:
        """One answer a prompt, in order; None where the model gave none.

        Args:
            temperature: 0 is the likeliest answer; over 0 samples, and the same seed samples the same where the
                model allows it.
        """
        ...


def load(where: str, model: str = "", max_new_tokens: int = 512, **options: Any) -> TextModel:
    """A model by its address (http://host:port/v1), or by its folder, Hub name or `pocket`.

    Args:
        model: the name under which an endpoint serves it.
        options: fields of Endpoint (key, timeout, retries, workers).

    Raises:
        UserError: an endpoint without a model name, or a folder that holds no model.
    """
    if not where.startswith(("http://", "https://")):
        return Local(where, max_new_tokens)
    if not model:
        raise UserError(f"{where}: name the model that the endpoint is to use")
    return Endpoint(where, model, max_new_tokens=max_new_tokens, **options)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would send the key and the data to a place that nobody named."""

    def redirect_request(self, *args: Any) -> None:
        return None


@dataclass
class Endpoint:
    """The chat completions of an OpenAI-compatible server.

    Busy and failing servers are asked again, with growing waits; a prompt that stays without an answer gives None.
    """

    url: str  # up to and with /v1
    name: str
    key: str | None = field(default_factory=lambda: os.environ.get(KEY), repr=False)
    max_new_tokens: int = 512
    timeout: float = 120.0  # seconds
    retries: int = 4
    workers: int = 4  # requests at a time
    first_wait: float = 1.0  # seconds
    answered: int = 0  # replies so far
    failed: int = 0  # prompts in a row that stayed without a reply

    def answers(self, prompts: Sequence[str], temperature: float = 0.0, seed: int = 0) -> list[str | None]:
        """See TextModel.

        Raises:
            UserError: the address has never answered, or it refuses the request, the key or the model.
        """
        self.failed = 0
        with ThreadPoolExecutor(self.workers) as pool:
            jobs = [pool.submit(self._answer, text, temperature, seed + n) for n, text in enumerate(prompts)]
            try:
                return [job.result() for job in jobs]
            except BaseException:
                pool.shutdown(cancel_futures=True)  # or thousands of prompts would be tried in vain
                raise

    def _answer(self, prompt: str, temperature: float, seed: int) -> str | None:
        body = {
            "model": self.name,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": temperature,
            "seed": seed % (1 << 31),
            "max_tokens": self.max_new_tokens,
        }
        wait, trouble = self.first_wait, ""
        for attempt in range(self.retries + 1 if self.failed < GIVE_UP else 0):
            if attempt:
                time.sleep(min(wait, LONGEST_WAIT))
                wait *= 2
            try:
                content = _content(self._post(body))
                self.answered, self.failed = self.answered + 1, 0
                return content
            except urllib.error.HTTPError as error:
                said = error.read(300).decode("utf-8", "replace")
                if error.code not in AGAIN:
                    raise UserError(f"{self.url} answers {error.code} {error.reason}: {said}") from None
                trouble, wait = f"{error.code} {error.reason}", _asked_wait(error, wait)
            except (
                OSError,
                HTTPException,
                ValueError,
            ) as error:  # no connection, a cut one, or a reply of another kind
                trouble = str(error)
        self.failed += 1
        if not self.answered:
            raise UserError(f"{self.url} gives no answer ({trouble}); is the server running and the address right?")
        if self.failed == GIVE_UP:
            log.warning("%s: %d prompts in a row without an answer (%s); not asked again", self.url, GIVE_UP, trouble)
        return None

    def _post(self, body: dict) -> Any:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        address = self.url.rstrip("/") + "/chat/completions"
        request = urllib.request.Request(address, json.dumps(body).encode(), headers)
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=self.timeout) as reply:
            return json.loads(reply.read())


def _content(reply: Any) -> str | None:
    """The text of a reply; None for an empty one.

    Raises:
        ValueError: it has another shape.
    """
    try:
        content = reply["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise ValueError("no choices[0].message.content") from None
    if content is not None and not isinstance(content, str):
        raise ValueError("content is no text")
    return content.strip() or None if content else None


def _asked_wait(error: urllib.error.HTTPError, wait: float) -> float:
    """The server's own Retry-After in seconds, where it gives one."""
    asked = error.headers.get("Retry-After", "")
    return float(asked) if asked.isdigit() else wait


class Local:
    """A causal language model of a folder, the Hub or `pocket`, through transformers.

    Prompts are rendered with the tokenizer's own chat template; without one, with the Alpaca template.
    """

    def __init__(self, name: str, max_new_tokens: int = 512, batch_size: int = 16):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from common import device, models

        self.name, self.max_new_tokens, self.batch_size = name, max_new_tokens, batch_size
        place = models.locate(name)
        self.tokenizer = AutoTokenizer.from_pretrained(place, padding_side="left")
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model: Any = AutoModelForCausalLM.from_pretrained(place, dtype=device.current().dtype)
        self.model.to(_device()).eval()

    def answers(self, prompts: Sequence[str], temperature: float = 0.0, seed: int = 0) -> list[str | None]:
        """See TextModel."""
        import torch

        found: list[str | None] = []
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.inference_mode():
            torch.manual_seed(seed)
            for start in range(0, len(prompts), self.batch_size):
                found += self._batch(
                    [self._render(text) for text in prompts[start : start + self.batch_size]], temperature
                )
        return found

    def _render(self, prompt: str) -> str:
        from common import templates

        if self.tokenizer.chat_template is None:
            return (self.tokenizer.bos_token or "") + templates.ALPACA.prompt({"instruction": prompt, "input": ""})
        turns = [{"role": "user", "content": prompt}]
        return self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    def _batch(self, rendered: list[str], temperature: float) -> list[str | None]:
        inputs = self.tokenizer(rendered, return_tensors="pt", padding=True, add_special_tokens=False)
        inputs = {name: inputs[name].to(self.model.device) for name in ("input_ids", "attention_mask")}
        sampling = {"do_sample": True, "temperature": temperature, "top_p": 0.95} if temperature > 0 else {}
        out = self.model.generate(
            **inputs,
            max_new_tokens=self.max_new_tokens,
            pad_token_id=self.tokenizer.pad_token_id,
            **({"do_sample": False} | sampling),
        )
        texts = self.tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [text.strip() or None for text in texts]


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
