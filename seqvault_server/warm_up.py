"""Compiling, or loading from numba's cache, every kernel before the first request: else that one would wait seconds.

A scratch store takes each path of the real one once: tails, small histories, extents, slack, merges, reads, recovery.
"""

import tempfile
import time
from pathlib import Path

import numpy as np

from seqcore.schema import Role, Schema
from seqvault_server.sideinfo.store import SideInfo
from seqvault_server.storage.append import make_batch
from seqvault_server.storage.read import History
from seqvault_server.storage.shard import Shard, ShardConfig
from seqvault_server.storage.walk import Wanted

_SMALL = ShardConfig(max_users=1 << 12, tail_bytes=16 << 20)


def warm_up(schema: Schema) -> None:
    """Blocking: a fifth of a second with a warm cache, half a minute without."""
    with tempfile.TemporaryDirectory(prefix="seqvault-warm-up-") as folder:
        shard = Shard.open(Path(folder), schema, config=_SMALL)
        for events in (10, 700, 40):
            _append(shard, schema, events)
            _flush(shard)
        _append(shard, schema, 5)
        shard.tails.set_first_lsn(np.array([1], np.uint64), 1)
        shard.split_for_cut([1])
        for wanted in (Wanted(), Wanted(max_events=3)):
            read = shard.begin_read(1, wanted)
            if not isinstance(read, History):
                shard.finish_read(read)
                shard.end_read(read)
        shard.close()
        Shard.open(Path(folder), schema, config=_SMALL).close()
        items = SideInfo.open(Path(folder) / "items", schema, max_items=1 << 10)
        ids = np.arange(3, dtype=np.uint64)
        shapes = {c.name: (3,) if c.length == 1 else (3, c.length) for c in schema.side_info_columns}
        batch = items.validate(ids, {c.name: np.zeros(shapes[c.name], c.dtype) for c in schema.side_info_columns})
        for _ in items.publish(batch, items.write(batch)):
            pass
        items.gather(ids, schema.side_info_columns)
        items.close()


def _append(shard: Shard, schema: Schema, events: int) -> None:
    now_ms = int(time.time() * 1000)
    columns = {
        column.name: np.full(events, now_ms if column.role is Role.TIME else 0, column.dtype)
        for column in schema.event_columns
    }
    batch = make_batch(
        schema,
        user_U=np.array([1], np.uint64),
        count_U=np.array([events]),
        columns=columns,
        producer=1,
        sequence=shard.next_lsn,
        now_ms=now_ms,
    )
    shard.check_append(batch, 0)
    group = shard.begin_group([batch])
    shard.log_group(group)
    for _ in shard.apply_group(group):
        pass


def _flush(shard: Shard) -> None:
    users, _ = shard.tails.find(0, limit=10)
    plan, _ = shard.plan_flush(users.tolist())
    assert plan is not None
    shard.publish_flush(shard.write_flush(plan))
    shard.punch(shard.take_freed())
