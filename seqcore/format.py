"""Bytes of a block: how a run of one user's events lies on disk and on the wire. Normative text: docs/storage_format.md.

    block       := header descriptors frame_lengths frames pad checksum length     little-endian, a multiple of 16 bytes
    header      := 72 bytes, `HEADER` below
    descriptors := one byte a column: transform << 4 | width        width: bytes kept of each value, 0 to the type's size
    frame_lengths := u32 a frame
    frames      := zstd frames: one for all columns (Codec.ONE_FRAME), or one a column (Codec.FRAME_PER_COLUMN)
    pad         := zero bytes
    checksum    := u64, xxh3-64 of everything before it
    length      := u32, of the whole block: the trailer that makes a block readable from its end

A column is `count` values of `width` bytes, byte-shuffled: all lowest bytes, then all second bytes, and so on; bytes
above `width` are zero. Rows are sorted by (time, arrival). The time column holds differences, the first one 0, on top
of `min_time`. The header carries the block's own address, so bytes read from the wrong place fail like damaged ones.
"""

from enum import IntEnum
from typing import Final

import numpy as np

MAGIC: Final = 0x5653
"""The bytes "SV"."""
FORMAT: Final = 1
ALIGNMENT_BYTES: Final = 16
MAX_BLOCK_EVENTS: Final = 1024
ONE_FRAME_BELOW_EVENTS: Final = 256
"""Blocks of fewer events hold one frame for all columns: projection would save less than the frames cost."""

HEADER: Final = np.dtype(
    [
        ("magic", "<u2"),
        ("format", "u1"),
        ("codec", "u1"),
        ("schema", "<u2"),
        ("count", "<u2"),
        ("length", "<u4"),
        ("segment", "<u4"),
        ("offset", "<u4"),
        ("column_count", "u1"),
        ("gap", "u1"),
        ("reserved", "<u2"),
        ("user", "<u8"),
        ("first_lsn", "<u8"),
        ("last_lsn", "<u8"),
        ("min_time", "<i8"),
        ("max_time", "<i8"),
        ("action_mask", "<u8"),
    ]
)
"""`gap`: 16-byte units of padding between the previous block of the extent and this one. `action_mask`: bit (action & 63)
is set for every action in the block."""
HEADER_BYTES: Final = HEADER.itemsize
FOOTER: Final = np.dtype([("checksum", "<u8"), ("length", "<u4")])
FOOTER_BYTES: Final = FOOTER.itemsize
MIN_BLOCK_BYTES: Final = 96


class Codec(IntEnum):
    """How many zstd frames hold the columns. Persisted: add members, never renumber or reuse one."""

    ONE_FRAME = 1
    FRAME_PER_COLUMN = 2


class Transform(IntEnum):
    """What was done to the values before the shuffle: DELTA to the time column, nothing to any other. Persisted: add members, never renumber or reuse one."""

    PLAIN = 0
    DELTA = 1


def max_block_bytes(column_count: int, row_bytes: int) -> int:
    """Upper bound of a block's length: raw rows, and what zstd adds to bytes that it cannot compress."""
    frames = column_count * 32 + row_bytes * MAX_BLOCK_EVENTS * 257 // 256
    return HEADER_BYTES + column_count * 5 + frames + FOOTER_BYTES + ALIGNMENT_BYTES
