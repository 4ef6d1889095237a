"""The log: what makes an append durable before it is in a block.

A generation is a RocksDB directory `log/<number>`; key = LSN (u64, big-endian), value = one record:

    record   := kind:u8 schema:u16 users:u32 rows:u32 producer:u64 sequence:u64 digest:u128 time_ms:i64 body_bytes:u32
                body                                                        little-endian; the head has 55 bytes
    body     := zstd frame of: user_ids:u64 * users  counts:u32 * users  rows            `body_bytes` when decompressed
    rows     := packed rows, byte-shuffled: the first byte of every row, then the second of every row, and so on
    APPEND     rows that a caller appended
    CARRY      rows of older generations, logged again so that those can be dropped; on replay they replace the users' tails
    PRODUCER   what is known of one sequence of one producer, logged again; `users` is 1: the LSN of its ack; no counts

A generation is dropped whole when each of its rows is in a block or carried; keys are never deleted one by one. The
memtable is larger than a generation, so its rows are written to the device once.

Threads: `append` and `sync` belong to the committer; a synced RocksDB write would hold the GIL through the fsync, so
writes go unsynced and `flush_wal` (which releases it) syncs. Even unsynced a write holds the GIL for 2 us a KiB; hence
bodies are compressed (half the bytes, and that releases the GIL) and a group is written in parts of WRITE_BYTES. A record
is never divided: an append is in the log as a whole or not at all.
"""

import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final, Protocol, Self

import numpy as np
import numpy.typing as npt
import zstandard
from rocksdict import DBCompressionType, DBRecoveryMode, Options, Rdict, WriteBatch

from seqvault_server.storage.errors import DataDirectoryError
from seqvault_server.storage.files import Files

_HEAD: Final = struct.Struct("<BHIIQQ16sqI")
_KEY: Final = struct.Struct(">Q")
_MEMTABLE_BYTES: Final = 256 << 20
_ZSTD_LEVEL: Final = -1
"""Of shuffled rows: 7.9 bytes an event in 45 us a thousand, shuffle included; level 1 of plain rows 9.5 in 130."""
WRITE_BYTES: Final = 128 << 10
_DROPPED: Final = ".dropped"


class Kind(IntEnum):
    """Kind of a record. Persisted: add members, never renumber or reuse one."""

    APPEND = 1
    CARRY = 2
    PRODUCER = 3


_KINDS: Final = frozenset(Kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One record; see the module's grammar. For PRODUCER, `users` holds the LSN of the sequence's ack."""

    kind: Kind
    schema: int
    users: npt.NDArray[np.uint64]
    counts: npt.NDArray[np.uint32]
    rows: bytes
    row_count: int
    producer: int = 0
    sequence: int = 0
    digest: bytes = bytes(16)
    time_ms: int = 0

    def to_bytes(self) -> bytes:
        rows = _transposed(self.rows, self.row_count)
        body = b"".join([self.users.tobytes(), self.counts.tobytes(), rows.data])
        head = _HEAD.pack(
            self.kind,
            self.schema,
            len(self.users),
            self.row_count,
            self.producer,
            self.sequence,
            self.digest,
            self.time_ms,
            len(body),
        )
        return head + zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_content_size=False).compress(body)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        kind, schema, user_count, row_count, producer, sequence, digest, time_ms, body_bytes = _HEAD.unpack_from(data)
        if kind not in _KINDS:
            raise DataDirectoryError(f"the log holds a record of kind {kind}, which this program does not know")
        body = zstandard.ZstdDecompressor().decompress(data[_HEAD.size :], max_output_size=body_bytes)
        users_end = 8 * user_count
        counts_end = users_end + (4 * user_count if kind != Kind.PRODUCER else 0)
        return cls(
            kind=Kind(kind),
            schema=schema,
            users=np.frombuffer(body, "<u8", user_count),
            counts=np.frombuffer(body[users_end:counts_end], "<u4"),
            rows=_transposed(body[counts_end:], (len(body) - counts_end) // row_count).tobytes() if row_count else b"",
            row_count=row_count,
            producer=producer,
            sequence=sequence,
            digest=digest,
            time_ms=time_ms,
        )


def _transposed(data: bytes, rows: int) -> npt.NDArray[np.uint8]:
    """A matrix of bytes with so many rows, its columns made rows. (`tobytes` would do it with the GIL held.)"""
    matrix = np.frombuffer(data, np.uint8)
    return np.ascontiguousarray(matrix.reshape(rows, -1).T) if rows else matrix


class LogGeneration(Protocol):
    """One generation of the log, so that tests can put a model of a lossy disk in its place."""

    number: int

    def append(self, records: list[tuple[int, bytes]]) -> None:
        """Writes records (LSN, bytes) in order, each as a whole or not at all, unsynced."""

    def sync(self) -> None:
        """Makes everything appended so far durable."""

    def read(self) -> Iterator[tuple[int, bytes]]:
        """All records in the order of their LSNs."""

    def close(self) -> None:
        """Ends the use of the generation; its files stay."""


class RocksGeneration:
    """A generation in RocksDB."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.number = int(directory.name)
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_write_buffer_size(_MEMTABLE_BYTES)
        options.set_disable_auto_compactions(True)
        options.set_compression_type(DBCompressionType.zstd())
        # A torn end of the write-ahead log is what a crash leaves: everything before it is good.
        options.set_wal_recovery_mode(DBRecoveryMode.tolerate_corrupted_tail_records())
        options.set_max_log_file_size(1 << 20)
        options.set_keep_log_file_num(2)
        self._db = Rdict(str(directory), options)

    def append(self, records: list[tuple[int, bytes]]) -> None:
        batch = WriteBatch(raw_mode=True)
        for lsn, data in records:
            batch.put(_KEY.pack(lsn), data)
            if batch.size_in_bytes() >= WRITE_BYTES:
                self._db.write(batch)
                batch = WriteBatch(raw_mode=True)
        if not batch.is_empty():
            self._db.write(batch)

    def sync(self) -> None:
        self._db.flush_wal(True)

    def read(self) -> Iterator[tuple[int, bytes]]:
        for key, data in self._db.items():
            assert isinstance(key, bytes), "a database in raw mode holds bytes"
            yield _KEY.unpack(key)[0], data

    def close(self) -> None:
        self._db.close()


class Log:
    """The generations, oldest first; the last one is written to."""

    def __init__(self, directory: Path, files: Files) -> None:
        self.directory = directory
        self._files = files
        directory.mkdir(exist_ok=True)
        for leftover in directory.glob(f"*{_DROPPED}"):
            shutil.rmtree(leftover)
        numbers = sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal())
        self.generations: list[LogGeneration] = [self._open(number) for number in numbers or [1]]

    @property
    def current(self) -> LogGeneration:
        return self.generations[-1]

    def make_next(self) -> LogGeneration:
        """Opens the next generation; it is written to once `switch` has been called. Blocking."""
        return self._open(self.current.number + 1)

    def switch(self, generation: LogGeneration) -> None:
        self.generations.append(generation)

    def take_older(self) -> list[LogGeneration]:
        """Takes all generations but the current one from the list, for `drop`."""
        older, self.generations = self.generations[:-1], self.generations[-1:]
        return older

    def drop(self, generation: LogGeneration) -> None:
        """Closes a generation and removes its files. Blocking.

        Renamed first: what a crash leaves of it must not look like a generation.
        """
        generation.close()
        path = self._path(generation.number)
        dropped = path.with_name(path.name + _DROPPED)
        path.rename(dropped)
        self._files.sync_directory(self.directory)
        shutil.rmtree(dropped)

    def close(self) -> None:
        for generation in self.generations:
            generation.close()

    def _open(self, number: int) -> LogGeneration:
        generation = RocksGeneration(self._path(number))
        self._files.sync_directory(self.directory)
        return generation

    def _path(self, number: int) -> Path:
        return self.directory / f"{number:08d}"
