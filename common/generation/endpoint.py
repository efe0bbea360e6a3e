"""An OpenAI-compatible server that is asked many things: at a time, again where it fails, within a budget."""

import json
import logging
import os
import queue
import random
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from tunebook.common.errors import UserError
from tunebook.common.generation.budget import Budget, Messages, Reply, Stopped

KEY = "OPENAI_API_KEY"  # the environment variable that holds the key; no flag, so that it is in no shell history
AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)  # answers of a server that may be different the next time
LONGEST_WAIT = 30.0  # seconds between two tries

GIVE_UP = 8  # prompts in a row that stayed without a reply; the server is then taken for gone
NOBODY = (ConnectionRefusedError, socket.gaierror)  # where nothing has answered yet, waiting will not help
TOO_MUCH = 16 << 20  # bytes of a reply; more is no answer
log = logging.getLogger(__name__)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would send the key and the answers to a place that nobody named."""

    def redirect_request(self, *args: Any) -> None:
        return None


class Endpoint:
    """The chat completions of a server. The key is read from OPENAI_API_KEY; it is in no message and no file.

    Args:
        url: up to and with /v1.
        name: under which the server has the model.
        request: more fields of a request's body (max_tokens, temperature, ...); None leaves a field out.
        budget: of requests and tokens; None: without a limit.
        timeout: seconds for a whole reply. retries: after a first try. first_wait: seconds, doubled at each retry.

    Raises:
        UserError: the address is none, or holds a password; the key cannot be sent.
    """

    def __init__(
        self, url: str, name: str, request: dict[str, Any], budget: Budget | None = None, timeout: float = 120.0,
        retries: int = 4, concurrency: int = 4, first_wait: float = 1.0,
    ):  # fmt: skip
        try:
            parts = urlsplit(url)
            fine = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # brackets without an IPv6 address, or a port that is no number
            fine = False
        if not fine or "@" in parts.netloc or parts.query:
            raise UserError(f"endpoint: expected http(s)://host:port/v1 without user, password or query; key: {KEY}")
        self.url = url.rstrip("/").removesuffix("/chat/completions")
        self.name = name
        self.request = {field: value for field, value in request.items() if value is not None}
        self.budget, self.timeout, self.retries = budget or Budget(), timeout, retries
        self.concurrency, self.first_wait = concurrency, first_wait
        self._key = os.environ.get(KEY, "").strip()
        if not (self._key.isascii() and all(char.isprintable() for char in self._key)):
            raise UserError(f"{KEY} holds characters that no header may hold")
        self._answered, self._failed, self._end = False, 0, threading.Event()
        self._why: Exception | None = None

    def answers(self, prompts: Sequence[str], temperature: float = 0.0, seed: int = 0) -> list[str | None]:
        """One answer a prompt, in order; None where there is none. The n-th prompt has the seed `seed` + n."""
        asked = [
            {
                "messages": [{"role": "user", "content": text}],
                "temperature": temperature,
                "seed": (seed + place) % (1 << 31),
            }
            for place, text in enumerate(prompts)
        ]
        found: list[str | None] = [None] * len(prompts)
        try:
            for place, reply in self._ask(asked):
                found[place] = (reply.text or "").strip() or None
        except Stopped as stopped:
            log.warning("%s: %s; not asked again", self.url, stopped)
        return found

    def ask(self, prompts: Sequence[Messages]) -> Iterator[tuple[int, Reply]]:
        """(place of the prompt, its reply) as they come. Closing the iterator stops what has not been sent.

        Raises:
            UserError: the server has never answered, or refuses the key, the model or the first requests.
            Stopped: the budget or the server came to its end; replies that came before have been given.
        """
        return self._ask([{"messages": messages} for messages in prompts])

    def _ask(self, requests: Sequence[dict[str, Any]]) -> Iterator[tuple[int, Reply]]:
        """As `ask`, of what differs between requests."""
        self._end.clear()
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        for place in range(len(requests)):
            waiting.put(place)
        done: queue.SimpleQueue[tuple[int, Reply] | None] = queue.SimpleQueue()
        workers = min(self.concurrency, len(requests))
        for _ in range(workers):  # daemons: a stop by the user does not wait for a server that hangs
            threading.Thread(target=self._work, args=(requests, waiting, done), daemon=True).start()
        try:
            while workers:
                found = done.get()
                if found is None:
                    workers -= 1
                else:
                    yield found
        finally:
            self._end.set()
        if self._why:
            raise self._why

    def _work(self, requests: Sequence[dict[str, Any]], waiting: queue.SimpleQueue, done: queue.SimpleQueue) -> None:
        try:
            while not self._end.is_set():
                place = waiting.get_nowait()
                done.put((place, self._answer(requests[place])))
        except queue.Empty:
            pass
        except Exception as error:  # told by the thread that asks
            self._why = self._why or error
            self._end.set()
        finally:
            done.put(None)

    def _answer(self, request: dict[str, Any]) -> Reply:
        """One reply, after as many tries as it takes."""
        body = json.dumps({"model": self.name, **request, **self.request}).encode()
        # No tokenizer makes more tokens than half the bytes of a text in practice, and the template adds a few.
        limit = self.request.get("max_tokens") or self.request.get("max_completion_tokens") or 0
        cost = len(body) // 2 + int(limit)
        wait, trouble, tries = 0.0, "", 0
        while tries <= self.retries:
            if tries and self._end.wait(min(wait, LONGEST_WAIT) * random.uniform(0.75, 1.25)):
                raise Stopped("stopped")
            self.budget.take(cost, again=tries > 0)
            tries, tokens, wait = tries + 1, 0, self.first_wait * 2**tries
            try:
                reply = _read(self._post(body), tries)
                tokens = reply.tokens
                self._answered, self._failed = True, 0
                return reply
            except urllib.error.HTTPError as error:
                trouble = f"{error.code} {error.reason}: {self._said(error)}"
                if error.code not in AGAIN:
                    return self._refused(error.code, trouble, tries)
                wait = max(wait, _asked_wait(error))
            except (OSError, HTTPException, ValueError, RecursionError) as error:  # no connection, or no such reply
                trouble = f"{type(error).__name__}: {error}"
                if not self._answered and isinstance(getattr(error, "reason", None), NOBODY):
                    break
            finally:
                self.budget.give(cost, tokens)
        self._failed += 1
        if not self._answered:
            raise UserError(f"{self.url} gives no answer ({trouble}); is the server running and the address right?")
        if self._failed >= GIVE_UP:
            raise Stopped(f"{self._failed} prompts in a row stayed without a reply ({trouble})")
        return Reply(None, tries=tries, failure=trouble)

    def _refused(self, code: int, trouble: str, tries: int) -> Reply:
        """A prompt that the server will not take (too long, filtered), where it has taken others."""
        if code in (401, 403, 404) or not self._answered:
            raise UserError(f"{self.url} refuses: {trouble}")
        return Reply(None, tries=tries, failure=trouble)

    def _said(self, error: urllib.error.HTTPError) -> str:
        """The beginning of what the server says, without the key, which some servers repeat."""
        try:
            text = error.read(600).decode("utf-8", "replace")
        except (OSError, HTTPException):
            return ""
        return (text.replace(self._key, "***") if self._key else text)[:300]

    def _post(self, body: bytes) -> Any:
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self.url + "/chat/completions", body, headers)
        ends = time.monotonic() + self.timeout
        data = bytearray()
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=self.timeout) as reply:
            while piece := reply.read1(1 << 16):
                data += piece
                if time.monotonic() > ends:  # the socket's own limit is for each piece
                    raise TimeoutError(f"the reply took longer than {self.timeout:g} s")
                if len(data) > TOO_MUCH:
                    raise ValueError(f"the reply is longer than {TOO_MUCH >> 20} MB")
        return json.loads(data)


def _read(reply: Any, tries: int) -> Reply:
    """The server's JSON as a Reply; reasoning models may end with no text, which is a reply, too."""
    try:
        choice = reply["choices"][0]
        text = choice["message"]["content"]
        finish = choice.get("finish_reason") or "stop"
        tokens = (reply.get("usage") or {}).get("total_tokens")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ValueError("no choices[0].message.content in the reply") from None
    if text is None and finish in ("length", "content_filter"):
        text = ""
    if not isinstance(text, str):
        raise ValueError("content is no text")
    return Reply(text, str(finish), tokens if isinstance(tokens, int) else None, tries)


def _asked_wait(error: urllib.error.HTTPError) -> float:
    """The server's own Retry-After in seconds; 0 where it gives none."""
    asked = error.headers.get("Retry-After", "")
    return float(asked) if asked.isdigit() else 0.0
