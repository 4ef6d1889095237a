"""Segment files: where the pages of histories lie.

A segment is a sparse file of up to 1 GiB, `segments/<id>.seg`; ids ascend and are never reused. Space is handed out at
the head of the newest segment, in whole pages, and is never handed out twice: what is freed is punched out of the file.
So a stale place can only ever lead to its old bytes or to zeros.

Threads: `allocate`, `start_segment`, `write` and `sync` belong to the one flushing thread; `read_*` to any thread; the rest
to the owner of the shard.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from seqvault_server.storage.errors import DataDirectoryError
from seqvault_server.storage.files import Files
from seqvault_server.storage.place import MAX_SEGMENT, PAGE_BYTES, SEGMENT_PAGES


@dataclass(frozen=True, slots=True)
class Allocation:
    """Pages of one segment, owned by the caller."""

    segment: int
    page: int


class Segments:
    """All segment files of a shard. `head_page` is the first page never handed out in the newest segment."""

    def __init__(self, directory: Path, files: Files) -> None:
        self.directory = directory
        self._files = files
        self._descriptors: dict[int, int] = {}
        directory.mkdir(exist_ok=True)
        for path in sorted(directory.glob("*.seg")):
            self._descriptors[int(path.stem)] = files.open(path)
        self._next_segment_file = directory / "next"
        written = int(self._next_segment_file.read_text()) if self._next_segment_file.exists() else 1
        self._next_segment = max([written, *(segment + 1 for segment in self._descriptors)])
        self.head_segment = 0
        self.head_page = SEGMENT_PAGES

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(self._descriptors)

    def __contains__(self, segment: int) -> bool:
        return segment in self._descriptors

    def allocate(self, pages: int) -> Allocation:
        """The next `pages` pages, in a new segment if the newest has no room for them all."""
        if self.head_page + pages > SEGMENT_PAGES:
            self.start_segment()
        allocation = Allocation(self.head_segment, self.head_page)
        self.head_page += pages
        return allocation

    def start_segment(self) -> None:
        """Goes on in a new segment: the newest is full, or failed a write."""
        segment = self._next_segment
        if segment > MAX_SEGMENT:
            raise DataDirectoryError(f"segment ids are used up ({MAX_SEGMENT})")
        # The number first: an id whose file was removed, or never made, is still not used again.
        self._files.replace_document(self._next_segment_file, str(segment + 1))
        self._next_segment = segment + 1
        self._descriptors[segment] = self._files.open(self._path(segment), create=True)
        self._files.sync_directory(self.directory)
        self.head_segment, self.head_page = segment, 0

    def write(self, segment: int, data: bytes | bytearray | memoryview, page: int) -> None:
        assert len(data) % PAGE_BYTES == 0, "device writes are whole pages"
        self._files.write(self._descriptors[segment], data, page * PAGE_BYTES)

    def sync(self, segment: int) -> None:
        self._files.sync(self._descriptors[segment])

    def read_cached(self, segment: int, buffer: bytearray, offset: int) -> int:
        """Bytes that the page cache gave at once; never waits for the device."""
        return self._files.read_cached(self._descriptors[segment], buffer, offset)

    def read_rest(self, segment: int, buffer: bytearray, offset: int, done: int = 0) -> int:
        """Finishes a read, waiting for the device; returns the bytes in the buffer."""
        return self._files.read_rest(self._descriptors[segment], buffer, offset, done)

    def zero(self, segment: int, offset: int, length: int) -> None:
        """Overwrites bytes and syncs."""
        self._files.zero(self._descriptors[segment], offset, length)
        self._files.sync(self._descriptors[segment])

    def resume(self, end_pages: Mapping[int, int]) -> None:
        """Goes on in the newest segment, behind everything that was ever written there or belongs to a live extent."""
        if self._descriptors:
            self.head_segment = max(self._descriptors)
            written = -(-self._files.size(self._descriptors[self.head_segment]) // PAGE_BYTES)
            self.head_page = max(written, end_pages.get(self.head_segment, 0))

    def punch(self, segment: int, page: int, pages: int) -> None:
        """Gives pages back to the file system."""
        descriptor = self._descriptors[segment]
        if self._files.has_data(descriptor, page * PAGE_BYTES, pages * PAGE_BYTES):
            self._files.punch(descriptor, page * PAGE_BYTES, pages * PAGE_BYTES)

    def pages_of(self, segment: int) -> int:
        """Pages of the file as it is."""
        return -(-self._files.size(self._descriptors[segment]) // PAGE_BYTES)

    def close(self) -> None:
        while self._descriptors:
            self._files.close(self._descriptors.popitem()[1])

    def _path(self, segment: int) -> Path:
        return self.directory / f"{segment:05d}.seg"
