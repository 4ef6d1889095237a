"""Where a user's history lies on disk: 64 bits, the value of the index. 0 means nowhere.

     63        48 47          30 29     22 21         6 5        1 0
    +------------+--------------+---------+------------+----------+---+
    | segment 16 |    page 18   | start 8 |  used 16   | class 5  | d |      start, used: units of 16 bytes
    +------------+--------------+---------+------------+----------+---+

Class 0: a small history, shorter than a page, at `start` within page (and perhaps the next one); no slack.
Class 1 and up: an extent of PAGES[class] whole pages; it begins with its page, and the 8 bits of `start` are the upper
bits of `used` instead. d (disordered): some block holds an event older than one of an earlier block.

The functions take one place (int) or many (array of uint64): they are made of shifts and products alone, which numpy's
types see as signed, hence the exceptions below.
"""

from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

PAGE_BYTES: Final = 4096
UNIT_BYTES: Final = 16
SEGMENT_PAGES: Final = 1 << 18
SEGMENT_BYTES: Final = SEGMENT_PAGES * PAGE_BYTES
MAX_SEGMENT: Final = (1 << 16) - 1

PAGES: Final[tuple[int, ...]] = (
    0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192,
)  # fmt: skip
"""Pages of an extent by its size class: steps of 1.5 and 1.33."""
PAGES_ARRAY: Final = np.array(PAGES, np.int64)
LARGEST_CLASS: Final = len(PAGES) - 1
MAX_HISTORY_BYTES: Final = PAGES[-1] * PAGE_BYTES
SLACK_FACTOR: Final = 1.5
"""A new extent has room for this times what is in it, so that a history moves only O(log) times."""

Word = TypeVar("Word", int, npt.NDArray[np.uint64])


def pack_small(*, segment: Word, page: Word, start_bytes: Word, used_bytes: Word) -> Word:
    """A history shorter than a page, in order."""
    return (segment << 48) | (page << 30) | ((start_bytes >> 4) << 22) | ((used_bytes >> 4) << 6)  # type: ignore[return-value]


def pack_extent(*, segment: Word, page: Word, used_bytes: Word, size_class: Word, is_disordered: Word) -> Word:
    """An extent of whole pages; size_class >= 1."""
    used = used_bytes >> 4
    used_bits = ((used >> 16) << 22) | ((used & 0xFFFF) << 6)
    return (segment << 48) | (page << 30) | used_bits | (size_class << 1) | is_disordered  # type: ignore[return-value]


def segment_of(place: Word) -> Word:
    return place >> 48  # type: ignore[return-value]


def page_of(place: Word) -> Word:
    return (place >> 30) & 0x3FFFF  # type: ignore[return-value]


def size_class_of(place: Word) -> Word:
    return (place >> 1) & 31  # type: ignore[return-value]


def is_extent(place: Word) -> Word:
    """1 for an extent of whole pages, 0 for a small history."""
    size_class = (place >> 1) & 31
    return (size_class + 31) >> 5  # type: ignore[return-value]


def is_disordered(place: Word) -> Word:
    return place & 1  # type: ignore[return-value]


def offset_of(place: Word) -> Word:
    """First byte in the segment."""
    return (page_of(place) << 12) + (((place >> 22) & 255) << 4) * (1 - is_extent(place))


def used_bytes_of(place: Word) -> Word:
    """Bytes from the first block's begin to the last block's end."""
    return (((place >> 6) & 0xFFFF) << 4) + (((place >> 22) & 255) << 20) * is_extent(place)


def size_class_for(length_bytes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Smallest class with room for SLACK_FACTOR times the length, or the largest class that there is."""
    pages = np.ceil(length_bytes * SLACK_FACTOR / PAGE_BYTES)
    return np.minimum(np.searchsorted(PAGES_ARRAY, pages, "left"), LARGEST_CLASS)
