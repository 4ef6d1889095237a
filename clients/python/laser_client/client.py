"""The async client. Made, used and closed on one event loop; any number of calls at once.

Every call has a deadline (`timeout_s`, or the config's), which covers its retries (`retry`), its hedge (`hedge`) and the
wait for a free sequence (`producer`). Every failure is an error of `errors`.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self, TypeVar, cast

import grpc.aio
import numpy.typing as npt

from laser_client.config import ClientConfig, open_channel
from laser_client.decode import History, Items, StaleSchema, decode_history, decode_items
from laser_client.errors import ColumnError, InvalidRequest, ServerBug
from laser_client.grouping import group_by_user
from laser_client.hedge import Hedge
from laser_client.producer import Sequences
from laser_client.query import Query
from laser_client.retry import Attempts
from laser_client.wire import ids_of, pack_columns, schema_from_proto
from seqcore.errors import SchemaError
from seqcore.schema import Schema
from seqvault.v1 import seqvault_pb2 as pb
from seqvault.v1 import seqvault_pb2_grpc as pb_grpc

MAX_BATCH_USERS = 4_096
"""Of one BatchGetHistory call; longer lists are read by several calls, one after the other."""
MAX_COUNT = 2**32 - 1
EVERYTHING = Query()

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Counts since the client was made."""

    retries: int
    hedges_sent: int
    hedges_won: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletion:
    found: bool
    """Whether there was anything to delete."""
    erased_by_ms: int
    """When the server's log, too, will hold none of the user's events."""


class SeqVaultClient:
    """See the module's text. `async with SeqVaultClient("host:port") as client:`, or call `close` yourself.

    The first call that needs the schema fetches it; afterwards only a reply that is newer than it does.
    """

    def __init__(self, target: str, config: ClientConfig | None = None) -> None:
        self.config = config or ClientConfig()
        self.producer_id = self.config.producer_id or secrets.randbelow(2**64 - 1) + 1
        self._channel = open_channel(target, self.config)
        self._stub = cast("pb_grpc.SeqVaultAsyncStub", pb_grpc.SeqVaultStub(self._channel))
        self._sequences = Sequences(first=self.config.first_sequence)
        self._hedge = Hedge(is_enabled=self.config.is_hedging)
        self._schema: Schema | None = None
        self._schema_lock = asyncio.Lock()
        self._retries = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancels what is under way."""
        await self._channel.close()

    def statistics(self) -> Statistics:
        return Statistics(retries=self._retries, hedges_sent=self._hedge.sent, hedges_won=self._hedge.won)

    async def append(
        self,
        user_ids: npt.ArrayLike,
        event_counts: npt.ArrayLike,
        columns: Mapping[str, npt.ArrayLike],
        *,
        sequence: int | None = None,
        timeout_s: float | None = None,
    ) -> int:
        """Appends `event_counts[u]` consecutive rows of `columns` to each `user_ids[u]`: all or nothing, once, durable.

        Returns the call's log sequence number. After DeadlineExceeded or NotAvailable it may have happened or not.

        `sequence`: the caller's own number, so that the same call can be made again after any failure, even by another
        process. Then all appends of this client are numbered so, each less than 64 above the oldest one in doubt.

        Raises: InvalidRequest, ColumnError, NotAvailable, Overloaded, DeadlineExceeded, PermissionDenied, ServerBug.
        """
        users, counts = ids_of(user_ids, "user_ids"), ids_of(event_counts, "event_counts")
        if counts.size and int(counts.max()) > MAX_COUNT:
            raise InvalidRequest("event_counts: more than 2^32 - 1", reason="TOO_MANY_EVENTS", field="event_counts")
        rows = int(counts.sum())
        with self._attempts(timeout_s, self.config.timeouts.append_s) as attempts:
            packed = await self._with_schema(
                attempts, lambda schema: pack_columns(columns, schema.event_columns, rows=rows)
            )
            number = await attempts.within(self._sequences.take()) if sequence is None else sequence
            try:
                request = pb.AppendRequest(
                    producer_id=self.producer_id,
                    sequence=number,
                    user_ids=users.tolist(),
                    event_counts=counts.tolist(),
                    columns=packed,
                )
                reply = await attempts.run(
                    lambda: self._stub.Append(request, timeout=attempts.remaining_s), is_repeatable=True
                )
            finally:
                if sequence is None:
                    self._sequences.release(number)
        return reply.lsn

    async def append_events(
        self,
        user_ids: npt.ArrayLike,
        columns: Mapping[str, npt.ArrayLike],
        *,
        sequence: int | None = None,
        timeout_s: float | None = None,
    ) -> int:
        """As `append`, with a user id for every row, in any order."""
        users, counts, grouped = group_by_user(user_ids, columns)
        return await self.append(users, counts, grouped, sequence=sequence, timeout_s=timeout_s)

    async def get_history(self, user_id: int, query: Query = EVERYTHING, *, timeout_s: float | None = None) -> History:
        """Raises: InvalidRequest, NotAvailable, Overloaded, DeadlineExceeded, PermissionDenied, DataCorrupted, ServerBug."""
        request = pb.GetHistoryRequest(user_id=_one_id(user_id), query=query.to_proto())
        with self._attempts(timeout_s, self.config.timeouts.get_history_s) as attempts:
            reply = await attempts.run(
                lambda: self._hedge.run(lambda: self._stub.GetHistory(request, timeout=attempts.remaining_s)),
                is_repeatable=True,
            )
            return await self._with_schema(attempts, partial(_history_of, reply, user_id=user_id, query=query))

    async def batch_get_history(
        self, user_ids: npt.ArrayLike, query: Query = EVERYTHING, *, timeout_s: float | None = None
    ) -> AsyncGenerator[History, None]:
        """The histories in the order of `user_ids`, as they arrive; a broken stream is taken up where it broke.

        Raises: as `get_history`, at any step.
        """
        users = ids_of(user_ids, "user_ids").tolist()
        message = query.to_proto()
        done = 0
        with self._attempts(timeout_s, self.config.timeouts.batch_get_history_s) as attempts:
            while done < len(users):
                asked = users[done : done + MAX_BATCH_USERS]
                end = done + len(asked)
                request = pb.BatchGetHistoryRequest(user_ids=asked, query=message)
                call = self._stub.BatchGetHistory(request, timeout=attempts.remaining_s)
                try:
                    async for reply in call:
                        attempts.progressed()
                        for each in reply.histories:
                            if done == end or each.user_id != users[done]:
                                raise ServerBug(f"history of user {each.user_id} came out of turn", reason="BAD_REPLY")
                            decode = partial(_history_of, each.history, user_id=each.user_id, query=query)
                            done += 1
                            yield await self._with_schema(attempts, decode)
                except grpc.aio.AioRpcError as rpc:
                    await attempts.pause_after(rpc, is_repeatable=True)
                    continue
                finally:
                    call.cancel()
                if done < end:
                    raise ServerBug(f"the stream ended {end - done} users early", reason="BAD_REPLY")

    async def delete_user(self, user_id: int, *, timeout_s: float | None = None) -> Deletion:
        """Forgets a user. Not repeated after a lost reply: a second deletion might meet newer events.

        Raises: InvalidRequest, NotAvailable, Overloaded, DeadlineExceeded, PermissionDenied, ServerBug.
        """
        request = pb.DeleteUserRequest(user_id=_one_id(user_id))
        with self._attempts(timeout_s, self.config.timeouts.delete_user_s) as attempts:
            reply = await attempts.run(
                lambda: self._stub.DeleteUser(request, timeout=attempts.remaining_s), is_repeatable=False
            )
        return Deletion(found=reply.found, erased_by_ms=reply.erased_by_ms)

    async def put_items(
        self, item_ids: npt.ArrayLike, columns: Mapping[str, npt.ArrayLike], *, timeout_s: float | None = None
    ) -> int:
        """Stores whole rows of side-info, each item once; returns the item table's version.

        Not repeated after a lost reply: it might undo what another writer put since.

        Raises: InvalidRequest, ColumnError, NotAvailable, Overloaded, DeadlineExceeded, PermissionDenied, ServerBug.
        """
        items = ids_of(item_ids, "item_ids")
        with self._attempts(timeout_s, self.config.timeouts.put_items_s) as attempts:
            packed = await self._with_schema(
                attempts, lambda schema: pack_columns(columns, schema.side_info_columns, rows=len(items))
            )
            request = pb.PutItemsRequest(item_ids=items.astype("<u8").tobytes(), columns=packed)
            reply = await attempts.run(
                lambda: self._stub.PutItems(request, timeout=attempts.remaining_s), is_repeatable=False
            )
        return reply.version

    async def get_items(
        self, item_ids: npt.ArrayLike, columns: Sequence[str] = (), *, timeout_s: float | None = None
    ) -> Items:
        """Side-info of the items, in their order; no columns: all.

        Raises: InvalidRequest, NotAvailable, Overloaded, DeadlineExceeded, PermissionDenied, DataCorrupted, ServerBug.
        """
        items = ids_of(item_ids, "item_ids")
        request = pb.GetItemsRequest(item_ids=items.astype("<u8").tobytes(), columns=columns)
        with self._attempts(timeout_s, self.config.timeouts.get_items_s) as attempts:
            reply = await attempts.run(
                lambda: self._stub.GetItems(request, timeout=attempts.remaining_s), is_repeatable=True
            )
            return await self._with_schema(attempts, lambda schema: decode_items(reply, item_ids=items, schema=schema))

    async def get_schema(self, *, timeout_s: float | None = None) -> Schema:
        """The schema as last fetched; asks the server only the first time.

        Raises: NotAvailable, Overloaded, DeadlineExceeded, PermissionDenied, ServerBug.
        """
        with self._attempts(timeout_s, self.config.timeouts.get_schema_s) as attempts:
            return await self._with_schema(attempts, lambda schema: schema)

    @contextmanager
    def _attempts(self, timeout_s: float | None, default_s: float) -> Iterator[Attempts]:
        attempts = Attempts(default_s if timeout_s is None else timeout_s)
        try:
            yield attempts
        finally:
            self._retries += attempts.retries

    async def _with_schema(self, attempts: Attempts, use: Callable[[Schema], T]) -> T:
        """`use` of the cached schema, and once more of a fresh one if it turns out too old."""
        schema = self._schema
        if schema is not None:
            try:
                return use(schema)
            except StaleSchema:
                pass
            except ColumnError as error:
                if error.reason != "UNKNOWN_COLUMN":
                    raise
        fresh = await attempts.within(self._fetch_schema(attempts, older_than=schema))
        try:
            return use(fresh)
        except StaleSchema:
            raise ServerBug("the reply is newer than the schema that the server tells", reason="BAD_REPLY") from None

    async def _fetch_schema(self, attempts: Attempts, *, older_than: Schema | None) -> Schema:
        async with self._schema_lock:
            if self._schema is None or self._schema is older_than:
                reply = await attempts.run(
                    lambda: self._stub.GetSchema(pb.GetSchemaRequest(), timeout=attempts.remaining_s),
                    is_repeatable=True,
                )
                try:
                    self._schema = schema_from_proto(reply.schema)
                except SchemaError as error:
                    raise ServerBug(f"schema: {error}", reason="SCHEMA_UNSUPPORTED") from error
            return self._schema


def _one_id(user_id: int) -> int:
    return int(ids_of([user_id], "user_id")[0])


def _history_of(reply: pb.GetHistoryResponse, schema: Schema, *, user_id: int, query: Query) -> History:
    return decode_history(reply, user_id=user_id, schema=schema, columns=query.columns_of(schema))
