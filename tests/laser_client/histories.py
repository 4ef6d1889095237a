"""Histories as the server would send them: real blocks, made by the store's own writer."""

import numpy as np
import numpy.typing as npt

from laser_client.wire import pack_columns
from seqcore.schema import Column, Role, Schema, Type, View
from seqvault.v1 import seqvault_pb2 as pb
from seqvault_server.storage.encode import Runs, encode, seal, words_of

SCHEMA = Schema(
    version=1,
    event_columns=(
        Column(name="item", type=Type.U64, role=Role.ITEM),
        Column(name="time_ms", type=Type.I64, role=Role.TIME),
        Column(name="action", type=Type.U8, role=Role.ACTION),
    ),
    side_info_columns=(Column(name="price", type=Type.U32, default=0),),
    views=(View(name="recent", columns=("time_ms", "item"), max_events=5),),
)
"""A row has 17 bytes: fields lie unaligned."""

Array = npt.NDArray[np.generic]


def make_rows(count: int, *, seed: int = 7, start_ms: int = 1_000_000) -> npt.NDArray[np.void]:
    """Rows by time; every column has the same range of values however many rows there are."""
    random = np.random.default_rng(seed)
    rows = np.zeros(count, SCHEMA.row_dtype)
    rows["item"] = random.integers(2**16, 2**24, count)
    rows["time_ms"] = start_ms + np.cumsum(random.integers(2**8, 2**16, count))
    rows["action"] = random.integers(0, 4, count)
    return rows


def blocks_reply(
    user: int, rows: npt.NDArray[np.void], *, tail: npt.NDArray[np.void] | None = None, schema: Schema = SCHEMA
) -> pb.GetHistoryResponse:
    """`rows` (by time) in blocks, `tail` beside them; all columns, no filter."""
    message = pb.Blocks(columns=list(schema.event_column_of), schema_version=schema.version)
    if len(rows):
        runs = Runs(
            np.array([user], np.uint64), np.array([0, len(rows)]), np.array([1], np.uint64), np.array([2], np.uint64)
        )
        blocks = encode(words_of(rows, schema), runs, schema=schema)
        offset_K = blocks.offset_K1[:-1]
        seal(blocks, segment=1, offset_K=offset_K, gap_K=np.zeros_like(offset_K))
        message.data = blocks.data.tobytes()
        message.lengths.extend(np.diff(blocks.offset_K1).tolist())
    if tail is not None:
        message.tail = tail.tobytes()
    return pb.GetHistoryResponse(found=True, blocks=message, reads=1, read_bytes=len(message.data))


def plain_reply(events: dict[str, Array], *, schema: Schema = SCHEMA) -> pb.GetHistoryResponse:
    count = len(next(iter(events.values())))
    return pb.GetHistoryResponse(
        found=True,
        plain=pb.Plain(event_count=count, columns=pack_columns(events, schema.event_columns, rows=count)),
        reads=1,
    )
