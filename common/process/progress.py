"""How far long work has come: bars on a terminal, a line every half minute in a log file, tqdm's bars in a notebook."""

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import Any, ClassVar

from tunebook.common.distributed import is_main_process
from tunebook.common.process import terminal

LINE = 30.0  # seconds between two lines of a log file
LONG = 2.0  # seconds after which the end of a phase is worth a line
SHOWN = 1.0  # seconds after which a phase gets its bar
TICK = 0.2  # seconds between two looks at the clock


class Phase:
    """A part of the work that takes a while: `name`, and `done` of `total` in a unit (rows, steps).

    Args:
        total: None where it is not known.
        details: more that can be told of it at any moment, a text each.
        left: the seconds that it still takes; by default as long for the rest as for what is done.
    """

    def __init__(
        self,
        name: str,
        total: int | None = None,
        unit: str = "",
        details: Callable[[], list[str]] = list,
        left: Callable[[], float | None] | None = None,
    ):
        self.name, self.total, self.unit, self.details = name, total, unit, details
        self.done = self.first = 0
        self.begun, self.ended = monotonic(), False
        self._left = left or self._rest
        self.bar: Any = None  # of a notebook

    def advance(self, count: int = 1) -> None:
        """So many more are done."""
        self.done += count
        if self.total is not None:
            self.done = min(self.done, self.total)
        _service.advanced(self)

    def close(self) -> None:
        """It has ended; of what was begun inside it, too."""
        if not self.ended:
            _service.close(self)

    def __enter__(self) -> "Phase":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self.close()
        else:
            _service.drop(self)

    @property
    def seconds(self) -> float:
        return monotonic() - self.begun

    @property
    def left(self) -> float | None:
        return self._left()

    def _rest(self) -> float | None:
        done = self.done - self.first
        return None if not done or self.total is None else self.seconds / done * (self.total - self.done)

    def words(self) -> list[str]:
        """How far it is: done and total, share, time passed and left."""
        words = []
        if self.total is not None:
            share = 100 * self.done // max(1, self.total)
            words += [f"{self.done:,}/{self.total:,} {of(self.total, self.unit)}".rstrip(), f"{share} %"]
        elif self.done:
            words.append(f"{self.done:,} {of(self.done, self.unit)}".rstrip())
        words.append(clock(self.seconds))
        if (left := self.left) is not None:
            words.append(f"{clock(left)} left")
        return words


def clock(seconds: float) -> str:
    """0:07, 12:30, 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, of_hour = divmod(minutes, 60)
    return f"{hours}:{of_hour:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def of(count: int, unit: str) -> str:
    """A unit that stands in the plural, for this count."""
    return unit.removesuffix("es" if unit.endswith("ches") else "s") if count == 1 else unit


def start(
    name: str,
    total: int | None = None,
    unit: str = "",
    details: Callable[[], list[str]] = list,
    left: Callable[[], float | None] | None = None,
    done: int = 0,
) -> Phase:
    """Begin a phase, which is shown until its `close`; as Phase, and `done` of it before now."""
    phase = Phase(name, total, unit, details, left)
    phase.done = phase.first = done
    return _service.start(phase)


def track(items: Iterable[Any], name: str, total: int | None = None, unit: str = "") -> Iterator[Any]:
    """Go through items as a phase."""
    with start(name, total, unit) as phase:
        for item in items:
            yield item
            phase.advance()


class Bar:
    """As much of tqdm's class as lm-eval uses, for a phase. `names`: its description -> what it is called here."""

    names: ClassVar[dict[str, str]] = {}

    def __init__(self, items: Any = None, *, total: int | None = None, desc: str = "", disable: bool = False, **_: Any):
        if total is None and hasattr(items, "__len__"):
            total = len(items)
        self._items, self.phase = items, None if disable else start(self.names.get(desc, desc), total, "requests")

    def update(self, count: int = 1) -> None:
        if self.phase:
            self.phase.advance(count)

    def close(self) -> None:
        if self.phase:
            self.phase.close()

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            yield item
            self.update()
        self.close()


def spent(name: str) -> float:
    """The seconds that the last phase of that name took; 0 where there was none."""
    return _service.spent.get(name, 0.0)


def to_stdout() -> None:
    """Write lines to standard output, where a log file has them among what a recipe prints."""
    _service.stream = "stdout"


def stop() -> None:
    """Forget all phases: an error has ended the work."""
    _service.drop(None)


class _Service:
    """All phases, from the outermost to the innermost, and what shows them."""

    def __init__(self) -> None:
        self.phases: list[Phase] = []
        self.spent: dict[str, float] = {}
        self.stream = "stderr"
        self._lock = threading.RLock()
        self._last = 0.0  # when a line was written
        self._thread: threading.Thread | None = None
        self._bars: Any = None
        self._notebook = False

    def start(self, phase: Phase) -> Phase:
        with self._lock:
            if not self.phases:
                self._last, self._notebook = monotonic(), in_notebook()
            self.phases.append(phase)
            if self._thread is None and is_main_process() and not self._notebook:
                self._thread = threading.Thread(target=self._tick, daemon=True)
                self._thread.start()
        return phase

    def close(self, phase: Phase) -> None:
        with self._lock:
            self._remove(phase)
            self.spent[phase.name] = phase.seconds
            if phase.seconds >= LONG and is_main_process() and not self._notebook:
                self._say(_end(phase))

    def drop(self, phase: Phase | None) -> None:
        """End a phase, or all, without a word."""
        with self._lock:
            self._remove(phase)

    def _remove(self, phase: Phase | None) -> None:
        if phase is not None and phase not in self.phases:
            return
        at = self.phases.index(phase) if phase else 0
        for inner in self.phases[at:]:
            inner.ended = True
            if inner.bar is not None:
                inner.bar.close()
        del self.phases[at:]
        if self._bars is not None:
            self._bars.show([])

    def advanced(self, phase: Phase) -> None:
        if self._notebook and is_main_process() and not phase.ended and phase.seconds > SHOWN:
            _draw_in_notebook(phase)

    def _tick(self) -> None:
        while True:
            self.look()
            with self._lock:
                if not self.phases:
                    self._thread = None
                    return
            _sleep(TICK)

    def look(self) -> None:
        """Draw the bars, or write a line where it is time for one."""
        with self._lock:
            if on_terminal():
                if self._bars is None:
                    from tunebook.common.process.bars import Bars

                    self._bars = Bars()
                self._bars.show([phase for phase in self.phases if phase.seconds > SHOWN])
            elif self.phases and monotonic() - self._last >= LINE:
                self._say(
                    "; ".join(f"{phase.name}: {', '.join([*phase.words(), *phase.details()])}" for phase in self.phases)
                )

    def _say(self, text: str) -> None:
        self._last = monotonic()
        print(terminal.escaped(text), file=sys.stdout if self.stream == "stdout" else sys.stderr, flush=True)


def _end(phase: Phase) -> str:
    count = f" {phase.done:,} {of(phase.done, phase.unit)}".rstrip() + " in" if phase.done else ""
    return ", ".join([f"{phase.name}:{count} {clock(phase.seconds)}", *phase.details()])


def _sleep(seconds: float) -> None:
    threading.Event().wait(seconds)


def on_terminal() -> bool:
    """Whether bars can be drawn: both streams are a terminal, and it is not a dumb one."""
    return os.environ.get("TERM") != "dumb" and sys.stdout.isatty() and sys.stderr.isatty()


def in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell" or "google.colab" in sys.modules


def _draw_in_notebook(phase: Phase) -> None:
    """One bar at a time: what runs inside a phase that has one is part of it."""
    if phase.bar is None:
        if any(other.bar is not None for other in _service.phases):
            return
        from tqdm.auto import tqdm

        phase.bar = tqdm(total=phase.total, unit=f" {phase.unit or 'parts'}", desc=phase.name, initial=phase.first)
    phase.bar.set_postfix_str(", ".join(phase.details()), refresh=False)
    phase.bar.update(phase.done - phase.bar.n)


_service = _Service()
os.register_at_fork(after_in_child=lambda: _service.__init__())  # the thread that draws is not in the child
