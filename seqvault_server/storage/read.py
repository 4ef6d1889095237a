"""Reading one history: one probe of the index, one contiguous read of one file, nothing decompressed.

`begin_read` runs on the owner's thread in one step: it takes the place, copies the tail, and asks the page cache. If that
had everything, the history is checked and returned at once. Else the read is pinned and goes on in a thread (`finish`),
which counts as the same read.
"""

from dataclasses import dataclass
from typing import Final

from seqcore.format import max_block_bytes
from seqcore.schema import Schema
from seqvault_server.storage.errors import DamagedHistory
from seqvault_server.storage.place import is_disordered, is_extent, offset_of, segment_of, used_bytes_of
from seqvault_server.storage.segments import Segments
from seqvault_server.storage.walk import NO_END_MS, Wanted, walk_suffix

MAX_LOOP_READ_BYTES: Final = 256 << 10
"""A longer read never runs on the owner's thread: copying it out of the page cache would hold it up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What a read gives: whole blocks that may hold a wanted event, and the user's tail as packed rows."""

    found: bool
    data: bytes
    lengths: list[int]
    tail: bytes
    reads: int
    read_bytes: int


@dataclass(slots=True)
class PendingRead:
    """A read that has to wait for the device. The owner unpins `ticket` when `finish` has returned or raised."""

    user: int
    place: int
    tail: bytes
    wanted: Wanted
    buffer: bytearray
    skipped: int
    """Bytes of the extent before those being read: all of it but a suffix."""
    done: int
    ticket: int = -1


class Reader:
    """Reads and checks extents. Stateless but for the open files, so any thread may use it."""

    def __init__(self, *, segments: Segments, schema: Schema) -> None:
        self._segments = segments
        self._row_bytes = schema.row_dtype.itemsize
        self._block_bytes = max_block_bytes(len(schema.event_columns), self._row_bytes)

    def start(self, user: int, place: int, tail: bytes, wanted: Wanted) -> PendingRead:
        """Takes what the page cache gives without waiting."""
        used = used_bytes_of(place)
        length = min(used, self._suffix_bytes(place, wanted))
        buffer = bytearray(length)
        offset = offset_of(place) + used - length
        done = self._segments.read_cached(segment_of(place), buffer, offset) if length <= MAX_LOOP_READ_BYTES else 0
        return PendingRead(user, place, tail, wanted, buffer, used - length, done)

    def is_complete(self, read: PendingRead) -> bool:
        return read.done == len(read.buffer)

    def finish(self, read: PendingRead) -> History:
        """Waits for the rest of the bytes, then checks every block that was read.

        Raises: DamagedHistory if a block does not verify or carries another address or user.
        """
        place, reads = read.place, 1
        segment, offset = segment_of(place), offset_of(place)
        if not self.is_complete(read):
            read.done = self._segments.read_rest(segment, read.buffer, offset + read.skipped, read.done)
        history = self._check(read, reads)
        if history is None:
            # The suffix held fewer events than it should have; never seen, but a read must not depend on that.
            read.skipped, reads = 0, 2
            read.buffer = bytearray(used_bytes_of(place))
            read.done = self._segments.read_rest(segment, read.buffer, offset)
            history = self._check(read, reads)
            assert history is not None, "a walk over the whole extent is complete"
        return history

    def _suffix_bytes(self, place: int, wanted: Wanted) -> int:
        """Enough bytes from the end for the newest N events: raw rows bound compressed ones, plus the block they begin in.

        Blocks flushed into slack take a whole page each, but hold at least a page of raw rows.
        """
        bounded = wanted.max_events and not wanted.has_row_filter and wanted.end_ms == NO_END_MS
        if not bounded or not is_extent(place) or is_disordered(place):
            return 1 << 62
        return wanted.max_events * self._row_bytes + 2 * self._block_bytes

    def _check(self, read: PendingRead, reads: int) -> History | None:
        """The history, or None if the suffix was too short."""
        place, buffer, done = read.place, read.buffer, read.done
        begin, used = offset_of(place), used_bytes_of(place)
        if done != len(buffer):
            raise DamagedHistory(
                read.user, segment_of(place), begin + read.skipped + done, "the segment file ends here"
            )
        suffix = walk_suffix(
            buffer,
            offset=begin + used - done,
            first=begin,
            user=read.user,
            segment=segment_of(place),
            wanted=read.wanted,
            # Newest by arrival is newest by time only if the blocks are in order.
            max_events=0 if is_disordered(place) else read.wanted.max_events,
        )
        if suffix.bad_offset >= 0:
            offset = begin + used - done + suffix.bad_offset
            raise DamagedHistory(read.user, segment_of(place), offset, "a block is damaged or misplaced")
        if not suffix.is_complete:
            return None
        begins, ends = suffix.begins, suffix.ends
        view = memoryview(buffer)
        lengths = [end - begin for begin, end in zip(begins, ends, strict=True)]
        return History(
            found=True,
            data=b"".join([view[a:b] for a, b in zip(begins, ends, strict=True)]),
            lengths=lengths,
            tail=read.tail,
            reads=reads,
            read_bytes=done,
        )
