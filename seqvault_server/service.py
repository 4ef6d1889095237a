"""The SeqVault service: requests checked and handed to vault and side-info, their results as replies.

Everything here runs on the event loop; what may take long (decoding long histories, LMDB) runs in a thread.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

import numpy as np

from laser_client.wire import pack_columns, schema_to_proto, unpack_columns
from seqcore.errors import QueryError
from seqcore.schema import Column, Schema
from seqvault.v1 import seqvault_pb2 as pb
from seqvault_server.problems import InvalidRequestError
from seqvault_server.query import QueryResolver, ResolvedQuery
from seqvault_server.replies import blocks_reply, decode, plain_reply, side_info_reply
from seqvault_server.sideinfo.batch import ItemBatch
from seqvault_server.sideinfo.store import SideInfo
from seqvault_server.storage.append import MAX_EVENTS, make_batch
from seqvault_server.vault import ERASED_WITHIN_MS, Vault
from servicekit.service import Context

MAX_BATCH_USERS: Final = 4_096
MAX_GET_ITEMS: Final = 65_536
BATCH_MESSAGE_BYTES: Final = 1 << 20
BATCH_READS_AHEAD: Final = 16
"""Histories of a batch being read at once: bounds its memory, hides the device's latency."""


class SeqVaultService:
    """Methods of the protocol, by their names there."""

    def __init__(self, *, vault: Vault, items: SideInfo, schema: Schema) -> None:
        self._vault = vault
        self._items = items
        self._schema = schema
        self._queries = QueryResolver(schema)
        self._schema_reply = pb.GetSchemaResponse(schema=schema_to_proto(schema))
        self._items_writer = ThreadPoolExecutor(1, "items")
        self._items_lock = asyncio.Lock()
        self._decoders = ThreadPoolExecutor(2, "decoder")

    async def close(self) -> None:
        """Ends the threads; call it when no request is under way."""
        loop = asyncio.get_running_loop()
        for pool in (self._items_writer, self._decoders):
            await loop.run_in_executor(None, pool.shutdown)
        self._items.close()
        await self._vault.close()

    async def Append(self, request: pb.AppendRequest, _context: Context) -> pb.AppendResponse:  # noqa: N802
        counts = np.array(request.event_counts, np.int64)
        total = int(counts.sum())
        if total > MAX_EVENTS:
            raise InvalidRequestError(
                "event_counts", "TOO_MANY_EVENTS", f"{total} events in one call, at most {MAX_EVENTS}"
            )
        batch = make_batch(
            self._schema,
            user_U=np.array(request.user_ids, np.uint64),
            count_U=counts,
            columns=unpack_columns(request.columns, self._schema.event_columns, rows=total),
            producer=request.producer_id,
            sequence=request.sequence,
            now_ms=int(time.time() * 1000),
        )
        return pb.AppendResponse(lsn=await self._vault.append(batch))

    async def GetHistory(self, request: pb.GetHistoryRequest, _context: Context) -> pb.GetHistoryResponse:  # noqa: N802
        return await self._history(request.user_id, self._queries.resolve(request.query))

    async def BatchGetHistory(  # noqa: N802
        self, request: pb.BatchGetHistoryRequest, _context: Context
    ) -> AsyncIterator[pb.BatchGetHistoryResponse]:
        users = list(request.user_ids)
        if len(users) > MAX_BATCH_USERS:
            raise InvalidRequestError("user_ids", "TOO_MANY_USERS", f"{len(users)} users, at most {MAX_BATCH_USERS}")
        query = self._queries.resolve(request.query)
        reply, size = pb.BatchGetHistoryResponse(), 0
        for begin in range(0, len(users), BATCH_READS_AHEAD):
            chunk = users[begin : begin + BATCH_READS_AHEAD]
            histories = await asyncio.gather(*(self._history(user, query) for user in chunk))
            for user, history in zip(chunk, histories, strict=True):
                length = history.ByteSize()
                if reply.histories and size + length > BATCH_MESSAGE_BYTES:
                    yield reply
                    reply, size = pb.BatchGetHistoryResponse(), 0
                reply.histories.append(pb.UserHistory(user_id=user, history=history))
                size += length
        if reply.histories:
            yield reply

    async def _history(self, user: int, query: ResolvedQuery) -> pb.GetHistoryResponse:
        history = await self._vault.read(user, query.wanted)
        if not history.found:
            return pb.GetHistoryResponse(found=False)
        if not query.is_plain and not query.side_info:
            return blocks_reply(history, query)
        decoding = partial(decode, user, history, query, self._schema)
        decoded = await asyncio.get_running_loop().run_in_executor(self._decoders, decoding)
        reply = plain_reply(history, decoded, query, self._schema) if query.is_plain else blocks_reply(history, query)
        if query.side_info:
            items = side_info_reply(decoded[self._schema.item.name], query, self._schema, self._items)
            reply.side_info.CopyFrom(items)
        return reply

    async def DeleteUser(self, request: pb.DeleteUserRequest, _context: Context) -> pb.DeleteUserResponse:  # noqa: N802
        found = await self._vault.delete(request.user_id)
        return pb.DeleteUserResponse(found=found, erased_by_ms=int(time.time() * 1000) + ERASED_WITHIN_MS)

    async def PutItems(self, request: pb.PutItemsRequest, _context: Context) -> pb.PutItemsResponse:  # noqa: N802
        ids = _item_ids(request.item_ids)
        columns = unpack_columns(request.columns, self._schema.side_info_columns, rows=len(ids))
        batch = self._items.validate(ids, columns)
        # Written and published in one order, even if the caller gives up in between.
        return await asyncio.shield(asyncio.get_running_loop().create_task(self._put_items(batch)))

    async def _put_items(self, batch: ItemBatch) -> pb.PutItemsResponse:
        async with self._items_lock:
            version = await asyncio.get_running_loop().run_in_executor(self._items_writer, self._items.write, batch)
            for _ in self._items.publish(batch, version):
                await asyncio.sleep(0)
        return pb.PutItemsResponse(version=version)

    async def GetItems(self, request: pb.GetItemsRequest, _context: Context) -> pb.GetItemsResponse:  # noqa: N802
        ids = _item_ids(request.item_ids)
        if len(ids) > MAX_GET_ITEMS:
            raise InvalidRequestError("item_ids", "TOO_MANY_ITEMS", f"{len(ids)} items, at most {MAX_GET_ITEMS}")
        columns = self._side_info_columns(list(request.columns))
        present, values = self._items.gather(ids, columns)
        return pb.GetItemsResponse(
            present=present.tobytes(), columns=pack_columns(values, columns), version=self._items.version
        )

    async def GetSchema(self, _request: pb.GetSchemaRequest, _context: Context) -> pb.GetSchemaResponse:  # noqa: N802
        return self._schema_reply

    def _side_info_columns(self, names: list[str]) -> list[Column]:
        known = self._schema.side_info_column_of
        for position, name in enumerate(names):
            if name not in known:
                raise QueryError(
                    f"columns[{position}]", "UNKNOWN_COLUMN", f"the schema has no side-info column {name!r}"
                )
        if len(set(names)) != len(names):
            raise QueryError("columns", "DUPLICATE_COLUMN", "a column is named twice")
        return [known[name] for name in names] or list(self._schema.side_info_columns)


def _item_ids(packed: bytes) -> "np.ndarray[tuple[int], np.dtype[np.uint64]]":
    if len(packed) % 8:
        raise InvalidRequestError("item_ids", "COLUMN_LENGTH", f"{len(packed)} bytes are no whole number of u64")
    return np.frombuffer(packed, "<u8")
