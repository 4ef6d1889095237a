"""Users' histories as a feed would leave them: sessions, popular items, a few very long users. `--help` writes Parquet.

    length of a history    lognormal: median 1,000, sigma 1.2, so mean 2,050, 1 in 37 above 10,000; 1 .. 100,000
    session                geometric, mean 20 events, all in one scene
    between its events     lognormal, median 40 s, sigma 1
    between sessions       lognormal, median 12 h, sigma 1; pressed together so that a history fits into SPAN_DAYS
    last event of a user   within the week before END_MS
    item                   Zipf over the catalogue (loadtest.catalogue), independent of the user
    action                 impression, click, like, purchase: .82 .15 .02 .01
    dwell                  0 for impressions, else lognormal: median 8 s, sigma 1.2, at most 10 minutes

Columns are those of examples/schema.yaml. The same `Workload` makes the same events, in whatever order they are taken.
About 3 million events a second, on one core.

Letters: U users, E events.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import track

from loadtest.catalogue import Catalogue, Columns, mixed

MAX_HISTORY_EVENTS: Final = 100_000
MEDIAN_HISTORY_EVENTS: Final = 1_000
HISTORY_SIGMA: Final = 1.2
SESSION_EVENTS: Final = 20
SPAN_DAYS: Final = 365
END_MS: Final = 1_735_689_600_000
"""2025-01-01: every generated history lies before it, and what `live_batches` appends, from it onwards."""
ACTIONS: Final = ("impression", "click", "like", "purchase")
EVENT_COLUMNS: Final = ("item_id", "time_ms", "action", "scene", "dwell_ms")
EVENT_BYTES: Final = 22
"""Of one event, packed, without its user."""

_ACTION_SHARES: Final = (0.82, 0.15, 0.02, 0.01)
_SCENE_SHARES: Final = (0.6, 0.2, 0.12, 0.05, 0.03)
_IN_SESSION_MEDIAN_MS: Final = 40_000.0
_SESSION_GAP_MEDIAN_MS: Final = 12 * 3_600_000.0
_DAY_MS: Final = 86_400_000
_DWELL_MEDIAN_MS: Final = 8_000.0
_MAX_DWELL_MS: Final = 600_000.0
_CHUNK_USERS: Final = 256
"""Users generated together; each chunk has a random stream of its own."""

Ids = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Events of some users, as Append takes them: the rows of each user back to back, in the order of `user_ids_U`."""

    user_ids_U: Ids
    event_counts_U: Counts
    columns: Columns

    @property
    def event_count(self) -> int:
        return int(self.event_counts_U.sum())

    @property
    def users_of_events(self) -> Ids:
        """The user of each event."""
        return np.repeat(self.user_ids_U, self.event_counts_U)

    def rows(self, begin: int, end: int) -> Columns:
        return {name: values[begin:end] for name, values in self.columns.items()}


@dataclass(frozen=True, kw_only=True)
class Workload:
    """All users and their histories."""

    catalogue: Catalogue
    event_counts_U: Counts
    """Events of each user."""
    seed: int

    @classmethod
    def of_events(cls, events: int, *, seed: int = 1, catalogue: Catalogue | None = None, cohort: int = 0) -> Self:
        """Users by the law above until they have `events` events; the last one is cut to fit.

        The first `cohort` users are besides the law and the total: they have exactly 10,000 events each, the length
        that benchmarks speak of.
        """
        if events < 1:
            raise ValueError("at least one event is needed")
        rng = np.random.default_rng((seed, 0))
        parts, missing = [np.full(cohort, 10_000, np.int64)], events
        while missing > 0:
            drawn = rng.lognormal(np.log(MEDIAN_HISTORY_EVENTS), HISTORY_SIGMA, 1_024)
            counts = np.clip(drawn, 1, MAX_HISTORY_EVENTS).astype(np.int64)
            # Each user's count, or what the total still lacks: 0 once it is reached.
            counts = np.minimum(counts, np.maximum(0, missing - (np.cumsum(counts) - counts)))
            parts.append(counts[counts > 0])
            missing -= int(counts.sum())
        counts_U = np.concatenate(parts).astype(np.uint32)
        return cls(catalogue=catalogue or Catalogue(seed=seed), event_counts_U=counts_U, seed=seed)

    @property
    def event_count(self) -> int:
        return int(self.event_counts_U.sum())

    @cached_property
    def user_ids(self) -> Ids:
        """Random-looking ids, as of hashed accounts."""
        return mixed(np.arange(len(self.event_counts_U), dtype=np.uint64))

    def chunks(self) -> Iterator[Batch]:
        """Whole histories, each oldest event first, of up to 256 users together."""
        for begin in range(0, len(self.event_counts_U), _CHUNK_USERS):
            counts_U = self.event_counts_U[begin : begin + _CHUNK_USERS]
            rng = np.random.default_rng((self.seed, 3, begin))
            yield Batch(
                user_ids_U=self.user_ids[begin : begin + _CHUNK_USERS],
                event_counts_U=counts_U,
                columns=_histories(counts_U, self.catalogue, rng),
            )

    def histories(self) -> Iterator[tuple[int, Columns]]:
        """User by user."""
        for chunk in self.chunks():
            ends = np.cumsum(chunk.event_counts_U, dtype=np.int64).tolist()
            for user, begin, end in zip(chunk.user_ids_U.tolist(), [0, *ends], ends, strict=False):
                yield user, chunk.rows(begin, end)

    def batches(self, *, events: int = 1_000) -> Iterator[Batch]:
        """The events in global time order, cut into batches of `events`, as appends arrive.

        A batch mixes the users whose sessions fall together: about 50 of 1,000 events, more once there are so many users
        that more sessions than that run at a time. Holds all events in memory, 40 bytes each, twice while sorting.
        """
        parts = list(self.chunks())
        columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in EVENT_COLUMNS}
        del parts
        user_E = np.repeat(np.arange(len(self.event_counts_U)), self.event_counts_U)
        by_time = np.argsort(columns["time_ms"], kind="stable")
        batch_of_E = np.arange(len(by_time)) // events
        by_user = np.argsort(batch_of_E * len(self.event_counts_U) + user_E[by_time], kind="stable")
        order = by_time[by_user]
        for begin in range(0, len(order), events):
            rows = order[begin : begin + events]
            users_U, counts_U = np.unique(user_E[rows], return_counts=True)
            yield Batch(
                user_ids_U=self.user_ids[users_U],
                event_counts_U=counts_U.astype(np.uint32),
                columns={name: values[rows] for name, values in columns.items()},
            )

    def live_batches(self, *, users: int = 50, events_per_user: int = SESSION_EVENTS) -> Iterator[Batch]:
        """New events without end, from END_MS onwards: each batch a session of `users` users, drawn by Zipf (1.05)."""
        rng = np.random.default_rng((self.seed, 4))
        popularity = Catalogue(seed=self.seed, item_count=len(self.user_ids))
        users = min(users, len(self.user_ids))
        counts_U = np.full(users, events_per_user, np.uint32)
        begins_ms = END_MS
        while True:
            drawn = np.zeros(0, np.uint64)
            while len(drawn) < users:
                drawn = np.unique(np.concatenate([drawn, popularity.draw(users, rng)]))
            chosen_U = rng.choice(drawn, users, replace=False)
            columns = dict(_histories(counts_U, self.catalogue, rng))
            in_session = rng.exponential(500.0, (users, events_per_user)).cumsum(1)
            columns["time_ms"] = (begins_ms + in_session).astype(np.int64).ravel()
            begins_ms = int(columns["time_ms"].max()) + 1
            yield Batch(user_ids_U=self.user_ids[chosen_U], event_counts_U=counts_U, columns=columns)


def _histories(counts_U: Counts, catalogue: Catalogue, rng: np.random.Generator) -> Columns:
    """Events of users, back to back, each user's oldest first."""
    counts = counts_U.astype(np.int64)
    total = int(counts.sum())
    begins_U = np.cumsum(counts) - counts
    starts_session_E = rng.random(total) < 1 / SESSION_EVENTS
    starts_session_E[begins_U] = True
    session_E = np.cumsum(starts_session_E) - 1
    scene_of_session = rng.choice(len(_SCENE_SHARES), int(session_E[-1]) + 1, p=_SCENE_SHARES).astype(np.uint8)
    action_E = np.searchsorted(np.cumsum(_ACTION_SHARES[:-1]), rng.random(total), side="right").astype(np.uint8)
    dwell_E = np.zeros(total, np.uint32)
    is_looked_at_E = action_E > 0
    dwell = _DWELL_MEDIAN_MS * np.exp(1.2 * rng.standard_normal(int(is_looked_at_E.sum())))
    dwell_E[is_looked_at_E] = np.minimum(dwell, _MAX_DWELL_MS)
    return {
        "item_id": catalogue.draw(total, rng),
        "time_ms": _times(counts, begins_U, starts_session_E, rng),
        "action": action_E,
        "scene": scene_of_session[session_E],
        "dwell_ms": dwell_E,
    }


def _times(
    counts_U: npt.NDArray[np.int64],
    begins_U: npt.NDArray[np.int64],
    starts_session_E: npt.NDArray[np.bool_],
    rng: np.random.Generator,
) -> npt.NDArray[np.int64]:
    step_E = np.exp(rng.standard_normal(len(starts_session_E)))
    step_E *= np.where(starts_session_E, _SESSION_GAP_MEDIAN_MS, _IN_SESSION_MEDIAN_MS)
    step_E[begins_U] = 0
    # A heavy user's sessions lie closer together: the gaps between them share what the sessions leave of the span.
    gap_E = np.where(starts_session_E, step_E, 0)
    gaps_U = np.add.reduceat(gap_E, begins_U)
    in_sessions_U = np.add.reduceat(step_E, begins_U) - gaps_U
    room_U = np.maximum(SPAN_DAYS * _DAY_MS - in_sessions_U, 0.1 * gaps_U)
    squeeze_U = np.minimum(1.0, room_U / np.maximum(gaps_U, 1.0))
    step_E[starts_session_E] *= np.repeat(squeeze_U, counts_U)[starts_session_E]
    elapsed_E = np.cumsum(step_E)
    ends_U = begins_U + counts_U - 1
    last_ms_U = END_MS - 1 - rng.integers(0, 7 * _DAY_MS, len(counts_U))
    before_last_E: npt.NDArray[np.int64] = (np.repeat(elapsed_E[ends_U], counts_U) - elapsed_E).astype(np.int64)
    return np.repeat(last_ms_U, counts_U) - before_last_E


def write_parquet(workload: Workload, path: Path, *, row_group_events: int = 100_000) -> None:
    """`path` with user_id and the event columns in global time order, and items.parquet beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([("user_id", pa.uint64())] + [(name, _ARROW_TYPES[name]) for name in EVENT_COLUMNS])
    groups = -(-workload.event_count // row_group_events)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in track(workload.batches(events=row_group_events), f"writing {path.name}", total=groups):
            order = np.argsort(batch.columns["time_ms"], kind="stable")
            arrays = {"user_id": batch.users_of_events, **batch.columns}
            writer.write_table(pa.table({name: values[order] for name, values in arrays.items()}, schema=schema))
    items = {"item_id": workload.catalogue.item_ids, **workload.catalogue.side_info}
    pq.write_table(pa.table({name: _arrow(values) for name, values in items.items()}), path.with_name("items.parquet"))


_ARROW_TYPES: Final = {
    "item_id": pa.uint64(),
    "time_ms": pa.int64(),
    "action": pa.uint8(),
    "scene": pa.uint8(),
    "dwell_ms": pa.uint32(),
}


def _arrow(values: npt.NDArray[np.generic]) -> pa.Array:
    flat = pa.array(values.ravel())
    return flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtest.generator", description="Writes generated histories.")
    parser.add_argument("--events", type=float, default=1e6, help="events in all (default 1e6)")
    parser.add_argument("--seed", type=int, default=1, help="the same seed makes the same events (default 1)")
    parser.add_argument("--items", type=float, default=1e5, help="items in the catalogue (default 1e5)")
    parser.add_argument("--random-ids", action="store_true", help="item ids are random 64-bit numbers, not dense")
    parser.add_argument("--out", type=Path, required=True, help="Parquet file; items.parquet is written beside it")
    arguments = parser.parse_args()
    catalogue = Catalogue(seed=arguments.seed, item_count=int(arguments.items), has_random_ids=arguments.random_ids)
    workload = Workload.of_events(int(arguments.events), seed=arguments.seed, catalogue=catalogue)
    write_parquet(workload, arguments.out)
    print(f"{workload.event_count:,} events of {len(workload.user_ids):,} users: {arguments.out}")


if __name__ == "__main__":
    main()
