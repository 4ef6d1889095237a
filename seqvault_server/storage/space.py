"""Which pages are in use, and giving back those that are not.

Per segment one counter a page: how many 16-byte units of it belong to a live history. An extent's pages count as full,
slack included. A page whose counter falls to zero is punched, once every read that could still look there has ended (`Pins`).
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from seqvault_server.storage.place import (
    PAGE_BYTES,
    PAGES_ARRAY,
    SEGMENT_PAGES,
    UNIT_BYTES,
    is_extent,
    offset_of,
    page_of,
    segment_of,
    size_class_of,
    used_bytes_of,
)

Words = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]

_UNITS_PER_PAGE = PAGE_BYTES // UNIT_BYTES
_NO_PAGES = np.empty(0, np.int64)


class Pins:
    """Reads under way, in the order they began: space freed at a moment is free once no older read is left."""

    def __init__(self) -> None:
        self._next = 0
        self._open: dict[int, None] = {}

    def pin(self) -> int:
        """Marks the start of a read; hand the ticket to `unpin` when it has ended."""
        ticket = self._next
        self._next += 1
        self._open[ticket] = None
        return ticket

    def unpin(self, ticket: int) -> None:
        del self._open[ticket]

    def now(self) -> int:
        """A moment: every read that is under way now is older."""
        return self._next

    def is_past(self, moment: int) -> bool:
        """Whether every read older than the moment has ended."""
        oldest = next(iter(self._open), None)
        return oldest is None or oldest >= moment


@dataclass(frozen=True, slots=True)
class PageRun:
    """Consecutive free pages of a segment."""

    segment: int
    page: int
    pages: int


class Space:
    """Live units per page. Owner's thread only; the punching itself is the caller's, in another thread."""

    def __init__(self, pins: Pins) -> None:
        self._pins = pins
        self._live: dict[int, npt.NDArray[np.uint16]] = {}
        self._live_pages: dict[int, int] = {}
        self._freed: deque[tuple[int, Words]] = deque()

    @property
    def live_bytes(self) -> int:
        """Bytes of pages with anything live in them."""
        return sum(self._live_pages.values()) * PAGE_BYTES

    def add(self, places: Words) -> None:
        """Counts new places as live."""
        for segment, (starts, units) in self._by_segment(places):
            live = self._live.get(segment)
            if live is None:
                live = self._live[segment] = np.zeros(SEGMENT_PAGES, np.uint16)
            self._live_pages[segment] = self._live_pages.get(segment, 0) + _count(live, starts, units, 1, _NO_PAGES)

    def free(self, places: Words) -> None:
        """Puts places that are no longer in the index on the list for `take_freed`."""
        self._freed.append((self._pins.now(), places[places != 0]))

    def take_freed(self) -> list[PageRun]:
        """Runs of pages that are free now and that no read can still be looking at."""
        runs: list[PageRun] = []
        while self._freed and self._pins.is_past(self._freed[0][0]):
            _, places = self._freed.popleft()
            for segment, (starts, units) in self._by_segment(places):
                live = self._live[segment]
                free = np.empty(int((units // _UNITS_PER_PAGE + 2).sum()), np.int64)
                count = _count(live, starts, units, -1, free)
                self._live_pages[segment] -= count
                runs.extend(_runs(segment, np.sort(free[:count])))
        return runs

    def dead_runs(self, segment: int, end_page: int) -> list[PageRun]:
        """Every run of pages below `end_page` without live units: what a crash left unpunched."""
        live = self._live.get(segment)
        pages = np.arange(end_page) if live is None else np.flatnonzero(live[:end_page] == 0)
        return list(_runs(segment, pages))

    def _by_segment(self, places: Words) -> Iterator[tuple[int, tuple[Ints, Ints]]]:
        segments = segment_of(places)
        for segment in np.unique(segments).tolist():
            chosen = places[segments == segment]
            extents = is_extent(chosen).astype(np.bool_)
            start = offset_of(chosen).astype(np.int64) // UNIT_BYTES
            page_units = PAGES_ARRAY[size_class_of(chosen).astype(np.int64)] * _UNITS_PER_PAGE
            units = np.where(extents, page_units, used_bytes_of(chosen).astype(np.int64) // UNIT_BYTES)
            yield segment, (start, units)


def end_pages(places: Words) -> dict[int, int]:
    """For each segment the page behind its last live one."""
    segments = segment_of(places)
    units = used_bytes_of(places).astype(np.int64)
    pages = np.where(
        is_extent(places).astype(np.bool_),
        page_of(places).astype(np.int64) + PAGES_ARRAY[size_class_of(places).astype(np.int64)],
        -(-(offset_of(places).astype(np.int64) + units) // PAGE_BYTES),
    )
    return {segment: int(pages[segments == segment].max()) for segment in np.unique(segments).tolist()}


def _runs(segment: int, pages: Ints) -> Iterator[PageRun]:
    if not len(pages):
        return
    breaks = np.flatnonzero(np.diff(pages) != 1) + 1
    starts = np.concatenate([[0], breaks])
    ends = np.concatenate([breaks, [len(pages)]])
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        yield PageRun(segment, int(pages[start]), end - start)


@numba.njit(nogil=True, cache=True)
def _count(live: npt.NDArray[np.uint16], start_units: Ints, units: Ints, sign: int, free: Ints) -> int:
    """Adds or subtracts runs of units; returns how many pages became live, or ceased to be: those are put into `free`."""
    changed = 0
    for i in range(len(start_units)):
        at, left = start_units[i], units[i]
        while left > 0:
            page = at // _UNITS_PER_PAGE
            part = min(left, (page + 1) * _UNITS_PER_PAGE - at)
            before = np.int64(live[page])
            live[page] = before + sign * part
            if (before == 0) != (before + sign * part == 0):
                if sign < 0:
                    free[changed] = page
                changed += 1
            at, left = at + part, left - part
    return changed
