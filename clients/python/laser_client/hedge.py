"""Hedged reads: a read slower than 95 % of the recent ones is sent once more, and the first reply wins.

round_robin sends the second to another server, if there is one. Off until 100 reads were timed; hedges are at most 5 %
of the reads, so that a store which is slow for all is not asked twice by all.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import numpy as np

QUANTILE: Final = 0.95
MIN_SAMPLES: Final = 100
WINDOW: Final = 512
"""Latencies remembered: what is slow follows the store's state of the last seconds."""
REFRESH_EVERY: Final = 32
"""Samples between two looks at the window: sorting it takes 5 us."""
READS_PER_HEDGE: Final = 20
"""Each read earns one twentieth of a hedge."""
MAX_SAVED_HEDGES: Final = 10
"""What can be saved up: no more at once, after however long a quiet time."""

T = TypeVar("T")


class RecentQuantile:
    """Of the last WINDOW samples, exact at every REFRESH_EVERYth of them; None before MIN_SAMPLES."""

    def __init__(self, quantile: float = QUANTILE) -> None:
        self.quantile = quantile
        self.value: float | None = None
        self._window = np.zeros(WINDOW)
        self._count = 0

    def add(self, sample: float) -> None:
        self._window[self._count % WINDOW] = sample
        self._count += 1
        if self._count >= MIN_SAMPLES and (self.value is None or self._count % REFRESH_EVERY == 0):
            self.value = float(np.quantile(self._window[: self._count], self.quantile))


class Hedge:
    """State of one client's hedging; used on its loop alone."""

    def __init__(self, *, is_enabled: bool) -> None:
        self.is_enabled = is_enabled
        self.sent = 0
        self.won = 0
        self.latency_s = RecentQuantile()
        """Of replies as the caller saw them. Hedging does not bias it: a hedged read, too, takes longer than the quantile."""
        self._earned = 0

    async def run(self, start: Callable[[], Awaitable[T]]) -> T:
        """The first success of one or two attempts, or else the first attempt's failure. `start` begins an attempt."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        self._earned = min(MAX_SAVED_HEDGES * READS_PER_HEDGE, self._earned + 1)
        delay_s = self.latency_s.value
        reply = await (start() if delay_s is None or not self.is_enabled else self._race(start, delay_s))
        self.latency_s.add(loop.time() - begun)
        return reply

    async def _race(self, start: Callable[[], Awaitable[T]], delay_s: float) -> T:
        first = asyncio.ensure_future(start())
        racing = {first}
        try:
            done, _ = await asyncio.wait(racing, timeout=delay_s)
            if done or self._earned < READS_PER_HEDGE:
                return await first
            self._earned -= READS_PER_HEDGE
            self.sent += 1
            racing.add(asyncio.ensure_future(start()))
            pending = racing
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if not task.cancelled() and task.exception() is None:
                        self.won += task is not first
                        return task.result()
            return await first
        finally:
            for task in racing:
                task.cancel()
                task.add_done_callback(_forget)


def _forget(task: asyncio.Future[T]) -> None:
    """A loser may fail: asyncio would report an exception that nobody looked at."""
    if not task.cancelled():
        task.exception()
