"""A reader of blocks and extents that knows docs/storage_format.md and nothing of this project's code.

The document shows this file from the first import on, word for word.
"""

import struct
from itertools import accumulate
from typing import Any

import xxhash
import zstandard

HEADER = struct.Struct("<HBBHHIIIBBHQQQqqQ")
FIELDS = (
    *("magic", "format", "codec", "schema", "count", "length", "segment", "offset", "column_count", "gap"),
    *("reserved", "user", "first_lsn", "last_lsn", "min_time", "max_time", "action_mask"),
)
CODES = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "i64": "q", "f32": "f"}

Block = tuple[dict[str, int], dict[str, list[Any]]]


def read_block(block: bytes, schema: dict[str, Any]) -> Block:
    """Header and columns of one block; a column that is younger than the block is missing."""
    header = dict(zip(FIELDS, HEADER.unpack_from(block), strict=True))
    checksum, length = struct.unpack("<QI", block[-12:])
    if header["magic"] != 0x5653 or header["format"] != 1 or not header["length"] == length == len(block):
        raise ValueError("no block of format 1")
    if xxhash.xxh3_64_intdigest(block[:-12]) != checksum:
        raise ValueError("checksum differs")
    count = header["count"]
    columns = [column for column in schema["event"]["columns"] if column.get("since", 1) <= header["schema"]]
    descriptors = block[72 : 72 + len(columns)]
    frames = 1 if header["codec"] == 1 else len(columns)
    at, raw = 72 + len(columns) + 4 * frames, b""
    for frame_bytes in struct.unpack_from(f"<{frames}I", block, 72 + len(columns)):
        if frame_bytes:
            frame = block[at : at + frame_bytes]
            raw += zstandard.ZstdDecompressor().decompress(frame, max_output_size=32 * 8 * 1024)
        at += frame_bytes
    values: dict[str, list[Any]] = {}
    for column, descriptor in zip(columns, descriptors, strict=True):
        transform, width = descriptor >> 4, descriptor & 15
        planes, raw = raw[: width * count], raw[width * count :]
        words = [sum(planes[p * count + i] << 8 * p for p in range(width)) for i in range(count)]
        if transform == 1:
            words[0] = header["min_time"]
            words = list(accumulate(words))
        code = "<" + CODES[column["type"]]
        values[column["name"]] = [struct.unpack_from(code, (w % 2**64).to_bytes(8, "little"))[0] for w in words]
    return header, values


def read_extent(extent: bytes, *, user: int, segment: int, offset: int, schema: dict[str, Any]) -> list[Block]:
    """Blocks of the used bytes of an extent, or of a small history, that begins at byte `offset` of `segment`."""
    blocks: list[Block] = []
    end = len(extent)
    while end > 0:
        (length,) = struct.unpack_from("<I", extent, end - 4)
        begin = end - length
        header, values = read_block(extent[begin:end], schema)
        if (header["user"], header["segment"], header["offset"]) != (user, segment, offset + begin):
            raise ValueError("another user's block, or another place's")
        blocks.insert(0, (header, values))
        end = begin - 16 * header["gap"]
    return blocks
