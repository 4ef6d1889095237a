"""LastN on RocksDB, as practised: a row an event, side-info inline. `python -m loadtest.peers.lastn_rocksdb --help`.

    key    user u64 | ~time u64 | ~number u32      big-endian, so a scan of the prefix `user` meets the newest event first
    value  event 22 bytes | side-info 68 bytes     as packed by the schema; `number` counts rows, ties keep their order

Serves Append, PutItems and GetHistory (newest N, all columns, PLAIN) of the store's protocol. The side-info of an event is
joined when it is appended, from a table in memory, as the pipelines do that fill such stores.

Tuned for this: raw mode; values read through one bounded iterator in C (no key becomes a Python object, the value
repeats the time instead); prefix extractor and prefix bloom; a block cache that holds the whole test uncompressed; 16 KiB blocks;
read-ahead of what is asked for, up to
256 KiB; LZ4, ZSTD on the bottommost level; write buffers of 64 MiB; group commit: one `flush_wal(True)` for all calls that wait.
"""

import argparse
import asyncio
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import yaml
from rocksdict import (
    BlockBasedOptions,
    Cache,
    DBCompressionType,
    Options,
    Rdict,
    ReadOptions,
    SliceTransform,
    WriteBatch,
)

from loadtest.peers.shell import Method, serve
from seqcore.schema import Schema, row_dtype
from seqvault.v1 import seqvault_pb2 as pb

SETTLE_METHOD: Final = "loadtest.LastN/Settle"
"""Writes the memtable out and compacts to one level: what RocksDB reads and stores best. Request and reply are empty."""
COSTS_METHOD: Final = "loadtest.LastN/Costs"
"""Reply: two f64, CPU seconds since the start spent in iterating rows, and in everything else of GetHistory."""

_KEY: Final = np.dtype([("user", ">u8"), ("time", ">u8"), ("number", ">u4")])
_AFTER_PREFIX: Final = b"\xff" * (_KEY.itemsize - 8 + 1)
_ALL: Final = 1 << 62
_MAX_READAHEAD_BYTES: Final = 256 << 10


def _options(cache_bytes: int) -> Options:
    table = BlockBasedOptions()
    table.set_block_cache(Cache(cache_bytes))
    table.set_block_size(16 << 10)
    table.set_bloom_filter(10, block_based=False)
    table.set_format_version(5)
    table.set_cache_index_and_filter_blocks(False)
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_block_based_table_factory(table)
    options.set_prefix_extractor(SliceTransform.create_fixed_prefix(8))
    options.set_memtable_prefix_bloom_ratio(0.05)
    options.set_compression_type(DBCompressionType.lz4())
    options.set_bottommost_compression_type(DBCompressionType.zstd())
    options.set_write_buffer_size(64 << 20)
    options.set_max_write_buffer_number(4)
    options.set_level_compaction_dynamic_level_bytes(True)
    options.set_max_background_jobs(2)
    options.set_bytes_per_sync(1 << 20)
    options.set_keep_log_file_num(2)
    return options


class LastN:
    """The store of rows. Reads belong to the loop's thread, `commit` to one other."""

    def __init__(self, path: Path, schema: Schema, *, cache_bytes: int, has_side_info: bool) -> None:
        self._db = Rdict(str(path), _options(cache_bytes))
        self._schema = schema
        side_info = schema.side_info_columns if has_side_info else ()
        self._side_info_dtype = row_dtype(side_info)
        self._row_dtype = np.dtype([("event", schema.row_dtype), ("side_info", self._side_info_dtype)])
        self._item_ids = np.zeros(0, np.uint64)
        self._items = np.zeros(0, self._side_info_dtype)
        self._number = 0
        self.iterating_ns = 0
        self.other_ns = 0

    def put_items(self, ids: npt.NDArray[np.uint64], columns: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """New items only; the table is kept sorted by id."""
        rows = np.zeros(len(ids), self._side_info_dtype)
        for name in self._side_info_dtype.names or ():
            rows[name] = columns[name]
        ids = np.concatenate([self._item_ids, ids])
        order = np.argsort(ids, kind="stable")
        self._item_ids, self._items = ids[order], np.concatenate([self._items, rows])[order]

    def rows(self, request: pb.AppendRequest) -> tuple[list[bytes], list[bytes]]:
        """Keys and values of an append."""
        counts = np.array(request.event_counts, np.int64)
        count = int(counts.sum())
        row = np.zeros(count, self._row_dtype)
        event = row["event"]
        for column in request.columns:
            event[column.name] = np.frombuffer(column.data, self._schema.event_column_of[column.name].dtype)
        if self._side_info_dtype.itemsize and len(self._item_ids):
            items = event[self._schema.item.name]
            position = np.minimum(np.searchsorted(self._item_ids, items), len(self._item_ids) - 1)
            is_known = self._item_ids[position] == items
            row["side_info"][is_known] = self._items[position[is_known]]
        key = np.empty(count, _KEY)
        key["user"] = np.repeat(np.array(request.user_ids, np.uint64), counts)
        key["time"] = ~event[self._schema.time.name].astype(np.uint64)
        key["number"] = ~np.arange(self._number, self._number + count, dtype=np.uint64).astype(np.uint32)
        self._number += count
        # Items of void arrays become bytes, in C.
        return key.view(f"V{_KEY.itemsize}").tolist(), row.view(f"V{row.dtype.itemsize}").tolist()

    def commit(self, group: Sequence[tuple[list[bytes], list[bytes]]]) -> None:
        """Durable when it returns: a batch a call, one sync for all."""
        for keys, values in group:
            batch = WriteBatch(raw_mode=True)
            deque(map(batch.put, keys, values), maxlen=0)
            self._db.write(batch)
        self._db.flush_wal(True)

    def newest(self, user: int, count: int, columns: Sequence[str]) -> pb.GetHistoryResponse:
        began = time.thread_time_ns()
        prefix = user.to_bytes(8, "big")
        options = ReadOptions()
        options.set_iterate_upper_bound(prefix + _AFTER_PREFIX)
        options.set_prefix_same_as_start(True)
        options.set_readahead_size(min(count * self._row_dtype.itemsize, _MAX_READAHEAD_BYTES))
        data = b"".join(islice(self._db.values(from_key=prefix, read_opt=options), count))
        iterated = time.thread_time_ns()
        if not data:
            return pb.GetHistoryResponse(found=False)
        event = np.frombuffer(data, self._row_dtype)["event"][::-1]
        plain = pb.Plain(
            event_count=len(event), columns=[pb.Column(name=name, data=event[name].tobytes()) for name in columns]
        )
        reply = pb.GetHistoryResponse(found=True, plain=plain)
        self.iterating_ns += iterated - began
        self.other_ns += time.thread_time_ns() - iterated
        return reply

    def settle(self) -> None:
        self._db.flush()
        self._db.compact_range(None, None)

    def close(self) -> None:
        self._db.close()


class LastNService:
    """The methods, by their paths."""

    def __init__(self, store: LastN, schema: Schema) -> None:
        self._store = store
        self._schema = schema
        self._names = [column.name for column in schema.event_columns]
        self._committer = ThreadPoolExecutor(1, "committer")
        self._waiting: list[tuple[tuple[list[bytes], list[bytes]], asyncio.Future[None]]] = []
        self._committing: asyncio.Task[None] | None = None

    def methods(self) -> Mapping[str, Method]:
        return {
            "seqvault.v1.SeqVault/Append": self.append,
            "seqvault.v1.SeqVault/PutItems": self.put_items,
            "seqvault.v1.SeqVault/GetHistory": self.get_history,
            SETTLE_METHOD: self.settle,
            COSTS_METHOD: self.costs,
        }

    async def append(self, raw: bytes) -> bytes:
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((self._store.rows(pb.AppendRequest.FromString(raw)), done))
        if self._committing is None:
            self._committing = asyncio.get_running_loop().create_task(self._commit())
        await done
        return pb.AppendResponse().SerializeToString()

    async def _commit(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            group, self._waiting = self._waiting, []
            await loop.run_in_executor(self._committer, self._store.commit, [rows for rows, _ in group])
            for _, done in group:
                done.set_result(None)
        self._committing = None

    async def put_items(self, raw: bytes) -> bytes:
        request = pb.PutItemsRequest.FromString(raw)
        ids = np.frombuffer(request.item_ids, "<u8")
        known = self._schema.side_info_column_of
        columns = {
            column.name: np.frombuffer(column.data, known[column.name].dtype).reshape(
                (len(ids), -1) if known[column.name].length > 1 else len(ids)
            )
            for column in request.columns
        }
        self._store.put_items(ids, columns)
        return pb.PutItemsResponse().SerializeToString()

    async def get_history(self, raw: bytes) -> bytes:
        request = pb.GetHistoryRequest.FromString(raw)
        return self._store.newest(request.user_id, request.query.max_events or _ALL, self._names).SerializeToString()

    async def settle(self, _raw: bytes) -> bytes:
        await asyncio.get_running_loop().run_in_executor(self._committer, self._store.settle)
        return b""

    async def costs(self, _raw: bytes) -> bytes:
        return np.array([self._store.iterating_ns, self._store.other_ns], "<f8").__truediv__(1e9).tobytes()

    async def close(self) -> None:
        self._committer.shutdown()
        self._store.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtest.peers.lastn_rocksdb")
    parser.add_argument("--data", type=Path, required=True, help="directory of the database")
    parser.add_argument("--schema", type=Path, required=True, help="schema file (YAML)")
    parser.add_argument("--cache-bytes", type=int, default=1 << 30, help="block cache (default 1 GiB)")
    parser.add_argument("--without-side-info", action="store_true", help="thin rows: the event alone")
    arguments = parser.parse_args()
    schema = Schema.from_mapping(yaml.safe_load(arguments.schema.read_text()))
    store = LastN(
        arguments.data,
        schema,
        cache_bytes=arguments.cache_bytes,
        has_side_info=not arguments.without_side_info,
    )
    service = LastNService(store, schema)
    serve(service.methods, close=service.close)


if __name__ == "__main__":
    main()
