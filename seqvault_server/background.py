"""Background work: flushing tails that are due or too many, cutting the log, giving back freed pages.

One task, one thread: a flush at a time. What fails for the device is logged and tried again; the rows stay in the tails
and in the log meanwhile.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, TypeVar

import structlog

from seqvault_server.busy_users import BusyUsers
from seqvault_server.committer import Committer
from seqvault_server.storage.errors import DamagedHistory, ReadOnly
from seqvault_server.storage.flush import FlushPlan
from seqvault_server.storage.shard import Shard

FLUSH_USERS: Final = 1_024
"""Users flushed together: publishing them takes the loop under a millisecond."""
FLUSH_WINDOW_S: Final = 0.2
"""How long due tails wait for others, to be flushed with them."""
_RETRY_S: Final = 1.0

T = TypeVar("T")
_log = structlog.get_logger()


class Background:
    """Owns the flushing thread. On its loop only."""

    def __init__(self, shard: Shard, *, committer: Committer, busy: BusyUsers) -> None:
        self._shard = shard
        self._committer = committer
        self._busy = busy
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, "flusher")
        self._wanted = asyncio.Event()
        self._urgent = asyncio.Event()
        self._rests = asyncio.Event()
        self._cut_at = float("inf")
        self._is_closing = False
        self._task = self._loop.create_task(self._run())
        if shard.due:
            self._want()

    async def close(self) -> None:
        """Ends after the step that is under way."""
        self._is_closing = True
        self._want()
        self._urgent.set()
        await self._task
        await self._loop.run_in_executor(None, self._thread.shutdown)

    def wake(self) -> None:
        """Call it when rows have become visible."""
        shard = self._shard
        if shard.due or self._is_pressed() or self._is_log_long():
            self._want()
        if len(shard.due) >= FLUSH_USERS or self._is_pressed():
            self._urgent.set()

    def cut_within(self, seconds: float) -> None:
        """Has the log cut that soon."""
        self._cut_at = min(self._cut_at, self._loop.time() + seconds)
        self._want()

    async def settle(self) -> None:
        """Waits until all that was due is done: no tail is long, the log is short, freed pages are given back."""
        await self._rests.wait()

    async def in_thread(self, step: Callable[[], T]) -> T:
        """Runs a blocking step between two flushes."""
        return await self._loop.run_in_executor(self._thread, step)

    async def flush_all(self) -> None:
        """Flushes every tail, however short."""
        cursor = 0
        while True:
            users, cursor = self._shard.tails.find(cursor, limit=FLUSH_USERS)
            await self._busy.until_free(users.tolist())
            await self._flush(users.tolist())
            if not cursor:
                return

    def _want(self) -> None:
        self._rests.clear()
        self._wanted.set()

    def _is_pressed(self) -> bool:
        return self._shard.tails.rows > self._shard.tails.max_rows // 2

    def _is_log_long(self) -> bool:
        return self._shard.log_bytes > self._shard.config.log_generation_bytes

    async def _run(self) -> None:
        while not self._is_closing:
            if not self._wanted.is_set():
                self._rests.set()
            await self._wait(self._wanted, self._cut_at - self._loop.time())
            self._wanted.clear()
            if not self._is_closing:
                await self._wait(self._urgent, FLUSH_WINDOW_S)
                self._urgent.clear()
                try:
                    await self._do_what_is_due()
                except Exception as error:  # noqa: BLE001  the outermost loop: RocksDB's errors have no class of their own
                    self._give_up(error)
                    return

    def _give_up(self, error: Exception) -> None:
        """What is durable is unknown, or there is a bug: no more is written, what can be read is read."""
        if not self._shard.read_only_cause:
            self._shard.read_only_cause = f"flushing failed: {error}"
        _log.critical(
            "read_only", cause=self._shard.read_only_cause, cure="mend what is named, then restart", exc_info=error
        )
        self._rests.set()

    async def _do_what_is_due(self) -> None:
        shard = self._shard
        try:
            while shard.due and not self._is_closing:
                users, shard.due = shard.due[:FLUSH_USERS], shard.due[FLUSH_USERS:]
                await self._flush(users)
            await self._relieve()
            if self._is_log_long() or self._loop.time() >= self._cut_at:
                await self._cut_log()
            runs = shard.take_freed()
            if runs:
                await self.in_thread(partial(shard.punch, runs))
        except (OSError, ReadOnly) as error:
            _log.error("flush_failed", cause=str(error), consequence="rows stay in the tails and the log")
            self._want()
            await self._wait(self._urgent, _RETRY_S)

    async def _relieve(self) -> None:
        """Flushes the longer tails, then the shorter ones, until the tails are half empty."""
        for min_rows in (64, 16, 1):
            cursor = 0
            while self._is_pressed() and not self._is_closing:
                users, cursor = self._shard.tails.find(cursor, limit=FLUSH_USERS, min_rows=min_rows)
                await self._flush(users.tolist())
                if cursor == 0:
                    break

    async def _flush(self, users: list[int]) -> None:
        while users:
            async with self._committer.tails_lock:
                plan, users = self._shard.plan_flush(users)
            if plan is not None:
                await self._write(plan)

    async def _write(self, plan: FlushPlan) -> None:
        shard = self._shard
        try:
            result = await self.in_thread(partial(shard.write_flush, plan))
        except DamagedHistory as error:
            _log.error(
                "damaged_history", user=error.user_id, cause=str(error), consequence="its tail is not flushed any more"
            )
            shard.damaged.add(error.user_id)
            shard.abandon_flush(plan)
            await self._busy.notify()
            shard.due.extend(plan.user_U.tolist())  # without the damaged one
            return
        except BaseException:
            shard.abandon_flush(plan)
            shard.due.extend(plan.user_U.tolist())
            await self._busy.notify()
            raise
        shard.publish_flush(result)
        await self._busy.notify()

    async def _cut_log(self) -> None:
        """Begins a new log generation and drops the older ones, once no row is in them alone."""
        shard = self._shard
        self._cut_at = float("inf")
        shard.producers.forget_idle(int(time.time() * 1000))
        generation = await self.in_thread(shard.log.make_next)
        cut_lsn = await self._committer.switch_log(generation)
        while not self._is_closing:
            if not await self._empty_below(cut_lsn):
                for older in shard.log.take_older():
                    await self.in_thread(partial(shard.log.drop, older))
                return

    async def _empty_below(self, cut_lsn: int) -> bool:
        """One pass over the tails: flushes or carries those with rows at or below the LSN; whether there were any."""
        shard, cursor, found = self._shard, 0, False
        while True:
            users, cursor = shard.tails.find(cursor, limit=FLUSH_USERS, max_lsn=cut_lsn)
            if len(users):
                found = True
                flushed, carried = shard.split_for_cut(users.tolist())
                await self._flush(flushed)
                if carried:
                    await self._committer.carry(carried)
                if not flushed and not carried:  # all of them are being deleted
                    await self._busy.until_free(users.tolist())
            if not cursor:
                return found

    async def _wait(self, event: asyncio.Event, seconds: float) -> None:
        """Waits for the event, or so long."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), None if seconds == float("inf") else max(seconds, 0.0))
