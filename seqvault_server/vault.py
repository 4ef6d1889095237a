"""A shard on an event loop: group commit, background flushing, cutting the log, deletions, reads that may wait.

The loop's thread owns the shard. Three kinds of threads run its blocking steps: one committer, one flusher, a few
readers. Callers that are cancelled leave a commit group or a read under way; it ends as if they were still there.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import numpy as np
import structlog

from seqvault_server.storage.append import AppendBatch
from seqvault_server.storage.commit import CommitGroup, Deletion
from seqvault_server.storage.errors import DamagedHistory, ReadOnly
from seqvault_server.storage.log import LogGeneration
from seqvault_server.storage.producers import check_same
from seqvault_server.storage.read import History, PendingRead
from seqvault_server.storage.shard import Shard
from seqvault_server.storage.walk import Wanted

MAX_GROUP_ROWS: Final = 65_536
FLUSH_USERS: Final = 1_024
"""Users flushed together: publishing them takes the loop under a millisecond."""
FLUSH_WINDOW_S: Final = 0.2
"""How long due tails wait for others, to be flushed with them."""
READ_THREADS: Final = 8
ERASED_WITHIN_MS: Final = 60_000
_CUT_AFTER_DELETE_S: Final = 30.0
_RETRY_FLUSH_S: Final = 1.0

T = TypeVar("T")
_log = structlog.get_logger()


@dataclass(slots=True)
class _Queue:
    """What the next commit group will hold."""

    appends: list[tuple[AppendBatch, asyncio.Future[int]]]
    deletions: list[tuple[int, asyncio.Future[Deletion]]]
    carried: list[int]
    carry_done: asyncio.Future[None] | None
    generation: LogGeneration | None
    switched: asyncio.Future[int] | None

    def __bool__(self) -> bool:
        return bool(self.appends or self.deletions or self.carried or self.generation)


class Vault:
    """See the module's text. `start` and `close` it on the loop that it belongs to."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self._loop = asyncio.get_running_loop()
        self._committer = ThreadPoolExecutor(1, "committer")
        self._flusher = ThreadPoolExecutor(1, "flusher")
        self._readers = ThreadPoolExecutor(READ_THREADS, "reader")
        self._queue = _Queue([], [], [], None, None, None)
        self._queued = asyncio.Event()
        self._flush_wanted = asyncio.Event()
        self._flush_urgent = asyncio.Event()
        self._flusher_rests = asyncio.Event()
        self._users_freed = asyncio.Condition()
        self._tails_lock = asyncio.Lock()
        """Held while a group is applied, and while tails are captured for flushing."""
        self._pending_rows = 0
        self._in_flight: dict[tuple[int, int], tuple[bytes, asyncio.Future[int]]] = {}
        self._unpinned: list[tuple[int, asyncio.Future[None]]] = []
        self._cut_at = float("inf")
        self._is_closing = False
        self._is_closed = False
        self._committing = self._loop.create_task(self._commit_loop())
        self._flushing = self._loop.create_task(self._flush_loop())
        if shard.due:
            self._want_flush()

    async def close(self) -> None:
        """Commits what is queued, ends background work, closes the shard."""
        self._is_closing = True
        self._want_flush()
        self._flush_urgent.set()
        await self._flushing
        self._is_closed = True
        self._queued.set()
        await self._committing
        for pool in (self._committer, self._flusher, self._readers):
            await self._loop.run_in_executor(None, pool.shutdown)
        self.shard.close()

    # Appending

    async def append(self, batch: AppendBatch) -> int:
        """Returns the LSN once the batch is durable and visible.

        Raises: ReadOnly, StoreFull, UserFull, SequenceTooOld, InvalidAppend (a sequence used for other content).
        """
        shard, key = self.shard, (batch.producer, batch.sequence)
        if batch.producer:
            seen = shard.producers.seen(batch.producer, batch.sequence, batch.digest)
            if seen is not None:
                return seen
            under_way = self._in_flight.get(key)
            if under_way is not None:
                check_same(under_way[0], batch.digest)
                return await asyncio.shield(under_way[1])
        shard.check_append(batch, self._pending_rows)
        done = self._loop.create_future()
        if batch.producer:
            self._in_flight[key] = (batch.digest, done)
        self._pending_rows += len(batch.rows)
        self._queue.appends.append((batch, done))
        self._queued.set()
        return await asyncio.shield(done)

    async def _commit_loop(self) -> None:
        while True:
            await self._queued.wait()
            self._queued.clear()
            while self._queue:
                await self._commit(self._take_queue())
            if self._is_closed:
                return

    def _take_queue(self) -> _Queue:
        """The next group: everything queued, but no more than MAX_GROUP_ROWS of appends."""
        queue, rows = self._queue, 0
        taken = 0
        for batch, _ in queue.appends:
            rows += len(batch.rows)
            if taken and rows > MAX_GROUP_ROWS:
                break
            taken += 1
        self._queue = _Queue(queue.appends[taken:], [], [], None, None, None)
        queue.appends = queue.appends[:taken]
        return queue

    async def _commit(self, queue: _Queue) -> None:
        shard = self.shard
        cut_lsn = 0
        async with self._tails_lock:
            if queue.generation is not None:
                cut_lsn = shard.switch_log(queue.generation)
            # A user whose deletion is queued must not be carried past its own tombstone.
            carried_users = [user for user in queue.carried if user not in shard.busy]
            carried = shard.tails.copy(np.array(carried_users, np.uint64)) if carried_users else None
            group = shard.begin_group(
                [batch for batch, _ in queue.appends], [user for user, _ in queue.deletions], carried
            )
            if queue.generation is not None:
                group.records[:0] = shard.producer_records()
        try:
            shard.check_writable()
            await self._loop.run_in_executor(self._committer, shard.log_group, group)
        except Exception as error:  # noqa: BLE001  RocksDB's errors have no class of their own; whatever it is, the log's state is unknown
            self._fail(queue, error)
            return
        async with self._tails_lock:
            for _ in shard.apply_group(group):
                await asyncio.sleep(0)
        self._succeed(queue, group, cut_lsn)

    def _succeed(self, queue: _Queue, group: CommitGroup, cut_lsn: int) -> None:
        for (batch, done), (lsn, _) in zip(queue.appends, group.appends, strict=True):
            self._settle(batch)
            done.set_result(lsn)
        for (_, deleted), deletion in zip(queue.deletions, group.deletions, strict=True):
            deleted.set_result(deletion)
        if queue.carry_done is not None:
            queue.carry_done.set_result(None)
        if queue.switched is not None:
            queue.switched.set_result(cut_lsn)
        self._wake_flusher()

    def _fail(self, queue: _Queue, error: Exception) -> None:
        """Nothing of the group is acked; what of it is in the log is unknown, so no more is written."""
        if not self.shard.read_only_cause:
            self.shard.read_only_cause = f"writing the log failed: {error}"
            _log.error("read_only", cause=self.shard.read_only_cause, cure="mend the device, then restart")
        failure = ReadOnly(self.shard.read_only_cause)
        for batch, done in queue.appends:
            self._settle(batch)
            done.set_exception(failure)
        waiting: list[asyncio.Future[Deletion] | asyncio.Future[None] | asyncio.Future[int] | None] = [
            *(deleted for _, deleted in queue.deletions),
            queue.carry_done,
            queue.switched,
        ]
        for future in waiting:
            if future is not None:
                future.set_exception(failure)

    def _settle(self, batch: AppendBatch) -> None:
        self._pending_rows -= len(batch.rows)
        self._in_flight.pop((batch.producer, batch.sequence), None)

    # Reading

    async def read(self, user: int, wanted: Wanted) -> History:
        """The history as of now.

        Raises: DamagedHistory.
        """
        while True:
            read = self.shard.begin_read(user, wanted)
            if isinstance(read, History):
                return read
            waiting = self._loop.run_in_executor(self._readers, self.shard.finish_read, read)
            waiting.add_done_callback(partial(self._end_read, read))
            try:
                return await asyncio.shield(waiting)
            except DamagedHistory:
                # A history that moved meanwhile may have been punched under the read; one that did not is damaged.
                if self.shard.index.place_of(user) == read.place:
                    raise

    def _end_read(self, read: PendingRead, _ended: asyncio.Future[History]) -> None:
        self.shard.end_read(read)
        past = [waiter for moment, waiter in self._unpinned if self.shard.pins.is_past(moment)]
        self._unpinned = [pair for pair in self._unpinned if not self.shard.pins.is_past(pair[0])]
        for waiter in past:
            waiter.set_result(None)

    async def _older_reads_ended(self) -> None:
        moment = self.shard.pins.now()
        if not self.shard.pins.is_past(moment):
            waiter = self._loop.create_future()
            self._unpinned.append((moment, waiter))
            await waiter

    # Deleting

    async def delete(self, user: int) -> bool:
        """Forgets a user; returns whether there was anything. Durable, invisible and overwritten when it returns.

        Raises: ReadOnly.
        """
        return await asyncio.shield(self._loop.create_task(self._delete(user)))

    async def _delete(self, user: int) -> bool:
        shard = self.shard
        shard.check_writable()
        async with self._users_freed:
            await self._users_freed.wait_for(lambda: user not in shard.busy)
            if not shard.index.place_of(user) and not shard.tails.rows_of(user):
                return False
            shard.busy.add(user)
        try:
            done = self._loop.create_future()
            self._queue.deletions.append((user, done))
            self._queued.set()
            deletion = await done
            await self._older_reads_ended()
            await self._loop.run_in_executor(self._flusher, shard.erase, deletion)
            shard.end_deletion(deletion)
        finally:
            shard.busy.discard(user)
            await self._notify_freed()
        self._cut_at = min(self._cut_at, self._loop.time() + _CUT_AFTER_DELETE_S)
        self._want_flush()
        return True

    async def _until_free(self, users: frozenset[int]) -> None:
        async with self._users_freed:
            await self._users_freed.wait_for(lambda: self.shard.busy.isdisjoint(users))

    async def _notify_freed(self) -> None:
        async with self._users_freed:
            self._users_freed.notify_all()

    # Flushing

    def _wake_flusher(self) -> None:
        shard = self.shard
        if shard.due or self._is_pressed() or shard.log_bytes > shard.config.log_generation_bytes:
            self._want_flush()
        if len(shard.due) >= FLUSH_USERS or self._is_pressed():
            self._flush_urgent.set()

    def _want_flush(self) -> None:
        self._flusher_rests.clear()
        self._flush_wanted.set()

    def _is_pressed(self) -> bool:
        return self.shard.tails.rows > self.shard.tails.max_rows // 2

    async def settle(self) -> None:
        """Waits until the flusher has done what was due: no tail is long, the log is short, freed pages are given back."""
        await self._flusher_rests.wait()

    async def _flush_loop(self) -> None:
        while not self._is_closing:
            if not self._flush_wanted.is_set():
                self._flusher_rests.set()
            await self._wait(self._flush_wanted, self._cut_at - self._loop.time())
            self._flush_wanted.clear()
            if not self._is_closing:
                await self._wait(self._flush_urgent, FLUSH_WINDOW_S)
                self._flush_urgent.clear()
                await self._flush_what_is_due()

    async def _flush_what_is_due(self) -> None:
        shard = self.shard
        try:
            while shard.due and not self._is_closing:
                users, shard.due = shard.due[:FLUSH_USERS], shard.due[FLUSH_USERS:]
                await self._flush(users)
            await self._relieve()
            if shard.log_bytes > shard.config.log_generation_bytes or self._loop.time() >= self._cut_at:
                await self.cut_log()
            runs = shard.take_freed()
            if runs:
                await self._in_flusher(partial(shard.punch, runs))
        except (OSError, ReadOnly) as error:
            _log.error("flush_failed", cause=str(error), consequence="rows stay in the tails and the log")
            self._want_flush()
            await self._wait(self._flush_urgent, _RETRY_FLUSH_S)

    async def _relieve(self) -> None:
        """Flushes the longer tails, then the shorter ones, until the tails are half empty."""
        for min_rows in (64, 16, 1):
            cursor = 0
            while self._is_pressed() and not self._is_closing:
                users, cursor = self.shard.tails.find(cursor, limit=FLUSH_USERS, min_rows=min_rows)
                await self._flush(users.tolist())
                if cursor == 0:
                    break

    async def flush_all(self) -> None:
        """Flushes every tail, however short."""
        users, cursor = self.shard.tails.find(0, limit=FLUSH_USERS)
        while len(users) or cursor:
            await self._flush(users.tolist())
            users, cursor = self.shard.tails.find(cursor, limit=FLUSH_USERS)

    async def _flush(self, users: list[int]) -> None:
        shard = self.shard
        async with self._tails_lock:
            plan = shard.plan_flush(users)
        if plan is None:
            return
        try:
            result = await self._in_flusher(partial(shard.write_flush, plan))
        except DamagedHistory as error:
            _log.error(
                "damaged_history", user=error.user_id, cause=str(error), consequence="its tail is not flushed any more"
            )
            shard.damaged.add(error.user_id)
            shard.abandon_flush(plan)
            await self._notify_freed()
            await self._flush(plan.user_U.tolist())
            return
        except OSError:
            shard.abandon_flush(plan)
            shard.due.extend(plan.user_U.tolist())
            await self._notify_freed()
            raise
        shard.publish_flush(result)
        await self._notify_freed()

    async def cut_log(self) -> None:
        """Begins a new log generation and drops the older ones, once no row is in them alone."""
        shard = self.shard
        self._cut_at = float("inf")
        shard.producers.forget_idle(int(time.time() * 1000))
        generation = await self._in_flusher(shard.log.make_next)
        switched = self._loop.create_future()
        self._queue.generation, self._queue.switched = generation, switched
        self._queued.set()
        cut_lsn = await switched
        while not self._is_closing:
            found, cursor = await self._empty_below(cut_lsn)
            if not found and not cursor:
                older = shard.log.take_older()
                for generation in older:
                    await self._in_flusher(partial(shard.log.drop, generation))
                return

    async def _empty_below(self, cut_lsn: int) -> tuple[bool, int]:
        """One pass over the tails: flushes or carries those with rows at or below the LSN."""
        shard, cursor, found = self.shard, 0, False
        while True:
            users, cursor = shard.tails.find(cursor, limit=FLUSH_USERS, max_lsn=cut_lsn)
            if len(users):
                found = True
                flushed, carried = shard.split_for_cut(users.tolist())
                await self._flush(flushed)
                await self._carry(carried)
                if not flushed and not carried:  # all of them are being deleted
                    await self._until_free(frozenset(users.tolist()))
            if not cursor:
                return found, cursor

    async def _carry(self, users: list[int]) -> None:
        if users:
            done = self._loop.create_future()
            self._queue.carried, self._queue.carry_done = users, done
            self._queued.set()
            await done

    async def _in_flusher(self, step: Callable[[], T]) -> T:
        return await self._loop.run_in_executor(self._flusher, step)

    async def _wait(self, event: asyncio.Event, seconds: float) -> None:
        """Waits for the event, or so long."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), None if seconds == float("inf") else max(seconds, 0.0))
