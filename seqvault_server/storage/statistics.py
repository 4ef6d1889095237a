"""What a shard tells about itself; which metrics library shows it is not the engine's business."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardStatistics:
    """A look at the shard, for metrics and people."""

    users_on_disk: int
    """Users with a place in the index."""
    users_in_tails: int
    """Users with rows not yet in blocks."""
    tail_rows: int
    """Rows not yet in blocks."""
    index_bytes: int
    """Memory of the index."""
    tail_bytes: int
    """Memory of the tails, as far as it was ever used."""
    live_bytes: int
    """Bytes of pages that hold a live history, slack included."""
    segments: int
    """Segment files."""
    log_bytes: int
    """Bytes in the current log generation."""
    next_lsn: int
    """Number that the next append will get."""
    producers: int
    """Exactly-once producers that are remembered."""
    is_read_only: bool
    """Whether a failed write of log or journal has ended all writing."""
    damaged_users: int
    """Users whose blocks failed to verify when they were to be merged."""
    appended_events_total: int
    """Events made visible since the start."""
    flushed_events_total: int
    """Events written to blocks since the start."""
    written_bytes_total: int
    """Bytes written to segments since the start."""
    reads_total: int
    """Reads of segments since the start."""
    read_bytes_total: int
    """Bytes of those reads."""


@dataclass(slots=True)
class Counters:
    """What a shard has counted since its start."""

    appended_events: int = 0
    flushed_events: int = 0
    written_bytes: int = 0
    reads: int = 0
    read_bytes: int = 0
