"""Events to blocks: the only writer of the block format (seqcore.format). Many users' rows are encoded in one go.

One numba kernel sorts nothing and transforms everything (widths, deltas, byte shuffle), one multi-frame zstd call
compresses, a second kernel lays the blocks out. The address and the checksum are filled in by `seal`, once the
allocator has said where the blocks will lie.

Letters: N rows, K blocks, C columns, F frames.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, cast

import numba
import numpy as np
import numpy.typing as npt
import xxhash
import zstandard

from seqcore.format import (
    ALIGNMENT_BYTES,
    FOOTER_BYTES,
    FORMAT,
    HEADER,
    HEADER_BYTES,
    MAGIC,
    MAX_BLOCK_EVENTS,
    ONE_FRAME_BELOW_EVENTS,
    Codec,
    Transform,
)
from seqcore.schema import Schema

ZSTD_LEVEL: Final = 3

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Runs:
    """Consecutive rows of one user each, which become that user's consecutive blocks."""

    user_R: Words
    start_R1: Ints
    """First row of each run, and behind the last one the number of rows."""
    first_lsn_R: Words
    last_lsn_R: Words


@dataclass(frozen=True, slots=True)
class Blocks:
    """Encoded blocks back to back in `data`, unsealed: no address, no checksum yet."""

    data: Bytes
    offset_K1: Ints
    """Where each block begins, and behind the last one the end of the data."""
    run_K: Ints
    header_K: npt.NDArray[np.void]


def words_of(rows: npt.NDArray[np.void], schema: Schema) -> Words:
    """Packed rows as one row of 64-bit words a column [C, N]; floats keep their bit pattern."""
    words_CN = np.empty((len(schema.event_columns), len(rows)), np.uint64)
    for c, column in enumerate(schema.event_columns):
        values = rows[column.name]
        words_CN[c] = values.view(f"u{column.dtype.itemsize}") if values.dtype.kind in "fi" else values
    return words_CN


def encode(words_CN: Words, runs: Runs, *, schema: Schema) -> Blocks:
    """Blocks of up to 1,024 events. The rows of each run must be sorted by (time, arrival)."""
    row_K1, run_K = _split(runs.start_R1)
    count_K = np.diff(row_K1)
    block_count, column_count = len(run_K), len(schema.event_columns)
    names = [column.name for column in schema.event_columns]
    time = names.index(schema.time.name)
    action = names.index(schema.action.name) if schema.action else -1

    raw = np.empty(words_CN.size * 8, np.uint8)
    width_KC = np.empty((block_count, column_count), np.uint8)
    mask_K = np.empty(block_count, np.uint64)
    raw_bytes_KC = np.empty((block_count, column_count), np.int64)
    raw_total = _shuffle(words_CN, row_K1, time, action, raw, width_KC, raw_bytes_KC, mask_K)

    one_K = count_K < ONE_FRAME_BELOW_EVENTS
    raw_FK = np.where(one_K[:, None], 0, raw_bytes_KC)
    raw_FK[:, 0] = np.where(one_K, raw_bytes_KC.sum(1), raw_bytes_KC[:, 0])
    frames, frame_bytes_KC = _compress(raw[:raw_total], raw_FK)

    header_bytes_K = HEADER_BYTES + column_count + 4 * np.where(one_K, 1, column_count)
    used_K = header_bytes_K + frame_bytes_KC.sum(1) + FOOTER_BYTES
    length_K = -(-used_K // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    offset_K1 = np.concatenate([[0], np.cumsum(length_K)])

    header_K = np.zeros(block_count, HEADER)
    header_K["magic"], header_K["format"] = MAGIC, FORMAT
    header_K["codec"] = np.where(one_K, Codec.ONE_FRAME, Codec.FRAME_PER_COLUMN)
    header_K["schema"], header_K["column_count"] = schema.version, column_count
    header_K["count"], header_K["length"] = count_K, length_K
    header_K["user"] = runs.user_R[run_K]
    header_K["first_lsn"], header_K["last_lsn"] = runs.first_lsn_R[run_K], runs.last_lsn_R[run_K]
    time_N = words_CN[time].view(np.int64)
    header_K["min_time"], header_K["max_time"] = time_N[row_K1[:-1]], time_N[row_K1[1:] - 1]
    header_K["action_mask"] = mask_K

    transforms_C = np.zeros(column_count, np.uint8)
    transforms_C[time] = Transform.DELTA << 4
    data = np.zeros(int(offset_K1[-1]), np.uint8)
    _lay_out(data, offset_K1, width_KC | transforms_C, one_K, frames, frame_bytes_KC)
    return Blocks(data, offset_K1, run_K, header_K)


def seal(blocks: Blocks, *, segment: int | Words, offset_K: Ints, gap_K: Ints) -> None:
    """Writes each block's own address (segment, byte offset in it), the gap before it, and its checksum, in place."""
    header_K = blocks.header_K
    header_K["segment"], header_K["offset"], header_K["gap"] = segment, offset_K, gap_K // ALIGNMENT_BYTES
    starts, ends = blocks.offset_K1[:-1], blocks.offset_K1[1:]
    blocks.data[starts[:, None] + np.arange(HEADER_BYTES)] = header_K.view(np.uint8).reshape(
        len(header_K), HEADER_BYTES
    )
    view = blocks.data.data
    bodies = [view[a:b] for a, b in zip(starts.tolist(), (ends - FOOTER_BYTES).tolist(), strict=True)]
    digest_K = np.array(list(map(xxhash.xxh3_64_intdigest, bodies)), "<u8")
    blocks.data[(ends - 12)[:, None] + np.arange(8)] = digest_K.view(np.uint8).reshape(-1, 8)
    length_K = header_K["length"].copy()
    blocks.data[(ends - 4)[:, None] + np.arange(4)] = length_K.view(np.uint8).reshape(-1, 4)


def _split(start_R1: Ints) -> tuple[Ints, Ints]:
    """Row where each block begins (and the end), and the run that each block belongs to: equal parts, not 1,024 + rest."""
    rows_R = np.diff(start_R1)
    blocks_R = -(-rows_R // MAX_BLOCK_EVENTS)
    run_K = np.repeat(np.arange(len(rows_R)), blocks_R)
    nth_K = np.arange(len(run_K)) - np.repeat(np.cumsum(blocks_R) - blocks_R, blocks_R)
    row_K = start_R1[run_K] + rows_R[run_K] * nth_K // blocks_R[run_K]
    return np.concatenate([row_K, start_R1[-1:]]), run_K


def _compress(raw: Bytes, raw_bytes_KC: Ints) -> tuple[Bytes, Ints]:
    """All frames back to back, and the length of each; empty columns have no bytes and no frame."""
    flat = raw_bytes_KC.ravel()
    taken = flat > 0
    lengths = np.zeros(len(flat), np.int64)
    if not taken.any():
        return np.empty(0, np.uint8), lengths.reshape(raw_bytes_KC.shape)
    span_F2 = np.stack([(np.cumsum(flat) - flat)[taken], flat[taken]], 1).astype(np.uint64)
    compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_content_size=False, write_checksum=False)
    collection = compressor.multi_compress_to_buffer(zstandard.BufferWithSegments(raw.data, span_F2.tobytes()))
    compressed = cast("Collection[bytes]", collection)  # a sequence of buffers, typed as less
    lengths[taken] = np.fromiter(map(len, compressed), np.int64, len(compressed))
    return np.frombuffer(b"".join(compressed), np.uint8), lengths.reshape(raw_bytes_KC.shape)


@numba.njit(nogil=True, cache=True)
def _shuffle(
    words_CN: Words,
    row_K1: Ints,
    time: int,
    action: int,
    raw: Bytes,
    width_KC: Bytes,
    raw_bytes_KC: Ints,
    mask_K: Words,
) -> int:
    """Transforms every column of every block into `raw`, back to back; returns the bytes used."""
    at = 0
    for k in range(len(mask_K)):
        begin, end = row_K1[k], row_K1[k + 1]
        count = end - begin
        mask = np.uint64(0)
        if action >= 0:
            for i in range(begin, end):
                mask |= np.uint64(1) << (words_CN[action, i] & np.uint64(63))
        mask_K[k] = mask
        for c in range(words_CN.shape[0]):
            values = words_CN[c]
            seen = np.uint64(0)
            if c == time:
                for i in range(begin + 1, end):
                    seen |= values[i] - values[i - 1]
            else:
                for i in range(begin, end):
                    seen |= values[i]
            width = 0
            while width < 8 and seen >> np.uint64(8 * width) != np.uint64(0):
                width += 1
            width_KC[k, c] = width
            raw_bytes_KC[k, c] = width * count
            for plane in range(width):
                shift = np.uint64(8 * plane)
                if c == time:
                    raw[at] = 0
                    for i in range(1, count):
                        raw[at + i] = ((values[begin + i] - values[begin + i - 1]) >> shift) & np.uint64(255)
                else:
                    for i in range(count):
                        raw[at + i] = (values[begin + i] >> shift) & np.uint64(255)
                at += count
    return at


@numba.njit(nogil=True, cache=True)
def _lay_out(
    data: Bytes,
    offset_K1: Ints,
    descriptor_KC: Bytes,
    one_K: npt.NDArray[np.bool_],
    frames: Bytes,
    frame_bytes_KC: Ints,
) -> None:
    """Descriptors, frame lengths and frames into their blocks; headers and footers are left zero."""
    source = 0
    for k in range(len(one_K)):
        at = offset_K1[k] + HEADER_BYTES
        columns = descriptor_KC.shape[1]
        for c in range(columns):
            data[at + c] = descriptor_KC[k, c]
        at += columns
        for c in range(1 if one_K[k] else columns):
            for byte in range(4):
                data[at] = (frame_bytes_KC[k, c] >> (8 * byte)) & 255
                at += 1
        for c in range(columns):
            length = frame_bytes_KC[k, c]
            data[at : at + length] = frames[source : source + length]
            at += length
            source += length
