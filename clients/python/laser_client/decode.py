"""Replies to numpy columns. A history costs the same number of Python calls whatever its length; a test holds that.

Nothing in a reply is trusted: blocks carry checksums and their user, packed columns are measured, and what does not
verify is DataCorrupted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from laser_client.errors import ColumnError, DataCorrupted
from laser_client.wire import filter_from_proto, unpack_columns
from seqcore.errors import BlockError
from seqcore.history import BlockHistory
from seqcore.history import decode_history as decode_blocks
from seqcore.schema import Column, Schema
from seqvault.v1 import seqvault_pb2 as pb

DAMAGED_REPLY: Final = "DAMAGED_REPLY"
"""Reason of what was found damaged on this side; the server's own finding is DAMAGED_HISTORY."""

Columns = Mapping[str, npt.NDArray[np.generic]]


class StaleSchema(Exception):
    """The reply speaks of something newer than our schema: fetch the schema and decode again. Never reaches a caller."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SideInfo:
    """One row an item. Where `is_present` is false the item is unknown and its columns hold defaults."""

    item_ids: npt.NDArray[np.uint64]
    is_present: npt.NDArray[np.bool_]
    columns: Columns


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Items(SideInfo):
    """Rows in the order asked for."""

    version: int
    """Of the item table that was read."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class History:
    """Events of one user, oldest first; contiguous arrays, maybe read-only views of the reply."""

    user_id: int
    found: bool
    """Whether the user has any event at all, before the query's filters."""
    columns: Columns
    """The columns asked for; of an unknown user, too, then without rows."""
    side_info: SideInfo | None
    """Distinct items of the events in ascending order, if asked for."""
    reads: int
    """Reads of segment files that the server made."""
    read_bytes: int

    @property
    def event_count(self) -> int:
        return len(next(iter(self.columns.values())))


def decode_history(reply: pb.GetHistoryResponse, *, user_id: int, schema: Schema, columns: tuple[str, ...]) -> History:
    """`columns`: what was asked for, to describe a user without events.

    Raises: DataCorrupted, StaleSchema.
    """
    encoding = reply.WhichOneof("events")
    if encoding == "blocks":
        events = _from_blocks(reply.blocks, user_id, schema)
    elif encoding == "plain":
        events = _unpack(reply.plain.columns, schema.event_column_of, rows=reply.plain.event_count)
    else:
        events = {column.name: np.empty(0, column.dtype) for column in _known(columns, schema.event_column_of)}
    return History(
        user_id=user_id,
        found=reply.found,
        columns=events,
        side_info=_side_info(reply.side_info, schema) if reply.HasField("side_info") else None,
        reads=reply.reads,
        read_bytes=reply.read_bytes,
    )


def decode_items(reply: pb.GetItemsResponse, *, item_ids: npt.NDArray[np.uint64], schema: Schema) -> Items:
    """Raises: DataCorrupted, StaleSchema."""
    return Items(
        item_ids=item_ids,
        is_present=_mask(reply.present, len(item_ids)),
        columns=_unpack(reply.columns, schema.side_info_column_of, rows=len(item_ids)),
        version=reply.version,
    )


def _from_blocks(message: pb.Blocks, user_id: int, schema: Schema) -> Columns:
    if message.schema_version > schema.version:
        raise StaleSchema
    keep = tuple(message.columns)
    _known(keep, schema.event_column_of)
    history = BlockHistory(
        user_id, message.data, np.array(message.lengths, np.int64), message.tail, message.schema_version
    )
    row_bytes = sum(column.width_bytes for column in schema.event_columns_at(history.tail_schema))
    if not row_bytes or len(history.tail) % row_bytes:
        raise DataCorrupted(f"a tail of {len(history.tail)} bytes, a row has {row_bytes}", reason=DAMAGED_REPLY)
    try:
        events = decode_blocks(history, schema=schema, columns=keep, residual=filter_from_proto(message.residual))
    except BlockError as error:
        raise DataCorrupted(str(error), reason=DAMAGED_REPLY) from error
    # A tail without blocks comes as strided views of packed rows, unaligned: tensors refuse those.
    return {name: np.ascontiguousarray(values) for name, values in events.items()}


def _side_info(message: pb.SideInfo, schema: Schema) -> SideInfo:
    if len(message.item_ids) % 8:
        raise DataCorrupted(f"{len(message.item_ids)} bytes are no item ids", reason=DAMAGED_REPLY)
    item_ids = np.frombuffer(message.item_ids, "<u8")
    return SideInfo(
        item_ids=item_ids,
        is_present=_mask(message.present, len(item_ids)),
        columns=_unpack(message.columns, schema.side_info_column_of, rows=len(item_ids)),
    )


def _mask(present: bytes, rows: int) -> npt.NDArray[np.bool_]:
    if len(present) != rows:
        raise DataCorrupted(f"{len(present)} presence marks for {rows} items", reason=DAMAGED_REPLY)
    return np.frombuffer(present, np.uint8).astype(np.bool_)


def _unpack(packed: Sequence[pb.Column], column_of: Mapping[str, Column], *, rows: int) -> Columns:
    try:
        return unpack_columns(packed, _known([column.name for column in packed], column_of), rows=rows)
    except ColumnError as error:
        raise DataCorrupted(str(error), reason=DAMAGED_REPLY) from error


def _known(names: Sequence[str], column_of: Mapping[str, Column]) -> list[Column]:
    try:
        return [column_of[name] for name in names]
    except KeyError:
        raise StaleSchema from None
