"""A history as it travels in blocks: whole blocks, the tail beside them, and the filter that remains to be applied."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from seqcore.decode import Buffer, decode, open_blocks
from seqcore.errors import BlockError
from seqcore.filters import Filter
from seqcore.schema import Schema, row_dtype


@dataclass(frozen=True, slots=True)
class BlockHistory:
    """Blocks back to back with the length of each, and rows not yet in blocks: packed, in order of arrival.

    `tail_schema` is the schema version that lays out the tail; it may be older than the reader's.
    """

    user_id: int
    data: Buffer
    lengths: npt.NDArray[np.integer]
    tail: Buffer
    tail_schema: int


def decode_history(
    history: BlockHistory, *, schema: Schema, columns: tuple[str, ...], residual: Filter
) -> dict[str, npt.NDArray[np.generic]]:
    """The wanted columns of the events that pass the filter, oldest first.

    The number of Python calls does not depend on the number of events. Results may be views of the decoded buffers.

    Raises: BlockError if a block is damaged, newer than the schema, or another user's.
    """
    needed = residual.columns_needed(schema, columns)
    of = schema.event_column_of
    decoded: dict[str, npt.NDArray[np.generic]] = {}
    if len(history.lengths):
        blocks = open_blocks(history.data, history.lengths, schema=schema)
        if not (blocks.header_K["user"] == history.user_id).all():
            raise BlockError(0, f"a block of another user than {history.user_id}")
        decoded = decode(blocks, schema=schema, columns=[of[name] for name in needed])
    if history.tail or not decoded:
        tail = np.frombuffer(history.tail, row_dtype(schema.event_columns_at(history.tail_schema)))
        for name in needed:
            column = of[name]
            if column.since > history.tail_schema:
                values = np.full(len(tail), column.default, column.dtype)
            else:
                values = tail[name]
            decoded[name] = np.concatenate([decoded[name], values]) if name in decoded else values
    return residual.apply(decoded, schema=schema, keep=columns)
