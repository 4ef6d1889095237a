"""The journal: each user's place as it last became durable. The index is this, in DRAM.

A RocksDB, key = user (u64, big-endian), value = {place: u64, flushed: u64, erase: u64}, little-endian:

    place     where the user's blocks lie, 0 = nowhere
    flushed   every row of the user with an LSN at or below it is in those blocks, or deleted: recovery skips it
    erase     a deleted history whose bytes are still to be overwritten, 0 = none

One rule for crashes: data synced -> journal synced -> place published in the index -> old bytes freed. So a place in the
journal always leads to whole blocks, and bytes that no journaled place covers are noise: never parsed, free to be freed.

Threads: any; no two of them write the same user, since flush and deletion exclude each other.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, cast

import numpy as np
import numpy.typing as npt
from rocksdict import DBCompressionType, DBRecoveryMode, Options, Rdict, WriteBatch

_KEY: Final = struct.Struct(">Q")
_VALUE: Final = struct.Struct("<QQQ")


@dataclass(frozen=True, slots=True)
class JournalImage:
    """Everything in the journal, a row a user."""

    user_U: npt.NDArray[np.uint64]
    place_U: npt.NDArray[np.uint64]
    flushed_U: npt.NDArray[np.uint64]
    erase_U: npt.NDArray[np.uint64]


class Journal(Protocol):
    """So that tests can put a model of a lossy disk in its place."""

    def write(self, entries: Iterable[tuple[int, int, int, int]]) -> None:
        """Sets (user, place, flushed, erase), all or none, and syncs."""

    def read(self) -> JournalImage:
        """All entries."""

    def close(self) -> None:
        """Ends the use of the journal."""


class RocksJournal:
    """The journal in RocksDB."""

    def __init__(self, directory: Path) -> None:
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_write_buffer_size(16 << 20)
        options.set_compression_type(DBCompressionType.lz4())
        options.set_wal_recovery_mode(DBRecoveryMode.tolerate_corrupted_tail_records())
        options.set_max_log_file_size(1 << 20)
        options.set_keep_log_file_num(2)
        self._db = Rdict(str(directory), options)

    def write(self, entries: Iterable[tuple[int, int, int, int]]) -> None:
        batch = WriteBatch(raw_mode=True)
        for user, place, flushed, erase in entries:
            batch.put(_KEY.pack(user), _VALUE.pack(place, flushed, erase))
        self._db.write(batch)
        self._db.flush_wal(True)

    def read(self) -> JournalImage:
        keys = b"".join(cast("Iterable[bytes]", self._db.keys()))
        values = b"".join(cast("Iterable[bytes]", self._db.values()))
        fields = np.frombuffer(values, "<u8").reshape(-1, 3)
        return JournalImage(np.frombuffer(keys, ">u8").astype(np.uint64), fields[:, 0], fields[:, 1], fields[:, 2])

    def close(self) -> None:
        self._db.close()
