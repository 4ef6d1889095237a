"""The client for plain threads: the async one on an event loop of its own, in a thread of its own.

May be called from any number of threads at once. Not beside another grpc.aio loop in the same process: two of them wake
each other up for nothing (grpc#42357).
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy.typing as npt

from laser_client.client import EVERYTHING, Deletion, SeqVaultClient, Statistics
from laser_client.config import ClientConfig
from laser_client.decode import History, Items
from laser_client.query import Query
from seqcore.schema import Schema

T = TypeVar("T")


class SyncSeqVaultClient:
    """Methods, arguments and errors are those of SeqVaultClient. Close it, or its thread stays until the process ends."""

    def __init__(self, target: str, config: ClientConfig | None = None) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="seqvault-client", daemon=True)
        self._thread.start()
        self._is_closed = False
        try:
            self._client = self._run(_open(target, config))
        except BaseException:
            self._stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if not self._is_closed:
            self._run(self._client.close())
            self._stop()

    @property
    def producer_id(self) -> int:
        return self._client.producer_id

    def statistics(self) -> Statistics:
        return self._client.statistics()

    def append(
        self,
        user_ids: npt.ArrayLike,
        event_counts: npt.ArrayLike,
        columns: Mapping[str, npt.ArrayLike],
        *,
        sequence: int | None = None,
        timeout_s: float | None = None,
    ) -> int:
        return self._run(self._client.append(user_ids, event_counts, columns, sequence=sequence, timeout_s=timeout_s))

    def append_events(
        self,
        user_ids: npt.ArrayLike,
        columns: Mapping[str, npt.ArrayLike],
        *,
        sequence: int | None = None,
        timeout_s: float | None = None,
    ) -> int:
        return self._run(self._client.append_events(user_ids, columns, sequence=sequence, timeout_s=timeout_s))

    def get_history(self, user_id: int, query: Query = EVERYTHING, *, timeout_s: float | None = None) -> History:
        return self._run(self._client.get_history(user_id, query, timeout_s=timeout_s))

    def batch_get_history(
        self, user_ids: npt.ArrayLike, query: Query = EVERYTHING, *, timeout_s: float | None = None
    ) -> Iterator[History]:
        """Leaving the iteration early cancels the call."""
        histories = self._client.batch_get_history(user_ids, query, timeout_s=timeout_s)
        try:
            while (history := self._run(_next(histories))) is not None:
                yield history
        finally:
            self._run(histories.aclose())

    def delete_user(self, user_id: int, *, timeout_s: float | None = None) -> Deletion:
        return self._run(self._client.delete_user(user_id, timeout_s=timeout_s))

    def put_items(
        self, item_ids: npt.ArrayLike, columns: Mapping[str, npt.ArrayLike], *, timeout_s: float | None = None
    ) -> int:
        return self._run(self._client.put_items(item_ids, columns, timeout_s=timeout_s))

    def get_items(
        self, item_ids: npt.ArrayLike, columns: Sequence[str] = (), *, timeout_s: float | None = None
    ) -> Items:
        return self._run(self._client.get_items(item_ids, columns, timeout_s=timeout_s))

    def get_schema(self, *, timeout_s: float | None = None) -> Schema:
        return self._run(self._client.get_schema(timeout_s=timeout_s))

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(call, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # of use after KeyboardInterrupt alone: the call would go on unseen
            raise

    def _stop(self) -> None:
        self._is_closed = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _open(target: str, config: ClientConfig | None) -> SeqVaultClient:
    """On the client's own loop, as a channel belongs to the loop that it was made on."""
    return SeqVaultClient(target, config)


async def _next(histories: AsyncGenerator[History, None]) -> History | None:
    return await anext(histories, None)
