"""What a model that is asked gives back, and how much may be asked of it."""

import threading
from dataclasses import dataclass

Messages = list[dict[str, str]]  # {"role", "content"}, as OpenAI's chat completions take them


@dataclass(frozen=True)
class Reply:
    """A reply, or why there is none.

    Attributes:
        text: what the model wrote; None where it gave nothing.
        finish: "stop", "length" (cut at the limit of tokens), or what else the server calls it.
        tokens: of the prompt and the reply together; None where the server does not say.
        tries: requests that it took.
        failure: why there is no text, "" where there is.
    """

    text: str | None
    finish: str = "stop"
    tokens: int | None = None
    tries: int = 1
    failure: str = ""


class Stopped(Exception):
    """The model has stopped answering; the message says why."""


class BudgetExceeded(Stopped):
    """The budget is used up."""


class Budget:
    """Requests and tokens that may be spent, shared by threads. 0: without a limit.

    A request is let through where what it may cost at most still fits; while others are under way, it waits for what
    they leave. Requests that failed count as requests.
    """

    def __init__(self, calls: int = 0, tokens: int = 0):
        self.calls, self.tokens = calls, tokens
        self.used_calls = self.used_tokens = self.retries = 0
        self.unsaid = 0  # replies whose tokens the server did not say; counted as reserved
        self._held: list[int] = []
        self._changed = threading.Condition()

    def take(self, cost: int, again: bool = False, patient: bool = True) -> None:
        """Reserve a request of at most `cost` tokens; `patient`: wait where what others hold may leave room for it.

        Raises:
            BudgetExceeded: the budget has no room for it.
        """
        with self._changed:
            while True:
                if self.calls and self.used_calls >= self.calls:
                    raise BudgetExceeded(f"the budget of {self.calls:,} calls is used up")
                if not self.tokens or self.used_tokens + sum(self._held) + cost <= self.tokens:
                    self.used_calls += 1
                    self.retries += again
                    self._held.append(cost)
                    return
                if not self._held or not patient:
                    raise BudgetExceeded(
                        f"{self.used_tokens:,} of {self.tokens:,} tokens are used, and the next call may take {cost:,}"
                    )
                self._changed.wait()

    def give(self, cost: int, tokens: int | None) -> None:
        """End a request that was reserved with `cost`; it took `tokens`, None: not said, 0: it failed."""
        with self._changed:
            self._held.remove(cost)
            self.used_tokens += cost if tokens is None else tokens
            self.unsaid += tokens is None
            self._changed.notify_all()
