"""Waiting until a user is neither being flushed nor deleted."""

import asyncio
from collections.abc import Collection

from seqvault_server.storage.shard import Shard


class BusyUsers:
    """The shard's set of busy users, with a condition to wait on. On its loop only."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._freed = asyncio.Condition()

    async def take(self, user: int) -> None:
        """Waits until the user is free and makes it busy."""
        async with self._freed:
            await self._freed.wait_for(lambda: user not in self._shard.busy)
            self._shard.busy.add(user)

    async def release(self, user: int) -> None:
        """Frees a user that was taken."""
        self._shard.busy.discard(user)
        await self.notify()

    async def until_free(self, users: Collection[int]) -> None:
        """Waits until none of the users is busy."""
        async with self._freed:
            await self._freed.wait_for(lambda: self._shard.busy.isdisjoint(users))

    async def notify(self) -> None:
        """Call it when the shard has freed users."""
        async with self._freed:
            self._freed.notify_all()
