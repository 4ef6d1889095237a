"""Opening a shard: the index from the journal, the tails from the log.

Rows at or below their user's flushed LSN are in blocks already, or deleted, and are skipped; all others go to the tails
in the order of their LSNs, exactly as they did when they were appended. Then deletions that a crash interrupted are
finished, and pages that no place covers are given back. Running it twice, or crashing inside it, changes nothing more.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from seqcore.schema import Schema, row_dtype
from seqcore.table import Table
from seqvault_server.storage.errors import DataDirectoryError
from seqvault_server.storage.index import Index
from seqvault_server.storage.journal import Journal, JournalImage
from seqvault_server.storage.log import Kind, Log, Record
from seqvault_server.storage.place import offset_of, segment_of, used_bytes_of
from seqvault_server.storage.producers import Producers
from seqvault_server.storage.segments import Segments
from seqvault_server.storage.space import Space, end_pages
from seqvault_server.storage.tails import Tails

Words = npt.NDArray[np.uint64]


@dataclass(slots=True)
class Recovered:
    """What a shard starts with."""

    index: Index
    tails: Tails
    space: Space
    producers: Producers = field(default_factory=Producers)
    next_lsn: int = 1
    due: list[int] = field(default_factory=list)
    log_bytes: int = 0


def recover(
    *,
    schema: Schema,
    journal: Journal,
    log: Log,
    segments: Segments,
    index: Index,
    tails: Tails,
    space: Space,
    due_rows: int,
) -> Recovered:
    """Fills index, tails and space counters; blocking.

    Raises: DataDirectoryError if a place leads to a segment that is not there, or the log's rows do not fit the tails.
    """
    image = journal.read()
    recovered = Recovered(index, tails, space)
    has_place = image.place_U != 0
    places = image.place_U[has_place]
    missing = [segment for segment in np.unique(segment_of(places)).tolist() if segment not in segments]
    if missing:
        raise DataDirectoryError(f"{segments.directory}: segments {missing} are missing, the journal has users in them")
    index.put(image.user_U[has_place], places)
    space.add(places)
    recovered.next_lsn = int(image.flushed_U.max(initial=0)) + 1
    _Replay(schema, image, recovered, due_rows).run(log)
    _finish_deletions(image, segments, journal)
    ends = end_pages(places)
    segments.resume(ends)
    for segment in segments.ids:
        for run in space.dead_runs(segment, max(segments.pages_of(segment), ends.get(segment, 0))):
            segments.punch(run.segment, run.page, run.pages)
    return recovered


class _Replay:
    """The log, record by record, into the tails and the producers' windows."""

    def __init__(self, schema: Schema, image: JournalImage, recovered: Recovered, due_rows: int) -> None:
        self._schema = schema
        self._recovered = recovered
        self._due_rows = due_rows
        self._flushed_U = image.flushed_U
        self._position_of = Table(max_keys=max(len(image.user_U), 1))
        self._position_of.put_many(image.user_U, np.arange(1, len(image.user_U) + 1, dtype=np.uint64))

    def run(self, log: Log) -> None:
        recovered = self._recovered
        for generation in log.generations:
            recovered.log_bytes = 0
            for lsn, data in generation.read():
                record = Record.from_bytes(data)
                if record.schema > self._schema.version:
                    raise DataDirectoryError(
                        f"the log holds rows of schema version {record.schema}, newer than {self._schema.version}"
                    )
                recovered.next_lsn = max(recovered.next_lsn, lsn + 1)
                recovered.log_bytes += len(data)
                if record.kind != Kind.PRODUCER:
                    self._rows(lsn, record)
                if record.producer:
                    acked = int(record.users[0]) if record.kind == Kind.PRODUCER else lsn
                    recovered.producers.record(record.producer, record.sequence, record.digest, acked, record.time_ms)

    def _rows(self, lsn: int, record: Record) -> None:
        tails = self._recovered.tails
        position = self._position_of.get_many(record.users)
        known = position > 0
        flushed = np.zeros(len(position), np.uint64)
        flushed[known] = self._flushed_U[position[known].astype(np.int64) - 1]
        wanted = flushed < lsn
        counts = record.counts.astype(np.int64)
        rows = self._current_rows(record)[np.repeat(wanted, counts)]
        if record.kind == Kind.CARRY:
            tails.release(record.users[wanted], tails.rows_of_many(record.users[wanted]), lsn)
        if tails.rows + len(rows) > tails.max_rows:
            raise DataDirectoryError(
                f"the log holds more rows than the tails may: raise tail_bytes (now {tails.max_rows} rows)"
            )
        due = tails.append(record.users[wanted], counts[wanted], rows, lsn, self._due_rows)
        self._recovered.due.extend(due.tolist())

    def _current_rows(self, record: Record) -> npt.NDArray[np.uint8]:
        """Packed rows of today's schema; columns added since read as their defaults."""
        written = row_dtype(self._schema.event_columns_at(record.schema))
        rows = np.frombuffer(record.rows, written)
        if record.schema != self._schema.version:
            current = np.empty(len(rows), self._schema.row_dtype)
            for column in self._schema.event_columns:
                current[column.name] = rows[column.name] if column.since <= record.schema else column.default
            rows = current
        return rows.view(np.uint8).reshape(len(rows), -1)


def _finish_deletions(image: JournalImage, segments: Segments, journal: Journal) -> None:
    unfinished = np.flatnonzero(image.erase_U != 0)
    for i in unfinished.tolist():
        place = int(image.erase_U[i])
        if segment_of(place) in segments:
            segments.zero(segment_of(place), offset_of(place), used_bytes_of(place))
    if len(unfinished):
        rows = zip(*(a[unfinished].tolist() for a in (image.user_U, image.place_U, image.flushed_U)), strict=True)
        journal.write((user, place, flushed, 0) for user, place, flushed in rows)
