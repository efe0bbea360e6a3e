"""Text as it is generated: whole characters, and nothing of a stop text."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

UNFINISHED = "\ufffd"  # what a decoder writes for the first bytes of a character


class IncrementalDecoder:
    """Ids to pieces of text. Joined, the pieces are the decoded whole up to its first stop text.

    A piece waits while its character lacks bytes, and while it may be the beginning of a stop text.
    """

    def __init__(self, tokenizer: Any, stops: tuple[str, ...] = ()):
        self.tokenizer, self.stops = tokenizer, stops
        self.ended = False  # a stop text has come
        self._ids: list[int] = []
        self._from = self._done = 0  # ids from which on is decoded, and those whose text has been handed on
        self._held = ""

    def add(self, token: int) -> str:
        """The text that is certain once this id has come; often of this id, sometimes none."""
        self._ids.append(token)
        # Decoded with the ids before them, as some decoders treat the first id in another way.
        before, now = self._decode(self._ids[self._from : self._done]), self._decode(self._ids[self._from :])
        if len(now) <= len(before) or now.endswith(UNFINISHED):
            return ""
        self._from, self._done = self._done, len(self._ids)
        return self._pass(now[len(before) :])

    def end(self) -> str:
        """The rest."""
        before, now = self._decode(self._ids[self._from : self._done]), self._decode(self._ids[self._from :])
        text = self._pass(now[len(before) :])
        rest, self._held = ("", "") if self.ended else (self._held, "")
        return text + rest

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    def _pass(self, text: str) -> str:
        if self.ended:
            return ""
        text = self._held + text
        kept = before_stop(text, self.stops)
        if len(kept) < len(text):
            self.ended, self._held = True, ""
            return kept
        held = max((n for stop in self.stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def before_stop(text: str, stops: tuple[str, ...]) -> str:
    """The text before the first stop text in it."""
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]


class IdStreamer:
    """A streamer for transformers' generate: hands each new id on, and leaves out the prompt, which comes first."""

    def __init__(self, take: Callable[[int], None]):
        self._take, self._first = take, True

    def put(self, value: Any) -> None:
        if not self._first:
            self._take(int(value.item()))
        self._first = False

    def end(self) -> None:
        pass


def in_thread(work: Callable[[Callable[[int], None]], Any], stop: Callable[[], None]) -> Iterator[int]:
    """The ids that `work` hands to its argument, as they come; `work` runs in a thread of its own.

    Whoever stops listening (an interrupt, a closed page) ends the work: `stop` is called and the thread is waited for.

    Raises:
        what `work` raises.
    """
    found: queue.SimpleQueue = queue.SimpleQueue()

    def run() -> None:
        try:
            work(lambda token: found.put((token, None)))
            found.put((None, None))
        except BaseException as error:  # it is raised again where the ids are read
            found.put((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while True:
            token, error = found.get()
            if error is not None:
                raise error
            if token is None:
                return
            yield token
    finally:
        stop()
        thread.join()
