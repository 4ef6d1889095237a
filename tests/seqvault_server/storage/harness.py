"""What the engine's tests share: a schema, made-up events, and a shard driven step by step on one thread."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from seqcore.filters import Filter
from seqcore.history import BlockHistory, decode_history
from seqcore.schema import Schema
from seqvault_server.storage.append import AppendBatch, make_batch
from seqvault_server.storage.files import Files
from seqvault_server.storage.read import History
from seqvault_server.storage.shard import Shard, ShardConfig
from seqvault_server.storage.walk import Wanted

SCHEMA: Final = Schema.from_mapping(
    {
        "version": 1,
        "event": {
            "columns": [
                {"name": "item_id", "type": "u64", "role": "item"},
                {"name": "time_ms", "type": "i64", "role": "time"},
                {"name": "action", "type": "u8", "role": "action"},
                {"name": "scene", "type": "u8", "role": "scene", "default": 0},
                {"name": "dwell_ms", "type": "u32", "default": 0},
            ]
        },
    }
)
NOW_MS: Final = 1_700_000_000_000
SMALL: Final = ShardConfig(max_users=1 << 20, tail_bytes=64 << 20)
ALL_COLUMNS: Final = tuple(column.name for column in SCHEMA.event_columns)

Rows = npt.NDArray[np.void]


def make_rows(random: np.random.Generator, count: int, *, start_ms: int = NOW_MS - 10**10, first_item: int = 0) -> Rows:
    """Events in the order of time; `first_item` numbers them through, so that each is recognised."""
    rows = np.zeros(count, SCHEMA.row_dtype)
    rows["item_id"] = np.arange(first_item, first_item + count)
    rows["time_ms"] = start_ms + np.cumsum(random.integers(0, 5_000, count))
    rows["action"] = random.integers(0, 4, count)
    rows["scene"] = random.integers(0, 3, count)
    rows["dwell_ms"] = random.integers(0, 60_000, count)
    return rows


def batch_of(
    users: Sequence[int], counts: Sequence[int], rows: Rows, *, producer: int = 0, sequence: int = 0
) -> AppendBatch:
    return make_batch(
        SCHEMA,
        user_U=np.array(users, np.uint64),
        count_U=np.array(counts, np.int64),
        columns={name: rows[name] for name in ALL_COLUMNS},
        producer=producer,
        sequence=sequence,
        now_ms=NOW_MS,
    )


def append(shard: Shard, *batches: AppendBatch) -> None:
    """One commit group, from admission to visibility."""
    for batch in batches:
        shard.check_append(batch, 0)
    group = shard.begin_group(batches)
    shard.log_group(group)
    for _ in shard.apply_group(group):
        pass


def delete(shard: Shard, user: int) -> None:
    shard.busy.add(user)
    group = shard.begin_group([], [user])
    shard.log_group(group)
    for _ in shard.apply_group(group):
        pass
    shard.erase(group.deletions[0])
    shard.end_deletion(group.deletions[0])


def flush(shard: Shard, users: Sequence[int] | None = None) -> None:
    """Flushes these users, or all."""
    if users is None:
        users = shard.tails.find(0, limit=1 << 20)[0].tolist()
    rest = list(users)
    while rest:
        plan, rest = shard.plan_flush(rest)
        if plan is not None:
            shard.publish_flush(shard.write_flush(plan))
            shard.punch(shard.take_freed())


def read(shard: Shard, user: int, wanted: Wanted | None = None) -> History:
    history = shard.begin_read(user, wanted or Wanted())
    if isinstance(history, History):
        return history
    try:
        return shard.finish_read(history)
    finally:
        shard.end_read(history)


def decoded(user: int, history: History, residual: Filter | None = None) -> Rows:
    """The events of a read, oldest first, as packed rows."""
    blocks = BlockHistory(user, history.data, np.array(history.lengths, np.int64), history.tail, SCHEMA.version)
    columns = decode_history(blocks, schema=SCHEMA, columns=ALL_COLUMNS, residual=residual or Filter())
    rows = np.empty(len(columns["item_id"]), SCHEMA.row_dtype)
    for name in ALL_COLUMNS:
        rows[name] = columns[name]
    return rows


def in_order(rows: Rows) -> Rows:
    """A history's order: time, then arrival."""
    return rows[np.argsort(rows["time_ms"], kind="stable")]


@contextmanager
def opened(
    path: Path, *, config: ShardConfig = SMALL, schema: Schema = SCHEMA, files: Files | None = None
) -> Iterator[Shard]:
    shard = Shard.open(path, schema, config=config, files=files)
    try:
        yield shard
    finally:
        shard.close()
