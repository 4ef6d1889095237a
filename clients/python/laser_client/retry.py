"""When to try a call again, and when to give up: all within the one deadline that the caller set.

    error                                   reads, numbered appends     other writes
    NotAvailable                            again                       no: it may have happened
    NotAvailable or Overloaded, RetryInfo   again, and not before the server says: it changed nothing
    any other                               no                          no

Pauses double from 20 ms to 1 s, with full jitter, so that the clients of a server that comes back do not come at once.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import grpc.aio

from laser_client.errors import DeadlineExceeded, NotAvailable, Overloaded, SeqVaultError
from laser_client.status import error_of

FIRST_PAUSE_S: Final = 0.02
MAX_PAUSE_S: Final = 1.0

T = TypeVar("T")
_jitter = random.SystemRandom()


class Attempts:
    """The attempts of one call, all before one deadline (in the loop's time)."""

    def __init__(self, timeout_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self.deadline = self._loop.time() + timeout_s
        self.retries = 0
        self._last: SeqVaultError | None = None
        self._failures_in_a_row = 0

    @property
    def remaining_s(self) -> float:
        return max(0.0, self.deadline - self._loop.time())

    async def within(self, awaitable: Awaitable[T]) -> T:
        """For waits other than an RPC's own.

        Raises: DeadlineExceeded.
        """
        try:
            async with asyncio.timeout_at(self.deadline):
                return await awaitable
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the call could be sent") from None

    async def run(self, attempt: Callable[[], Awaitable[T]], *, is_repeatable: bool) -> T:
        """Raises: what `error_of` makes of the last failure."""
        while True:
            try:
                return await attempt()
            except grpc.aio.AioRpcError as rpc:
                # A cancelled call may end with its RPC's status instead of CancelledError, if both come at once.
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise asyncio.CancelledError from rpc
                await self.pause_after(rpc, is_repeatable=is_repeatable)

    def progressed(self) -> None:
        """The next failure pauses as shortly as a first one."""
        self._failures_in_a_row = 0

    async def pause_after(self, rpc: grpc.aio.AioRpcError, *, is_repeatable: bool) -> None:
        """Returns when it is time for the next attempt.

        Raises: the typed error, if there is to be none, or no time for it.
        """
        error = error_of(rpc)
        if isinstance(error, DeadlineExceeded) and self._last is not None:
            error = DeadlineExceeded(f"{error.message}, {self.retries} retries after: {self._last}")
        if not _may_retry(error, is_repeatable=is_repeatable):
            raise error from rpc
        pause_s = _jitter.uniform(0.0, min(MAX_PAUSE_S, FIRST_PAUSE_S * 2**self._failures_in_a_row))
        pause_s += (error.retry_after_ms or 0) / 1000
        if pause_s >= self.remaining_s:
            raise error from rpc
        self._failures_in_a_row += 1
        self.retries += 1
        self._last = error
        await asyncio.sleep(pause_s)


def _may_retry(error: SeqVaultError, *, is_repeatable: bool) -> bool:
    if isinstance(error, NotAvailable | Overloaded) and error.retry_after_ms is not None:
        return True
    return isinstance(error, NotAvailable) and is_repeatable
