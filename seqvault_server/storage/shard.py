"""A shard: index, tails, log, journal and segments of one data directory, and the steps that change them.

The engine knows neither threads nor an event loop; it is made of steps, and its caller decides where they run:

    owner's thread (short steps)            other threads (blocking)
    begin_group -> ...                      log_group          the committer, one group at a time
    apply_group <- ...
    plan_flush -> ...                       write_flush        the flusher, one plan at a time
    publish_flush <- ...
    begin_read, and if it must wait ...     finish_read        any thread
    end_read <- ...

Invariants: rows become visible after their sync, in the order of their LSNs. A user in `busy` is being flushed or deleted
and is touched by nothing else. Flush and deletion capture tails only between whole groups (`is_applying` is false).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import numpy as np

from seqcore.schema import Schema
from seqvault_server.storage.append import AppendBatch
from seqvault_server.storage.commit import Carry, CommitGroup, Deletion, append_record, producer_record
from seqvault_server.storage.directory import DataDirectory
from seqvault_server.storage.errors import ReadOnly, StoreFull, UserFull, UsersFull
from seqvault_server.storage.files import Files
from seqvault_server.storage.flush import Flusher, FlushPlan, FlushResult
from seqvault_server.storage.index import Index
from seqvault_server.storage.journal import Journal, RocksJournal
from seqvault_server.storage.log import Kind, Log, LogGeneration, Record
from seqvault_server.storage.place import MAX_HISTORY_BYTES, PAGE_BYTES, is_extent, offset_of, segment_of, used_bytes_of
from seqvault_server.storage.producers import Producers
from seqvault_server.storage.read import History, PendingRead, Reader
from seqvault_server.storage.recovery import recover
from seqvault_server.storage.segments import Segments
from seqvault_server.storage.space import PageRun, Pins, Space
from seqvault_server.storage.statistics import Counters, ShardStatistics
from seqvault_server.storage.tails import TailRows, Tails
from seqvault_server.storage.walk import Wanted

FLUSH_ROWS: Final = 448
"""A tail is due for flushing at about a page of compressed rows."""
FLUSH_PLAN_ROWS: Final = 16_384
"""Rows flushed together: copying them takes the owner's thread about 0.3 ms."""
CARRY_BELOW_ROWS: Final = 16
"""Shorter tails are logged again, not flushed, when older log generations are dropped."""
APPLY_STEP_ROWS: Final = 2_048
"""Rows made visible in one step of the owner's thread: about 0.2 ms."""
MAX_USER_BYTES: Final = MAX_HISTORY_BYTES * 5 // 8
MAX_USER_TAIL_BYTES: Final = 8 << 20
_RETRY_MS: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardConfig:
    """Limits of a shard."""

    max_users: int = 50_000_000
    """Users that the index can hold; appends for others are refused then. Reserves 32 bytes of address space each; memory
    is used only for those that exist."""

    tail_bytes: int = 1 << 30
    """Most bytes of rows not yet in blocks, across all users. Appends are refused above it; flushing begins at half."""

    log_generation_bytes: int = 64 << 20
    """Rows logged before the log is cut. Longer: fewer, larger flushes; a slower start after a crash."""

    def __post_init__(self) -> None:
        if self.max_users < 1 or self.tail_bytes < 1 << 20 or self.log_generation_bytes < 1 << 16:
            raise ValueError("max_users >= 1, tail_bytes >= 1 MiB and log_generation_bytes >= 64 KiB are needed")


@dataclass(slots=True, kw_only=True)
class Shard:
    """See the module's text. Made by `open`."""

    schema: Schema
    config: ShardConfig
    directory: DataDirectory
    segments: Segments
    index: Index
    tails: Tails
    space: Space
    pins: Pins
    producers: Producers
    log: Log
    journal: Journal
    reader: Reader
    flusher: Flusher
    next_lsn: int
    applied_lsn: int
    """The last LSN whose rows are visible; groups after it may be under way."""
    busy: set[int] = field(default_factory=set)
    due: list[int] = field(default_factory=list)
    """Users whose tails should be flushed; the caller takes them."""
    damaged: set[int] = field(default_factory=set)
    """Users whose blocks do not verify: they are flushed no more, their tails stay in DRAM and in the log."""
    is_applying: bool = False
    read_only_cause: str = ""
    log_bytes: int = 0
    """Bytes of records in the current log generation."""
    _counters: Counters = field(default_factory=Counters)

    @classmethod
    def open(cls, path: Path, schema: Schema, *, config: ShardConfig | None = None, files: Files | None = None) -> Self:
        """Opens or creates the data directory and replays what the index and the tails need.

        Raises: DataDirectoryError if it is locked, was written with another schema, or by a newer program.
        """
        config = config or ShardConfig()
        directory = DataDirectory.open(path, schema, files or Files())
        segments = Segments(path / "segments", directory.files)
        journal = RocksJournal(path / "journal")
        log = Log(path / "log", directory.files)
        directory.files.sync_directory(path)
        pins = Pins()
        recovered = recover(
            schema=schema,
            journal=journal,
            log=log,
            segments=segments,
            index=Index(max_users=config.max_users),
            tails=Tails(row_bytes=schema.row_dtype.itemsize, max_rows=config.tail_bytes // schema.row_dtype.itemsize),
            space=Space(pins),
            due_rows=FLUSH_ROWS,
        )
        return cls(
            schema=schema,
            config=config,
            directory=directory,
            segments=segments,
            index=recovered.index,
            tails=recovered.tails,
            space=recovered.space,
            pins=pins,
            producers=recovered.producers,
            log=log,
            journal=journal,
            reader=Reader(segments=segments, schema=schema),
            flusher=Flusher(segments=segments, journal=journal, schema=schema),
            next_lsn=recovered.next_lsn,
            applied_lsn=recovered.next_lsn - 1,
            due=recovered.due,
            log_bytes=recovered.log_bytes,
        )

    def close(self) -> None:
        """Closes all files. What is in the tails is in the log."""
        self.log.close()
        self.journal.close()
        self.segments.close()
        self.directory.close()

    # Appending

    def check_append(self, batch: AppendBatch, pending_rows: int) -> None:
        """Whether there is room for the batch beside `pending_rows` rows that are admitted but not yet in the tails.

        Raises: ReadOnly, StoreFull, UsersFull, UserFull.
        """
        self.check_writable()
        if self.tails.rows + pending_rows + len(batch.rows) > self.tails.max_rows:
            raise StoreFull(
                "TAILS_FULL",
                f"{self.tails.rows} rows wait to be flushed, the limit is {self.tails.max_rows}",
                _RETRY_MS,
            )
        tail_bytes_U = (self.tails.rows_of_many(batch.user_U) + batch.count_U) * self.tails.row_bytes
        if int(tail_bytes_U.max()) > MAX_USER_TAIL_BYTES:
            raise StoreFull(
                "TAILS_FULL", f"more than {MAX_USER_TAIL_BYTES} bytes of one user wait to be flushed", _RETRY_MS
            )
        place_U = self.index.places_of(batch.user_U)
        known = len(self.index) + self.tails.users  # some are counted twice, which errs on the safe side
        if known >= self.config.max_users and (place_U == 0).any():
            raise UsersFull(self.config.max_users)
        used_U = used_bytes_of(place_U)
        if int(used_U.max()) > MAX_USER_BYTES:
            raise UserFull(int(batch.user_U[int(used_U.argmax())]), MAX_USER_BYTES)

    def check_writable(self) -> None:
        """Raises: ReadOnly."""
        if self.read_only_cause:
            raise ReadOnly(self.read_only_cause)

    def begin_group(
        self, appends: Sequence[AppendBatch], deletions: Sequence[int] = (), carried: TailRows | None = None
    ) -> CommitGroup:
        """Numbers the members of a group. Deleted users must be busy; appends of the same group come after deletions."""
        assert not self.is_applying, "tails are captured between whole groups only"
        group = CommitGroup()
        for user in deletions:
            assert user in self.busy, "deletion excludes flushing"
            group.deletions.append(
                Deletion(user, self._take_lsn(), self.index.place_of(user), self.tails.rows_of(user))
            )
        if carried is not None:
            carry = Carry(carried.user_U, self._take_lsn())
            group.carries.append(carry)
            record = Record(
                kind=Kind.CARRY,
                schema=self.schema.version,
                users=carried.user_U,
                counts=np.diff(carried.start_U1).astype("<u4"),
                rows=carried.row_N.tobytes(),
                row_count=len(carried.row_N),
            )
            group.records.append((carry.lsn, record))
        for batch in appends:
            lsn = self._take_lsn()
            group.appends.append((lsn, batch))
            group.records.append((lsn, append_record(batch, self.schema.version)))
        group.last_lsn = self.next_lsn - 1
        return group

    def log_group(self, group: CommitGroup) -> None:
        """Makes the group durable; blocking, one group at a time.

        Raises: whatever the log raises: then the caller makes the shard read-only, since what the log holds is unknown.
        """
        if group.deletions:
            self.journal.write((d.user, 0, d.lsn, d.place) for d in group.deletions)
        if group.records:
            encoded = [(lsn, record.to_bytes()) for lsn, record in group.records]
            group.logged_bytes = sum(len(data) for _, data in encoded)
            self.log.current.append(encoded)
            self.log.current.sync()

    def apply_group(self, group: CommitGroup) -> Iterator[None]:
        """Makes a durable group visible, in steps of under a millisecond: run it to its end, yielding where it yields."""
        self.is_applying = True
        for deletion in group.deletions:
            user = np.array([deletion.user], np.uint64)
            self.index.put(user, np.zeros(1, np.uint64))
            self.tails.release(user, np.array([deletion.tail_rows]), deletion.lsn + 1)
        for carry in group.carries:
            self.tails.set_first_lsn(carry.user_U, carry.lsn)
        for lsn, batch in group.appends:
            yield from self._apply_append(lsn, batch)
        self.log_bytes += group.logged_bytes
        self.applied_lsn = max(self.applied_lsn, group.last_lsn)
        self.is_applying = False

    def _apply_append(self, lsn: int, batch: AppendBatch) -> Iterator[None]:
        rows = batch.rows.view(np.uint8).reshape(len(batch.rows), -1)
        ends = np.cumsum(batch.count_U)
        for begin in range(0, len(rows), APPLY_STEP_ROWS):
            end = min(begin + APPLY_STEP_ROWS, len(rows))
            counts = np.minimum(ends, end) - np.maximum(ends - batch.count_U, begin)
            chosen = counts > 0
            due = self.tails.append(batch.user_U[chosen], counts[chosen], rows[begin:end], lsn, FLUSH_ROWS)
            self.due.extend(due.tolist())
            if end < len(rows):
                yield
        self._counters.appended_events += len(rows)
        if batch.producer:
            self.producers.record(batch.producer, batch.sequence, batch.digest, lsn, batch.received_ms)
        yield

    def _take_lsn(self) -> int:
        lsn = self.next_lsn
        self.next_lsn += 1
        return lsn

    # Deleting

    def erase(self, deletion: Deletion) -> None:
        """Overwrites a deleted history's bytes and forgets that this was to be done; blocking, after older reads ended."""
        if deletion.place:
            self.segments.zero(segment_of(deletion.place), offset_of(deletion.place), used_bytes_of(deletion.place))
            self.journal.write([(deletion.user, 0, deletion.lsn, 0)])

    def end_deletion(self, deletion: Deletion) -> None:
        """Owner's last step of a deletion: gives the space back, lets the user be flushed again."""
        if deletion.place:
            self.space.free(np.array([deletion.place], np.uint64))
        self.damaged.discard(deletion.user)
        self.busy.discard(deletion.user)

    # Flushing

    def plan_flush(self, users: Sequence[int]) -> tuple[FlushPlan | None, list[int]]:
        """Copies the tails of those users that are not busy and have one, and marks them busy.

        A plan takes about FLUSH_PLAN_ROWS rows, so that copying them is a short step; the users behind that come back.
        """
        assert not self.is_applying, "tails are captured between whole groups only"
        free = [user for user in dict.fromkeys(users) if user not in self.busy and user not in self.damaged]
        user_U = np.array(free, np.uint64)
        rows_U = self.tails.rows_of_many(user_U)
        user_U, rows_U = user_U[rows_U > 0], rows_U[rows_U > 0]
        if not len(user_U):
            return None, []
        taken = np.cumsum(rows_U) - rows_U < FLUSH_PLAN_ROWS
        rest, user_U = user_U[~taken].tolist(), user_U[taken]
        tail = self.tails.copy(user_U)
        self.busy.update(user_U.tolist())
        rows = tail.row_N.view(self.schema.row_dtype)[:, 0]
        plan = FlushPlan(user_U, self.index.places_of(user_U), tail.start_U1, rows, tail.first_lsn_U, self.applied_lsn)
        return plan, rest

    def write_flush(self, plan: FlushPlan) -> FlushResult:
        """Blocking; see Flusher.write for what it raises."""
        return self.flusher.write(plan)

    def publish_flush(self, result: FlushResult) -> None:
        """Makes the new places visible, drops the flushed rows from the tails, frees the old places."""
        plan = result.plan
        self.space.add(result.place_U[(plan.place_U == 0) | (result.freed_U != 0)])
        self.index.put(plan.user_U, result.place_U)
        self.tails.release(plan.user_U, np.diff(plan.start_U1), plan.lsn + 1)
        self.space.free(result.freed_U)
        self._counters.flushed_events += len(plan.rows)
        self._counters.written_bytes += result.written_bytes
        self.abandon_flush(plan)

    def abandon_flush(self, plan: FlushPlan) -> None:
        """Lets the plan's users be flushed or deleted again; after a failed write their rows are still in the tails."""
        self.busy.difference_update(plan.user_U.tolist())

    def take_freed(self) -> list[PageRun]:
        """Pages to punch, now that no read can be looking at them."""
        return self.space.take_freed()

    def punch(self, runs: Sequence[PageRun]) -> None:
        """Gives pages back to the file system; blocking."""
        for run in runs:
            self.segments.punch(run.segment, run.page, run.pages)

    # Cutting the log

    def switch_log(self, generation: LogGeneration) -> int:
        """Later groups go to the new generation; returns the last LSN that may be in an older one."""
        cut_lsn = self.next_lsn - 1
        self.log.switch(generation)
        self.log_bytes = 0
        return cut_lsn

    def producer_records(self) -> list[tuple[int, Record]]:
        """What is known of producers, to be logged again in the new generation."""
        version = self.schema.version
        return [
            (
                self._take_lsn(),
                producer_record(
                    producer=producer,
                    sequence=sequence,
                    digest=digest,
                    lsn=lsn,
                    seen_ms=seen_ms,
                    schema_version=version,
                ),
            )
            for producer, sequence, digest, lsn, seen_ms in self.producers.entries()
        ]

    def split_for_cut(self, users: Sequence[int]) -> tuple[list[int], list[int]]:
        """Those users whose tails should be flushed, and those whose tails are too short for it and should be carried.

        A block in an extent's slack takes whole pages, so there it must hold a page of raw rows at least: then a read of
        the newest N events knows how many bytes it needs.
        """
        user_U = np.array([user for user in users if user not in self.busy], np.uint64)
        rows_U = self.tails.rows_of_many(user_U)
        least_U = np.where(
            is_extent(self.index.places_of(user_U)).astype(np.bool_),
            max(CARRY_BELOW_ROWS, -(-PAGE_BYTES // self.tails.row_bytes)),
            CARRY_BELOW_ROWS,
        )
        flushed = (rows_U >= least_U) & ~np.isin(user_U, np.fromiter(self.damaged, np.uint64, len(self.damaged)))
        return user_U[flushed].tolist(), user_U[~flushed].tolist()

    # Reading

    def begin_read(self, user: int, wanted: Wanted) -> History | PendingRead:
        """The history as of now; a PendingRead if the device must be waited for: run `finish_read`, then `end_read`.

        Raises: DamagedHistory.
        """
        place = self.index.place_of(user)
        tail = self.tails.copy(np.array([user], np.uint64)).row_N.tobytes() if self.tails.rows_of(user) else b""
        self._counters.reads += bool(place)
        if not place:
            return History(found=bool(tail), data=b"", lengths=[], tail=tail, reads=0, read_bytes=0)
        read = self.reader.start(user, place, tail, wanted)
        if self.reader.is_complete(read):
            self._counters.read_bytes += len(read.buffer)
            return self.reader.finish(read)
        read.ticket = self.pins.pin()
        return read

    def finish_read(self, read: PendingRead) -> History:
        """Blocking; any thread. Raises: DamagedHistory."""
        return self.reader.finish(read)

    def end_read(self, read: PendingRead) -> None:
        """Owner's last step of a read that had to wait."""
        self._counters.read_bytes += len(read.buffer)
        self.pins.unpin(read.ticket)

    def statistics(self) -> ShardStatistics:
        counters = self._counters
        return ShardStatistics(
            users_on_disk=len(self.index),
            users_in_tails=self.tails.users,
            tail_rows=self.tails.rows,
            index_bytes=self.index.memory_bytes,
            tail_bytes=self.tails.memory_bytes,
            live_bytes=self.space.live_bytes,
            segments=len(self.segments.ids),
            log_bytes=self.log_bytes,
            next_lsn=self.next_lsn,
            producers=len(self.producers),
            is_read_only=bool(self.read_only_cause),
            damaged_users=len(self.damaged),
            appended_events_total=counters.appended_events,
            flushed_events_total=counters.flushed_events,
            written_bytes_total=counters.written_bytes,
            reads_total=counters.reads,
            read_bytes_total=counters.read_bytes,
        )
