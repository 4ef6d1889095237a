"""Blocks to numpy columns: the only reader of the block format.

All blocks of a reply are decoded together, in numpy and C: the number of Python calls depends on the columns and their
widths, not on the number of events or blocks (`map` and slicing run below the interpreter).

Letters: K blocks, C columns of the schema.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import xxhash
import zstandard

from seqcore.errors import BlockError
from seqcore.format import (
    ALIGNMENT_BYTES,
    FOOTER_BYTES,
    FORMAT,
    HEADER,
    HEADER_BYTES,
    MAGIC,
    MAX_BLOCK_EVENTS,
    MIN_BLOCK_BYTES,
    Codec,
    Transform,
)
from seqcore.schema import Column, Schema

Buffer: TypeAlias = bytes | bytearray | memoryview
Columns: TypeAlias = Mapping[str, npt.NDArray[np.generic]]
Ints: TypeAlias = npt.NDArray[np.int64]

_HEADER_INDEX = np.arange(HEADER_BYTES)


@dataclass(frozen=True, slots=True)
class BlockSet:
    """Verified blocks, back to back or with gaps, in one buffer. `header_K` is a structured array of `HEADER`."""

    data: Buffer
    offset_K: Ints
    header_K: npt.NDArray[np.void]


def open_blocks(data: Buffer, lengths: npt.NDArray[np.integer], *, schema: Schema, offset_K: Ints | None = None) -> BlockSet:
    """Checks blocks of the given lengths in `data`, back to back unless `offset_K` says where each begins.

    Raises: BlockError, naming the first bad block: damaged, cut short, of a newer format or a newer schema.
    """
    length_K = np.asarray(lengths, np.int64)
    if offset_K is None:
        offset_K = np.cumsum(length_K) - length_K
        if int(length_K.sum()) != len(data):
            raise BlockError(len(data), f"the lengths say {int(length_K.sum())} bytes, there are {len(data)}")
    _refuse((length_K < MIN_BLOCK_BYTES) | (length_K % ALIGNMENT_BYTES != 0), offset_K, "impossible length")
    _refuse(offset_K + length_K > len(data), offset_K, "cut short")
    raw = np.frombuffer(data, np.uint8)
    header_K = raw[offset_K[:, None] + _HEADER_INDEX].view(HEADER)[:, 0]
    _refuse(header_K["magic"] != MAGIC, offset_K, "no block begins here")
    _refuse(header_K["format"] > FORMAT, offset_K, f"format is newer than {FORMAT}, the newest that this program reads")
    _refuse(header_K["length"] != length_K, offset_K, "header disagrees about the length")

    view = memoryview(data)
    body_ends = (offset_K + length_K - FOOTER_BYTES).tolist()
    bodies = [view[begin:end] for begin, end in zip(offset_K.tolist(), body_ends, strict=True)]
    digest_K = np.array(list(map(xxhash.xxh3_64_intdigest, bodies)), np.uint64)
    footer_K = raw[(offset_K + length_K - FOOTER_BYTES)[:, None] + np.arange(FOOTER_BYTES)]
    _refuse(footer_K[:, :8].copy().view("<u8")[:, 0] != digest_K, offset_K, "checksum differs")
    _refuse(footer_K[:, 8:].copy().view("<u4")[:, 0] != length_K, offset_K, "trailer disagrees about the length")
    # Behind the checksum: what follows was written so, and is only checked against programs other than ours.
    _refuse(header_K["schema"] > schema.version, offset_K, f"schema version is newer than {schema.version}")
    _refuse((header_K["count"] < 1) | (header_K["count"] > MAX_BLOCK_EVENTS), offset_K, "impossible count")
    return BlockSet(data, offset_K, header_K)


def decode(blocks: BlockSet, *, schema: Schema, columns: Sequence[Column]) -> dict[str, npt.NDArray[np.generic]]:
    """The wanted event columns of all blocks, rows in block order; blocks older than a column read as its default.

    Raises: BlockError if a block that passed its checksum still does not follow the format.
    """
    header_K = blocks.header_K
    count_K = header_K["count"].astype(np.int64)
    names = [column.name for column in schema.event_columns]
    wanted = [names.index(column.name) for column in columns]
    layout = _Layout.of(blocks, schema, wanted)
    raw = _decompress(blocks.data, layout)
    total = int(count_K.sum())
    zeros = bytes(int(count_K.max(initial=0)))
    counts = count_K.tolist()
    decoded: dict[str, npt.NDArray[np.generic]] = {}
    for column, c in zip(columns, wanted, strict=True):
        width_K = layout.width_KC[:, c]
        planes = np.zeros((total, column.dtype.itemsize), np.uint8)
        starts, widths = layout.column_start_KC[:, c].tolist(), width_K.tolist()
        for plane in range(max(widths, default=0)):
            # All blocks' bytes of one plane: slices and a join, no call per block.
            pieces = [
                raw[start + plane * count : start + (plane + 1) * count] if plane < width else zeros[:count]
                for start, count, width in zip(starts, counts, widths, strict=True)
            ]
            planes[:, plane] = np.frombuffer(b"".join(pieces), np.uint8)
        values = planes.view(column.dtype)[:, 0]
        if (layout.transform_KC[:, c] == Transform.DELTA).any():
            _undo_delta(values, count_K, header_K)
        if column.since > 1 and column.default is not None:
            values[np.repeat(header_K["schema"] < column.since, count_K)] = column.default
        decoded[column.name] = values
    return decoded


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where each wanted frame lies in the data, and where each column will lie once those frames are decompressed."""

    frame_span_F2: npt.NDArray[np.uint64]
    frame_raw_bytes_F: npt.NDArray[np.uint64]
    column_start_KC: Ints
    width_KC: Ints
    transform_KC: Ints

    @classmethod
    def of(cls, blocks: BlockSet, schema: Schema, wanted: Sequence[int]) -> "_Layout":
        header_K, offset_K = blocks.header_K, blocks.offset_K
        data = np.frombuffer(blocks.data, np.uint8)
        last = len(data) - 1
        c_C = np.arange(len(schema.event_columns))
        since_C = np.array([column.since for column in schema.event_columns])
        has_KC = since_C[None, :] <= header_K["schema"][:, None]
        column_count_K = has_KC.sum(1)
        _refuse(column_count_K != header_K["column_count"], offset_K, "column count differs from its schema version")
        one_K = header_K["codec"] == Codec.ONE_FRAME
        _refuse(~one_K & (header_K["codec"] != Codec.FRAME_PER_COLUMN), offset_K, "unknown codec")

        descriptors_K = offset_K + HEADER_BYTES
        descriptor_KC = np.where(has_KC, data[np.minimum(descriptors_K[:, None] + c_C, last)], 0).astype(np.int64)
        width_KC, transform_KC = descriptor_KC & 15, descriptor_KC >> 4
        size_C = np.array([column.dtype.itemsize for column in schema.event_columns])
        _refuse((width_KC > size_C).any(1) | (transform_KC > Transform.DELTA).any(1), offset_K, "impossible descriptor")
        raw_bytes_KC = width_KC * header_K["count"].astype(np.int64)[:, None]

        lengths_K = descriptors_K + column_count_K
        stored_KC = np.ascontiguousarray(
            data[np.minimum(lengths_K[:, None, None] + c_C[:, None] * 4 + np.arange(4), last)]
        ).view("<u4")[:, :, 0]
        is_frame_KC = has_KC & (~one_K[:, None] | (c_C == 0))
        frame_bytes_KC = np.where(is_frame_KC, stored_KC, 0).astype(np.int64)
        frame_raw_KC = np.where(one_K[:, None], np.where(c_C == 0, raw_bytes_KC.sum(1)[:, None], 0), raw_bytes_KC)
        frames_begin_K = lengths_K + 4 * is_frame_KC.sum(1)
        frame_start_KC = frames_begin_K[:, None] + np.cumsum(frame_bytes_KC, 1) - frame_bytes_KC
        frames_end_K = frames_begin_K + frame_bytes_KC.sum(1)
        room_K = offset_K + header_K["length"].astype(np.int64) - FOOTER_BYTES
        _refuse(frames_end_K > room_K, offset_K, "frames run past the block")

        wanted_C = np.isin(c_C, wanted)
        take_KC = is_frame_KC & (frame_raw_KC > 0) & (wanted_C | one_K[:, None])
        taken_raw_KC = np.where(take_KC, frame_raw_KC, 0)
        frame_out_KC = (np.cumsum(taken_raw_KC.ravel()) - taken_raw_KC.ravel()).reshape(taken_raw_KC.shape)
        within_KC = np.cumsum(raw_bytes_KC, 1) - raw_bytes_KC
        column_start_KC = np.where(one_K[:, None], frame_out_KC[:, :1] + within_KC, frame_out_KC)
        span_F2 = np.stack([frame_start_KC[take_KC], frame_bytes_KC[take_KC]], 1).astype(np.uint64)
        return cls(span_F2, frame_raw_KC[take_KC].astype(np.uint64), column_start_KC, width_KC, transform_KC)


def _decompress(data: Buffer, layout: _Layout) -> bytes:
    if not len(layout.frame_raw_bytes_F):
        return b""
    frames = zstandard.BufferWithSegments(data, layout.frame_span_F2.tobytes())
    try:
        collection = zstandard.ZstdDecompressor().multi_decompress_to_buffer(
            frames, decompressed_sizes=layout.frame_raw_bytes_F.tobytes()
        )
    except zstandard.ZstdError as error:
        raise BlockError(0, f"a frame does not decompress: {error}") from error
    return b"".join(collection)


def _undo_delta(values: npt.NDArray[np.generic], count_K: Ints, header_K: npt.NDArray[np.void]) -> None:
    """In place: one running sum over all blocks; a block's first value becomes the step from the previous block's last."""
    times = values.view(np.int64)
    previous_last_K = np.concatenate([[0], header_K["max_time"][:-1]])
    times[np.cumsum(count_K) - count_K] = header_K["min_time"] - previous_last_K
    np.cumsum(times, out=times)


def _refuse(bad_K: npt.NDArray[np.bool_], offset_K: Ints, problem: str) -> None:
    if bad_K.any():
        raise BlockError(int(offset_K[int(bad_K.argmax())]), problem)
