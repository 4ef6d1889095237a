"""Numbers of a producer's appends: what makes a repeated append harmless.

The server remembers, per producer, the 64 newest sequences. An append that is retried while later ones go through must
not fall behind that window, so a new number is handed out only while the oldest one under way is near enough.
"""

import asyncio
from typing import Final

MAX_IN_FLIGHT: Final = 32
WINDOW: Final = 64
"""The server's; a number is handed out while it is less than this above the oldest in flight."""


class Sequences:
    """Ascending numbers, in the order in which callers ask; used on one loop."""

    def __init__(self, *, first: int = 1) -> None:
        self.next = first
        self._in_flight: dict[int, None] = {}
        self._turn = asyncio.Lock()
        self._released = asyncio.Event()

    async def take(self) -> int:
        """A number that no other append has; to be given back with `release`, whatever became of the append."""
        async with self._turn:
            while not self._has_room():
                self._released.clear()
                await self._released.wait()
            sequence = self.next
            self.next += 1
            self._in_flight[sequence] = None
            return sequence

    def release(self, sequence: int) -> None:
        del self._in_flight[sequence]
        self._released.set()

    def _has_room(self) -> bool:
        oldest = next(iter(self._in_flight), self.next)  # numbers enter in order, so the first one is the oldest
        return len(self._in_flight) < MAX_IN_FLIGHT and self.next - oldest < WINDOW
