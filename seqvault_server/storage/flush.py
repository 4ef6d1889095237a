"""Flushing: many users' tails become blocks on disk, in one go.

For each user one of:
    new, small   its blocks (old and new merged and recompressed) lie with many others' in one sequential write
    slack        the tail alone becomes blocks at the next page boundary of its extent; whole pages are written
    moved        the extent is full, or the history outgrew its page: all blocks are merged with the tail, sorted and
                 recompressed, into an extent with room for half as much again

Order: data synced -> journal synced -> (owner) places published -> old places freed. A failure before the journal leaves
nothing but unparsed bytes behind.

`Flusher.write` runs in the one flushing thread and touches neither index nor tails; what it needs is in the plan.
Letters: U users of the plan, R runs being encoded, N rows, K blocks, C columns.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from seqcore.decode import decode, open_blocks
from seqcore.errors import BlockError
from seqcore.format import ALIGNMENT_BYTES, HEADER_BYTES
from seqcore.schema import Schema
from seqvault_server.storage.encode import Runs, encode, seal, words_of
from seqvault_server.storage.errors import DamagedHistory
from seqvault_server.storage.journal import Journal
from seqvault_server.storage.place import (
    MAX_HISTORY_BYTES,
    PAGE_BYTES,
    PAGES_ARRAY,
    is_disordered,
    offset_of,
    pack_extent,
    pack_small,
    page_of,
    segment_of,
    size_class_for,
    size_class_of,
    used_bytes_of,
)
from seqvault_server.storage.segments import Segments
from seqvault_server.storage.walk import walk

Words = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]

MERGE_BATCH_BYTES: Final = 1 << 20
"""Old blocks merged at once: bounds the memory of a flush that moves long histories, and how long a step holds the GIL."""


@dataclass(frozen=True, slots=True)
class FlushPlan:
    """What is to be flushed: copies, so the owner may go on. All rows have LSNs at or below `lsn`."""

    user_U: Words
    place_U: Words
    start_U1: Ints
    rows: npt.NDArray[np.void]
    first_lsn_U: Words
    lsn: int


@dataclass(frozen=True, slots=True)
class FlushResult:
    """What the owner publishes: for each user of the plan the new place, and the old one to be freed (0 if it is kept)."""

    plan: FlushPlan
    place_U: Words
    freed_U: Words
    written_bytes: int


@dataclass(frozen=True, slots=True)
class _Merged:
    """Sorted rows of users, ready to be encoded."""

    words_CN: Words
    runs: Runs


class Flusher:
    """Writes plans to segments and journal."""

    def __init__(self, *, segments: Segments, journal: Journal, schema: Schema) -> None:
        self._segments = segments
        self._journal = journal
        self._schema = schema
        self._time = [column.name for column in schema.event_columns].index(schema.time.name)

    def write(self, plan: FlushPlan) -> FlushResult:
        """Makes the plan's rows durable in blocks. A failed write or sync is tried once more, in a new segment.

        Raises: OSError if that fails too; DamagedHistory if an old block that must be merged does not verify.
        """
        try:
            return self._write(plan, use_slack=True)
        except OSError:
            # After a failed sync nothing is known of the pages just written: none is journaled, none is written again.
            self._segments.start_segment()
            return self._write(plan, use_slack=False)

    def _write(self, plan: FlushPlan, *, use_slack: bool) -> FlushResult:
        words_CN = words_of(plan.rows, self._schema)
        order = self._sorted(words_CN, np.repeat(np.arange(len(plan.user_U)), np.diff(plan.start_U1)))
        words_CN = np.take(words_CN, order, axis=1)
        place_U, freed_U = plan.place_U.copy(), np.zeros(len(plan.user_U), np.uint64)
        free_pages_U = PAGES_ARRAY[size_class_of(place_U).astype(np.int64)] - -(
            -used_bytes_of(place_U).astype(np.int64) // PAGE_BYTES
        )
        has_slack_U = (place_U != 0) & (free_pages_U > 0) & use_slack
        writer = _Writer(self._segments)

        slack = np.flatnonzero(has_slack_U)
        if len(slack):
            fits = self._append_to_slack(plan, words_CN, slack, free_pages_U, place_U, writer)
            has_slack_U[slack[~fits]] = False
        rest = np.flatnonzero(~has_slack_U)
        for batch in _batches(rest, used_bytes_of(plan.place_U[rest]).astype(np.int64)):
            self._place_anew(self._merge(plan, words_CN, batch), batch, place_U, writer)
            freed_U[batch] = plan.place_U[batch]

        writer.sync()
        columns = (plan.user_U.tolist(), place_U.tolist())
        self._journal.write((user, place, plan.lsn, 0) for user, place in zip(*columns, strict=True))
        return FlushResult(plan, place_U, freed_U, writer.written_bytes)

    def _append_to_slack(
        self, plan: FlushPlan, words_CN: Words, slack: Ints, free_pages_U: Ints, place_U: Words, writer: "_Writer"
    ) -> npt.NDArray[np.bool_]:
        """Writes the tails that fit into their extents' slack; returns which of the `slack` users did fit."""
        blocks = encode(_columns_of(words_CN, plan.start_U1, slack), _runs(plan, slack), schema=self._schema)
        first_K = np.searchsorted(blocks.run_K, np.arange(len(slack) + 1))
        begin, end = blocks.offset_K1[first_K[:-1]], blocks.offset_K1[first_K[1:]]
        fits = end - begin <= free_pages_U[slack] * PAGE_BYTES
        places = place_U[slack]
        used = used_bytes_of(places).astype(np.int64)
        target = -(-used // PAGE_BYTES) * PAGE_BYTES  # within the extent
        run_K = blocks.run_K
        offset_K = (offset_of(places).astype(np.int64) + target - begin)[run_K] + blocks.offset_K1[:-1]
        gap_K = np.zeros(len(run_K), np.int64)
        gap_K[first_K[:-1]] = target - used
        last_time = self._last_times(plan.user_U[slack], places)
        min_time = blocks.header_K["min_time"][first_K[:-1]]
        disordered = is_disordered(places).astype(np.bool_) | (min_time < last_time)
        seal(blocks, segment=segment_of(places)[run_K], offset_K=offset_K, gap_K=gap_K)
        segments, pages = (
            segment_of(places).tolist(),
            (page_of(places).astype(np.int64) + target // PAGE_BYTES).tolist(),
        )
        data = blocks.data.data
        for i, (a, b) in enumerate(zip(begin.tolist(), end.tolist(), strict=True)):
            if fits[i]:
                writer.write(segments[i], pages[i], data[a:b])
        new = pack_extent(
            segment=segment_of(places),
            page=page_of(places),
            used_bytes=(target + end - begin).astype(np.uint64),
            size_class=size_class_of(places),
            is_disordered=disordered.astype(np.uint64),
        )
        place_U[slack[fits]] = new[fits]
        return fits

    def _merge(self, plan: FlushPlan, words_CN: Words, chosen: Ints) -> _Merged:
        """All rows of the chosen users, from their old blocks and their tails, sorted by user and (time, arrival)."""
        new_words = _columns_of(words_CN, plan.start_U1, chosen)
        new_user = np.repeat(np.arange(len(chosen)), np.diff(plan.start_U1)[chosen])
        runs = _runs(plan, chosen)
        old = np.flatnonzero(plan.place_U[chosen] != 0)
        if not len(old):
            return _Merged(new_words, runs)
        places, users = plan.place_U[chosen][old], plan.user_U[chosen][old]
        lengths = used_bytes_of(places).astype(np.int64)
        ends = np.cumsum(lengths)
        buffer = b"".join(self._read(place) for place in places.tolist())
        offsets = offset_of(places).astype(np.int64)
        walked = walk(
            np.frombuffer(buffer, np.uint8),
            begin_U=ends - lengths,
            end_U=ends,
            offset_U=offsets,
            user_U=users,
            segment_U=segment_of(places).astype(np.int64),
        )
        if walked.bad_extent >= 0:
            raise self._damaged(users, places, walked.bad_extent, "a block is damaged or misplaced")
        try:
            blocks = open_blocks(buffer, walked.length_K, schema=self._schema, offset_K=walked.offset_K)
            decoded = decode(blocks, schema=self._schema, columns=self._schema.event_columns)
        except BlockError as error:
            raise self._damaged(
                users, places, int(np.searchsorted(ends, error.offset, "right")), error.problem
            ) from error
        old_words = np.stack([
            decoded[column.name].view(f"u{column.dtype.itemsize}").astype(np.uint64) for column in self._schema.event_columns
        ])  # fmt: skip
        old_user = np.repeat(old[walked.extent_K], blocks.header_K["count"].astype(np.int64))
        # Old rows stand first, so that a stable sort keeps the order of arrival within equal times.
        both, user_N = np.concatenate([old_words, new_words], 1), np.concatenate([old_user, new_user])
        order = self._sorted(both, user_N)
        first_lsn_R = runs.first_lsn_R.copy()
        np.minimum.at(first_lsn_R, old[walked.extent_K], blocks.header_K["first_lsn"])
        start_R1 = np.concatenate([[0], np.cumsum(np.bincount(user_N, minlength=len(chosen)))])
        return _Merged(np.take(both, order, axis=1), Runs(runs.user_R, start_R1, first_lsn_R, runs.last_lsn_R))

    def _place_anew(self, merged: _Merged, chosen: Ints, place_U: Words, writer: "_Writer") -> None:
        """Encodes merged users and writes them at the head: small ones together, then an extent for each other."""
        blocks = encode(merged.words_CN, merged.runs, schema=self._schema)
        first_K = np.searchsorted(blocks.run_K, np.arange(len(chosen) + 1))
        begin, end = blocks.offset_K1[first_K[:-1]], blocks.offset_K1[first_K[1:]]
        length_R = end - begin
        if int(length_R.max()) > MAX_HISTORY_BYTES:
            raise OverflowError("appends are refused long before a history outgrows the largest extent")
        small_R = length_R < PAGE_BYTES
        class_R = np.where(small_R, 0, size_class_for(length_R))
        small_bytes = int(length_R[small_R].sum())
        small_pages = -(-small_bytes // PAGE_BYTES)
        pages_R = PAGES_ARRAY[class_R]
        home = self._segments.allocate(small_pages + int(pages_R.sum()))
        writer.segment_started(home.segment)
        start_R = np.where(
            small_R,
            np.cumsum(np.where(small_R, length_R, 0)) - length_R,
            (small_pages + np.cumsum(pages_R) - pages_R) * PAGE_BYTES,
        ) + home.page * PAGE_BYTES  # fmt: skip
        offset_K = (start_R - begin)[blocks.run_K] + blocks.offset_K1[:-1]
        seal(blocks, segment=home.segment, offset_K=offset_K, gap_K=np.zeros(len(blocks.run_K), np.int64))

        data = blocks.data.data
        if small_pages:
            small = np.flatnonzero(small_R)
            spans = zip(begin[small].tolist(), end[small].tolist(), strict=True)
            writer.write(home.segment, home.page, b"".join([data[a:b] for a, b in spans]))
        for i in np.flatnonzero(~small_R).tolist():
            writer.write(home.segment, int(start_R[i]) // PAGE_BYTES, data[int(begin[i]) : int(end[i])])

        start, length = start_R.astype(np.uint64), length_R.astype(np.uint64)
        segment = np.full(len(chosen), home.segment, np.uint64)
        page = start >> np.uint64(12)
        place_U[chosen] = np.where(
            small_R,
            pack_small(segment=segment, page=page, start_bytes=start & np.uint64(4095), used_bytes=length),
            pack_extent(
                segment=segment,
                page=page,
                used_bytes=length,
                size_class=class_R.astype(np.uint64),
                is_disordered=np.zeros_like(page),
            ),
        )

    def _sorted(self, words_CN: Words, user_N: Ints) -> Ints:
        """The order by (user, time, arrival). Events rarely come late, so that the order by user, a radix sort, is mostly
        that order already: 0.03 us an event against lexsort's 0.14.
        """
        order = np.argsort(
            user_N.astype(np.uint16 if len(user_N) and user_N.max() < 1 << 16 else np.int64), kind="stable"
        )
        time_N, user_sorted_N = words_CN[self._time].view(np.int64)[order], user_N[order]
        is_late_N = (time_N[1:] < time_N[:-1]) & (user_sorted_N[1:] == user_sorted_N[:-1])
        return np.lexsort((words_CN[self._time].view(np.int64), user_N)) if is_late_N.any() else order

    def _last_times(self, users: Words, places: Words) -> Ints:
        """Newest event time in the last block of each extent, the newest of all if the extent is not disordered."""
        times = np.empty(len(places), np.int64)
        for i, (user, place) in enumerate(zip(users.tolist(), places.tolist(), strict=True)):
            end = offset_of(place) + used_bytes_of(place)
            footer = self._read_range(place, end - 4, 4)
            length = int.from_bytes(footer, "little")
            if not HEADER_BYTES < length <= used_bytes_of(place) or length % ALIGNMENT_BYTES:
                raise DamagedHistory(user, segment_of(place), end, "the last block's length makes no sense")
            header = self._read_range(place, end - length, HEADER_BYTES)
            times[i] = int.from_bytes(header[56:64], "little", signed=True)
        return times

    def _read(self, place: int) -> bytearray:
        return self._read_range(place, offset_of(place), used_bytes_of(place))

    def _read_range(self, place: int, offset: int, length: int) -> bytearray:
        buffer = bytearray(length)
        self._segments.read_rest(segment_of(place), buffer, offset)
        return buffer

    def _damaged(self, users: Words, places: Words, extent: int, problem: str) -> DamagedHistory:
        place = int(places[extent])
        return DamagedHistory(int(users[extent]), segment_of(place), offset_of(place), problem)


class _Writer:
    """Page-aligned writes, and which segments they went to."""

    def __init__(self, segments: Segments) -> None:
        self._segments = segments
        self._touched: dict[int, None] = {}
        self.written_bytes = 0

    def segment_started(self, segment: int) -> None:
        self._touched[segment] = None

    def write(self, segment: int, page: int, data: bytes | memoryview) -> None:
        """Writes data from a page's start on, padded with zeros to whole pages."""
        padded = bytearray(-(-len(data) // PAGE_BYTES) * PAGE_BYTES)
        padded[: len(data)] = data
        self._segments.write(segment, padded, page)
        self._touched[segment] = None
        self.written_bytes += len(padded)

    def sync(self) -> None:
        for segment in self._touched:
            self._segments.sync(segment)


def _batches(chosen: Ints, old_bytes: Ints) -> list[Ints]:
    """Parts of the users whose old blocks come to about MERGE_BATCH_BYTES, at least one user each."""
    if not len(chosen):
        return []
    part = np.cumsum(old_bytes) // MERGE_BATCH_BYTES
    return np.split(chosen, np.flatnonzero(np.diff(part)) + 1)


def _columns_of(words_CN: Words, start_U1: Ints, chosen: Ints) -> Words:
    """The rows of some users, in order."""
    if len(chosen) == len(start_U1) - 1:
        return words_CN
    counts = np.diff(start_U1)[chosen]
    ends = np.cumsum(counts)
    index = np.repeat(start_U1[:-1][chosen] - (ends - counts), counts) + np.arange(int(ends[-1]))
    return np.take(words_CN, index, axis=1)


def _runs(plan: FlushPlan, chosen: Ints) -> Runs:
    counts = np.diff(plan.start_U1)[chosen]
    start_R1 = np.concatenate([[0], np.cumsum(counts)])
    last = np.full(len(chosen), plan.lsn, np.uint64)
    return Runs(plan.user_U[chosen], start_R1, plan.first_lsn_U[chosen], last)
