"""Histories as replies: blocks as they are, or decoded into plain arrays; side-info joined once per distinct item."""

import numpy as np
import numpy.typing as npt

from laser_client.wire import pack_columns
from seqcore.history import BlockHistory, decode_history
from seqcore.schema import Schema
from seqvault.v1 import seqvault_pb2 as pb
from seqvault_server.query import ResolvedQuery
from seqvault_server.sideinfo.distinct import distinct
from seqvault_server.sideinfo.store import SideInfo
from seqvault_server.storage.read import History

Array = npt.NDArray[np.generic]


def blocks_reply(history: History, query: ResolvedQuery) -> pb.GetHistoryResponse:
    """The history as it lies on disk; nothing is decompressed."""
    reply = pb.GetHistoryResponse()
    reply.CopyFrom(query.blocks_template)
    reply.reads, reply.read_bytes = history.reads, history.read_bytes
    blocks = reply.blocks
    blocks.data, blocks.tail = history.data, history.tail
    blocks.lengths.extend(history.lengths)
    return reply


def plain_reply(
    history: History, decoded: dict[str, Array], query: ResolvedQuery, schema: Schema
) -> pb.GetHistoryResponse:
    """The events as packed arrays."""
    columns = [schema.event_column_of[name] for name in query.columns]
    return pb.GetHistoryResponse(
        found=history.found,
        plain=pb.Plain(
            event_count=len(decoded[query.columns[0]]),
            columns=pack_columns({name: decoded[name] for name in query.columns}, columns),
        ),
        reads=history.reads,
        read_bytes=history.read_bytes,
    )


def decode(user_id: int, history: History, query: ResolvedQuery, schema: Schema) -> dict[str, Array]:
    """What the reply needs decoded: all columns of a plain one, the items of a join; blocking.

    Raises: BlockError, for bytes that verified but do not follow the format.
    """
    names = query.columns if query.is_plain else ()
    if query.side_info:
        names = tuple(dict.fromkeys((*names, schema.item.name)))
    blocks = BlockHistory(user_id, history.data, np.array(history.lengths, np.int64), history.tail, schema.version)
    return decode_history(blocks, schema=schema, columns=names, residual=query.residual)


def side_info_reply(item_ids: Array, query: ResolvedQuery, schema: Schema, items: SideInfo) -> pb.SideInfo:
    """Side-info of the distinct items."""
    items_distinct = distinct(item_ids.view(np.uint64))
    columns = [schema.side_info_column_of[name] for name in query.side_info]
    present, values = items.gather(items_distinct, columns)
    return pb.SideInfo(
        item_ids=items_distinct.tobytes(), present=present.tobytes(), columns=pack_columns(values, columns)
    )
