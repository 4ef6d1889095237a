"""A commit group: the appends, deletions and carried tails that one sync makes durable together."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from seqvault_server.storage.append import AppendBatch
from seqvault_server.storage.log import Kind, Record


@dataclass(frozen=True, slots=True)
class Deletion:
    """A user being deleted: its place, and how many rows its tail had, when the tombstone got its LSN."""

    user: int
    lsn: int
    place: int
    tail_rows: int


@dataclass(frozen=True, slots=True)
class Carry:
    """Tails logged again under a new LSN, so that older log generations can be dropped."""

    user_U: npt.NDArray[np.uint64]
    lsn: int


@dataclass(slots=True)
class CommitGroup:
    """Built by `Shard.begin_group` on the owner's thread, then logged in the committer's, then applied by the owner."""

    appends: list[tuple[int, AppendBatch]] = field(default_factory=list)
    deletions: list[Deletion] = field(default_factory=list)
    carries: list[Carry] = field(default_factory=list)
    records: list[tuple[int, Record]] = field(default_factory=list)
    """For the log, with their LSNs; encoded by the committer."""
    logged_bytes: int = 0
    """Set by the committer."""
    last_lsn: int = 0


def append_record(batch: AppendBatch, schema_version: int) -> Record:
    return Record(
        kind=Kind.APPEND,
        schema=schema_version,
        users=batch.user_U,
        counts=batch.count_U.astype("<u4"),
        rows=batch.rows.tobytes(),
        row_count=len(batch.rows),
        producer=batch.producer,
        sequence=batch.sequence,
        digest=batch.digest,
        time_ms=batch.received_ms,
    )


def producer_record(
    *, producer: int, sequence: int, digest: bytes, lsn: int, seen_ms: int, schema_version: int
) -> Record:
    return Record(
        kind=Kind.PRODUCER,
        schema=schema_version,
        users=np.array([lsn], np.uint64),
        counts=np.empty(0, np.uint32),
        rows=b"",
        row_count=0,
        producer=producer,
        sequence=sequence,
        digest=digest,
        time_ms=seen_ms,
    )
