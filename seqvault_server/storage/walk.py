"""Finding the blocks of extents that were read: backwards, by trailers, before anything is verified.

Bytes are not trusted: every length is bounded by what was read, and a block must carry the user, the segment and the
offset that the walk expects. The checksums come afterwards (`verify`), for every block walked over, since a damaged
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
    """Blocks oldest first within each extent; `is_wanted_K`: may hold a wanted event. `bad_extent`: -1, or the first extent
    whose bytes make no sense at `bad_offset` (in the buffer). `is_complete`: the walk met the beginning or had enough."""

    offset_K: Ints
    length_K: Ints
    extent_K: Ints
    is_wanted_K: npt.NDArray[np.bool_]
    checksum_K: Words
    bad_extent: int
    bad_offset: int
    is_complete: bool


def walk(
    buffer: Bytes,
    *,
    begin_U: Ints,
    end_U: Ints,
    offset_U: Ints,
    first_U: Ints,
    user_U: Words,
    segment_U: Ints,
    wanted: Wanted,
) -> Walked:
    """Blocks of each extent. Its bytes lie at [begin, end) of `buffer`, `begin` is byte `offset` of its segment, and the
    extent itself begins at byte `first` of the segment (before `offset` if only its end was read)."""
    capacity = int(((end_U - begin_U) // MIN_BLOCK_BYTES).sum()) + 1
    ints = np.empty((4, capacity), np.int64)
    checksums = np.empty(capacity, np.uint64)
    count, bad_extent, bad_offset, complete = _walk(
        buffer,
        begin_U,
        end_U,
        offset_U,
        first_U,
        user_U,
        segment_U,
        wanted.max_events or _LONGEST,
        wanted.start_ms,
        wanted.end_ms,
        np.uint64(wanted.action_mask),
        wanted.has_row_filter,
        ints,
        checksums,
    )
    return Walked(
        ints[0, :count],
        ints[1, :count],
        ints[2, :count],
        ints[3, :count].astype(np.bool_),
        checksums[:count],
        bad_extent,
        bad_offset,
        complete,
    )


def verify(buffer: bytes | bytearray, walked: Walked) -> int:
    """-1 if every block's checksum holds, else the buffer offset of the first one that does not."""
    view = memoryview(buffer)
    starts, ends = walked.offset_K.tolist(), (walked.offset_K + walked.length_K - FOOTER_BYTES).tolist()
    bodies = [view[a:b] for a, b in zip(starts, ends, strict=True)]
    digests = list(map(xxhash.xxh3_64_intdigest, bodies))
    expected = walked.checksum_K.tolist()
    if digests == expected:
        return -1
    return int(starts[next(i for i, pair in enumerate(zip(digests, expected, strict=True)) if pair[0] != pair[1])])


@numba.njit(nogil=True, cache=True, inline="always")
def _load(buffer: Bytes, at: int, width: int) -> np.uint64:
    value = np.uint64(0)
    for i in range(width):
        value |= np.uint64(buffer[at + i]) << np.uint64(8 * i)
    return value


@numba.njit(nogil=True, cache=True)
def _walk(
    buffer: Bytes,
    begin_U: Ints,
    end_U: Ints,
    offset_U: Ints,
    first_U: Ints,
    user_U: Words,
    segment_U: Ints,
    max_events: int,
    start_ms: int,
    end_ms: int,
    action_mask: np.uint64,
    has_row_filter: bool,  # noqa: FBT001  a kernel takes its arguments by position
    ints: Ints,
    checksums: Words,
) -> tuple[int, int, int, bool]:
    count = 0
    complete = True
    for u in range(len(begin_U)):
        first_block = count
        shift = offset_U[u] - begin_U[u]  # from a buffer offset to a byte of the segment
        end = end_U[u]
        certain = np.int64(0)
        while end + shift > first_U[u] and certain < max_events:
            if end - begin_U[u] < MIN_BLOCK_BYTES:
                if offset_U[u] > first_U[u]:
                    complete = False
                    break
                return count, u, end, False
            length = np.int64(_load(buffer, end - 4, 4))
            if length < MIN_BLOCK_BYTES or length % 16 != 0 or length > end + shift - first_U[u]:
                return count, u, end, False
            start = end - length
            if start < begin_U[u]:
                complete = False
                break
            if (
                _load(buffer, start, 2) != MAGIC
                or np.int64(_load(buffer, start + 8, 4)) != length
                or np.int64(_load(buffer, start + 12, 4)) != segment_U[u]
                or np.int64(_load(buffer, start + 16, 4)) != start + shift
                or _load(buffer, start + 24, 8) != user_U[u]
            ):
                return count, u, start, False
            events = np.int64(_load(buffer, start + 6, 2))
            gap = np.int64(buffer[start + 21]) * 16
            low = np.int64(_load(buffer, start + 48, 8))
            high = np.int64(_load(buffer, start + 56, 8))
            mask = _load(buffer, start + 64, 8)
            ints[0, count], ints[1, count], ints[2, count] = start, length, u
            ints[3, count] = low < end_ms and high >= start_ms and (mask & action_mask) != 0
            checksums[count] = _load(buffer, end - 12, 8)
            count += 1
            if low >= start_ms and high < end_ms and not has_row_filter:
                certain += events
            end = start - gap
            if end + shift < first_U[u]:
                return count, u, start, False
        # oldest first
        a, b = first_block, count - 1
        while a < b:
            for row in range(4):
                ints[row, a], ints[row, b] = ints[row, b], ints[row, a]
            checksums[a], checksums[b] = checksums[b], checksums[a]
            a, b = a + 1, b - 1
    return count, -1, 0, complete


assert HEADER_BYTES == 72, "the offsets in _walk are those of seqcore.format.HEADER"
