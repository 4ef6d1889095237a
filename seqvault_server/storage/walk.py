"""Finding the blocks of extents that were read: backwards, by trailers, before anything is verified.

Bytes are not trusted: every length is bounded by what was read, and a block must carry the user, the segment and the
offset that the walk expects. The checksums come afterwards, for every block walked over, since a damaged
header could otherwise make the walk skip a block that the query wants.

Letters: U extents, K blocks.
"""

from dataclasses import dataclass
from typing import Final

import numba
import numpy as np
import numpy.typing as npt
import xxhash

from seqcore.format import FOOTER_BYTES, HEADER_BYTES, MAGIC, MIN_BLOCK_BYTES

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
Bytes = npt.NDArray[np.uint8]

_LONGEST: Final = 1 << 62
_ANY_ACTION: Final = np.uint64((1 << 64) - 1)
NO_START_MS: Final = -(1 << 63)
NO_END_MS: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a read looks for, as far as block headers can tell."""

    max_events: int = 0
    start_ms: int = NO_START_MS
    end_ms: int = NO_END_MS
    action_mask: int = (1 << 64) - 1
    has_row_filter: bool = False
    """Whether rows are filtered by action or scene, so that no block is certain to give all its rows."""


@dataclass(frozen=True, slots=True)
class Walked:
    """Blocks oldest first within each extent; offsets are in the buffer. `bad_extent`: -1, or the first extent whose bytes
    make no sense."""

    offset_K: Ints
    length_K: Ints
    extent_K: Ints
    bad_extent: int


@dataclass(frozen=True, slots=True)
class Suffix:
    """The blocks of one extent, or of its end, that may hold a wanted event: lists, since there are few. `bad_offset` is
    -1, or where in the buffer bytes make no sense or do not verify. `is_complete`: the walk met the extent's beginning or
    had enough events."""

    begins: list[int]
    ends: list[int]
    bad_offset: int
    is_complete: bool


def walk(buffer: Bytes, *, begin_U: Ints, end_U: Ints, offset_U: Ints, user_U: Words, segment_U: Ints) -> Walked:
    """All blocks of whole extents, unverified. Each lies at [begin, end) of `buffer` and is byte `offset` of its segment."""
    capacity = int(((end_U - begin_U) // MIN_BLOCK_BYTES).sum()) + 1
    blocks = np.empty((3, capacity), np.int64)
    count, bad_extent = _walk_many(buffer, begin_U, end_U, offset_U, user_U, segment_U, blocks)
    return Walked(blocks[0, :count], blocks[1, :count], blocks[2, :count], bad_extent)


def walk_suffix(
    buffer: bytearray, *, offset: int, first: int, user: int, segment: int, wanted: Wanted, max_events: int
) -> Suffix:
    """The end of one extent: `buffer` begins at byte `offset` of the segment, the extent itself at byte `first`.

    Every block walked over is verified, wanted or not, until `max_events` (0: all) are certain.
    """
    blocks = np.empty((3, len(buffer) // MIN_BLOCK_BYTES + 1), np.int64)
    checksums = np.empty(blocks.shape[1], np.uint64)
    count, bad_offset, is_complete = _walk_back(
        np.frombuffer(buffer, np.uint8),
        0,
        len(buffer),
        offset,
        first,
        np.uint64(user),
        segment,
        max_events or _LONGEST,
        wanted.start_ms,
        wanted.end_ms,
        np.uint64(wanted.action_mask),
        wanted.has_row_filter,
        blocks,
        checksums,
    )
    if bad_offset >= 0:
        return Suffix([], [], bad_offset, is_complete=False)
    begins, ends, is_wanted = blocks[:, :count].tolist()
    view = memoryview(buffer)
    bodies = [view[begin : end - FOOTER_BYTES] for begin, end in zip(begins, ends, strict=True)]
    digests, expected = list(map(xxhash.xxh3_64_intdigest, bodies)), checksums[:count].tolist()
    if digests != expected:
        bad = next(begin for begin, one, other in zip(begins, digests, expected, strict=True) if one != other)
        return Suffix([], [], bad, is_complete=False)
    if count != sum(is_wanted):
        begins = [begin for begin, kept in zip(begins, is_wanted, strict=True) if kept]
        ends = [end for end, kept in zip(ends, is_wanted, strict=True) if kept]
    return Suffix(begins, ends, -1, is_complete)


@numba.njit(nogil=True, cache=True, inline="always")
def _load(buffer: Bytes, at: int, width: int) -> np.uint64:
    value = np.uint64(0)
    for i in range(width):
        value |= np.uint64(buffer[at + i]) << np.uint64(8 * i)
    return value


@numba.njit(nogil=True, cache=True, inline="always")
def _load_int(buffer: Bytes, at: int, width: int) -> int:
    return np.int64(_load(buffer, at, width))  # type: ignore[return-value]  # int() would stay unsigned in a kernel


@numba.njit(nogil=True, cache=True)
def _walk_back(
    buffer: Bytes,
    begin: int,
    end: int,
    offset: int,
    first: int,
    user: np.uint64,
    segment: int,
    max_events: int,
    start_ms: int,
    end_ms: int,
    action_mask: np.uint64,
    has_row_filter: bool,  # noqa: FBT001  a kernel takes its arguments by position
    blocks: Ints,
    checksums: Words,
) -> tuple[int, int, bool]:
    """Fills begin, end and is_wanted of each block, and its checksum, oldest first.

    Returns how many, the first offset that makes no sense or -1, and whether the walk is complete.
    """
    count = 0
    certain = 0
    shift = offset - begin  # from a buffer offset to a byte of the segment
    complete = True
    while end + shift > first and certain < max_events:
        if end - begin < MIN_BLOCK_BYTES:
            if offset > first:
                complete = False
                break
            return count, end, False
        length = _load_int(buffer, end - 4, 4)
        if length < MIN_BLOCK_BYTES or length % 16 != 0 or length > end + shift - first:
            return count, end, False
        start = end - length
        if start < begin:
            complete = False
            break
        if (
            _load(buffer, start, 2) != MAGIC
            or _load_int(buffer, start + 8, 4) != length
            or _load_int(buffer, start + 12, 4) != segment
            or _load_int(buffer, start + 16, 4) != start + shift
            or _load(buffer, start + 24, 8) != user
        ):
            return count, start, False
        low = _load_int(buffer, start + 48, 8)
        high = _load_int(buffer, start + 56, 8)
        mask = _load(buffer, start + 64, 8)
        blocks[0, count], blocks[1, count] = start, end
        blocks[2, count] = low < end_ms and high >= start_ms and (mask & action_mask) != 0
        checksums[count] = _load(buffer, end - 12, 8)
        count += 1
        if low >= start_ms and high < end_ms and not has_row_filter:
            certain += _load_int(buffer, start + 6, 2)
        end = start - _load_int(buffer, start + 21, 1) * 16
        if end + shift < first:
            return count, start, False
    for a in range(count // 2):
        b = count - 1 - a
        for row in range(3):
            blocks[row, a], blocks[row, b] = blocks[row, b], blocks[row, a]
        checksums[a], checksums[b] = checksums[b], checksums[a]
    return count, -1, complete


@numba.njit(nogil=True, cache=True)
def _walk_many(
    buffer: Bytes, begin_U: Ints, end_U: Ints, offset_U: Ints, user_U: Words, segment_U: Ints, blocks: Ints
) -> tuple[int, int]:
    """Fills begin, length and extent of each block; returns how many, and the first bad extent or -1."""
    checksums = np.empty(blocks.shape[1], np.uint64)
    count = 0
    for u in range(len(begin_U)):
        found, bad, complete = _walk_back(
            buffer,
            begin_U[u],
            end_U[u],
            offset_U[u],
            offset_U[u],
            user_U[u],
            segment_U[u],
            _LONGEST,
            NO_START_MS,
            NO_END_MS,
            _ANY_ACTION,
            False,
            blocks[:, count:],
            checksums,
        )
        if bad >= 0 or not complete:
            return count, u
        for k in range(count, count + found):
            blocks[1, k] -= blocks[0, k]
            blocks[2, k] = u
        count += found
    return count, -1


assert HEADER_BYTES == 72, "the offsets in _walk_back are those of seqcore.format.HEADER"
