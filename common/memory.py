"""Peak memory of this process: bytes on the GPU where there is one, else resident bytes, sampled from start to end."""

import threading

import psutil


class Peak:
    """Samples resident memory from a thread; `bytes` is the largest value since it was made."""

    def __init__(self, interval: float = 0.05):
        self._process = psutil.Process()
        self._highest = self._process.memory_info().rss
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(interval,), daemon=True)
        self._thread.start()

    def _watch(self, interval: float) -> None:
        while not self._stop.wait(interval):
            self._highest = max(self._highest, self._process.memory_info().rss)

    @property
    def bytes(self) -> int:
        import torch

        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
        return max(self._highest, self._process.memory_info().rss)

    def stop(self) -> int:
        self._stop.set()
        self._thread.join()
        return self.bytes
