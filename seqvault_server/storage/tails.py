"""The tails: every user's newest events, in DRAM until they are flushed to a block.

    table   user -> entry + 1                                       seqcore.table
    entry   first and last chunk, rows, rows already released from the first chunk, lower bound of the first LSN
    chunk   8 packed rows and the number of the next chunk

All of it lies in reserved arrays that cost memory only as far as they have been used; freed entries and chunks go on
free lists and are used again first. Rows keep the order of their arrival (LSN, row). A user without rows has no entry.

Only the owner's thread touches the tails. Every operation is one kernel call over many users.
"""

from dataclasses import dataclass
from typing import Final

import numba
import numpy as np
import numpy.typing as npt

from seqcore.table import Table, get_one, put_one, reserve

Words = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

CHUNK_ROWS: Final = 8
_NONE: Final = -1

# Columns of the entry array.
_FIRST, _LAST, _ROWS, _RELEASED, _FIRST_LSN, _USER = range(6)
# Cells of the state array: high-water marks, heads of the free lists, rows in all.
_CHUNKS_USED, _CHUNK_FREE, _ENTRIES_USED, _ENTRY_FREE, _TOTAL_ROWS = range(5)


@dataclass(frozen=True, slots=True)
class TailRows:
    """Copied rows of many users. `row_N` holds packed bytes, user u's at [start_U1[u], start_U1[u + 1])."""

    user_U: Words
    start_U1: Ints
    row_N: Bytes
    first_lsn_U: Words


class Tails:
    """At most `max_rows` rows of `row_bytes` each, and as many users."""

    def __init__(self, *, row_bytes: int, max_rows: int) -> None:
        self.row_bytes = row_bytes
        self.max_rows = max_rows
        # Every user may leave the last chunk of its own almost empty, hence as many chunks as rows; they are reserved, not taken.
        self._table = Table(max_keys=max_rows)
        self._entries = reserve(max_rows * 6 * 8).view(np.int64).reshape(max_rows, 6)
        self._chunks = reserve(max_rows * CHUNK_ROWS * row_bytes).reshape(max_rows, CHUNK_ROWS * row_bytes)
        self._next = reserve(max_rows * 4).view(np.int32)
        self._state = np.array([0, _NONE, 0, _NONE, 0], np.int64)

    @property
    def rows(self) -> int:
        """Rows of all users."""
        return int(self._state[_TOTAL_ROWS])

    @property
    def users(self) -> int:
        return len(self._table)

    @property
    def memory_bytes(self) -> int:
        """Bytes touched so far: they are used again, not given back."""
        chunk_bytes = CHUNK_ROWS * self.row_bytes + 4
        return (
            int(self._state[_CHUNKS_USED]) * chunk_bytes
            + int(self._state[_ENTRIES_USED]) * 48
            + self._table.memory_bytes
        )

    def append(self, users: Words, counts: Ints, rows: Bytes, lsn: int, due_rows: int) -> Words:
        """Adds packed rows [N, row_bytes], `counts[i]` of them for `users[i]`; the caller has checked that there is room.

        Returns the users whose tails reached `due_rows` in this call.
        """
        due = np.empty(len(users), np.uint64)
        slots, capacity, count = self._table.kernel_parts
        found = _append(
            slots,
            capacity,
            count,
            self._entries,
            self._chunks,
            self._next,
            self._state,
            users,
            counts,
            rows,
            lsn,
            due_rows,
            due,
        )
        return due[:found]

    def rows_of(self, user: int) -> int:
        """How many rows the user has."""
        slots, capacity, _ = self._table.kernel_parts
        return int(_rows_of(slots, capacity, self._entries, np.uint64(user)))

    def rows_of_many(self, users: Words) -> Ints:
        """How many rows each user has."""
        slots, capacity, _ = self._table.kernel_parts
        rows_U = np.empty(len(users), np.int64)
        _rows_of_many(slots, capacity, self._entries, users, rows_U)
        return rows_U

    def copy(self, users: Words) -> TailRows:
        """All rows of the users; a user without any has an empty range."""
        slots, capacity, _ = self._table.kernel_parts
        start_U1, first_lsn_U = np.zeros(len(users) + 1, np.int64), np.zeros(len(users), np.uint64)
        _starts(slots, capacity, self._entries, users, start_U1, first_lsn_U)
        rows = np.empty((int(start_U1[-1]), self.row_bytes), np.uint8)
        _copy(slots, capacity, self._entries, self._chunks, self._next, users, start_U1, rows)
        return TailRows(users, start_U1, rows, first_lsn_U)

    def release(self, users: Words, counts: Ints, next_lsn: int) -> None:
        """Drops the oldest `counts[i]` rows of each user; what is left has LSN `next_lsn` or later."""
        slots, capacity, count = self._table.kernel_parts
        _release(slots, capacity, count, self._entries, self._next, self._state, users, counts, next_lsn)

    def set_first_lsn(self, users: Words, lsn: int) -> None:
        """Raises the lower bound of the first LSN: the rows have been logged again, under `lsn`."""
        slots, capacity, _ = self._table.kernel_parts
        _set_first_lsn(slots, capacity, self._entries, users, lsn)

    def find(self, cursor: int, *, limit: int, min_rows: int = 1, max_lsn: int = (1 << 63) - 1) -> tuple[Words, int]:
        """Up to `limit` users with at least `min_rows` rows, the first of them at or below `max_lsn`, and where to go on.

        The cursor begins at 0 and comes back as 0 when all have been seen; one call looks at no more than 100,000 entries.
        """
        users = np.empty(limit, np.uint64)
        found, cursor = _find_users(self._entries, self._state, cursor, cursor + 100_000, min_rows, max_lsn, users)
        return users[:found], cursor


@numba.njit(nogil=True, cache=True)
def _append(
    slots: Words,
    capacity: Ints,
    count: Ints,
    entries: Ints,
    chunks: Bytes,
    next_chunk: npt.NDArray[np.int32],
    state: Ints,
    users: Words,
    counts: Ints,
    rows: Bytes,
    lsn: int,
    due_rows: int,
    due: Words,
) -> int:
    row_bytes = rows.shape[1]
    flat = rows.reshape(-1)
    found, at = 0, 0
    for i in range(len(users)):
        entry = np.int64(get_one(slots, capacity, users[i])) - 1
        if entry < 0:
            entry = state[_ENTRY_FREE]
            if entry != _NONE:
                state[_ENTRY_FREE] = entries[entry, _FIRST]
            else:
                entry = state[_ENTRIES_USED]
                state[_ENTRIES_USED] += 1
            entries[entry, _FIRST], entries[entry, _LAST] = _NONE, _NONE
            entries[entry, _ROWS], entries[entry, _RELEASED] = 0, 0
            entries[entry, _FIRST_LSN] = lsn
            entries[entry, _USER] = np.int64(users[i])
            put_one(slots, capacity, count, users[i], np.uint64(entry + 1))
        before = entries[entry, _ROWS]
        left = counts[i]
        while left > 0:
            position = (entries[entry, _RELEASED] + entries[entry, _ROWS]) % CHUNK_ROWS
            if position == 0:
                chunk = state[_CHUNK_FREE]
                if chunk != _NONE:
                    state[_CHUNK_FREE] = next_chunk[chunk]
                else:
                    chunk = state[_CHUNKS_USED]
                    state[_CHUNKS_USED] += 1
                if entries[entry, _ROWS] == 0:
                    entries[entry, _FIRST] = chunk
                else:
                    next_chunk[entries[entry, _LAST]] = chunk
                entries[entry, _LAST] = chunk
            part = min(left, CHUNK_ROWS - position)
            begin, length = position * row_bytes, part * row_bytes
            chunks[entries[entry, _LAST], begin : begin + length] = flat[at * row_bytes : at * row_bytes + length]
            entries[entry, _ROWS] += part
            at, left = at + part, left - part
        state[_TOTAL_ROWS] += counts[i]
        if before < due_rows <= entries[entry, _ROWS]:
            due[found] = users[i]
            found += 1
    return found


@numba.njit(nogil=True, cache=True)
def _rows_of(slots: Words, capacity: Ints, entries: Ints, user: np.uint64) -> int:
    entry = np.int64(get_one(slots, capacity, user)) - 1
    return entries[entry, _ROWS] if entry >= 0 else 0


@numba.njit(nogil=True, cache=True)
def _rows_of_many(slots: Words, capacity: Ints, entries: Ints, users: Words, rows_U: Ints) -> None:
    for u in range(len(users)):
        rows_U[u] = _rows_of(slots, capacity, entries, users[u])


@numba.njit(nogil=True, cache=True)
def _starts(slots: Words, capacity: Ints, entries: Ints, users: Words, start_U1: Ints, first_lsn_U: Words) -> None:
    for u in range(len(users)):
        entry = np.int64(get_one(slots, capacity, users[u])) - 1
        start_U1[u + 1] = start_U1[u]
        if entry >= 0:
            start_U1[u + 1] += entries[entry, _ROWS]
            first_lsn_U[u] = np.uint64(entries[entry, _FIRST_LSN])


@numba.njit(nogil=True, cache=True)
def _copy(
    slots: Words,
    capacity: Ints,
    entries: Ints,
    chunks: Bytes,
    next_chunk: npt.NDArray[np.int32],
    users: Words,
    start_U1: Ints,
    rows: Bytes,
) -> None:
    row_bytes = rows.shape[1]
    flat = rows.reshape(-1)
    for u in range(len(users)):
        entry = np.int64(get_one(slots, capacity, users[u])) - 1
        if entry < 0:
            continue
        chunk, position = entries[entry, _FIRST], entries[entry, _RELEASED]
        at, end = start_U1[u] * row_bytes, start_U1[u + 1] * row_bytes
        while at < end:
            # A chunk's rows at a time: one copy of up to CHUNK_ROWS rows.
            begin = position * row_bytes
            length = min(CHUNK_ROWS * row_bytes - begin, end - at)
            flat[at : at + length] = chunks[chunk, begin : begin + length]
            at += length
            chunk, position = np.int64(next_chunk[chunk]), 0


@numba.njit(nogil=True, cache=True)
def _release(
    slots: Words,
    capacity: Ints,
    count: Ints,
    entries: Ints,
    next_chunk: npt.NDArray[np.int32],
    state: Ints,
    users: Words,
    counts: Ints,
    next_lsn: int,
) -> None:
    for u in range(len(users)):
        entry = np.int64(get_one(slots, capacity, users[u])) - 1
        if entry < 0:
            continue
        dropped = min(counts[u], entries[entry, _ROWS])
        state[_TOTAL_ROWS] -= dropped
        entries[entry, _ROWS] -= dropped
        entries[entry, _FIRST_LSN] = next_lsn
        released = entries[entry, _RELEASED] + dropped
        while released >= CHUNK_ROWS or (entries[entry, _ROWS] == 0 and released > 0):
            chunk = entries[entry, _FIRST]
            entries[entry, _FIRST] = np.int64(next_chunk[chunk])
            next_chunk[chunk] = state[_CHUNK_FREE]
            state[_CHUNK_FREE] = chunk
            released = max(released - CHUNK_ROWS, 0)
        entries[entry, _RELEASED] = released
        if entries[entry, _ROWS] == 0:
            put_one(slots, capacity, count, users[u], np.uint64(0))
            entries[entry, _FIRST] = state[_ENTRY_FREE]
            state[_ENTRY_FREE] = entry


@numba.njit(nogil=True, cache=True)
def _set_first_lsn(slots: Words, capacity: Ints, entries: Ints, users: Words, lsn: int) -> None:
    for u in range(len(users)):
        entry = np.int64(get_one(slots, capacity, users[u])) - 1
        if entry >= 0:
            entries[entry, _FIRST_LSN] = lsn


@numba.njit(nogil=True, cache=True)
def _find_users(
    entries: Ints, state: Ints, cursor: int, stop: int, min_rows: int, max_lsn: int, users: Words
) -> tuple[int, int]:
    found = 0
    end = min(stop, state[_ENTRIES_USED])
    while cursor < end and found < len(users):
        if entries[cursor, _ROWS] >= min_rows and entries[cursor, _FIRST_LSN] <= max_lsn:
            users[found] = np.uint64(entries[cursor, _USER])
            found += 1
        cursor += 1
    return found, cursor if cursor < state[_ENTRIES_USED] else 0
