"""An append, checked: many users' events as packed rows. What is wrong is named here, before anything is applied."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import xxhash

from seqcore.schema import Schema
from seqvault_server.storage.errors import InvalidAppend

MAX_EVENTS: Final = 16_384
MAX_CLOCK_SKEW_MS: Final = 24 * 3600 * 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendBatch:
    """Events of many users: `count_U[u]` consecutive packed rows for each. `producer` 0: not exactly-once."""

    user_U: npt.NDArray[np.uint64]
    count_U: npt.NDArray[np.int64]
    rows: npt.NDArray[np.void]
    producer: int
    sequence: int
    digest: bytes
    received_ms: int


def make_batch(
    schema: Schema,
    *,
    user_U: npt.NDArray[np.uint64],
    count_U: npt.NDArray[np.int64],
    columns: Mapping[str, npt.NDArray[np.generic]],
    producer: int,
    sequence: int,
    now_ms: int,
) -> AppendBatch:
    """Checks and packs; `columns` holds every event column of the schema (defaults filled in), all of one length.

    Raises: InvalidAppend with the field: counts that do not match, too many events, a time out of range, a missing sequence.
    """
    if len(user_U) != len(count_U):
        problem = f"{len(count_U)} counts for {len(user_U)} users"
        raise InvalidAppend("event_counts", "COUNTS_MISMATCH", problem)
    total = int(count_U.sum())
    if total > MAX_EVENTS:
        raise InvalidAppend("event_counts", "TOO_MANY_EVENTS", f"{total} events in one call, at most {MAX_EVENTS}")
    if total == 0 or int(count_U.min()) < 1:
        raise InvalidAppend(
            "event_counts", "COUNTS_MISMATCH", "each user needs at least one event, a call at least one user"
        )
    time = columns[schema.time.name]
    if len(time) != total:
        raise InvalidAppend(
            "columns", "COLUMN_LENGTH", f"{len(time)} rows in the columns, event_counts add up to {total}"
        )
    newest = now_ms + MAX_CLOCK_SKEW_MS
    if int(time.min()) < 0 or int(time.max()) > newest:
        raise InvalidAppend(
            f"columns[{schema.time.name}]", "TIME_OUT_OF_RANGE", f"times must lie in 0..{newest} (now + 1 day)"
        )
    if producer and not sequence:
        raise InvalidAppend("sequence", "SEQUENCE_MISSING", "a producer numbers its calls from 1 upwards")
    rows = np.empty(total, schema.row_dtype)
    for name, values in columns.items():
        rows[name] = values
    digest = xxhash.xxh3_128(user_U.tobytes())
    digest.update(count_U.tobytes())
    digest.update(rows.data)
    return AppendBatch(
        user_U=user_U,
        count_U=count_U,
        rows=rows,
        producer=producer,
        sequence=sequence,
        digest=digest.digest(),
        received_ms=now_ms,
    )
