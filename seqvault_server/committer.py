"""Group commit: what is queued while one group is being synced is the next group. One group is in flight.

Callers that are cancelled leave their part of a group under way; it ends as if they were still there.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import structlog

from seqvault_server.storage.append import AppendBatch
from seqvault_server.storage.commit import CommitGroup, Deletion
from seqvault_server.storage.errors import ReadOnly
from seqvault_server.storage.log import LogGeneration
from seqvault_server.storage.producers import check_same
from seqvault_server.storage.shard import Shard

MAX_GROUP_ROWS: Final = 65_536

_log = structlog.get_logger()


@dataclass(slots=True)
class _Queue:
    """What the next commit group will hold, and who waits for it."""

    appends: list[tuple[AppendBatch, asyncio.Future[int]]] = field(default_factory=list)
    deletions: list[tuple[int, asyncio.Future[Deletion]]] = field(default_factory=list)
    carried: list[tuple[list[int], asyncio.Future[None]]] = field(default_factory=list)
    generations: list[tuple[LogGeneration, asyncio.Future[int]]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.appends or self.deletions or self.carried or self.generations)

    def waiting(self) -> list[asyncio.Future[int] | asyncio.Future[Deletion] | asyncio.Future[None]]:
        return [done for part in (self.appends, self.deletions, self.carried, self.generations) for _, done in part]


class Committer:
    """Owns the thread that writes the log. On its loop only."""

    def __init__(self, shard: Shard, *, applied: Callable[[], None]) -> None:
        """`applied` is called after each group has become visible."""
        self.tails_lock = asyncio.Lock()
        """Held while a group is applied; take it to capture tails."""
        self._shard = shard
        self._applied = applied
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, "committer")
        self._queue = _Queue()
        self._queued = asyncio.Event()
        self._pending_rows = 0
        self._in_flight: dict[tuple[int, int], tuple[bytes, asyncio.Future[int]]] = {}
        self._is_closing = False
        self._task = self._loop.create_task(self._run())

    async def close(self) -> None:
        """Commits what is queued, then ends."""
        self._is_closing = True
        self._queued.set()
        await self._task
        await self._loop.run_in_executor(None, self._thread.shutdown)

    async def append(self, batch: AppendBatch) -> int:
        """See Vault.append."""
        shard, key = self._shard, (batch.producer, batch.sequence)
        if batch.producer:
            seen = shard.producers.seen(batch.producer, batch.sequence, batch.digest)
            if seen is not None:
                return seen
            under_way = self._in_flight.get(key)
            if under_way is not None:
                check_same(under_way[0], batch.digest)
                return await asyncio.shield(under_way[1])
        shard.check_append(batch, self._pending_rows)
        done: asyncio.Future[int] = self._loop.create_future()
        if batch.producer:
            self._in_flight[key] = (batch.digest, done)
        self._pending_rows += len(batch.rows)
        self._queue.appends.append((batch, done))
        self._queued.set()
        return await asyncio.shield(done)

    async def delete(self, user: int) -> Deletion:
        """Makes a busy user's tombstone durable and the user invisible. Raises: ReadOnly."""
        done: asyncio.Future[Deletion] = self._loop.create_future()
        self._queue.deletions.append((user, done))
        self._queued.set()
        return await done

    async def carry(self, users: list[int]) -> None:
        """Logs the tails of users again; those that are busy when the group begins are left out. Raises: ReadOnly."""
        done: asyncio.Future[None] = self._loop.create_future()
        self._queue.carried.append((users, done))
        self._queued.set()
        await done

    async def switch_log(self, generation: LogGeneration) -> int:
        """Logs to another generation from the next group on; returns the last LSN in an older one. Raises: ReadOnly."""
        done: asyncio.Future[int] = self._loop.create_future()
        self._queue.generations.append((generation, done))
        self._queued.set()
        return await done

    async def _run(self) -> None:
        while not self._is_closing or self._queue:
            await self._queued.wait()
            self._queued.clear()
            while self._queue:
                await self._commit(self._take_queue())

    def _take_queue(self) -> _Queue:
        """The next group: everything queued, but no more than MAX_GROUP_ROWS of appends."""
        taken, rows = 0, 0
        for batch, _ in self._queue.appends:
            rows += len(batch.rows)
            if taken and rows > MAX_GROUP_ROWS:
                break
            taken += 1
        queue, self._queue = self._queue, _Queue(appends=self._queue.appends[taken:])
        queue.appends = queue.appends[:taken]
        return queue

    async def _commit(self, queue: _Queue) -> None:
        shard = self._shard
        try:
            shard.check_writable()
            async with self.tails_lock:
                group, cut_lsns = self._begin(queue)
            await self._loop.run_in_executor(self._thread, shard.log_group, group)
            async with self.tails_lock:
                for _ in shard.apply_group(group):
                    await asyncio.sleep(0)
        except Exception as error:  # noqa: BLE001  RocksDB's errors have no class of their own; whatever it is, the log's state is unknown
            self._fail(queue, error)
            return
        self._succeed(queue, group, cut_lsns)
        self._applied()

    def _begin(self, queue: _Queue) -> tuple[CommitGroup, list[int]]:
        shard = self._shard
        cut_lsns = [shard.switch_log(generation) for generation, _ in queue.generations]
        # A user whose deletion is queued must not be carried past its own tombstone.
        carried = [user for users, _ in queue.carried for user in users if user not in shard.busy]
        group = shard.begin_group(
            [batch for batch, _ in queue.appends],
            [user for user, _ in queue.deletions],
            shard.tails.copy(np.array(carried, np.uint64)) if carried else None,
        )
        if cut_lsns:
            group.records[:0] = shard.producer_records()
        return group, cut_lsns

    def _succeed(self, queue: _Queue, group: CommitGroup, cut_lsns: list[int]) -> None:
        for (batch, appended), (lsn, _) in zip(queue.appends, group.appends, strict=True):
            self._settle(batch)
            appended.set_result(lsn)
        for (_, deleted), deletion in zip(queue.deletions, group.deletions, strict=True):
            deleted.set_result(deletion)
        for _, carried in queue.carried:
            carried.set_result(None)
        for (_, switched), cut_lsn in zip(queue.generations, cut_lsns, strict=True):
            switched.set_result(cut_lsn)

    def _fail(self, queue: _Queue, error: Exception) -> None:
        """Nothing of the group is acked; what of it is in the log is unknown, so no more is written."""
        if not self._shard.read_only_cause:
            self._shard.read_only_cause = f"writing the log failed: {error}"
            _log.error("read_only", cause=self._shard.read_only_cause, cure="mend the device, then restart")
        failure = ReadOnly(self._shard.read_only_cause)
        for batch, _ in queue.appends:
            self._settle(batch)
        for waiting in queue.waiting():
            waiting.set_exception(failure)

    def _settle(self, batch: AppendBatch) -> None:
        self._pending_rows -= len(batch.rows)
        self._in_flight.pop((batch.producer, batch.sequence), None)
