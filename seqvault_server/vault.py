"""A shard on an event loop: appends, reads that may wait, deletions; `committer` and `background` do the rest.

The loop's thread owns the shard. Three kinds of threads run its blocking steps: one committer, one flusher, a few
readers. Callers that are cancelled leave a commit group or a read under way; it ends as if they were still there.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from seqvault_server.background import Background
from seqvault_server.busy_users import BusyUsers
from seqvault_server.committer import Committer
from seqvault_server.storage.append import AppendBatch
from seqvault_server.storage.errors import DamagedHistory
from seqvault_server.storage.read import History, PendingRead
from seqvault_server.storage.shard import Shard
from seqvault_server.storage.walk import Wanted

READ_THREADS: Final = 8
ERASED_WITHIN_MS: Final = 60_000
_CUT_AFTER_DELETE_S: Final = 30.0


class Vault:
    """Made on the loop that it belongs to; owns the shard until `close`."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self._loop = asyncio.get_running_loop()
        self._readers = ThreadPoolExecutor(READ_THREADS, "reader")
        self._unpinned: list[tuple[int, asyncio.Future[None]]] = []
        self._busy = BusyUsers(shard)
        self._committer = Committer(shard, applied=self._wake)
        self._background = Background(shard, committer=self._committer, busy=self._busy)

    def _wake(self) -> None:
        self._background.wake()

    async def close(self) -> None:
        """Ends background work, commits what is queued, closes the shard."""
        await self._background.close()
        await self._committer.close()
        await self._loop.run_in_executor(None, self._readers.shutdown)
        self.shard.close()

    async def append(self, batch: AppendBatch) -> int:
        """Returns the LSN once the batch is durable and visible.

        Raises: ReadOnly, StoreFull, UserFull, SequenceTooOld, InvalidAppend (a sequence used for other content).
        """
        return await self._committer.append(batch)

    async def settle(self) -> None:
        """Waits until background work has done all that was due."""
        await self._background.settle()

    async def flush_all(self) -> None:
        """Flushes every tail, however short."""
        await self._background.flush_all()

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
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._unpinned.append((moment, waiter))
            await waiter

    async def delete(self, user: int) -> bool:
        """Forgets a user; returns whether there was anything. Durable, invisible and overwritten when it returns.

        Raises: ReadOnly.
        """
        return await asyncio.shield(self._loop.create_task(self._delete(user)))

    async def _delete(self, user: int) -> bool:
        shard = self.shard
        shard.check_writable()
        await self._busy.take(user)
        try:
            if not shard.index.place_of(user) and not shard.tails.rows_of(user):
                return False
            deletion = await self._committer.delete(user)
            await self._older_reads_ended()
            await self._background.in_thread(partial(shard.erase, deletion))
            shard.end_deletion(deletion)
        finally:
            await self._busy.release(user)
        self._background.cut_within(_CUT_AFTER_DELETE_S)
        return True
